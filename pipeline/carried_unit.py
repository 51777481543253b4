"""One unit on a node that shares no disk with the machine of the command: its files are the task's result.

The engine carries them there, where they are written as a worker of that machine would have written them, the receipt last.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.dedup import DEDUP_DIRECTORY, drops_path, hash_receipt_path
from pipeline.receipts import RECEIPTS_DIRECTORY, receipt_path
from pipeline.work import Job, Progress
from shards.common.files import write_atomically

if TYPE_CHECKING:
    from pipeline.engine import Task


def with_drops(job: Job, task: Task) -> Task:
    """The task with what its worker must know of duplicates, which lies here."""
    path = drops_path(job.directory, task.unit.number)
    if not job.carried or job.settings.dedup != "exact" or task.kind != "build" or not path.exists():
        return task
    return dataclasses.replace(task, drops=path.read_bytes())


def run_carried_task(
    job: Job, task: Task, progress: Progress, run: Callable[[Job, Task, Progress], None]
) -> dict[str, bytes]:
    """Do `task` by `run` in a directory of its own; the files that this leaves, by their names in the job's directory."""
    with tempfile.TemporaryDirectory(prefix="tokenize-once-") as name:
        directory = Path(name)
        for inner in (RECEIPTS_DIRECTORY, DEDUP_DIRECTORY):
            (directory / inner).mkdir()
        drops = drops_path(directory, task.unit.number)
        if task.drops:
            drops.write_bytes(task.drops)
        run(dataclasses.replace(job, directory=directory, carried=False), task, progress)
        files = sorted(path for path in directory.rglob("*") if path.is_file() and path != drops)
        return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def keep_files(job: Job, task: Task, files: Mapping[str, bytes]) -> None:
    """Write what `run_carried_task` has returned."""
    path_of = hash_receipt_path if task.kind == "hash" else receipt_path
    receipt = path_of(job.directory, task.unit.number)
    for path in sorted((job.directory / name for name in files), key=lambda path: path == receipt):
        write_atomically(path, files[path.relative_to(job.directory).as_posix()])
