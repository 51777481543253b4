"""Which tokens and characters occur how often, in all blocks or in an even sample of them.

Memory: two numbers for each entry of the vocabulary, and one for each character that occurs.
"""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError
from shards.reader import ShardSet, Tokens
from shards.tokenizer_files import Vocabulary

_CHUNK_TOKENS = 1 << 20
# A byte that no UTF-8 text holds: it separates parts of characters that don't follow each other in the text.
_SEPARATOR = b"\xff"

_SCRIPT_OF_WORD = {
    "CJK": "Han",
    "IDEOGRAPHIC": "Han",
    "LATIN": "Latin",
    "CYRILLIC": "Cyrillic",
    "HIRAGANA": "kana",
    "KATAKANA": "kana",
    "HANGUL": "hangul",
}


class TokenCounter:
    """Counts tokens and the characters that they spell.

    Most tokens are whole characters: their counts say it all. The others hold parts of characters, and are decoded
    together with their neighbors.
    """

    def __init__(self, shard_set: ShardSet, vocabulary: Vocabulary) -> None:
        self._shard_set, self._vocabulary = shard_set, vocabulary
        self.num_counted_blocks = 0
        self._counts: npt.NDArray[np.int64] = np.zeros(shard_set.vocab_size, dtype=np.int64)
        self._characters = Counter[str]()
        pieces = [vocabulary.piece(token) for token in range(shard_set.vocab_size)]
        self._is_partial = np.array([not is_whole(piece) for piece in pieces])
        # Of such tokens, the pieces, and then the same after a separator.
        self._partial_number = np.cumsum(self._is_partial) - 1
        partial = [pieces[token] for token in np.flatnonzero(self._is_partial).tolist()]
        self._partial_pieces = partial + [_SEPARATOR + piece for piece in partial]

    def add(self, blocks: Tokens) -> None:
        """Count blocks that follow each other, shape `(n, block_tokens)`; not a character that either end cuts in two."""
        self.num_counted_blocks += len(blocks)
        tokens = blocks.reshape(-1)
        for start in range(0, len(tokens), _CHUNK_TOKENS):
            chunk = tokens[start : start + _CHUNK_TOKENS].astype(np.int64)
            counts = np.bincount(chunk)
            if len(counts) > len(self._counts):
                raise InputError(
                    f"{self._shard_set.path}: expected ids below {len(self._counts):,}, found {len(counts) - 1:,}; "
                    "see `python -m shards verify`"
                )
            self._counts[: len(counts)] += counts
            places = np.flatnonzero(self._is_partial[chunk])
            numbers = self._partial_number[chunk[places]]
            numbers[np.diff(places, prepend=-2) > 1] += len(self._partial_pieces) // 2
            content = b"".join(map(self._partial_pieces.__getitem__, numbers.tolist()))
            self._characters.update(content.decode("utf-8", "ignore"))

    @functools.cached_property
    def ranking(self) -> list[tuple[int, int]]:
        """Each id that occurs, EOS aside, and its count: the most frequent first, then by id. Take it after all tokens."""
        counts = self._counts.copy()
        counts[self._shard_set.eos_id] = 0
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        return list(zip(order.tolist(), counts[order].tolist(), strict=True))

    def scripts(self) -> dict[str, int]:
        """How many characters belong to each script, the most frequent first."""
        characters = self._characters.copy()
        for token, count in self.ranking:
            if not self._is_partial[token]:
                for character in self._vocabulary.piece(token).decode():
                    characters[character] += count
        scripts = Counter[str]()
        for character, number in characters.items():
            scripts[script_of(character)] += number
        return dict(scripts.most_common())


def is_whole(piece: bytes) -> bool:
    """Whether these are whole characters in UTF-8."""
    return piece.decode("utf-8", "ignore").encode() == piece


def script_of(character: str) -> str:
    """The script of a letter, or the kind of any other character, by Unicode's category and name."""
    if character.isspace():
        return "white space"
    category = unicodedata.category(character)
    if category == "Nd":
        return "digits"
    if category[0] in "PS":
        return "punctuation"
    words = unicodedata.name(character, "").replace("-", " ").split()
    scripts = [_SCRIPT_OF_WORD[word] for word in words if word in _SCRIPT_OF_WORD]
    return scripts[0] if scripts else "other letters" if category[0] in "LM" else "other"
