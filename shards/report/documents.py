"""How long the documents of a shard set are, and how they share the blocks: exact, from the indexes alone.

Memory: the index of one shard, and a number for each value that occurs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping

import numpy as np

from shards.index import Index, Int64s

# Edges of the histogram's bins are the block size times powers of the square root of two.
_BINS_PER_DOUBLING = 2


def tutorial_tokens(lengths: Int64s, block_tokens: int) -> Int64s:
    """Tokens that the tutorial's script keeps of documents of these lengths (without EOS): their whole blocks.

    >>> tutorial_tokens(np.array([3, 512, 1300]), 512).tolist()
    [0, 512, 1024]
    """
    return lengths // block_tokens * block_tokens


class Documents:
    """Counts, shard after shard: how many documents or blocks have each value."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.lengths = Counter[int]()  # documents by their tokens, EOS not counted
        self.sharing = Counter[int]()  # blocks by the documents that have at least one token in them
        self.padding = Counter[int]()  # blocks by their padding tokens
        self.num_cut_documents = 0  # that would fit into one block and lie in two

    def add(self, index: Index, num_blocks: int) -> None:
        size = self.block_tokens
        lengths = np.add.reduceat(index.lengths, index.boundaries[:-1])
        sharing, used = occupancy(index, num_blocks, size)
        for totals, values in ((self.lengths, lengths - 1), (self.sharing, sharing), (self.padding, size - used)):
            found, counts = np.unique(values, return_counts=True)
            totals.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        # A document of several sequences is longer than a block.
        starts = index.starts[index.boundaries[:-1]]
        is_cut = starts // size != (starts + lengths - 1) // size
        self.num_cut_documents += int((is_cut & (lengths <= size)).sum())


def occupancy(index: Index, num_blocks: int, block_tokens: int) -> tuple[Int64s, Int64s]:
    """For each block of a shard: sequences that have a token in it, and tokens that belong to sequences.

    >>> [column.tolist() for column in occupancy(Index(np.array([3, 4]), np.array([0, 3]), np.array([0, 1, 2])), 2, 4)]
    [[2, 1], [4, 3]]
    """
    first, last = index.starts // block_tokens, (index.ends - 1) // block_tokens
    # Each sequence counts from its first block through its last.
    changes = np.bincount(first, minlength=num_blocks + 1) - np.bincount(last + 1, minlength=num_blocks + 1)
    sequences = np.cumsum(changes)[:num_blocks]
    # As if each took all of its blocks, less what it lacks in its first and its last one.
    before, after = index.starts - first * block_tokens, (last + 1) * block_tokens - index.ends
    missing = np.bincount(first, before, num_blocks) + np.bincount(last, after, num_blocks)
    return sequences, sequences * block_tokens - missing.astype(np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthBin:
    """Documents of `first` to `last` tokens, both included."""

    first: int
    last: int
    num_documents: int
    num_tokens: int
    num_tutorial_tokens: int

    @property
    def num_lost_tokens(self) -> int:
        return self.num_tokens - self.num_tutorial_tokens


def length_bins(lengths: Mapping[int, int], block_tokens: int) -> list[LengthBin]:
    """All documents, in bins that are evenly wide on a logarithmic axis."""
    values = np.array(sorted(lengths), dtype=np.int64)
    if not len(values):
        return []
    counts = np.array([lengths[value] for value in values.tolist()], dtype=np.int64)
    edges = bin_edges(block_tokens, int(values[0]), int(values[-1]))
    tokens, kept = values * counts, tutorial_tokens(values, block_tokens) * counts
    places = [slice(*np.searchsorted(values, pair)) for pair in itertools.pairwise(edges)]
    return [
        LengthBin(
            first=first,
            last=stop - 1,
            num_documents=int(counts[inside].sum()),
            num_tokens=int(tokens[inside].sum()),
            num_tutorial_tokens=int(kept[inside].sum()),
        )
        for (first, stop), inside in zip(itertools.pairwise(edges), places, strict=True)
    ]


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


def quantile(counts: Mapping[int, int], percent: int) -> int:
    """The smallest value that `percent` of all don't exceed; 0 if there is none.

    >>> quantile({3: 1, 5: 2, 9: 1}, 50)
    5
    """
    needed, total = -(-sum(counts.values()) * percent // 100), 0
    for value in sorted(counts):
        total += counts[value]
        if total >= needed:
            return value
    return 0
