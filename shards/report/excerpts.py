"""A few blocks as they lie in the files, divided at the documents' ends: what a training sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from shards.report.documents import Part

MAX_SHOWN_TOKENS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """Consecutive tokens of one document in one block, or filling."""

    tokens: tuple[int, ...]  # at most the first MAX_SHOWN_TOKENS of the block are kept
    num_tokens: int
    is_filling: bool = False
    begins: bool = False  # the document's first token is here
    ends: bool = False  # the document's last token (EOS, if the packing closes documents) is here


@dataclasses.dataclass(frozen=True, kw_only=True)
class Excerpt:
    """One block."""

    split: str
    block: int  # in the split
    segments: tuple[Segment, ...]

    @property
    def num_documents(self) -> int:
        return sum(not segment.is_filling for segment in self.segments)


def excerpt(part: Part, block: int) -> Excerpt:
    """The block with number `block` in the shard."""
    size = part.split.block_tokens
    segments = tuple(_segments(part, block * size, (block + 1) * size))
    return Excerpt(split=part.split.name, block=part.split.first_block(part.number) + block, segments=segments)


def _segments(part: Part, begin: int, end: int) -> Iterator[Segment]:
    """The tokens `begin` … `end` of the shard, divided at the ends of pieces."""
    index = part.index
    inside = np.flatnonzero((index.starts < end) & (index.ends > begin))
    place = begin
    for piece in inside[np.argsort(index.starts[inside])].tolist():
        start, stop = int(index.starts[piece]), int(index.ends[piece])
        if start > place:
            yield Segment(tokens=_shown(part, place, start, begin), num_tokens=start - place, is_filling=True)
        document = int(np.searchsorted(index.boundaries, piece, side="right")) - 1
        is_first = int(index.boundaries[document]) == piece and document not in part.continued
        is_last = int(index.boundaries[document + 1]) == piece + 1
        goes_on = part.is_open and document == len(index.boundaries) - 2
        place, behind = max(start, begin), min(stop, end)
        yield Segment(
            tokens=_shown(part, place, behind, begin),
            num_tokens=behind - place,
            begins=is_first and start >= begin,
            ends=is_last and stop <= end and not goes_on,
        )
        place = behind
    if place < end:
        yield Segment(tokens=_shown(part, place, end, begin), num_tokens=end - place, is_filling=True)


def _shown(part: Part, start: int, end: int, block_start: int) -> tuple[int, ...]:
    return tuple(part.tokens[start : min(end, block_start + MAX_SHOWN_TOKENS)].tolist())
