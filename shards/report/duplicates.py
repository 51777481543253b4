"""How many documents have exactly the ids of an earlier one, by a 128-bit hash of the ids.

In a set with more documents than `max_documents` (or more tokens than `max_tokens`) only some are compared: those whose
length, first and last id hash to a small number. Equal documents are so either all compared or all left out, and the
share of duplicates is what it is among all, but for chance. Memory: 16 bytes for each document compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from shards.index import TOKEN_BYTES
from shards.manifest import Manifest
from shards.order import mix_64
from shards.report.documents import Part, whole_documents

_DIGEST_BYTES = 16
_BATCH_DOCUMENTS = 1 << 14

UInt64s = npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duplicates:
    """What came of the comparison."""

    num_documents: int  # of the whole set
    num_compared: int
    num_duplicates: int  # of those compared: documents that equal an earlier one
    num_repeated: int  # different documents that occur more than once
    most_copies: int  # of one document, the first included


class DuplicateFinder:
    """Hashes documents, shard after shard."""

    def __init__(self, manifest: Manifest, *, max_documents: int, max_tokens: int, seed: int) -> None:
        self._num_documents, self._num_closing_tokens = manifest.total("num_documents"), manifest.num_closing_tokens
        self._seed, num_tokens = mix_64(seed), manifest.total("num_tokens")
        share = min(1.0, max_documents / max(1, self._num_documents), max_tokens / max(1, num_tokens))
        self._threshold = None if share == 1 else np.uint64(int(share * 2**64))
        self._digests: list[bytes] = []
        self._open: dict[int, npt.NDArray[np.uint32]] = {}

    def add(self, part: Part) -> Iterator[int]:
        """Compare a shard's documents; yields the number of tokens of those just done."""
        index, num_closing = part.index, self._num_closing_tokens
        is_whole = whole_documents(part)
        pieces = index.boundaries[:-1][is_whole]
        starts, ends = index.starts[pieces], index.ends[pieces] - num_closing
        content = part.tokens.view(np.uint8).data
        for begin in range(0, len(pieces), _BATCH_DOCUMENTS):
            some = slice(begin, begin + _BATCH_DOCUMENTS)
            self._hash_stretches(part.tokens, content, starts[some], ends[some])
            yield int((ends[some] - starts[some]).sum()) + num_closing * len(starts[some])
        for document in np.flatnonzero(~is_whole).tolist():
            yield self._add_joined(part, document)

    def _hash_stretches(
        self,
        tokens: npt.NDArray[np.uint32],
        content: memoryview,
        starts: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
    ) -> None:
        if self._threshold is not None:
            # A document without a token has no last id; its EOS, or what follows it, stands for both.
            first, last = tokens[starts], tokens[np.maximum(starts, ends - 1)]
            last[starts == ends] = first[starts == ends] = 0
            chosen = self._keys(ends - starts, first, last) < self._threshold
            starts, ends = starts[chosen], ends[chosen]
        views = map(content.__getitem__, map(slice, (starts * TOKEN_BYTES).tolist(), (ends * TOKEN_BYTES).tolist()))
        self._digests.append(b"".join([blake3(view).digest(_DIGEST_BYTES) for view in views]))

    def _add_joined(self, part: Part, document: int) -> int:
        """A document in several pieces, of this shard or of two. Returns the tokens read."""
        first, behind = part.index.boundaries[document : document + 2].tolist()
        spans = zip(part.index.starts[first:behind].tolist(), part.index.ends[first:behind].tolist(), strict=True)
        ids = np.concatenate([part.tokens[start:end] for start, end in spans])
        num_tokens = len(ids)
        if document in part.continued:
            ids = np.concatenate([self._open.pop(part.continued[document]), ids])
        if part.is_open and document == len(part.index.boundaries) - 2:
            self._open[part.unit] = ids
        else:
            end = len(ids) - self._num_closing_tokens
            self._hash_stretches(ids, ids.view(np.uint8).data, np.array([0]), np.array([end]))
        return num_tokens

    def _keys(
        self, lengths: npt.NDArray[np.int64], first: npt.NDArray[np.uint32], last: npt.NDArray[np.uint32]
    ) -> UInt64s:
        """SplitMix64's finalizer over (length, first id, last id) and the seed."""
        keys: UInt64s = np.full(len(lengths), self._seed, dtype=np.uint64)
        for values in (lengths, first, last):
            keys ^= values.astype(np.uint64)
            keys = (keys ^ keys >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
            keys = (keys ^ keys >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
            keys ^= keys >> np.uint64(31)
        return keys

    def result(self) -> Duplicates:
        self._digests = [b"".join(self._digests)]
        halves = np.frombuffer(self._digests[0], "<u8").reshape(-1, 2)
        order = np.lexsort((halves[:, 1], halves[:, 0]))
        is_new = np.zeros(len(order), dtype=bool)
        is_new[:1] = True
        for half in (halves[:, 0], halves[:, 1]):  # one after the other: half the memory
            ordered = half[order]
            is_new[1:] |= ordered[1:] != ordered[:-1]
        copies = np.diff(np.append(np.flatnonzero(is_new), len(order)))
        return Duplicates(
            num_documents=self._num_documents,
            num_compared=len(order),
            num_duplicates=len(order) - len(copies),
            num_repeated=int((copies > 1).sum()),
            most_copies=int(copies.max(initial=0)),
        )
