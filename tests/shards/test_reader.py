"""Blocks and documents as they lie in the files."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import shards
from pipeline.build import build
from pipeline.settings import BuildSettings
from tests.conftest import REPOSITORY, SAMPLE


def bare_blocks(directory: Path, split: str) -> np.ndarray:
    """What a reader of one line sees: all `.bin` files of the split, one behind the other."""
    paths = sorted(directory.glob(f"{split}-*.bin"))
    return np.concatenate([np.memmap(path, "<u4").reshape(-1, 64) for path in paths])


@pytest.mark.parametrize("name", ["train", "val"])
def test_blocks_are_what_a_bare_memory_map_sees(built_set: Path, name: str) -> None:
    split, bare = shards.open(built_set)[name], bare_blocks(built_set, name)
    assert len(split) == len(bare) > len(split.shards) > 1
    assert np.array_equal(split[:], bare)
    assert all(np.array_equal(split[number], bare[number]) for number in range(len(split)))
    numbers = np.random.default_rng(0).integers(0, len(split), 100)
    assert np.array_equal(split[numbers], bare[numbers])
    assert np.array_equal(split[-1], bare[-1]) and np.array_equal(split[numbers - len(split)], bare[numbers])
    assert np.array_equal(split[5:2:-1], bare[5:2:-1])
    assert split[np.array([], dtype=np.int64)].shape == (0, 64) and split[3:3].shape == (0, 64)


def test_sets_and_splits_are_copied_and_pickled_by_their_path(built_set: Path) -> None:
    opened = shards.open(built_set)
    split = opened["train"]
    blocks = split[np.array([3, 1])]  # maps all shards
    for other in (pickle.loads(pickle.dumps(split)), copy.deepcopy(split), pickle.loads(pickle.dumps(opened))["train"]):
        assert np.array_equal(other[np.array([3, 1])], blocks) and len(other) == len(split)
    assert len(pickle.dumps(split)) < 1000
    with pytest.raises(TypeError, match="not to be copied"):
        pickle.dumps(split._rows)


def test_gathering_is_the_same_where_shards_are_mapped_one_by_one(
    built_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = np.random.default_rng(1).integers(-5, 90, 50)
    expected = shards.open(built_set)["train"][numbers]
    monkeypatch.setattr("shards.reader._MAX_MAPPED_AT_ONCE", 0)
    assert np.array_equal(shards.open(built_set)["train"][numbers], expected)


def test_single_blocks_are_read_only_views(built_set: Path) -> None:
    split = shards.open(built_set)["train"]
    assert split[0].base is not None and not split[0].flags.writeable
    assert split[0].dtype == np.uint32
    assert np.shares_memory(split[0], split[0:2])


@pytest.mark.parametrize("key", [10**6, -(10**6)])
def test_blocks_that_do_not_exist_are_refused(built_set: Path, key: int) -> None:
    split = shards.open(built_set)["train"]
    with pytest.raises(IndexError, match="blocks"):
        split[key]
    with pytest.raises(IndexError, match="must lie in"):
        split[np.array([0, key])]
    with pytest.raises(IndexError, match="expected a 1-D array"):
        split[np.array([0.5])]


def test_documents_hold_every_token_once(built_set: Path) -> None:
    split = shards.open(built_set)["train"]
    documents = list(split.documents())
    assert len(documents) == split.num_documents
    assert sum(len(document) + 1 for document in documents) == split.num_tokens
    assert not any((document == 599).any() for document in documents)  # EOS is the last id of this tokenizer


def test_an_unknown_split_is_named_with_the_nearest(built_set: Path) -> None:
    with pytest.raises(KeyError, match="no split 'trian': this set has train, val; did you mean 'train'"):
        shards.open(built_set)["trian"]


def test_an_epoch_visits_each_block_once(built_set: Path) -> None:
    split = shards.open(built_set)["train"]
    order = split.epoch(seed=2333, epoch=1)
    assert sorted(order.tolist()) == list(range(len(split)))
    assert np.array_equal(split.epoch(2333, 1, 10, 20), order[10:20])


def test_megatrons_layout_byte_for_byte(built_set: Path) -> None:
    """The index read by hand, field after field, as Megatron-Core's IndexedDataset reads it."""
    for path in built_set.glob("*.idx"):
        content = path.read_bytes()
        assert content[:9] == b"MMIDIDX\x00\x00"
        assert np.frombuffer(content, "<u8", 1, 9)[0] == 1
        assert content[17] == 4
        num_pieces, num_boundaries = np.frombuffer(content, "<u8", 2, 18)
        lengths = np.frombuffer(content, "<i4", num_pieces, 34)
        offsets = np.frombuffer(content, "<i8", num_pieces, 34 + lengths.nbytes)
        boundaries = np.frombuffer(content, "<i8", num_boundaries, 34 + lengths.nbytes + offsets.nbytes)
        assert len(content) == 34 + 12 * num_pieces + 8 * num_boundaries
        tokens = np.fromfile(path.with_suffix(".bin"), "<u4")
        assert boundaries.tolist() == list(range(num_pieces + 1))
        assert (tokens[offsets // 4 + lengths - 1] == 599)[:-1].all()
        assert offsets.tolist() == [0, *np.cumsum(lengths[:-1] * 4).tolist()]


@pytest.mark.parametrize("block_tokens", [8, 48, 1000, 1024, 2048])
def test_batches_are_gathered_across_shards_for_any_block_size(
    tmp_path: Path, tokenizer_dir: Path, block_tokens: int, inline_engine: None
) -> None:
    """Blocks that divide a page, that a page divides, and neither."""
    settings = BuildSettings(block_tokens=block_tokens, unit_bytes=60_000)
    build([str(SAMPLE)], tmp_path / "set", tokenizer_name=str(tokenizer_dir), settings=settings, num_workers=1)
    split = shards.open(tmp_path / "set")["train"]
    assert len(split.shards) > 3
    bare = np.concatenate([np.fromfile(path, "<u4") for path in sorted((tmp_path / "set").glob("train-*.bin"))])
    numbers = np.random.default_rng(0).permutation(len(split))[:500]
    assert np.array_equal(split[numbers], bare.reshape(-1, block_tokens)[numbers])


def test_a_set_of_more_shards_than_a_process_may_open_files(tmp_path: Path, tokenizer_dir: Path) -> None:
    settings = BuildSettings(block_tokens=16, unit_bytes=1000)
    build([str(SAMPLE)], tmp_path / "set", tokenizer_name=str(tokenizer_dir), settings=settings, num_workers=1)
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
import numpy, shards
train = shards.open({str(tmp_path / "set")!r})["train"]
assert len(train.shards) > 100, len(train.shards)
numbers = numpy.arange(len(train))[::-7]
blocks = train[numbers]
assert all((train[int(number)] == block).all() for number, block in zip(numbers, blocks))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
