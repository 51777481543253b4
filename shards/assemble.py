"""From packed units to a set: the last shard of each split, and what the manifest says of the splits.

A unit's whole blocks are in a shard of its own already. What it left over (less than a block, in the packing `concat`)
joins the leftovers of the others here, in the order of the units; only the very last block of a split is filled up.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.best_fit import BestFitPacker
from shards.entries import ShardEntry, ShardList, TailEntry, TailList, shard_name, shard_number
from shards.index import contiguous_index
from shards.manifest import SplitEntry
from shards.packing import ConcatPacker, Packer, Tail, TutorialPacker
from shards.tables import RowSpool
from shards.writer import ShardWriter

PACKERS: dict[str, Callable[..., Packer]] = {
    "concat": ConcatPacker,
    "best-fit": BestFitPacker,
    "tutorial": TutorialPacker,
}


@dataclass(frozen=True, kw_only=True)
class UnitPart:
    """What one unit adds to a split."""

    shard: ShardEntry | None
    tail: Tail
    num_tokens: int  # EOS included, dropped ones not
    num_dropped_tokens: int
    num_text_bytes: int
    num_text_chars: int


@dataclass(frozen=True, kw_only=True)
class AssembledSplit:
    """What the manifest says of one split."""

    entry: SplitEntry
    shards: ShardList
    tails: TailList


class SplitAssembler:
    """Takes what the units add to a split, one after another in their order, and holds none of their tokens."""

    def __init__(self, writer: ShardWriter, eos_id: int) -> None:
        """`writer` writes the split's last shard, if anything is left over."""
        self._writer, self._eos_id = writer, eos_id
        self._left_pieces = array.array("q")
        self._sums = dict.fromkeys(("num_tokens", "num_dropped_tokens", "num_text_bytes", "num_text_chars"), 0)
        self._num_blocks = self._num_documents = 0
        self._shards, self._tails = (RowSpool(kind, writer.directory) for kind in (ShardList, TailList))

    def add(self, unit: int, part: UnitPart) -> None:
        for field in self._sums:
            self._sums[field] += getattr(part, field)
        if part.shard is not None:
            self._add_shard(part.shard)
        tail = part.tail
        if not len(tail.piece_tokens):
            return
        self._writer.write(tail.tokens)
        self._left_pieces.extend(tail.piece_tokens.tolist())
        num_pieces, split = len(tail.piece_tokens), self._writer.split
        entry = TailEntry(unit=unit, split=split, num_pieces=num_pieces, continues=tail.continues)
        self._tails.append(TailList.pack(entry))

    def _add_shard(self, shard: ShardEntry) -> None:
        assert shard.name == shard_name(self._writer.split, shard_number(shard.name))
        self._shards.append(ShardList.pack(shard))
        self._num_blocks += shard.num_blocks
        self._num_documents += shard.num_documents

    def finish(self) -> AssembledSplit:
        """Write the last shard, filled up with EOS, and say what the split is."""
        block_tokens = self._writer.block_tokens
        if num_left := self._writer.num_tokens:
            self._writer.write(np.full(-num_left % block_tokens, self._eos_id, dtype=np.uint32))
        last = self._writer.finish(contiguous_index(np.array(self._left_pieces, dtype=np.int64)))
        if last is not None:
            self._add_shard(last)
        # What the packing leaves out is no document of the set: the numbers are of what the shards hold.
        entry = SplitEntry(
            num_documents=self._num_documents,
            num_blocks=self._num_blocks,
            num_fill_tokens=self._num_blocks * block_tokens - self._sums["num_tokens"],
            **self._sums,
        )
        return AssembledSplit(entry=entry, shards=ShardList(self._shards.rows()), tails=TailList(self._tails.rows()))


def join_splits(directory: Path, splits: Iterable[AssembledSplit]) -> tuple[ShardList, TailList]:
    """The shards and tails of a whole set; when they are many, in temporary files of `directory` while they are in use."""
    shards, tails = RowSpool(ShardList, directory), RowSpool(TailList, directory)
    for split in splits:
        shards.extend(split.shards.rows)
        tails.extend(split.tails.rows)
    return ShardList(shards.rows()), TailList(tails.rows())
