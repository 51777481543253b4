"""From texts to documents: ids, each document closed by EOS.

The native encoder closes documents itself. With fastokens the fast way joins the texts of a batch with EOS as written
(`<|endoftext|>`) and lets the tokenizer find it: one call with one string, and the ids come out closed. Since EOS is cut
out before anything else happens to the text, each document's ids are what it has alone. A text that itself holds a special
token's string shows as a special id too many: then, and for a tokenizer for which this doesn't hold, each text is encoded
by itself, as ordinary text, and closed afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from pipeline.native import NativeEncoder
from pipeline.tokenizers import PROBE_TEXTS, Encoder, FastEncoder, load_encoder

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

    def __init__(self, encoder: Encoder, tokenizer_json: bytes, eos_id: int) -> None:
        self.encoder = encoder
        self._eos_id = eos_id
        self._closing = np.array([eos_id], dtype="<u4").tobytes()
        self._joins = isinstance(encoder, FastEncoder) and not encoder.parse_special and self._can_join(tokenizer_json)

    def _can_join(self, tokenizer_json: bytes) -> bool:
        """Whether joining gives the right ids, on the probes."""
        self._eos_token, self._lowest_special = _plain_eos(tokenizer_json, self._eos_id)
        if not self._eos_token:
            return False
        texts = [text for text in PROBE_TEXTS if text and self._eos_token not in text and "<|" not in text]
        joined, alone = self._encode_joined(texts), self._encode_each(texts)
        return joined is not None and bool(
            np.array_equal(joined.ids, alone.ids) and np.array_equal(joined.counts, alone.counts)
        )

    def encode(self, texts: list[str]) -> Documents:
        """The documents of `texts`, none of which is empty."""
        if isinstance(self.encoder, NativeEncoder):
            return Documents(*self.encoder.encode_closed(texts, self._eos_id), sum(map(len, texts)))
        if self._joins and (documents := self._encode_joined(texts)) is not None:
            return documents
        return self._encode_each(texts)

    def _encode_joined(self, texts: list[str]) -> Documents | None:
        assert isinstance(self.encoder, FastEncoder)
        joined = self._eos_token.join([*texts, ""])
        changes = not self.encoder.is_normalized(joined)
        if changes:
            joined = self._eos_token.join([*self.encoder.normalized(texts), ""])
        ids = self.encoder.encode_one_parsed(joined)
        ends = np.flatnonzero(ids >= self._lowest_special)
        if len(ends) != len(texts) or (ids[ends] != self._eos_id).any():
            return None
        counts = ends + 1
        counts[1:] -= counts[:-1].copy()
        if changes:
            return _documents(ids, counts, texts)
        num_chars = len(joined) - len(texts) * len(self._eos_token)
        # The tokenizer has cached the string's UTF-8: encode() is a copy. No two EOS overlap, so this undoes the joining.
        *contents, _nothing = joined.encode().split(self._eos_token.encode())
        if len(contents) != len(texts):
            return None
        return Documents(ids, counts, contents, num_chars)

    def _encode_each(self, texts: list[str]) -> Documents:
        ids, offsets = self.encoder.encode(texts)
        counts = (offsets[1:] - offsets[:-1]).astype(np.int64) + 1
        view, ends = ids.view(np.uint8).data, (offsets * 4).tolist()
        parts: list[Any] = [*map(view.__getitem__, map(slice, ends, ends[1:])), b""]
        return _documents(np.frombuffer(self._closing.join(parts), "<u4"), counts, texts)


@functools.lru_cache(maxsize=2)
def load_document_encoder(encoder: str, tokenizer_json: bytes, eos_id: int, *, parse_special: bool) -> DocumentEncoder:
    """Loaded once: a forked worker has its parent's at once."""
    return DocumentEncoder(load_encoder(encoder, tokenizer_json, parse_special=parse_special), tokenizer_json, eos_id)


def _documents(ids: Ids, counts: Counts, texts: list[str]) -> Documents:
    return Documents(ids, counts, list(map(str.encode, texts)), sum(map(len, texts)))


def _plain_eos(tokenizer_json: bytes, eos_id: int) -> tuple[str, int]:
    """EOS as it is written, and the lowest special id, if all ids from there on are special and EOS takes nothing else
    with it; else an empty string."""
    content = orjson.loads(tokenizer_json)
    added = {token["id"]: token for token in content.get("added_tokens") or []}
    eos = added.get(eos_id)
    special = sorted(number for number, token in added.items() if token.get("special"))
    vocabulary = content["model"]["vocab"]
    if eos is None or eos_id not in special or not isinstance(vocabulary, dict):
        return "", 0
    is_plain = not any(eos.get(flag) for flag in ("lstrip", "rstrip", "single_word", "normalized"))
    is_top = special == list(range(special[0], special[0] + len(special))) and special[0] > max(
        number for piece, number in vocabulary.items() if number not in added
    )
    # Joined with texts, an EOS such as `<>x<>` could be found where it only seems to stand.
    overlaps = any(eos["content"].endswith(eos["content"][:length]) for length in range(1, len(eos["content"])))
    is_usable = is_plain and is_top and not overlaps and not set(added) - set(special)
    return (eos["content"], special[0]) if is_usable else ("", 0)
