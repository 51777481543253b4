"""Blocks and documents as they lie in the files."""

from __future__ import annotations

import copy
import functools
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shards
from shards.common.errors import InputError
from shards.manifest import Packing
from tests.conftest import REPOSITORY
from tests.shards.sets import EOS, TEXTS, documents_of, text_units, write_set


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """130 shards of train and 4 of val."""
    rng = np.random.default_rng(0)
    units = [{"train": [rng.integers(0, 256, rng.integers(1, 60)).tolist()]} for _ in range(130)]
    units += [{"val": [[7] * 20]} for _ in range(4)]
    return write_set(tmp_path_factory.mktemp("many") / "set", units)  # type: ignore[arg-type]


def bare_blocks(directory: Path, split: str) -> np.ndarray:
    """What a bare reader sees."""
    tokens = np.concatenate([np.fromfile(path, "<u4") for path in sorted(directory.glob(f"{split}-*.bin"))])
    return tokens.reshape(-1, shards.open(directory).block_tokens)


@functools.cache
def opened(directory: Path) -> tuple[shards.Split, np.ndarray]:
    return shards.open(directory)["train"], bare_blocks(directory, "train")


def test_blocks_are_the_files_bytes(built_set: Path) -> None:
    for name in ("train", "val"):
        split, bare = shards.open(built_set)[name], bare_blocks(built_set, name)
        assert len(split) == len(bare) and len(split.shards) > 1
        assert all(np.array_equal(split[number], bare[number]) for number in range(len(bare)))
        assert np.array_equal(split[:], bare)
    assert split[0].dtype == np.dtype("<u4") and split[0].shape == (64,)


@given(data=st.data())
def test_any_slice_and_any_list_of_numbers_is_that_of_an_array(many_shards: Path, data: st.DataObject) -> None:
    split, bare = opened(many_shards)
    part = data.draw(st.slices(len(bare)))
    assert np.array_equal(split[part], bare[part])
    numbers = data.draw(st.lists(st.integers(-len(bare), len(bare) - 1), max_size=100))
    whole = np.array(numbers, dtype=data.draw(st.sampled_from(["<i8", "<i4", "<i2"])))
    for key in (numbers, whole):
        found = split[key]
        assert found.dtype == np.uint32 and np.array_equal(found, bare[whole.astype(np.int64)])
        found[:] = 0  # a copy of one's own
    assert np.array_equal(split[:], bare)


def test_a_block_and_a_slice_within_a_shard_are_read_only_views(built_set: Path) -> None:
    split = shards.open(built_set)["train"]
    for view in (split[0], split[1:3], split[np.int64(2)]):
        assert np.shares_memory(view, split.shard_blocks(0)) and not view.flags.writeable
    assert len(split[5:2]) == 0 and split[[]].shape == (0, 64)


@pytest.mark.parametrize("key", [10**6, -(10**6), [0, 10**6], np.array([-(10**6)]), np.array([0.5]), np.array([[1]])])
def test_blocks_that_are_not_there_are_an_index_error(built_set: Path, key: int | list[int] | np.ndarray) -> None:
    with pytest.raises(IndexError):
        shards.open(built_set)["train"][key]


def test_the_last_block_and_those_around_the_ends_of_shards(built_set: Path) -> None:
    split, bare = shards.open(built_set)["train"], bare_blocks(built_set, "train")
    ends = [split.first_block(number) for number in range(len(split.shards) + 1)]
    assert ends[0] == 0 and ends[-1] == len(split)
    for number in (*ends[:-1], *(end - 1 for end in ends[1:]), -1):
        assert np.array_equal(split[number], bare[number])
    with pytest.raises(IndexError, match=rf"block numbers must lie in 0 … {len(split) - 1:,} \(split 'train'\)"):
        split[len(split)]


def test_more_shards_than_files_that_may_be_open(many_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps beyond half of the limit are given up, the oldest first, also while a batch is gathered from many shards."""
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
import numpy, shards
train = shards.open({str(many_shards)!r})["train"]
assert len(train.shards) == 130
numbers = numpy.arange(len(train))[::-1]
blocks = train[numbers]
assert sum(own is not None for own in train._maps) == 50
assert all((train[int(number)] == block).all() for number, block in zip(numbers, blocks))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert shards.open(many_shards)["train"]._max_mapped > 1000


def test_documents_hold_every_token_once(built_set: Path) -> None:
    for name in ("train", "val"):
        split = shards.open(built_set)[name]
        documents = list(split.documents())
        assert len(documents) == split.num_documents
        assert sum(len(document) + 1 for document in documents) == split.num_tokens
        assert not any((document == EOS).any() for document in documents)
    train = [ids for unit in text_units(TEXTS[:60], per_unit=12) for ids in unit["train"]]
    assert documents_of(built_set, "train") == train


@pytest.mark.parametrize("packing", ["concat", "best-fit"])
def test_a_document_by_its_number(tmp_path: Path, packing: Packing) -> None:
    split = shards.open(write_set(tmp_path / "set", text_units(TEXTS[:40], per_unit=10), packing=packing))["train"]
    documents = [document.tolist() for document in split.documents()]
    assert [split.document(number).tolist() for number in range(len(documents))] == documents
    assert split.document(-1).tolist() == documents[-1]
    for number in (len(documents), -len(documents) - 1):
        with pytest.raises(IndexError, match=rf"document {number:,}: split 'train' has {len(documents)} documents"):
            split.document(number)


def test_an_unknown_split_is_named_with_the_nearest(built_set: Path) -> None:
    with pytest.raises(KeyError, match="no split 'trian': this set has train, val; did you mean 'train'"):
        shards.open(built_set)["trian"]


def test_an_epoch_visits_each_block_once(built_set: Path) -> None:
    split = shards.open(built_set)["train"]
    order = split.epoch(seed=2333, epoch=1)
    assert sorted(order.tolist()) == list(range(len(split)))
    assert np.array_equal(split.epoch(2333, 1, 10, 20), order[10:20])


def test_an_empty_split_has_nothing_and_says_so(tmp_path: Path) -> None:
    split = shards.open(write_set(tmp_path / "set", [{"train": [[1]]}]))["val"]
    assert (len(split), split.num_documents, list(split.documents()), split[:].shape) == (0, 0, [], (0, 16))
    with pytest.raises(ValueError, match="split 'val' has no blocks"):
        split.epoch(2333, 0)
    for key in (0, -1, [0]):
        with pytest.raises(IndexError, match="split 'val'"):
            split[key]
    with pytest.raises(IndexError, match="split 'val' has 0 documents"):
        split.document(0)


def test_a_split_is_opened_again_in_another_process(built_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built_set.parent)
    split = shards.open(built_set.name)["val"]
    pickled = pickle.dumps(split)
    assert len(pickled) < 1000
    monkeypatch.chdir("/")
    for again in (pickle.loads(pickled), copy.deepcopy(shards.open(built_set)["val"])):
        assert np.array_equal(again[:], shards.open(built_set)["val"][:])


def test_a_file_that_shrank_since_is_named(own_set: Path) -> None:
    split = shards.open(own_set)["train"]
    path = own_set / f"{split.shards[1].name}.bin"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match=f"{path.name}: the file has changed since the set was opened"):
        split[:]
