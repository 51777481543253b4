"""What is done for each unit, and in what order: from the front, and again where a unit began in the wrong place."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence

from pipeline.dedup import decode_duplicates, duplicates_name, encode_hashes, hash_texts, hashes_name
from pipeline.engines.base import Engine, Task, Work
from pipeline.outputs.base import Output
from pipeline.plan import Unit
from pipeline.receipts import RangeReceipt
from pipeline.sources import ByteRange, Source, changed
from pipeline.worker import Decisions, Progress, process_unit, read_texts
from shards.common.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildWork:
    """Does a unit in a scratch directory and commits it; the result is its receipt."""

    output: Output
    decisions: Decisions

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.decisions.sources

    def __call__(self, task: Task, progress: Progress) -> bytes:
        has_duplicates = self.decisions.settings.dedup == "exact"
        found = self.output.read(duplicates_name(task.unit.number)) if has_duplicates else None
        duplicates = decode_duplicates(found)
        with self.output.scratch() as scratch:
            receipt = process_unit(
                task.unit, self.decisions, scratch, first=task.first, duplicates=duplicates, progress=progress
            )
            return self.output.commit(scratch, receipt)


class HashWork(BuildWork):
    """Hashes the documents of a unit, and keeps that in the output."""

    def __call__(self, task: Task, progress: Progress) -> bytes:
        ranges: list[RangeReceipt] = []
        batches = read_texts(task.unit.ranges, self.sources, self.decisions.settings, ranges, first=task.first)
        hashes = hash_texts(texts for texts, _batch in batches)
        self.output.write(hashes_name(task.unit.number), encode_hashes(ranges, hashes))
        return encode_hashes(ranges, b"")


def run_all(
    work: Work, units: Sequence[Unit], engine: Engine, ranges: dict[int, list[RangeReceipt]], progress: Progress
) -> Iterator[tuple[Task, bytes]]:
    """Do the units that have no `ranges` yet; yields each that was done, and the caller adds its ranges.

    A byte range that begins inside a JSON array begins at the first thing that looks like a record (see
    `pipeline.readers.json_array`). A range at a source's beginning is always right, and one that begins where a right one
    ended is right. So the units are followed from the front: one that began elsewhere, or that failed having guessed its
    beginning, is done again from its true beginning. Raises `InputError`.
    """
    tasks = deque(Task(unit=unit) for unit in units if unit.number not in ranges)
    failed: dict[int, tuple[Task, InputError]] = {}
    front, expected = 0, 0  # the first unit that isn't known to be right, and where its first record begins
    again: Task | None = None
    with contextlib.closing(engine.run(work, tasks, progress)) as ended:
        while True:
            while front < len(units) and (units[front].number in ranges or front in failed):
                unit = units[front]
                right = Task(unit=unit, first=expected if _may_guess(unit, work.sources) else None)
                if front in failed:
                    task, error = failed.pop(front)
                    if task == right:
                        raise error
                elif right.first is None or ranges[front][0].first == _first_in(unit.ranges[0], expected):
                    expected = _next_first(unit, ranges[front], work.sources, expected)
                    front += 1
                    continue
                elif again == right:
                    raise InputError(changed(work.sources[unit.ranges[0].source]))
                else:
                    del ranges[front]
                again = right
                tasks.appendleft(right)
            try:
                task, result = next(ended)
            except StopIteration:
                assert front == len(units)
                return
            if isinstance(result, bytes):
                yield task, result
            elif _may_guess(task.unit, work.sources):
                failed[task.unit.number] = (task, result)
            else:
                raise result


def _may_guess(unit: Unit, sources: Sequence[Source]) -> bool:
    """Whether a unit begins inside a source."""
    byte_range = unit.ranges[0]
    return sources[byte_range.source].is_splittable and not byte_range.is_first


def _first_in(byte_range: ByteRange, expected: int) -> int | None:
    """The first record of a range, if the next one begins at `expected`."""
    return expected if expected < byte_range.stop else None


def _next_first(unit: Unit, ranges: Sequence[RangeReceipt], sources: Sequence[Source], expected: int) -> int:
    """Where the next unit's first record begins, if it begins inside the same source."""
    for byte_range, done in zip(unit.ranges, ranges, strict=True):
        source = sources[byte_range.source]
        if not source.is_splittable:
            continue
        if done.last is not None and (done.first is not None or byte_range.is_first):
            expected = done.last
        if byte_range.stop == source.num_bytes:
            if expected != source.num_bytes:
                raise InputError(
                    f"{source.path}: byte {expected:,}: expected a record, found the end of the array; what follows it was "
                    "not read"
                )
            expected = 0
    return expected
