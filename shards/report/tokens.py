"""Which tokens and characters occur how often, in all blocks or in an even sample of whole blocks.

Memory: two numbers for each entry of the vocabulary, and one for each character that occurs.
"""

from __future__ import annotations

import codecs
import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError
from shards.order import mix_64
from shards.reader import ShardSet, Tokens
from shards.vocabulary import Vocabulary

# Whole blocks are read in stretches, since a disk reads a megabyte as fast as a few bytes; but not in too few of them.
_STRETCH_TOKENS = 1 << 17
_MIN_STRETCHES = 256
_CHUNK_TOKENS = 1 << 20
_ZIPF_POINTS = 120
# A byte that no UTF-8 text holds: it keeps characters apart that don't follow each other in the text.
_SEPARATOR = b"\xff"

SCRIPTS = (
    "Han",
    "Latin",
    "Cyrillic",
    "kana",
    "hangul",
    "other letters",
    "digits",
    "punctuation",
    "white space",
    "other",
)
_SCRIPT_OF_WORD = {
    "CJK": "Han",
    "IDEOGRAPHIC": "Han",
    "LATIN": "Latin",
    "CYRILLIC": "Cyrillic",
    "HIRAGANA": "kana",
    "KATAKANA": "kana",
    "HANGUL": "hangul",
}


