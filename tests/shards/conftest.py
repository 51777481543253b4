"""A small shard set, and what several modules of tests make once each."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.shards.foreign_files import write_tokenizer
from tests.shards.report_sets import MIXED, build_set
from tests.shards.sets import TEXTS, text_units, write_set


@pytest.fixture(scope="session")
def built_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's first texts in several shards of blocks of 64 tokens."""
    return write_set(tmp_path_factory.mktemp("built") / "set", text_units(TEXTS[:60], per_unit=12), block_tokens=64)


@pytest.fixture
def own_set(built_set: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    shutil.copytree(built_set, tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture(scope="module", params=["concat", "best-fit"])
def mixed_set(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """The mixed texts in several units, in each packing."""
    return build_set(tmp_path_factory.mktemp("mixed"), tokenizer_dir, MIXED, packing=request.param)


@pytest.fixture(scope="module")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """128 entries, so that ids fit every type; EOS is 127."""
    return write_tokenizer(tmp_path_factory.mktemp("small"), {f"w{number}": number for number in range(127)}, 127)


@pytest.fixture
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small files, and no power failure."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
