"""`--drop-repetitive`: texts that repeat themselves, by the rules of Gopher.

The rules and their thresholds are those of Rae et al. 2021, “Scaling Language Models: Methods, Analysis & Insights from
Training Gopher”, table A1: shares of paragraphs, lines and characters, and the first rule that a text breaks is its
reason. `\\n` ends a line, an empty line a paragraph. A paragraph, a line or an n-gram is a duplicate where it has occurred
before in the text; characters in duplicate n-grams count once, however many of those they lie in; white space never does.

Where Gopher has n words, so has a script that separates them by spaces. Of Chinese, Japanese, Thai, Lao, Khmer and
Burmese, which don't, two characters count as a word: an n-gram is 2 n characters. (With one, duplicate 5-grams alone would
drop 6 % of sound paragraphs of Chinese Wikipedia.) A text is of the one kind or the other by the larger part of its
characters. A text of over a million characters is judged by its first million, so that memory stays bounded.
"""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
import numpy.typing as npt

MAX_PARAGRAPHS, MAX_PARAGRAPH_CHARS = 0.30, 0.20
MAX_LINES, MAX_LINE_CHARS = 0.30, 0.20
MAX_TOP = {2: 0.20, 3: 0.18, 4: 0.16}  # characters in the most frequent n-gram
MAX_DUPLICATE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}  # characters in duplicate n-grams
_MAX_CHARS = 1 << 20

_PARAGRAPH_END = re.compile(r"\n\s*\n")
# Thai and Lao, Burmese, Khmer, kana, Chinese characters.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_BASE = 0x9E3779B97F4A7C15  # of the polynomials, modulo 2**64, by which n-grams are compared

Keys = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


def repetition(text: str) -> str:
    """Why `text` is repetitive; an empty string if it isn't."""
    text = text[:_MAX_CHARS]
    return _repeated_parts(text) or _repeated_n_grams(text)


def _repeated_parts(text: str) -> str:
    for name, parts, most, most_chars in (
        ("paragraphs", _PARAGRAPH_END.split(text) if "\n" in text else [], MAX_PARAGRAPHS, MAX_PARAGRAPH_CHARS),
        ("lines", text.split("\n"), MAX_LINES, MAX_LINE_CHARS),
    ):
        if len(parts) < 2:
            continue
        parts = list(filter(None, map(str.strip, parts)))
        once = set(parts)
        if len(parts) - len(once) > most * len(parts):
            return f"repetitive: duplicate {name}"
        num_chars = sum(map(len, parts))
        if num_chars - sum(map(len, once)) > most_chars * num_chars:
            return f"repetitive: characters in duplicate {name}"
    return ""


def _repeated_n_grams(text: str) -> str:
    words = text.split()
    chars = "".join(words)
    if not text.isascii() and 2 * sum(map(len, _WITHOUT_SPACES.findall(chars))) > len(chars):
        codes = np.frombuffer(chars.encode("utf-32-le"), "<u4").astype(np.uint64)
        units, size, lengths = codes[:-1] * np.uint64(_BASE) + codes[1:], 2, np.ones(len(codes), np.int64)
    else:
        numbers: defaultdict[str, int] = defaultdict()
        numbers.default_factory = numbers.__len__  # the next one
        units = np.fromiter(map(numbers.__getitem__, words), np.uint64, len(words))
        size, lengths = 1, np.fromiter(map(len, words), np.int64, len(words))
    factor = np.uint64(_BASE**size % 2**64)
    keys, often, longest = units, len(units), int(lengths.max(initial=0))
    for n, share in (MAX_TOP | MAX_DUPLICATE).items():
        keys = keys[:-size] * factor + units[(n - 1) * size :]
        if len(keys) < 2:
            break
        most = share * len(chars)
        if n in MAX_TOP:
            # No n-gram is more frequent than a shorter one within it, so most texts need no look at the longer ones.
            if often * n * size * longest > most:
                often, is_too_much = _most_frequent(keys, lengths, most)
                if is_too_much:
                    return f"repetitive: the most frequent {n}-gram"
        else:
            # What lies in longer duplicates lies in these too, so few texts need a look at the longer ones.
            ordered, least = np.sort(keys), min(MAX_DUPLICATE.values()) * len(chars)
            if np.count_nonzero(ordered[1:] == ordered[:-1]) * n * size * longest <= least:
                break
            num_chars = _num_duplicate_chars(keys, lengths)
            if num_chars > most:
                return f"repetitive: duplicate {n}-grams"
            if num_chars <= least:
                break
    return ""


def _most_frequent(keys: Keys, lengths: Counts, most: float) -> tuple[int, bool]:
    """How often the most frequent n-gram occurs, and whether it takes more than `most` characters (of several the longest);
    an n-gram that occurs once takes none."""
    ordered = np.sort(keys)
    edges = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
    counts = edges[1:] - edges[:-1]
    often, size = int(counts.max()), len(lengths) - len(keys) + 1
    if often == 1 or often * size * lengths.max() <= most:
        return often, False
    ends = np.cumsum(lengths)
    num_chars = ends[size - 1 :] - ends[: len(keys)] + lengths[: len(keys)]
    is_top = np.isin(keys, ordered[edges[:-1][counts == often]])
    return often, bool(often * num_chars[is_top].max() > most)


def _num_duplicate_chars(keys: Keys, lengths: Counts) -> int:
    """The characters of all units that lie in an n-gram which has occurred before."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    again = order[1:][ordered[1:] == ordered[:-1]]
    changes = np.zeros(len(lengths) + 1, np.int64)
    changes[again] += 1
    changes[again + len(lengths) - len(keys) + 1] -= 1
    return int(lengths[np.cumsum(changes[:-1]) > 0].sum())
