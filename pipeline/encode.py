"""From texts to documents: ids, each document closed by EOS. The native encoder closes them itself."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.native import NativeEncoder
from pipeline.tokenizers import Encoder, load_encoder

Ids = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]


class Documents(NamedTuple):
    """A batch of documents."""

    ids: Ids  # all documents' tokens, one after another
    counts: Counts  # shape (documents,): tokens in each, EOS included
    contents: Sequence[bytes]  # the texts in UTF-8
    num_chars: int  # of all texts together


class DocumentEncoder:
    """Encodes batches of texts, each closed by EOS."""

    def __init__(self, encoder: Encoder, eos_id: int) -> None:
        self.encoder = encoder
        self._eos_id = eos_id
        self._closing = np.array([eos_id], dtype="<u4").tobytes()

    def encode(self, texts: list[str]) -> Documents:
        """The documents of `texts`, none of which is empty."""
        num_chars = sum(map(len, texts))
        if isinstance(self.encoder, NativeEncoder):
            return Documents(*self.encoder.encode_closed(texts, self._eos_id), num_chars)
        ids, offsets = self.encoder.encode(texts)
        counts = (offsets[1:] - offsets[:-1]).astype(np.int64) + 1
        view, ends = ids.view(np.uint8).data, (offsets * 4).tolist()
        parts: list[Any] = [*map(view.__getitem__, map(slice, ends, ends[1:])), b""]
        closed = np.frombuffer(self._closing.join(parts), "<u4")  # in less time than np.insert takes
        return Documents(closed, counts, list(map(str.encode, texts)), num_chars)


@functools.lru_cache(maxsize=2)
def load_document_encoder(encoder: str, tokenizer_json: bytes, eos_id: int, *, parse_special: bool) -> DocumentEncoder:
    """Loaded once: a forked worker has its parent's at once."""
    return DocumentEncoder(load_encoder(encoder, tokenizer_json, parse_special=parse_special), eos_id)
