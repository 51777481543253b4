"""What tests of builds share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.pipeline.building import Builder


@pytest.fixture
def run(tokenizer_dir: Path) -> Builder:
    return Builder(tokenizer_dir)


@pytest.fixture
def memory() -> Iterator[Any]:
    """An empty object store in memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()
