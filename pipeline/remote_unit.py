"""One unit of a set that is built in a store: done in a directory of the worker's own disk, then put where it belongs.

A store has neither renames nor locks, so what counts is the order: the unit's files first, each whole or absent, its
receipt last. A unit that is done twice, also by two workers at once, puts the same bytes under the same names.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.dedup import DEDUP_DIRECTORY, drops_path, hash_receipt_path
from pipeline.receipts import FILES_KEY, RECEIPTS_DIRECTORY, REJECTED_SUFFIX, receipt_path, sealed, unsealed
from pipeline.work import Job, Progress
from shards.common.errors import TransientError
from shards.common.urls import file_system, join, read_bytes, storage_errors, version, write_bytes

if TYPE_CHECKING:
    from pipeline.engine import Task

PARTIAL_SUFFIX = ".partial"


def partial_url(url: str) -> str:
    """Where the receipts of a build to `url` are."""
    return url.rstrip("/") + PARTIAL_SUFFIX


def run_remote_task(job: Job, task: Task, progress: Progress, run: Callable[[Job, Task, Progress], None]) -> bytes:
    """Do `task` by `run` in a directory of its own and put what that leaves into the store; the receipt's content.

    Raises what `run` raises, and `TransientError`.
    """
    partial = partial_url(job.url)
    with tempfile.TemporaryDirectory(prefix="tokenize-once-") as name:
        directory = Path(name)
        for inner in (RECEIPTS_DIRECTORY, DEDUP_DIRECTORY):
            (directory / inner).mkdir()
        if job.settings.dedup == "exact" and task.kind == "build":
            drops = drops_path(directory, task.unit.number)
            content = read_bytes(join(partial, DEDUP_DIRECTORY, drops.name))
            if content is not None:
                drops.write_bytes(content)
        run(dataclasses.replace(job, directory=directory, url=""), task, progress)
        if task.kind == "hash":
            receipt = hash_receipt_path(directory, task.unit.number)
            hashes = [path for path in sorted((directory / DEDUP_DIRECTORY).iterdir()) if path != receipt]
            put_files({path: join(partial, DEDUP_DIRECTORY, path.name) for path in hashes})
            content = receipt.read_bytes()
            write_bytes(join(partial, DEDUP_DIRECTORY, receipt.name), content)
            return content
        receipt = receipt_path(directory, task.unit.number)
        shards = {path: join(job.url, path.name) for path in sorted(directory.iterdir()) if path.is_file()}
        rejected = [path for path in receipt.parent.iterdir() if path.suffix == REJECTED_SUFFIX]
        put_files({path: join(partial, RECEIPTS_DIRECTORY, path.name) for path in rejected})
        files = {path.name: entry for path, entry in put_files(shards).items()}
        content = sealed({**unsealed(receipt.read_bytes()), FILES_KEY: files})
        write_bytes(join(partial, RECEIPTS_DIRECTORY, receipt.name), content)
        return content


def put_files(files: dict[Path, str]) -> dict[Path, tuple[int, str]]:
    """Put each file to its URL, several at once; the size and version of each as the store says it afterwards.

    Raises `TransientError` if a size isn't that of the file.
    """
    if not files:
        return {}
    urls = list(files.values())
    system, _path = file_system(urls[0])
    targets = [file_system(url)[1] for url in urls]
    put: dict[Path, tuple[int, str]] = {}
    with storage_errors(urls[0].rpartition("/")[0], writes=True):
        system.put([str(path) for path in files], targets)
        for path, target in zip(files, targets, strict=True):
            entry: dict[str, Any] = system.info(target)
            put[path] = (int(entry["size"]), version(entry))
    for path, (num_bytes, _version) in put.items():
        if num_bytes != path.stat().st_size:
            raise TransientError(
                f"{files[path]}: expected {path.stat().st_size:,} bytes, the store has {num_bytes:,}; repeat the command"
            )
    return put
