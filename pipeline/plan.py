"""The plan of a build: all that decides the bytes of the shard set. It is written to the output before any work is done.

A large source that can be read from the middle is cut every `unit_bytes`; small ones, one after another, share a unit until
it holds `unit_bytes`. So a corpus of 100,000 tiny files has few units, and one file of a terabyte has many.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.settings import BuildSettings
from pipeline.sources import ByteRange, Source
from shards.common.urls import in_parallel
from shards.manifest import TokenizerEntry

PLAN_NAME = "plan.json"
MIN_UNIT_BYTES, MAX_UNIT_BYTES = 2 * 2**20, 64 * 2**20
MAX_UNITS = 16_384


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """What one worker turns into shard files: byte ranges, in the corpus's order."""

    number: int
    ranges: tuple[ByteRange, ...]

    @property
    def num_bytes(self) -> int:
        return sum(byte_range.num_bytes for byte_range in self.ranges)


def default_unit_bytes(num_bytes: int) -> int:
    """The size of a unit for sources of `num_bytes` together: a power of two near a 64th of them, from 2 MiB to 64 MiB, and
    larger only so that there are at most 16,384 units.

    >>> [default_unit_bytes(size) >> 20 for size in (0, 51_000_000, 2_000_000_000, 10**13)]
    [2, 2, 32, 1024]
    """
    near = 2 ** round(math.log2(max(1, num_bytes) / 64)) if num_bytes > 64 else 1
    unit_bytes = min(max(near, MIN_UNIT_BYTES), MAX_UNIT_BYTES)
    while num_bytes > unit_bytes * MAX_UNITS:
        unit_bytes *= 2
    return unit_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings (with the units' size resolved), tokenizer and sources."""

    settings: BuildSettings
    tokenizer: TokenizerEntry
    sources: tuple[Source, ...]

    def units(self) -> list[Unit]:
        return plan_units(self.sources, self.settings.unit_bytes)

    def encode(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False).encode()


def make_plan(settings: BuildSettings, tokenizer: TokenizerEntry, sources: Sequence[Source]) -> Plan:
    if not settings.unit_bytes:
        unit_bytes = default_unit_bytes(sum(source.num_bytes for source in sources))
        settings = dataclasses.replace(settings, unit_bytes=unit_bytes)
    return Plan(settings=settings, tokenizer=tokenizer, sources=tuple(sources))


def decode_plan(encoded: bytes) -> Plan:
    """The plan that `Plan.encode` wrote. Raises `ValueError` or `TypeError` for anything else."""
    content = json.loads(encoded)
    if not isinstance(content, dict) or content.keys() != {"settings", "tokenizer", "sources"}:
        raise ValueError("not a plan")
    return Plan(
        settings=BuildSettings(**content["settings"]),
        tokenizer=TokenizerEntry(**content["tokenizer"]),
        sources=tuple(Source(**source) for source in content["sources"]),
    )


def settings_differences(
    before: dict[str, Any], tokenizer_before: TokenizerEntry, settings: BuildSettings, tokenizer: TokenizerEntry
) -> list[str]:
    """What differs, in words: `seed was 2333, now 7`. A setting that is absent in `before` had its default."""
    before = dataclasses.asdict(BuildSettings()) | before
    after = dataclasses.asdict(settings).items()
    differences = [
        f"{name} was {_shown(before[name])}, now {_shown(value)}" for name, value in after if before[name] != value
    ]
    if tokenizer_before != dataclasses.replace(tokenizer, begin_id=tokenizer_before.begin_id):  # a setting
        differences.append(f"the tokenizer was {tokenizer_before.name}, now {tokenizer.name}")
    return differences


def _shown(value: object) -> object:
    return "none" if value == "" else value


def plan_differences(before: Plan, now: Plan) -> list[str]:
    """What differs, in words. Times of files are left out: where one differs, the content is compared."""
    differences = settings_differences(before.settings.as_dict(), before.tokenizer, now.settings, now.tokenizer)
    if [source.path for source in before.sources] != [source.path for source in now.sources]:
        return [*differences, "the list of sources differs"]
    for old, new in zip(before.sources, now.sources, strict=True):
        if dataclasses.replace(old, modified_ns=0) != dataclasses.replace(new, modified_ns=0):
            differences.append(f"{new.path} has changed")
    return differences


def plan_units(sources: Sequence[Source], unit_bytes: int) -> list[Unit]:
    """All units in the corpus's order.

    With units of 64 bytes, a source of 130 bytes gives [0, 64), [64, 128), [128, 130); sources of 30, 30 and 20 bytes after
    it share: the first two make one unit, the third the next.
    """
    row_groups: dict[Source, list[int]] = {}
    if tables := [source for source in sources if source.format in ("parquet", "arrow")]:
        from pipeline.readers.tables import row_group_bytes  # pyarrow takes a while to load

        row_groups = dict(zip(tables, in_parallel(row_group_bytes, tables), strict=True))
    groups: list[list[ByteRange]] = []
    room = 0
    for source in sources:
        is_large = source.is_splittable and source.num_bytes > unit_bytes
        for own in _ranges(source, unit_bytes, row_groups.get(source, [source.num_bytes])):
            if not groups or is_large or own.num_bytes > room:
                groups.append([])
                room = 0 if is_large else unit_bytes
            ranges = groups[-1]
            if ranges and ranges[-1].source == source:  # row groups that follow one another are one range
                num_bytes = ranges[-1].num_bytes + own.num_bytes
                ranges[-1] = dataclasses.replace(ranges[-1], stop=own.stop, num_bytes=num_bytes)
            else:
                ranges.append(own)
            room -= own.num_bytes
    return [Unit(number=number, ranges=tuple(ranges)) for number, ranges in enumerate(groups)]


def _ranges(source: Source, unit_bytes: int, part_bytes: list[int]) -> Iterator[ByteRange]:
    """The parts of a source: every `unit_bytes`, or those of `part_bytes` where reading can't begin anywhere."""
    parts = [(start, start + 1, num_bytes) for start, num_bytes in enumerate(part_bytes)]
    if source.is_splittable:
        starts, end = range(0, source.num_bytes, unit_bytes), source.num_bytes
        parts = [(start, min(start + unit_bytes, end), min(unit_bytes, end - start)) for start in starts]
    for start, stop, num_bytes in parts:
        yield ByteRange(source=source, start=start, stop=stop, num_bytes=num_bytes)
