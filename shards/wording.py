"""Sizes and counts, as they are told everywhere."""

from __future__ import annotations


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
