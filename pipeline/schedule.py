"""What is done for each unit, and in what order: from the front, and again where a unit began in the wrong place."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence

from pipeline.dedup import encode_hashes, hash_texts, hashes_name, read_duplicates
from pipeline.engines.base import Engine, Task, Work
from pipeline.outputs.base import Output
from pipeline.plan import Unit
from pipeline.receipts import RangeReceipt, Receipt, decode_receipt
from pipeline.sources import changed
from pipeline.worker import Decisions, Progress, process_unit, read_texts
from shards.common.errors import InputError


def build_unit(output: Output, decisions: Decisions, task: Task, progress: Progress) -> bytes:
    """Do a unit in a scratch directory and commit it; its receipt."""
    duplicates = {} if decisions.settings.dedup == "off" else read_duplicates(output.read, task.unit.number)
    with output.scratch() as scratch:
        receipt = process_unit(
            task.unit, decisions, scratch, first=task.first, duplicates=duplicates, progress=progress
        )
        return output.commit(scratch, receipt)


def hash_unit(output: Output, decisions: Decisions, task: Task, _progress: Progress) -> bytes:
    """Hash the documents of a unit, and keep that in the output; the receipt that stands before the hashes."""
    settings, receipt = decisions.settings, Receipt(unit=task.unit.number)
    batches = read_texts(task.unit.ranges, settings, receipt, transform=decisions.transform, first=task.first)
    content = encode_hashes(receipt, hash_texts((texts for texts, _batch in batches), near=settings.dedup == "near"))
    output.write(hashes_name(task.unit.number), content)
    return content.partition(b"\n")[0]


def run_all(
    work: Work, units: Sequence[Unit], engine: Engine, receipts: dict[int, Receipt], progress: Progress
) -> None:
    """Do the units that have no receipt yet, and add theirs.

    A byte range that begins inside a JSON array begins at the first thing that looks like a record (see
    `pipeline.readers.json_array`). A range at a source's beginning is always right, and one that begins where a right one
    ended is right. So the units are followed from the front: one that began elsewhere, or that failed having guessed its
    beginning, is done again from its true beginning. Raises `InputError`.
    """
    tasks = deque(Task(unit=unit) for unit in units if unit.number not in receipts)
    failed: dict[int, tuple[Task, InputError]] = {}
    front, expected = 0, 0  # the first unit that isn't known to be right, and where its first record begins
    again: Task | None = None
    with contextlib.closing(engine.run(work, tasks, progress)) as ended:
        while True:
            while front < len(units) and (front in receipts or front in failed):
                unit = units[front]
                right = Task(unit=unit, first=expected if _may_guess(unit) else None)
                begun = expected if expected < unit.ranges[0].stop else None  # with no record, if that lies after it
                if front in failed:
                    task, error = failed.pop(front)
                    if task == right:
                        raise error
                elif right.first is None or receipts[front].ranges[0].first == begun:
                    expected = _next_first(unit, receipts[front].ranges, expected)
                    front += 1
                    continue
                elif again == right:
                    raise InputError(changed(unit.ranges[0].source))
                else:
                    del receipts[front]
                again = right
                tasks.appendleft(right)
            try:
                task, result = next(ended)
            except StopIteration:
                assert front == len(units)
                return
            if isinstance(result, bytes):
                receipt = decode_receipt(result, task.unit.number)
                assert receipt is not None
                receipts[receipt.unit] = receipt
            elif isinstance(result, InputError) and _may_guess(task.unit):
                failed[task.unit.number] = (task, result)
            else:
                raise result


def _may_guess(unit: Unit) -> bool:
    """Whether a unit begins inside a source."""
    return unit.ranges[0].source.is_splittable and unit.ranges[0].start > 0


def _next_first(unit: Unit, ranges: Sequence[RangeReceipt], expected: int) -> int:
    """Where the next unit's first record begins, if it begins inside the same source."""
    for byte_range, done in zip(unit.ranges, ranges, strict=True):
        source = byte_range.source
        if not source.is_splittable:
            continue
        if done.last is not None and (done.first is not None or byte_range.start == 0):
            expected = done.last
        if byte_range.stop == source.num_bytes:
            if expected != source.num_bytes:
                raise InputError(
                    f"{source.path}: byte {expected:,}: expected a record, found the end of the array; what follows it was "
                    "not read"
                )
            expected = 0
    return expected
