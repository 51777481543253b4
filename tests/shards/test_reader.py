"""Packing, the index and the reader: documents read back are those written, and blocks lie in the files as they are."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
import resource
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shards
from shards import packing
from shards.common.errors import InputError
from shards.index import HEADER, Index, contiguous_index, encode_index, padding_positions, read_index
from shards.layout import SPLITS
from shards.packing import best_fit_decreasing
from shards.verify import verify
from shards.writer import ShardWriter
from tests.conftest import REPOSITORY
from tests.shards.sets import EOS, PACKINGS, Unit, documents_of, write_set

documents = st.lists(st.lists(st.integers(0, 255), max_size=40), max_size=12)


@settings(max_examples=30)
@given(data=st.data())
def test_documents_read_back_are_documents_written(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    unit: st.SearchStrategy[Unit] = st.fixed_dictionaries({"train": documents, "val": documents})
    units = data.draw(st.lists(unit, min_size=1, max_size=4))
    own, block_tokens = data.draw(st.sampled_from(PACKINGS)), data.draw(st.integers(1, 20))
    expected = {name: [ids for unit in units for ids in unit[name]] for name in SPLITS}
    if not any(expected.values()):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "WINDOW_TOKENS", data.draw(st.sampled_from([1, 30, 1 << 24])))
        out = write_set(tmp_path_factory.mktemp("set") / "set", units, packing=own, block_tokens=block_tokens)
    assert verify(out) == []
    for name in SPLITS:
        split, written = shards.open(out)[name], expected[name]
        assert documents_of(out, name) == written
        assert [split.document(number).tolist() for number in range(len(written))] == written
        num_tokens = sum(len(ids) + 1 for ids in written)
        assert (split.num_documents, split.num_tokens) == (len(written), num_tokens)
        assert split.num_padding_tokens == len(split) * block_tokens - num_tokens
        for shard in split.shards if own == "concat" else ():
            # The documents of a unit in one row, and after them EOS to the end of a block.
            row = [token for ids in units[int(shard.name[-5:])][name] for token in (*ids, EOS)]
            row += [EOS] * (-len(row) % block_tokens)
            assert np.fromfile(out / f"{shard.name}.bin", "<u4").tolist() == row


def test_a_unit_without_documents_of_a_split_has_no_shard_of_it(tmp_path: Path) -> None:
    out = write_set(tmp_path / "set", [{"train": [[1]]}, {"val": [[2]]}, {}, {"train": [[3]], "val": []}])
    assert [shard.name for shard in shards.open(out).manifest.shards] == ["train-00000", "train-00003", "val-00001"]
    with pytest.raises(InputError, match="no document is left; nothing to write"):
        write_set(tmp_path / "empty", [{}])
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@given(lengths=st.lists(st.integers(1, 16), max_size=60))
def test_best_fit_puts_every_sequence_into_one_block_with_room(lengths: list[int]) -> None:
    blocks = best_fit_decreasing(lengths, 16)
    assert sorted(itertools.chain.from_iterable(blocks)) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in block) <= 16 for block in blocks)
    # The tightest block with room: no two blocks could be one.
    sums = sorted(sum(lengths[number] for number in block) for block in blocks)
    assert len(sums) < 2 or sums[0] + sums[1] > 16


def test_best_fit_takes_the_fullest_block_with_room() -> None:
    assert best_fit_decreasing([10, 9, 5, 4, 2], 16) == [[0, 2], [1, 3, 4]]


def test_best_fit_cuts_no_document_that_fits_a_block(tmp_path: Path) -> None:
    written = [[1] * n for n in (3, 15, 16, 40, 2, 31, 7)]
    split = shards.open(write_set(tmp_path / "set", [{"train": written}], packing="best-fit"))["train"]
    index = split.shard_index(0)
    assert np.diff(index.boundaries).tolist() == [1, 1, 2, 2, 1, 1, 1]
    assert (index.starts // 16 == (index.ends - 1) // 16)[index.lengths <= 16].all()


def test_what_waits_for_its_block_keeps_no_batch_in_memory(tmp_path: Path) -> None:
    document = np.ones(1 << 18, np.uint32)
    with ShardWriter(tmp_path, "train", 0, block_tokens=4) as writer:
        packer = packing.BestFitPacker(writer, 1)
        tracemalloc.start()
        for _ in range(20):
            packer.add(document[1:].copy(), np.array([len(document) - 1]), num_text_bytes=0, num_text_chars=0)
        _now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 3 * document.nbytes


def test_a_document_too_long_for_an_index_is_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", 0, block_tokens=4) as writer:
        packer = packing.ConcatPacker(writer, 1)
        with pytest.raises(InputError, match="a document of 2,147,483,648 tokens, EOS included; an index takes fewer"):
            packer.add(np.empty(0, np.uint32), np.array([2**31]), num_text_bytes=0, num_text_chars=0)


def test_best_fit_fills_the_blocks_of_each_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "WINDOW_TOKENS", 32)  # four documents of half a block
    path = write_set(tmp_path / "set", [{"train": [[1] * 7] * 10}], packing="best-fit", block_tokens=16)
    assert len(shards.open(path)["train"]) == 5


def test_an_offset_between_two_tokens_is_refused(tmp_path: Path) -> None:
    content = bytearray(encode_index(contiguous_index(np.array([2, 1]))))
    content[HEADER.size + 4 * 2 + 8] += 1
    (tmp_path / "a.idx").write_bytes(content)
    with pytest.raises(InputError, match="byte offset is not a multiple of 4"):
        read_index(tmp_path / "a.idx", num_sequences=2, num_documents=2, num_tokens=3, room_tokens=4)


WRONG_INDEXES = {
    "a length of 0": (Index(np.array([3, 0]), np.array([0, 3]), np.array([0, 1, 2])), "a sequence without tokens"),
    "another sum": (contiguous_index(np.array([2, 2])), "sequences of 4 tokens, expected 3"),
    "an overlap": (Index(np.array([2, 1]), np.array([0, 1]), np.array([0, 1, 2])), "overlap, or lie outside"),
    "before the shard": (Index(np.array([2, 1]), np.array([-1, 1]), np.array([0, 1, 2])), "overlap, or lie outside"),
    "after the shard": (Index(np.array([2, 1]), np.array([0, 4]), np.array([0, 1, 2])), "lie outside the 4 tokens"),
    "an empty document": (Index(np.array([2, 1]), np.array([0, 2]), np.array([0, 2, 2])), "don't rise from 0 to 2"),
    "a late begin": (Index(np.array([2, 1]), np.array([0, 2]), np.array([1, 1, 2])), "don't rise from 0 to 2"),
    "another number": (contiguous_index(np.array([3])), "2 sequences and 2 documents, 82 bytes, found another"),
}


@pytest.mark.parametrize("name", WRONG_INDEXES)
def test_an_index_that_is_not_of_such_a_shard_is_refused(tmp_path: Path, name: str) -> None:
    index, expected = WRONG_INDEXES[name]
    (tmp_path / "a.idx").write_bytes(encode_index(index))
    with pytest.raises(InputError, match=expected):
        read_index(tmp_path / "a.idx", num_sequences=2, num_documents=2, num_tokens=3, room_tokens=4)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20), seed=st.integers(0, 99), gap=st.integers(0, 3))
def test_padding_is_what_lies_in_no_sequence(lengths: list[int], seed: int, gap: int) -> None:
    order = np.random.default_rng(seed).permutation(len(lengths))
    starts, position = np.empty(len(lengths), dtype=np.int64), 0
    for number in order.tolist():
        starts[number], position = position + gap, position + gap + lengths[number]
    index = Index(np.array(lengths), starts, np.arange(len(lengths) + 1))
    covered = {
        token for start, length in zip(starts.tolist(), lengths, strict=True) for token in range(start, start + length)
    }
    assert padding_positions(index, position + 2).tolist() == sorted({*range(position + 2)} - covered)


# ---- the reader ----


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
        assert np.array_equal(split.epoch(2333, 1, 2, 4), shards.epoch_order(len(bare), 2333, 1, [2, 3]))
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


def test_in_later_epochs_offset_blocks_begin_later_on_the_ring_of_each_shard(
    built_set: Path, many_shards: Path
) -> None:
    """So each epoch has every token once."""
    for split in (shards.open(built_set)["train"], shards.open(many_shards)["train"]):
        for epoch in (0, 1, 7):
            found = split.offset_blocks(epoch * len(split) + np.arange(len(split)))
            later = epoch * round(split.block_tokens * 0.618)
            rings = [np.roll(split.shard_blocks(number), -later) for number in range(len(split.shards))]
            assert np.array_equal(found, np.concatenate(rings))


def test_a_block_and_a_slice_within_a_shard_are_read_only_views(built_set: Path) -> None:
    split = shards.open(built_set)["train"]
    for view in (split[0], split[1:3], split[np.int64(2)]):
        assert np.shares_memory(view, split.shard_blocks(0)) and not view.flags.writeable
    assert len(split[5:2]) == 0 and split[[]].shape == (0, 64)


@pytest.mark.parametrize("key", [10**6, -(10**6), [0, 10**6], np.array([-(10**6)]), np.array([0.5]), np.array([[1]])])
def test_blocks_that_are_not_there_are_an_index_error(built_set: Path, key: int | list[int] | np.ndarray) -> None:
    split = shards.open(built_set)["train"]
    with pytest.raises(IndexError):
        split[key]
    with pytest.raises(IndexError, match=rf"block numbers must lie in 0 … {len(split) - 1:,} \(split 'train'\)"):
        split[len(split)]


def test_more_shards_than_files_may_be_open(many_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps beyond half of the limit are given up, the oldest first, also while a batch is gathered; of all mixed sets."""
    shutil.copytree(many_shards, tmp_path / "other")
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
import numpy, shards
train = shards.open_data({f"{many_shards},{tmp_path / 'other'}"!r})["train"]
assert len(train.shards) == 260
numbers = numpy.arange(len(train))[::-1]
blocks = train[numbers]
assert sum(own is not None for own in train._maps) == 50
assert all((train[int(number)] == block).all() for number, block in zip(numbers, blocks))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert shards.open(many_shards)["train"]._max_mapped > 1000


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_document_by_its_number(packed_sets: dict[str, Path], packing: str) -> None:
    split = shards.open(packed_sets[packing])["train"]
    size = split.num_documents
    assert [split.document(number - size).tolist() for number in range(size)] == [*map(list, split.documents())]
    for number in (size, -size - 1):
        with pytest.raises(IndexError, match=rf"document {number:,}: split 'train' has {size} documents"):
            split.document(number)


def test_an_unknown_split_is_named_with_the_nearest(built_set: Path) -> None:
    with pytest.raises(KeyError, match="no split 'trian': this set has train, val; did you mean 'train'"):
        shards.open(built_set)["trian"]


def test_an_empty_split_has_nothing_and_says_so(tmp_path: Path) -> None:
    split = shards.open(write_set(tmp_path / "set", [{"train": [[1]]}]))["val"]
    assert (len(split), split.num_documents, list(split.documents()), split[:].shape) == (0, 0, [], (0, 16))
    with pytest.raises(ValueError, match="num_blocks: expected 1 to"):
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
    path.unlink()
    with pytest.raises(InputError, match=f"{path.name}: no such file"):
        split[:]
