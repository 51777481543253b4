"""The chain of stretches: in a source that is read from the middle, each begins where the one before it ended.

In an array, a stretch's reader takes the first thing that looks like the beginning of a record (`pipeline.json_array`). A
stretch at a source's beginning is always right, and one that begins where a right one ended is right. So the chain,
followed from the front, shows each false start, and whether a fault found in a unit is one of the corpus.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.receipts import StretchReceipt
from pipeline.sources import Source
from pipeline.units import Unit
from pipeline.work import UnitError
from shards.common.errors import InputError

_PATIENCE_SECONDS = 70


class Chain:
    """Which units are done, followed from the front. Holds what isn't passed yet, and no receipt."""

    def __init__(
        self,
        units: Sequence[Unit],
        sources: Sequence[Source],
        read: Callable[..., Any],
        check: Callable[[Unit, list[StretchReceipt]], None],
    ) -> None:
        """`read` gives a unit's receipt or None; `check` gets the stretches of each unit that an earlier run has done."""
        self._units, self._sources, self._read = units, sources, read
        self._front = 0  # the number of the first unit that isn't known to be right
        self._expected = 0  # the offset at which the front unit's first record (or a later unit's) begins
        self._ended: dict[int, list[StretchReceipt]] = {}
        self._errors: dict[int, UnitError] = {}
        self._done = bytearray(len(units))
        for unit in units:
            receipt = read(unit.number, check_digests=True)
            if receipt is not None:
                check(unit, receipt.stretches)
                self._note(unit.number, receipt.stretches)

    def missing(self) -> list[Unit]:
        return [unit for unit in self._units if not self._done[unit.number]]

    def end(self, number: int, error: UnitError | None) -> None:
        """A unit has ended: with its receipt, or in an error that may be one of a false start. Raises what is certain."""
        if error is not None:
            self._errors[number] = error
        else:
            self._note(number, self._receipt(number).stretches)
        found = self._errors.get(self._front)
        if found is not None and self._is_right(found.firsts):
            raise found

    def false_start(self) -> tuple[Unit, int | None] | None:
        """The unit to do again, and the offset where its first record is (or a later unit's; None if the unit begins a
        source). None if all is right."""
        if self._front == len(self._units):
            return None
        self._ended.pop(self._front, None)
        self._errors.pop(self._front, None)
        return self._units[self._front], self._expected if self._may_start_falsely() else None

    def _receipt(self, number: int) -> Any:
        """The receipt of a unit that was just done. On a network file system it may take a minute to be seen."""
        for _ in range(_PATIENCE_SECONDS):
            receipt = self._read(number)
            if receipt is not None:
                return receipt
            time.sleep(1)
        raise RuntimeError(f"unit {number} was done, and its receipt isn't there")

    def _may_start_falsely(self) -> bool:
        """Only a front unit that begins inside a source may; then it has that one stretch."""
        stretch = self._units[self._front].stretches[0]
        return self._sources[stretch.source].is_splittable and not stretch.is_first

    def _is_right(self, firsts: Sequence[int | None]) -> bool:
        """Whether the front unit, whose stretches began at `firsts`, made no false start."""
        if not self._may_start_falsely():
            return True
        stop = self._units[self._front].stretches[0].stop
        return bool(firsts) and firsts[0] == (self._expected if self._expected < stop else None)

    def _note(self, number: int, stretches: list[StretchReceipt]) -> None:
        """A unit is done: go past each that is done and right. Raises `InputError` for a source not read to its end."""
        self._done[number] = True
        self._ended[number] = stretches
        while (ended := self._ended.get(self._front)) is not None and self._is_right([done.first for done in ended]):
            for stretch, done in zip(self._units[self._front].stretches, ended, strict=True):
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
            del self._ended[self._front]
            self._front += 1
