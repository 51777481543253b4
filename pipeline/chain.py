"""The chain of stretches: in a source that is read from the middle, each begins where the one before it ended.

In an array, a stretch's reader takes the first thing that looks like the beginning of a record (`pipeline.json_array`). A
stretch at a source's beginning is always right, and one that begins where a right one ended is right. So the chain,
followed from the front, shows each false start, and whether a fault found in a unit is one of the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.receipts import StretchReceipt
from pipeline.sources import Source
from pipeline.units import Unit
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
    def offset(self) -> int | None:
        """The offset of the first record in the front unit or behind it; None if the unit begins a source."""
        unit = self.front
        assert unit is not None
        return self._expected if self._may_start_falsely(unit) else None

    def is_right(self, firsts: Sequence[int | None]) -> bool:
        """Whether the front unit, whose stretches began at `firsts`, made no false start."""
        unit = self.front
        assert unit is not None
        if not self._may_start_falsely(unit):
            return True
        return bool(firsts) and firsts[0] == (self._expected if self._expected < unit.stretches[0].stop else None)

    def _may_start_falsely(self, unit: Unit) -> bool:
        """Only a unit that begins inside a source may; then it has that one stretch."""
        stretch = unit.stretches[0]
        return self._sources[stretch.source].is_splittable and not stretch.is_first

    def advance(self, ended: dict[int, list[StretchReceipt]]) -> None:
        """Go past each unit that has ended and is right, and take it out of `ended` (a unit's stretches by its number).

        Raises `InputError` for a source not read to its end.
        """
        while (unit := self.front) is not None:
            stretches = ended.get(unit.number)
            if stretches is None or not self.is_right([done.first for done in stretches]):
                return
            for stretch, done in zip(unit.stretches, stretches, strict=True):
                source = self._sources[stretch.source]
                if not source.is_splittable:
                    continue
                if done.last is not None and (done.first is not None or stretch.is_first):
                    self._expected = done.last
                if stretch.stop == source.num_bytes:
                    if self._expected != source.num_bytes:
                        raise InputError(
                            f"{source.path}: byte {self._expected:,}: expected a record, found the end of the array; "
                            "what follows it was not read"
                        )
                    self._expected = 0
            del ended[unit.number]
            self._front += 1
