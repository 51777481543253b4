"""What tests of builds share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.building import Builder


@pytest.fixture
def run(tokenizer_dir: Path) -> Builder:
    return Builder(tokenizer_dir)
