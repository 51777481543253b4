"""A few blocks as they are stored, divided where documents end: what a training reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from shards.index import Index
from shards.reader import Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """Consecutive tokens of one document in one block, or padding."""

    tokens: tuple[int, ...]  # those among the first tokens of the block that are kept
    num_tokens: int
    is_padding: bool = False
    begins: bool = False  # the document's first token is here
    ends: bool = False  # the document's EOS is here


@dataclasses.dataclass(frozen=True, kw_only=True)
class Excerpt:
    """One block."""

    split: str
    block: int  # in the split
    segments: tuple[Segment, ...]


def segments(index: Index, blocks: Tokens, number: int, max_tokens: int) -> Iterator[Segment]:
    """One of a shard's blocks, divided at the ends of sequences; its first `max_tokens` tokens are kept."""
    block_tokens, tokens = blocks.shape[1], blocks.reshape(-1)
    begin, stop = number * block_tokens, (number + 1) * block_tokens

    def segment(first: int, last: int, **more: bool) -> Segment:
        kept = tokens[first : min(last, begin + max_tokens)]
        return Segment(tokens=tuple(kept.tolist()), num_tokens=last - first, **more)

    inside = np.flatnonzero((index.starts < stop) & (index.ends > begin))
    done = begin
    for sequence in inside[np.argsort(index.starts[inside])].tolist():
        start, end = int(index.starts[sequence]), int(index.ends[sequence])
        if start > done:
            yield segment(done, start, is_padding=True)
        document = int(np.searchsorted(index.boundaries, sequence, side="right")) - 1
        is_first = index.boundaries[document] == sequence
        is_last = index.boundaries[document + 1] == sequence + 1
        first, done = max(start, begin), min(end, stop)
        yield segment(first, done, begins=bool(is_first and start >= begin), ends=bool(is_last and end <= stop))
    if done < stop:
        yield segment(done, stop, is_padding=True)
