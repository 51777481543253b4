"""Packing: nothing lost, and the pieces are where the index says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.index import read_index
from shards.packing import ConcatPacker, cut_lengths
from shards.writer import ShardWriter


def test_the_example_of_the_module() -> None:
    cut = cut_lengths(np.array([4, 3, 2]), 8)
    assert cut.shard_pieces.tolist() == [4, 3, 1]
    assert cut.tail_pieces.tolist() == [1] and cut.continues


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(st.integers(1, 30), max_size=6), max_size=5), block_tokens=st.integers(2, 16))
def test_shard_and_tail_together_are_the_documents(tmp_path: Path, batches: list[list[int]], block_tokens: int) -> None:
    lengths = np.array([length for batch in batches for length in batch], dtype=np.int64)
    tokens = np.arange(lengths.sum(), dtype=np.uint32)
    with ShardWriter(tmp_path, "train", 7, block_tokens=block_tokens) as writer:
        packer, start = ConcatPacker(writer, eos_id=0), 0
        for batch in batches:
            packer.add(tokens[start : start + sum(batch)], np.array(batch, dtype=np.int64))
            start += sum(batch)
        packed = packer.finish()
        entry, tail = packed.shard, packed.tail
    num_kept = len(tokens) // block_tokens * block_tokens
    assert np.array_equal(tail.tokens, tokens[num_kept:])
    assert (entry is None) == (num_kept == 0)
    pieces = np.empty(0, dtype=np.int64)
    if entry is not None:
        path = tmp_path / "train-00007.bin"
        assert np.array_equal(np.fromfile(path, "<u4"), tokens[:num_kept])
        pieces = read_index(
            path.with_suffix(".idx"),
            num_pieces=entry.num_pieces,
            num_documents=entry.num_index_documents,
            num_tokens=num_kept,
            room_tokens=num_kept,
        ).lengths
        path.unlink()
    joined = [*pieces.tolist(), *tail.piece_tokens.tolist()]
    if tail.continues:
        place = len(pieces) - 1
        joined[place : place + 2] = [joined[place] + joined[place + 1]]
    assert joined == lengths.tolist()
    assert not list(tmp_path.glob("*.tmp"))
