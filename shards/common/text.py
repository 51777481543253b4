"""Text for people: sizes, counts, and names from strangers shown safely."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


def size_text(num_bytes: int) -> str:
    """`1.99 GB`, in powers of 1000."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def plural(number: int, noun: str) -> str:
    """A number and what it counts.

    >>> plural(1, "block"), plural(2000, "block")
    ('1 block', '2,000 blocks')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def compact(value: float) -> str:
    """A number in few characters, for an axis or a tile.

    >>> [compact(value) for value in (0, 0.25, 512, 1000, 25_000, 1_500_000, 2_000_000_000)]
    ['0', '0.25', '512', '1k', '25k', '1.5M', '2B']
    """
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.4g}"


def percent(part: float, whole: float) -> str:
    """
    >>> [percent(*pair) for pair in ((0, 5), (1, 5000), (1, 3), (4999, 5000), (5, 5), (0, 0))]
    ['0 %', '<0.1 %', '33.3 %', '>99.9 %', '100 %', '–']
    """
    if not whole:
        return "–"
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "<0.1 %"
    if 99.9 < share < 100:
        return ">99.9 %"
    return f"{share:.0f} %" if share in (0, 100) else f"{share:.1f} %"


def duration(seconds: float) -> str:
    """
    >>> [duration(seconds) for seconds in (0.25, 45, 754, 11100)]
    ['0.2 s', '45 s', '12 min 34 s', '3 h 5 min']
    """
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def printable(text: str) -> str:
    """`text` on one line with control characters (terminal escapes included) written as `\\x1b`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def in_utf8(name: str) -> str:
    """A name to be recorded: bytes of a file's name that aren't UTF-8 are written as `\\udcff`."""
    return name.encode("utf-8", "backslashreplace").decode()


def visible(text: str) -> str:
    """`text` with control and format characters (terminal escapes included) written as `\\x1b`; lines stay lines."""
    return "".join(
        c if c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs" else printable(c) for c in text
    )


def nearest(word: str, known: Iterable[str], before: str = "", after: str = "") -> str:
    """`"; did you mean 'text'?"` for the first known word that begins with `word`, else for the closest; or an empty
    string. The word stands between `before` and `after`, as a step of a path.

    >>> nearest("adam", ["adalomo", "adamw_torch"])
    "; did you mean 'adamw_torch'?"
    """
    words = list(known)
    beginning = [found for found in words if found.startswith(word or " ")]
    matches = beginning or difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"; did you mean {before + matches[0] + after!r}?" if matches else ""
