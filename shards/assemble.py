"""From packed units to a set: the last shard of each split, and what the manifest says of the splits.

A unit's whole blocks are in a shard of its own already. What it left over (less than a block, in the packing `concat`)
joins the leftovers of the others here, in the order of the units; only the very last block of a split is filled up.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from shards.best_fit import BestFitPacker
from shards.entries import ShardEntry, ShardList, SplitName, TailEntry, TailList, shard_name, shard_number
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
    """Takes what the units add to a split, one after another in their order, and holds none of their tokens.

    Use as a context manager: without `finish`, no last shard is left behind.
    """

    def __init__(self, directory: Path, name: SplitName, *, last_number: int, block_tokens: int, eos_id: int) -> None:
        """`last_number` is the number of the split's last shard, which is written if anything is left over."""
        self._directory, self._name, self._last_number = directory, name, last_number
        self._block_tokens, self._eos_id = block_tokens, eos_id
        self._writer: ShardWriter | None = None
        self._num_left_tokens = 0
        self._left_pieces = array.array("q")
        self._sums = dict.fromkeys(("num_tokens", "num_dropped_tokens", "num_text_bytes", "num_text_chars"), 0)
        self._num_blocks = self._num_documents = 0
        self._shards, self._tails = RowSpool(ShardList, directory), RowSpool(TailList, directory)

    def add(self, unit: int, part: UnitPart) -> None:
        for field in self._sums:
            self._sums[field] += getattr(part, field)
        if part.shard is not None:
            self._add_shard(part.shard)
        tail = part.tail
        if not len(tail.piece_tokens):
            return
        if self._writer is None:
            name = shard_name(self._name, self._last_number)
            self._writer = ShardWriter(self._directory, name, split=self._name, block_tokens=self._block_tokens)
        self._writer.write(tail.tokens)
        self._num_left_tokens += len(tail.tokens)
        self._left_pieces.extend(tail.piece_tokens.tolist())
        entry = TailEntry(unit=unit, split=self._name, num_pieces=len(tail.piece_tokens), continues=tail.continues)
        self._tails.append(TailList.pack(entry))

    def _add_shard(self, shard: ShardEntry) -> None:
        assert shard.name == shard_name(self._name, shard_number(shard.name))
        self._shards.append(ShardList.pack(shard))
        self._num_blocks += shard.num_blocks
        self._num_documents += shard.num_documents

    def finish(self) -> AssembledSplit:
        """Write the last shard, filled up with EOS, and say what the split is."""
        if self._writer is not None:
            num_fill = -self._num_left_tokens % self._block_tokens
            self._writer.write(np.full(num_fill, self._eos_id, dtype=np.uint32))
            pieces = np.array(self._left_pieces, dtype=np.int64)
            self._add_shard(self._writer.finish(contiguous_index(pieces), num_documents=len(pieces)))
        # What the packing leaves out is no document of the set: the numbers are of what the shards hold.
        entry = SplitEntry(
            num_documents=self._num_documents,
            num_blocks=self._num_blocks,
            num_fill_tokens=self._num_blocks * self._block_tokens - self._sums["num_tokens"],
            **self._sums,
        )
        return AssembledSplit(entry=entry, shards=ShardList(self._shards.rows()), tails=TailList(self._tails.rows()))

    def __enter__(self) -> SplitAssembler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.__exit__(kind, error, traceback)


def join_splits(directory: Path, splits: Iterable[AssembledSplit]) -> tuple[ShardList, TailList]:
    """The shards and tails of a whole set; when they are many, in temporary files of `directory` while they are in use."""
    shards, tails = RowSpool(ShardList, directory), RowSpool(TailList, directory)
    for split in splits:
        shards.extend(split.shards.rows)
        tails.extend(split.tails.rows)
    return ShardList(shards.rows()), TailList(tails.rows())


def assemble_split(
    directory: Path,
    name: SplitName,
    parts: Sequence[tuple[int, UnitPart]],
    *,
    last_number: int,
    block_tokens: int,
    eos_id: int,
) -> AssembledSplit:
    """Write the split's last shard, number `last_number`, if anything is left over. `parts`, each with its unit's number,
    are in the units' order."""
    with SplitAssembler(
        directory, name, last_number=last_number, block_tokens=block_tokens, eos_id=eos_id
    ) as assembler:
        for unit, part in parts:
            assembler.add(unit, part)
        return assembler.finish()
