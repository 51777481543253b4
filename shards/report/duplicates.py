"""How many documents have exactly the tokens of an earlier one, by a 64-bit hash of them.

Of a set with more than `max_documents` documents only those whose hash is small are compared: equal documents are in that
sample together or not at all, so the share of duplicates is that of the whole set, but for chance. Two different ones of
four million documents have the same hash with a chance below one in a million. Memory: 8 bytes for each compared.
"""

from __future__ import annotations

import array
import dataclasses

import numpy as np
from blake3 import blake3

from shards.reader import Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duplicates:
    """What the comparison found."""

    num_compared: int
    num_duplicates: int  # documents that equal an earlier one
    num_repeated: int  # different documents that occur more than once
    most_copies: int  # of one document, the first included


class DuplicateFinder:
    """Hashes documents, one after another."""

    def __init__(self, num_documents: int, *, max_documents: int) -> None:
        self._limit = 2**64 * min(max_documents, num_documents) // max(1, num_documents)
        self._hashes = array.array("Q")

    def add(self, document: Tokens) -> None:
        value = int.from_bytes(blake3(document.view(np.uint8).data).digest(8), "little")
        if value < self._limit:
            self._hashes.append(value)

    def result(self) -> Duplicates:
        _, copies = np.unique(np.array(self._hashes, dtype=np.uint64), return_counts=True)
        return Duplicates(
            num_compared=len(self._hashes),
            num_duplicates=len(self._hashes) - len(copies),
            num_repeated=int((copies > 1).sum()),
            most_copies=int(copies.max(initial=0)),
        )
