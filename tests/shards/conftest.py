"""A small shard set, and what several modules of tests make once each."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.shards.sets import MIXED, PACKINGS, TEXTS, build_set, text_units, tokenizer_files, write_set, write_tokenizer


@pytest.fixture(scope="session")
def packed_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sample's first texts in several shards of blocks of 64 tokens, in each packing; a unit between them is empty."""
    units = text_units(TEXTS[:60], per_unit=12)
    units.insert(2, {})
    directory = tmp_path_factory.mktemp("packed")
    return {packing: write_set(directory / packing, units, packing=packing, block_tokens=64) for packing in PACKINGS}


@pytest.fixture(scope="session")
def built_set(packed_sets: dict[str, Path]) -> Path:
    return packed_sets["concat"]


@pytest.fixture
def own_set(built_set: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    shutil.copytree(built_set, tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture(scope="session", params=PACKINGS)
def mixed_set(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """The mixed texts in several units, in each packing."""
    return build_set(tmp_path_factory.mktemp("mixed"), tokenizer_dir, MIXED, packing=request.param)


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """128 entries, so that ids fit every type; EOS is 127."""
    small = tokenizer_files("small", {f"w{number}": number for number in range(127)}, 127)
    return write_tokenizer(tmp_path_factory.mktemp("small"), small)