def sample_stretches(num_blocks: int, block_tokens: int, *, max_tokens: int, seed: int) -> list[range]:
    """Numbers of whole blocks, evenly spread and ascending: all, or those that `max_tokens` tokens fill.

    The blocks are divided into equally many for each stretch, which lies at a random place among its own.
    """
    most = max(1, max_tokens // block_tokens)
    if num_blocks <= most:
        return [range(num_blocks)] if num_blocks else []
    size = max(1, min(most // _MIN_STRETCHES, _STRETCH_TOKENS // block_tokens))
    num_stretches, key = most // size, mix_64(seed)
    stretches = []
    for number in range(num_stretches):
        begin, end = number * num_blocks // num_stretches, (number + 1) * num_blocks // num_stretches
        start = begin + mix_64(key ^ number) % (end - begin - size + 1)
        stretches.append(range(start, start + size))
    return stretches


def overlaps(stretches: Sequence[range], first: int, num_blocks: int) -> Iterator[range]:
    """What of the stretches lies in the blocks `first` …, counted from `first`.

    >>> list(overlaps([range(2, 6), range(8, 10)], 4, 5))
    [range(0, 2), range(4, 5)]
    """
    for stretch in stretches:
        start, stop = max(stretch.start, first), min(stretch.stop, first + num_blocks)
        if start < stop:
            yield range(start - first, stop - first)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenUse:
    """How often the entries of the vocabulary occur in the blocks that were counted. EOS is never counted."""

    num_counted_blocks: int
    num_blocks: int  # of the whole set
    num_tokens: int
    num_entries: int  # of the vocabulary, without EOS
    num_used_entries: int
    num_once: int  # entries that occur once
    most_frequent: tuple[tuple[int, int], ...]  # id and count, the most frequent first, then by id
    ranks: tuple[tuple[int, int], ...]  # rank from 1 and count, at evenly spaced ranks of a logarithmic axis
    entries_for_half: int  # so many of the most frequent entries are half of all tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class CharacterUse:
    """Characters by script, of the blocks that were counted."""

    num_characters: int
    scripts: tuple[tuple[str, int], ...]  # all of SCRIPTS, in that order
    num_cut_bytes: int  # of characters cut at an edge of what was counted; in none of the numbers above


class TokenCounter:
    """Counts tokens, and the characters that they are.

    Most tokens are whole characters: their number says it all. The others hold parts of characters; they are decoded
    together with their neighbors.
    """

    def __init__(self, shard_set: ShardSet, vocabulary: Vocabulary, num_blocks: int) -> None:
        self._vocabulary, self._num_blocks = vocabulary, num_blocks
        self._vocab_size, self._eos_id = shard_set.vocab_size, shard_set.eos_id
        self._block_tokens, self._path = shard_set.block_tokens, shard_set.path
        self._num_counted_blocks = 0
        self._counts: npt.NDArray[np.int64] = np.zeros(self._vocab_size, dtype=np.int64)
        self._characters: Counter[str] = Counter()
        self._partial = np.zeros(self._vocab_size, dtype=bool)
        for token in range(self._vocab_size):
            self._partial[token] = token != self._eos_id and not is_whole(vocabulary.piece(token))
        # The pieces of such tokens, and behind them the same with a separator in front.
        self._partial_number = np.cumsum(self._partial) - 1
        pieces = [vocabulary.piece(token) for token in np.flatnonzero(self._partial).tolist()]
        self._partial_pieces = pieces + [_SEPARATOR + piece for piece in pieces]

    def add(self, tokens: Tokens) -> Iterator[int]:
        """Count whole blocks that follow each other, shape `(n,)`; yields the number of tokens just counted."""
        self._num_counted_blocks += len(tokens) // self._block_tokens
        # A character may be cut between two chunks: the decoder keeps its beginning.
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        goes_on = False
        for start in range(0, len(tokens), _CHUNK_TOKENS):
            chunk = tokens[start : start + _CHUNK_TOKENS].astype(np.int64)
            counts = np.bincount(chunk)
            if len(counts) > self._vocab_size:
                raise InputError(
                    f"{self._path}: expected ids below {self._vocab_size:,}, found {len(counts) - 1:,}; "
                    "see `python -m shards verify`"
                )
            self._counts[: len(counts)] += counts
            self._characters.update(decoder.decode(self._partial_bytes(chunk, goes_on)))
            goes_on = bool(self._partial[chunk[-1]])
            yield len(chunk)
        self._characters.update(decoder.decode(b"", final=True))

    def _partial_bytes(self, tokens: npt.NDArray[np.int64], goes_on: bool) -> bytes:
        """The bytes of the tokens that hold parts of characters, those that don't follow each other kept apart.

        `goes_on` says that the token before the first one is such a token too.
        """
        places = np.flatnonzero(self._partial[tokens])
        numbers = self._partial_number[tokens[places]]
        numbers[np.diff(places, prepend=-1 if goes_on else -2) > 1] += len(self._partial_pieces) // 2
        return b"".join(map(self._partial_pieces.__getitem__, numbers.tolist()))

    def tokens(self, num_most_frequent: int) -> TokenUse:
        counts = self._counts.copy()
        counts[self._eos_id] = 0
        used = np.flatnonzero(counts)
        order = used[np.argsort(-counts[used], kind="stable")]
        descending = counts[order]
        cumulated = np.cumsum(descending)
        total = int(descending.sum())
        ranks = _log_spaced(len(order), _ZIPF_POINTS)
        return TokenUse(
            num_counted_blocks=self._num_counted_blocks,
            num_blocks=self._num_blocks,
            num_tokens=total,
            num_entries=self._vocab_size - 1,
            num_used_entries=len(order),
            num_once=int((descending == 1).sum()),
            most_frequent=tuple((int(token), int(counts[token])) for token in order[:num_most_frequent]),
            ranks=tuple((rank, int(descending[rank - 1])) for rank in ranks),
            entries_for_half=int(np.searchsorted(2 * cumulated, total)) + 1 if total else 0,
        )

    def characters(self) -> CharacterUse:
        """Take it once, after all tokens."""
        characters = Counter({c: n for c, n in self._characters.items() if not "\udc80" <= c <= "\udcff"})
        num_escaped = self._characters.total() - characters.total()
        num_separators = self._characters["\udcff"]
        for token in np.flatnonzero(self._counts).tolist():
            if token != self._eos_id and not self._partial[token]:
                for character in self._vocabulary.piece(token).decode():
                    characters[character] += int(self._counts[token])
        scripts = dict.fromkeys(SCRIPTS, 0)
        for character, number in characters.items():
            scripts[script_of(character)] += number
        return CharacterUse(
            num_characters=characters.total(),
            scripts=tuple(scripts.items()),
            num_cut_bytes=num_escaped - num_separators,
        )


def is_whole(piece: bytes) -> bool:
    """Whether these are whole characters in UTF-8."""
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _log_spaced(last: int, num_points: int) -> list[int]:
    """Whole numbers from 1 to `last`, evenly spaced on a logarithmic axis, none twice."""
    if last < 1:
        return []
    return sorted({round(last ** (number / (num_points - 1))) for number in range(num_points)})


def script_of(character: str) -> str:
    """One of SCRIPTS, by Unicode's category and name."""
    if character.isspace():
        return "white space"
    category = unicodedata.category(character)
    if category == "Nd":
        return "digits"
    if category[0] in "PS":
        return "punctuation"
    words = unicodedata.name(character, "").replace("-", " ").split()
    for word in words:
        if word in _SCRIPT_OF_WORD:
            return _SCRIPT_OF_WORD[word]
    return "other letters" if category[0] in "LM" else "other"
