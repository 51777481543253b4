"""Packing and the index: documents read back are those written, and Megatron's layout byte for byte."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shards
from shards import packing
from shards.common.errors import InputError
from shards.index import Index, contiguous_index, encode_index, padding_positions, read_index
from shards.layout import SPLITS, SplitName
from shards.manifest import Packing
from shards.packing import best_fit_decreasing
from shards.verify import verify
from tests.shards.sets import EOS, PACKINGS, Documents, documents_of, write_set

documents = st.lists(st.lists(st.integers(0, 255), max_size=40), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    units=st.lists(st.fixed_dictionaries({"train": documents, "val": documents}), min_size=1, max_size=4),
    own=st.sampled_from(PACKINGS),
    block_tokens=st.integers(1, 20),
    window_tokens=st.sampled_from([1, 30, 1 << 24]),
)
def test_documents_read_back_are_documents_written(
    tmp_path_factory: pytest.TempPathFactory,
    no_flushing: None,
    units: list[dict[SplitName, Documents]],
    own: Packing,
    block_tokens: int,
    window_tokens: int,
) -> None:
    expected = {name: [ids for unit in units for ids in unit[name]] for name in ("train", "val")}
    if not any(expected.values()):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "WINDOW_TOKENS", window_tokens)
        out = write_set(tmp_path_factory.mktemp("set") / "set", units, packing=own, block_tokens=block_tokens)
    assert verify(out) == []
    for name in SPLITS:
        split, written = shards.open(out)[name], expected[name]
        assert documents_of(out, name) == written
        assert [split.document(number).tolist() for number in range(len(written))] == written
        num_tokens = sum(len(ids) + 1 for ids in written)
        assert (split.num_documents, split.num_tokens) == (len(written), num_tokens)
        assert split.num_padding_tokens == len(split) * block_tokens - num_tokens
        if own == "concat":
            # The documents of a unit in one row, and after them EOS to the end of a block.
            for shard in split.shards:
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


def test_megatrons_layout_byte_for_byte(built_set: Path) -> None:
    """The index read by hand, field after field, as Megatron-Core's IndexedDataset reads it."""
    for path in built_set.glob("*.idx"):
        content = path.read_bytes()
        assert content[:9] == b"MMIDIDX\x00\x00"
        assert np.frombuffer(content, "<u8", 1, 9)[0] == 1
        assert content[17] == 4
        num_sequences, num_boundaries = np.frombuffer(content, "<u8", 2, 18)
        lengths = np.frombuffer(content, "<i4", num_sequences, 34)
        offsets = np.frombuffer(content, "<i8", num_sequences, 34 + lengths.nbytes)
        boundaries = np.frombuffer(content, "<i8", num_boundaries, 34 + lengths.nbytes + offsets.nbytes)
        assert len(content) == 34 + 12 * num_sequences + 8 * num_boundaries
        tokens = np.fromfile(path.with_suffix(".bin"), "<u4")
        assert boundaries.tolist() == list(range(num_sequences + 1))
        assert (tokens[offsets // 4 + lengths - 1] == EOS).all()
        assert offsets.tolist() == [0, *np.cumsum(lengths[:-1] * 4).tolist()]


WRONG_INDEXES = {
    "a length of 0": (Index(np.array([3, 0]), np.array([0, 3]), np.array([0, 1, 2])), "sequence 1 has 0 tokens"),
    "another sum": (contiguous_index(np.array([2, 2])), "the sequences hold 4 tokens, expected 3"),
    "an overlap": (Index(np.array([2, 1]), np.array([0, 1]), np.array([0, 1, 2])), "overlap, or lie outside"),
    "before the shard": (Index(np.array([2, 1]), np.array([-1, 1]), np.array([0, 1, 2])), "overlap, or lie outside"),
    "after the shard": (Index(np.array([2, 1]), np.array([0, 4]), np.array([0, 1, 2])), "lie outside the 4 tokens"),
    "an empty document": (Index(np.array([2, 1]), np.array([0, 2]), np.array([0, 2, 2])), "that rise from 0 to 2"),
    "no sequence missing": (Index(np.array([2, 1]), np.array([0, 2]), np.array([0, 1, 1])), "that rise from 0 to 2"),
    "a late begin": (Index(np.array([2, 1]), np.array([0, 2]), np.array([1, 1, 2])), "that rise from 0 to 2"),
    "another number": (contiguous_index(np.array([3])), "2 sequences and 2 documents has 82 bytes, the file has 62"),
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
