"""From packed units to a set: the last shard of each split, and what the manifest says of the splits.

A unit's whole blocks are in a shard of its own already. What it left over (less than a block, in the packing `concat`)
joins the leftovers of the others here, in the order of the units; only the very last block of a split is filled up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.best_fit import BestFitPacker
from shards.index import contiguous_index
from shards.manifest import ShardEntry, SplitEntry, SplitName, TailEntry
from shards.packing import ConcatPacker, Packer, Tail, TutorialPacker
from shards.writer import ShardWriter, shard_name

PACKERS: dict[str, Callable[..., Packer]] = {
    "concat": ConcatPacker,
    "best-fit": BestFitPacker,
    "tutorial": TutorialPacker,
}


@dataclass(frozen=True, kw_only=True)
class UnitPart:
    """What one unit adds to a split."""

    unit: int
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
    shards: list[ShardEntry]
    tails: list[TailEntry]


def assemble_split(
    directory: Path, name: SplitName, parts: Sequence[UnitPart], *, last_number: int, block_tokens: int, eos_id: int
) -> AssembledSplit:
    """Write the split's last shard, number `last_number`, if anything is left over. `parts` are in the units' order."""
    members = [part.shard for part in parts if part.shard is not None]
    last = _write_last_shard(directory, name, parts, last_number, block_tokens, eos_id)
    members += [last] if last is not None else []
    num_blocks = sum(shard.num_blocks for shard in members)
    num_tokens = sum(part.num_tokens for part in parts)
    # What the packing leaves out is no document of the set: the numbers are of what the shards hold.
    entry = SplitEntry(
        num_documents=sum(shard.num_documents for shard in members),
        num_tokens=num_tokens,
        num_blocks=num_blocks,
        num_fill_tokens=num_blocks * block_tokens - num_tokens,
        num_dropped_tokens=sum(part.num_dropped_tokens for part in parts),
        num_text_bytes=sum(part.num_text_bytes for part in parts),
        num_text_chars=sum(part.num_text_chars for part in parts),
    )
    tails = [
        TailEntry(unit=part.unit, split=name, num_pieces=len(part.tail.piece_tokens), continues=part.tail.continues)
        for part in parts
        if len(part.tail.piece_tokens)
    ]
    return AssembledSplit(entry=entry, shards=members, tails=tails)


def _write_last_shard(
    directory: Path, split: SplitName, parts: Sequence[UnitPart], number: int, block_tokens: int, eos_id: int
) -> ShardEntry | None:
    num_tokens = sum(len(part.tail.tokens) for part in parts)
    if not num_tokens:
        return None
    pieces = np.concatenate([part.tail.piece_tokens for part in parts])
    num_fill = -num_tokens % block_tokens
    with ShardWriter(directory, shard_name(split, number), split=split, block_tokens=block_tokens) as writer:
        for part in parts:
            writer.write(part.tail.tokens)
        writer.write(np.full(num_fill, eos_id, dtype=np.uint32))
        return writer.finish(contiguous_index(pieces), num_documents=len(pieces))
