"""A small shard set, built once from the sample corpus."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.build import build
from pipeline.settings import BuildSettings
from tests.conftest import SAMPLE


@pytest.fixture(scope="session")
def built_set(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    out = tmp_path_factory.mktemp("built") / "set"
    settings = BuildSettings(block_tokens=64, unit_bytes=100_000)
    build([str(SAMPLE)], out, tokenizer_name=str(tokenizer_dir), settings=settings, num_workers=2)
    return out


@pytest.fixture
def own_set(built_set: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    shutil.copytree(built_set, tmp_path / "set")
    return tmp_path / "set"
