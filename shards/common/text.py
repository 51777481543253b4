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


def printable(text: str) -> str:
    """`text` on one line with control characters (terminal escapes included) written as `\\x1b`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def visible(text: str) -> str:
    """`text` with control and format characters (terminal escapes included) written as `\\x1b`; lines stay lines."""
    return "".join(
        c if c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs" else printable(c) for c in text
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'text'?"` for the known word closest to `word`, or an empty string."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""
