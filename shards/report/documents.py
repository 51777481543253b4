"""Where the documents of a shard set lie, from its indexes: their lengths, and how they share and fill the blocks.

Exact for the whole set and without reading a token. A document that is cut between its unit's shard and the split's
last shard counts as one. Memory: the index of one shard, and what the results take.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError
from shards.entries import SPLITS, exact_sum
from shards.index import Index, Int64s
from shards.reader import ShardSet, Split, Tokens, read_shard_index

# Edges of the histogram's bins are the block size times powers of the square root of two.
_BINS_PER_DOUBLING = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One shard: what lies in it, and how its documents hang together with other shards'."""

    split: Split
    number: int  # of the shard in its split
    first_block: int  # counted through the whole set
    unit: int
    index: Index
    tokens: Tokens  # all of the shard, filling included; a view of the file
    is_open: bool  # the last document goes on in the split's last shard
    continued: dict[int, int]  # documents here that are another one's rest: number in the index, and the other's unit

    @property
    def num_blocks(self) -> int:
        return self.split.shards[self.number].num_blocks


def parts(shard_set: ShardSet) -> Iterator[Part]:
    """All shards, split after split, in order. The file of a shard is mapped while its `Part` is in use, no longer.

    Raises `InputError` where the tails in the manifest are not those of the shards.
    """
    manifest, first_block = shard_set.manifest, 0
    for name in SPLITS:
        split = Split(shard_set, name)
        tails, places = split.tails, split.unit_places.items()
        continued = {
            place.first_piece: unit for unit, place in places if place.tail is not None and tails[place.tail].continues
        }
        open_units = set(continued.values())
        units = split.shards.column("number").tolist()
        num_pieces = split.shards[-1].num_pieces if tails and units else 0
        if not open_units <= set(units[:-1]) or exact_sum(tails.column("num_pieces")) != num_pieces:
            raise InputError(f"{shard_set.manifest_path}: {name}: the tails don’t fit the shards; build the set again")
        for number, (unit, shard) in enumerate(zip(units, split.shards, strict=True)):
            is_last = bool(tails) and number == len(units) - 1
            yield Part(
                split=split,
                number=number,
                first_block=first_block,
                unit=unit,
                index=read_shard_index(shard_set.path, shard, manifest.block_tokens),
                tokens=split.map_shard(number).reshape(-1),
                is_open=not is_last and unit in open_units,
                continued=continued if is_last else {},
            )
            first_block += shard.num_blocks


def whole_documents(part: Part) -> npt.NDArray[np.bool_]:
    """Which documents of the shard are one piece there, and in no other shard."""
    is_whole: npt.NDArray[np.bool_] = np.diff(part.index.boundaries) == 1
    is_whole[list(part.continued)] = False
    if part.is_open:
        is_whole[-1] = False
    return is_whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthBin:
    """Documents of `first` … `last` tokens, both included."""

    first: int
    last: int
    num_documents: int
    num_tokens: int
    num_lost_tokens: int  # what is behind the last whole block of each document


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """Documents' lengths in tokens, EOS not counted."""

    num_documents: int
    num_tokens: int
    shortest: int
    median: int  # the smallest length that half of the documents don't exceed
    percentile_90: int
    longest: int
    num_short_documents: int  # shorter than a block
    num_lost_tokens: int  # what the tutorial would drop: all that is behind a document's last whole block
    bins: tuple[LengthBin, ...]


