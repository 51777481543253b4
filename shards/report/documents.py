"""How long the documents of a shard set are, and how they share the blocks: exact, from the indexes alone.

Memory: the index of one shard, and a number for each value that occurs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import numpy as np

from shards.index import Index, Int64s

# Edges of the histogram's bins are the block size times powers of the square root of two.
_BINS_PER_DOUBLING = 2


def tutorial_tokens(length: int, block_tokens: int) -> int:
    """Tokens that the tutorial's script keeps of a document of this length (without EOS): its whole blocks.

    >>> [tutorial_tokens(length, 512) for length in (3, 512, 1300)]
    [0, 512, 1024]
    """
    return length // block_tokens * block_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """Documents by their tokens, EOS not counted: `counts[3]` documents of 3 tokens."""

    counts: Counter[int]
    block_tokens: int

    @property
    def num_documents(self) -> int:
        return self.counts.total()

    @property
    def num_tokens(self) -> int:
        return sum(length * count for length, count in self.counts.items())

    @property
    def num_lost_tokens(self) -> int:
        """What the tutorial's script would drop."""
        kept = sum(tutorial_tokens(length, self.block_tokens) * count for length, count in self.counts.items())
        return self.num_tokens - kept

    def between(self, first: int, last: int) -> Lengths:
        """The documents of `first` to `last` tokens, both included."""
        inside = {length: count for length, count in self.counts.items() if first <= length <= last}
        return Lengths(counts=Counter(inside), block_tokens=self.block_tokens)

    def quantile(self, percent: int) -> int:
        """The smallest length that `percent` of the documents don't exceed."""
        needed, total = -(-self.num_documents * percent // 100), 0
        for length in sorted(self.counts):
            total += self.counts[length]
            if total >= needed:
                return length
        return 0

    def bins(self) -> list[tuple[int, int, Lengths]]:
        """All documents by classes of lengths, each with its first and its last length."""
        edges = bin_edges(self.block_tokens, min(self.counts), max(self.counts))
        return [(first, stop - 1, self.between(first, stop - 1)) for first, stop in itertools.pairwise(edges)]


class Documents:
    """Counts, shard after shard: how many documents or blocks have each value."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.lengths = Lengths(counts=Counter(), block_tokens=block_tokens)
        self.sharing = Counter[int]()  # blocks by the documents that have at least one token in them
        self.padding = Counter[int]()  # blocks by their padding tokens
        self.num_cut_documents = 0  # that would fit into one block and lie in two

    def add(self, index: Index, num_blocks: int) -> None:
        size = self.block_tokens
        lengths = np.add.reduceat(index.lengths, index.boundaries[:-1])
        sharing, used = occupancy(index, num_blocks, size)
        for totals, values in (
            (self.lengths.counts, lengths - 1),
            (self.sharing, sharing),
            (self.padding, size - used),
        ):
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
