"""From texts to ids, and to documents, each of them closed by EOS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint32]
Offsets = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


class Documents(NamedTuple):
    """A batch of documents."""

    ids: Ids  # all documents' tokens, one after another
    counts: Counts  # shape (documents,): tokens in each, EOS included
    contents: Sequence[bytes]  # the texts in UTF-8


class Encoder:
    """What all encoders can do; no text can forge a special token."""

    name = ""
    uses_threads = False  # whether `encode_closed` may run on several at a time, each on a core of its own

    def encode(self, texts: list[str]) -> tuple[Ids, Offsets]:
        """All ids, shape `(n,)`, and offsets, shape `(len(texts) + 1,)`: text i has ids[offsets[i]:offsets[i+1]]."""
        raise NotImplementedError

    def encode_closed(self, texts: list[str], closing: int) -> Documents:
        """The documents of `texts`, none of which is empty, each followed by the id `closing`."""
        ids, offsets = self.encode(texts)
        counts = (offsets[1:] - offsets[:-1]).astype(np.int64) + 1
        view, ends = ids.view(np.uint8).data, (offsets * 4).tolist()
        parts: list[Any] = [*map(view.__getitem__, map(slice, ends, ends[1:])), b""]
        # In less time than np.insert takes.
        closed = np.frombuffer(np.array([closing], "<u4").tobytes().join(parts), "<u4")
        return Documents(closed, counts, list(map(str.encode, texts)))
