"""Which tokens and characters occur how often, in all blocks or in an even sample of them.

Memory: two numbers for each entry of the vocabulary, and one for each character that occurs.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError
from shards.order import mix_64
from shards.reader import ShardSet, Tokens
from shards.vocabulary import Vocabulary

_MAX_RANGES = 16  # that a sample takes from one shard
_CHUNK_TOKENS = 1 << 20
_ZIPF_POINTS = 120
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


def sample_blocks(num_blocks: int, share: float, seed: int) -> list[range]:
    """Ranges that hold `share` of a shard's blocks, at random places evenly spread over it; at least one block.

    >>> sample_blocks(5, 1.0, seed=0), sum(map(len, sample_blocks(1000, 0.25, seed=0)))
    ([range(0, 5)], 250)
    """
    wanted = max(1, round(num_blocks * share))
    if wanted >= num_blocks:
        return [range(num_blocks)]
    num_ranges, ranges = min(_MAX_RANGES, wanted), []
    for number in range(num_ranges):
        begin, end = number * num_blocks // num_ranges, (number + 1) * num_blocks // num_ranges
        size = (number + 1) * wanted // num_ranges - number * wanted // num_ranges
        start = begin + mix_64(mix_64(seed) ^ number) % (end - begin - size + 1)
        ranges.append(range(start, start + size))
    return ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenUse:
    """How often the entries of the vocabulary occur in the blocks that were counted. EOS is never counted."""

    num_counted_blocks: int
    num_tokens: int
    num_entries: int  # of the vocabulary, without EOS
    num_used_entries: int
    num_once: int  # entries that occur once
    most_frequent: tuple[tuple[int, int], ...]  # id and count, the most frequent first, then by id
    ranks: tuple[tuple[int, int], ...]  # rank from 1 and count, at evenly spaced ranks of a logarithmic axis
    entries_for_half: int  # so many of the most frequent entries are half of all tokens


class TokenCounter:
    """Counts tokens and the characters that they spell.

    Most tokens are whole characters: their counts say it all. The others hold parts of characters, and are decoded
    together with their neighbors.
    """

    def __init__(self, shard_set: ShardSet, vocabulary: Vocabulary) -> None:
        self._shard_set, self._vocabulary = shard_set, vocabulary
        self._num_counted_blocks = 0
        self._counts: npt.NDArray[np.int64] = np.zeros(shard_set.vocab_size, dtype=np.int64)
        self._characters = Counter[str]()
        pieces = [vocabulary.piece(token) for token in range(shard_set.vocab_size)]
        self._is_partial = np.array([not is_whole(piece) for piece in pieces])
        self._is_partial[shard_set.eos_id] = False
        # Of such tokens, the pieces, and then the same after a separator.
        self._partial_number = np.cumsum(self._is_partial) - 1
        partial = [pieces[token] for token in np.flatnonzero(self._is_partial).tolist()]
        self._partial_pieces = partial + [_SEPARATOR + piece for piece in partial]

    def add(self, tokens: Tokens) -> Iterator[int]:
        """Count whole blocks that follow each other, shape `(n,)`; yields the number of tokens just counted.

        A character that is cut in two by either end is not counted.
        """
        self._num_counted_blocks += len(tokens) // self._shard_set.block_tokens
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
            yield len(chunk)

    def tokens(self, num_most_frequent: int) -> TokenUse:
        counts = self._counts.copy()
        counts[self._shard_set.eos_id] = 0
        used = np.flatnonzero(counts)
        order = used[np.argsort(-counts[used], kind="stable")]
        descending = counts[order]
        total = int(descending.sum())
        return TokenUse(
            num_counted_blocks=self._num_counted_blocks,
            num_tokens=total,
            num_entries=len(counts) - 1,
            num_used_entries=len(order),
            num_once=int((descending == 1).sum()),
            most_frequent=tuple((int(token), int(counts[token])) for token in order[:num_most_frequent]),
            ranks=tuple((rank, int(descending[rank - 1])) for rank in log_spaced(len(order), _ZIPF_POINTS)),
            entries_for_half=int(np.searchsorted(2 * np.cumsum(descending), total)) + 1 if total else 0,
        )

    def scripts(self) -> dict[str, int]:
        """How many characters belong to each script, the most frequent first."""
        characters = self._characters.copy()
        for token in np.flatnonzero(self._counts).tolist():
            if token != self._shard_set.eos_id and not self._is_partial[token]:
                for character in self._vocabulary.piece(token).decode():
                    characters[character] += int(self._counts[token])
        scripts = Counter[str]()
        for character, number in characters.items():
            scripts[script_of(character)] += number
        return dict(scripts.most_common())


def is_whole(piece: bytes) -> bool:
    """Whether these are whole characters in UTF-8."""
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def log_spaced(last: int, num_points: int) -> list[int]:
    """Whole numbers from 1 to `last`, evenly spaced on a logarithmic axis, none twice."""
    return sorted({round(last ** (number / (num_points - 1))) for number in range(num_points)}) if last else []


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
