"""The chain of units: each begins where the one before it ended.

In an array, a unit's reader takes the first thing that looks like the beginning of a record (`pipeline.json_array`). A
unit at a source's beginning is always right, and a unit that begins where a right one ended is right. So the chain,
followed from the front, shows each false start, and whether a fault found in a unit is one of the corpus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.sources import Source, Unit
from pipeline.work import Receipt
from shards.errors import InputError


class Chain:
    """Follows the units from the front as their receipts come in."""

    def __init__(self, units: Sequence[Unit], sources: Sequence[Source]) -> None:
        self._units, self._sources = units, sources
        self._front = 0
        self._expected = 0  # the offset at which the front unit's first record (or a later unit's) begins

    @property
    def front(self) -> Unit | None:
        """The first unit that isn't known to be right, or None when all are."""
        return self._units[self._front] if self._front < len(self._units) else None

    @property
    def first(self) -> int | None:
        """What `first` of the front unit must be, None if no record begins in it."""
        front = self.front
        assert front is not None
        return self._expected if self._expected < front.stop else None

    @property
    def offset(self) -> int:
        """The offset of the first record that begins in the front unit or behind it."""
        return self._expected

    def advance(self, receipts: Mapping[int, Receipt | None]) -> None:
        """Go past each unit whose receipt is there and right. Raises `InputError` for a source not read to its end."""
        while (unit := self.front) is not None:
            receipt = receipts[unit.number]
            if receipt is None or (unit.start > 0 and receipt.first != self.first):
                return
            if receipt.last is not None and (receipt.first is not None or unit.start == 0):
                self._expected = receipt.last
            source = self._sources[unit.source]
            if unit.stop == source.num_bytes:
                if self._expected != source.num_bytes:
                    raise InputError(
                        f"{source.path}: byte {self._expected:,}: expected a record, found the end of the array; "
                        "what follows it was not read"
                    )
                self._expected = 0
            self._front += 1