class LengthCounter:
    """Adds up documents' lengths. Memory: a number for each length that occurs, which are few even in a large set."""

    def __init__(self, block_tokens: int, num_closing_tokens: int) -> None:
        self._block_tokens, self._num_closing_tokens = block_tokens, num_closing_tokens
        self._open: dict[int, int] = {}  # tokens of documents that go on in the split's last shard, by unit
        self._values: Int64s = np.empty(0, dtype=np.int64)
        self._counts: Int64s = np.empty(0, dtype=np.int64)

    def add(self, part: Part) -> None:
        index = part.index
        lengths = np.add.reduceat(index.lengths, index.boundaries[:-1])
        for document, unit in part.continued.items():
            lengths[document] += self._open.pop(unit)
        if part.is_open:
            self._open[part.unit] = int(lengths[-1])
            lengths = lengths[:-1]
        values, counts = np.unique(lengths - self._num_closing_tokens, return_counts=True)
        merged, places = np.unique(np.concatenate([self._values, values]), return_inverse=True)
        # Sums of whole numbers below 2**53: exact as floats.
        weights = np.concatenate([self._counts, counts])
        self._values, self._counts = merged, np.bincount(places, weights).astype(np.int64)

    def result(self) -> Lengths:
        """Raises no error for a set without documents: then all numbers are 0."""
        values, counts = self._values, self._counts
        lost, short = values % self._block_tokens, values < self._block_tokens
        return Lengths(
            num_documents=int(counts.sum()),
            num_tokens=int((values * counts).sum()),
            shortest=int(values[0]) if len(values) else 0,
            median=self._quantile(50),
            percentile_90=self._quantile(90),
            longest=int(values[-1]) if len(values) else 0,
            num_short_documents=int(counts[short].sum()),
            num_lost_tokens=int((lost * counts).sum()),
            bins=tuple(self._bins()),
        )

    def _quantile(self, percent: int) -> int:
        if not len(self._values):
            return 0
        needed = -(-int(self._counts.sum()) * percent // 100)
        return int(self._values[np.searchsorted(np.cumsum(self._counts), needed)])

    def _bins(self) -> Iterator[LengthBin]:
        if not len(self._values):
            return
        edges = bin_edges(self._block_tokens, int(self._values[0]), int(self._values[-1]))
        for first, behind in itertools.pairwise(edges):
            inside = (self._values >= first) & (self._values < behind)
            values, counts = self._values[inside], self._counts[inside]
            yield LengthBin(
                first=first,
                last=behind - 1,
                num_documents=int(counts.sum()),
                num_tokens=int((values * counts).sum()),
                num_lost_tokens=int((values % self._block_tokens * counts).sum()),
            )


def bin_edges(block_tokens: int, shortest: int, longest: int) -> list[int]:
    """Edges of bins that grow evenly on a logarithmic axis; one edge is the block size, so that no bin straddles it.

    >>> bin_edges(64, 20, 100)
    [16, 23, 32, 45, 64, 91, 128]
    """
    edges, exponent = {1}, -_BINS_PER_DOUBLING * block_tokens.bit_length()
    while max(edges) <= longest:
        edges.add(max(1, round(block_tokens * 2 ** (exponent / _BINS_PER_DOUBLING))))
        exponent += 1
    ascending = sorted(edges)
    begin = max(number for number, edge in enumerate(ascending) if edge <= max(1, shortest))
    return ([0] if shortest < 1 else []) + ascending[begin:]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filling:
    """How blocks are shared and filled. Pairs are (value, number of blocks with it), ascending."""

    num_blocks: int
    documents_per_block: tuple[tuple[int, int], ...]  # documents that have at least one token in the block
    fill_tokens: tuple[tuple[int, int], ...]  # tokens of a block that belong to no document
    num_cut_documents: int  # documents that would fit a block and lie in two


class FillingCounter:
    """Adds up what the blocks of each shard hold."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._num_blocks = self._num_cut_documents = 0
        self._documents: dict[int, int] = {}
        self._fill: dict[int, int] = {}
        self._open: dict[int, int] = {}

    def add(self, part: Part) -> None:
        documents, tokens = occupancy(part.index, part.num_blocks, self._block_tokens)
        self._num_blocks += part.num_blocks
        for totals, values in ((self._documents, documents), (self._fill, self._block_tokens - tokens)):
            for value, number in zip(*np.unique(values, return_counts=True), strict=True):
                totals[int(value)] = totals.get(int(value), 0) + int(number)
        self._num_cut_documents += self._cut_documents(part)

    def _cut_documents(self, part: Part) -> int:
        index, size = part.index, self._block_tokens
        first, last = index.starts // size, (index.ends - 1) // size
        if part.is_open:
            self._open[part.unit] = int(index.lengths[index.boundaries[-2] :].sum())
        # A document of several pieces is longer than a block.
        pieces = index.boundaries[:-1][whole_documents(part)]
        num_cut = int(((first != last) & (index.lengths <= size))[pieces].sum())
        joined = [int(index.lengths[document]) + self._open.pop(unit) for document, unit in part.continued.items()]
        return num_cut + sum(length <= size for length in joined)

    def result(self) -> Filling:
        return Filling(
            num_blocks=self._num_blocks,
            documents_per_block=tuple(sorted(self._documents.items())),
            fill_tokens=tuple(sorted(self._fill.items())),
            num_cut_documents=self._num_cut_documents,
        )


def occupancy(index: Index, num_blocks: int, block_tokens: int) -> tuple[Int64s, Int64s]:
    """For each block of a shard: pieces that have a token in it, and tokens that lie in pieces.

    >>> [column.tolist() for column in occupancy(Index(np.array([3, 4]), np.array([0, 3]), np.array([0, 1, 2])), 2, 4)]
    [[2, 1], [4, 3]]
    """
    first, last = index.starts // block_tokens, (index.ends - 1) // block_tokens
    # Each piece counts from its first block on, and no more behind its last one.
    changes = np.bincount(first, minlength=num_blocks + 1) - np.bincount(last + 1, minlength=num_blocks + 1)
    pieces = np.cumsum(changes)[:num_blocks]
    # Taking each piece for as long as all of its blocks, then taking off what it lacks in its first and last one.
    before, behind = index.starts - first * block_tokens, (last + 1) * block_tokens - index.ends
    missing = np.bincount(first, before, num_blocks) + np.bincount(last, behind, num_blocks)
    tokens: Int64s = pieces * block_tokens - missing.astype(np.int64)
    return pieces, tokens
