"""Files below a directory that was given which are no corpus: counted, and the first ones named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shards.common.text import plural

MAX_NAMES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class UnreadEntry:
    """Files of one kind."""

    kind: str  # such as `PDF`; empty where it isn't known
    num_files: int
    names: list[str]  # of the first three


def add_up(entries: Iterable[UnreadEntry]) -> list[UnreadEntry]:
    """One entry for each kind, in the order in which they come first."""
    sums: dict[str, tuple[int, list[str]]] = {}
    for entry in entries:
        number, names = sums.get(entry.kind, (0, []))
        sums[entry.kind] = number + entry.num_files, (names + entry.names)[:MAX_NAMES]
    return [UnreadEntry(kind=kind, num_files=number, names=names) for kind, (number, names) in sums.items()]


def unread_text(entries: Iterable[UnreadEntry]) -> str:
    """`2 files are no corpus: a.md; HTML: b.html`"""
    entries = sorted(entries, key=lambda entry: entry.kind)
    number, kinds = sum(entry.num_files for entry in entries), []
    for entry in entries:
        more = f" and {entry.num_files - len(entry.names):,} more" if entry.num_files > len(entry.names) else ""
        kinds.append(f"{entry.kind + ': ' if entry.kind else ''}{', '.join(entry.names)}{more}")
    return f"{plural(number, 'file')} {'is' if number == 1 else 'are'} no corpus: {'; '.join(kinds)}"
