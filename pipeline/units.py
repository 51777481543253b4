"""Cutting the corpus into units of work, by the sources alone.

A large source that can be read from the middle is cut every `unit_bytes`; small ones, one after another, share a unit
until it holds `unit_bytes`. So a corpus of 100,000 tiny files has few units, and one file of a terabyte has many.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from pipeline.sources import Source


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """A part of a source: `[start, stop)` in bytes, in row groups, or all of it (0, 1)."""

    source: int
    start: int
    stop: int
    num_bytes: int  # for the progress

    @property
    def is_first(self) -> bool:
        return self.start == 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """What one worker turns into shard files: stretches, in the corpus's order."""

    number: int
    stretches: tuple[Stretch, ...]

    @property
    def num_bytes(self) -> int:
        return sum(stretch.num_bytes for stretch in self.stretches)


def plan_units(sources: Sequence[Source], unit_bytes: int) -> list[Unit]:
    """All units in the corpus's order.

    With units of 64 bytes, a source of 130 bytes gives [0, 64), [64, 128), [128, 130); sources of 30, 30 and 20
    bytes behind it share: the first two make one unit, the third the next.
    """
    groups: list[list[Stretch]] = []
    room = 0
    for number, source in enumerate(sources):
        for stretch in _stretches(number, source, unit_bytes):
            is_part = source.is_splittable and source.num_bytes > unit_bytes
            if not groups or is_part or stretch.num_bytes > room:
                groups.append([stretch])
                room = 0 if is_part else unit_bytes - stretch.num_bytes
            else:
                groups[-1].append(stretch)
                room -= stretch.num_bytes
    return [Unit(number=number, stretches=tuple(stretches)) for number, stretches in enumerate(groups)]


def _stretches(number: int, source: Source, unit_bytes: int) -> Iterator[Stretch]:
    if source.is_splittable:
        for start in range(0, source.num_bytes, unit_bytes):
            stop = min(start + unit_bytes, source.num_bytes)
            yield Stretch(source=number, start=start, stop=stop, num_bytes=stop - start)
    elif source.format in ("parquet", "arrow"):
        from pipeline.tables import row_group_bytes

        for start, num_bytes in enumerate(row_group_bytes(source)):
            yield Stretch(source=number, start=start, stop=start + 1, num_bytes=num_bytes)
    elif source.format == "hub":
        from pipeline.hub import num_hub_shards

        for start in range(num_hub_shards(source)):
            yield Stretch(source=number, start=start, stop=start + 1, num_bytes=unit_bytes)
    else:
        yield Stretch(source=number, start=0, stop=1, num_bytes=source.num_bytes)
