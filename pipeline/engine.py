"""The local engine: worker processes that each do one unit at a time.

No text passes between processes: a worker gets a unit's number and answers with counts. A worker that dies doesn't
hang the build: its unit is tried once more in a new process, then the build fails naming the unit.
"""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import multiprocessing.connection
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from pipeline.settings import BuildSettings
from pipeline.sources import Source, Unit
from pipeline.tokenizers import load_encoder
from pipeline.work import UnitError, process_unit
from shards.errors import InputError

MAX_TRIES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker of a build knows."""

    sources: tuple[Source, ...]
    settings: BuildSettings
    encoder: str
    tokenizer_json: bytes
    eos_id: int
    directory: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One unit to do; `first` is the offset of its first record where that is known."""

    unit: Unit
    first: int | None = None


@dataclasses.dataclass(kw_only=True)
class _Worker:
    process: SpawnProcess
    pipe: Connection
    task: Task | None = None


def run_tasks(
    job: Job, tasks: Sequence[Task], num_workers: int, progress: Callable[[int, int], None]
) -> Generator[tuple[int, UnitError | None], None, None]:
    """Do all `tasks`; yields the number of each unit that has ended, and the error if it ended in an uncertain one.

    `progress` gets source bytes and tokens just done. Raises `InputError` for bad input and `RuntimeError` with the
    worker's traceback for a fault of ours.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque(tasks)
    num_tries: dict[int, int] = {}
    workers: list[_Worker] = []

    def start_worker() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker_main, args=(theirs, job), daemon=True)
        process.start()
        theirs.close()
        workers.append(_Worker(process=process, pipe=ours))

    def hand_out(worker: _Worker) -> None:
        worker.task = waiting.popleft() if waiting else None
        worker.pipe.send(worker.task)

    try:
        for _ in range(min(num_workers, len(tasks))):
            start_worker()
        for worker in workers:
            hand_out(worker)
        while any(worker.task for worker in workers):
            ready = multiprocessing.connection.wait([worker.pipe for worker in workers if worker.task])
            for worker in [worker for worker in workers if worker.pipe in ready]:
                assert worker.task is not None
                number = worker.task.unit.number
                try:
                    kind, *values = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    num_tries[number] = num_tries.get(number, 0) + 1
                    _check_tries(job, worker.task, num_tries[number], worker.process.exitcode)
                    waiting.appendleft(worker.task)
                    workers.remove(worker)
                    start_worker()
                    hand_out(workers[-1])
                    continue
                if kind == "progress":
                    progress(*values)
                elif kind == "done":
                    hand_out(worker)
                    yield number, None
                elif kind == "uncertain":
                    hand_out(worker)
                    yield number, UnitError(values[0], first=values[1], certain=False)
                elif kind == "input":
                    raise InputError(values[0])
                else:
                    raise RuntimeError(f"a tokenizer worker failed in unit {number}:\n{values[0]}")
    finally:
        for worker in workers:
            if worker.task is not None:
                worker.process.terminate()
            worker.pipe.close()
        for worker in workers:
            worker.process.join(timeout=2)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def _check_tries(job: Job, task: Task, num_tries: int, exit_code: int | None) -> None:
    if num_tries < MAX_TRIES:
        return
    source = job.sources[task.unit.source]
    raise InputError(
        f"{source.path}: bytes {task.unit.start:,} to {task.unit.stop:,} (unit {task.unit.number}): the tokenizer "
        f"worker died {num_tries} times (exit code {exit_code}); if memory ran out, use fewer --workers; "
        "the same command goes on"
    )


def _worker_main(pipe: Connection, job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    try:
        encoder = load_encoder(job.encoder, job.tokenizer_json)
        while (task := pipe.recv()) is not None:
            try:
                process_unit(
                    task.unit,
                    job.sources[task.unit.source],
                    job.settings,
                    encoder,
                    job.eos_id,
                    job.directory,
                    first=task.first,
                    progress=lambda num_bytes, num_tokens: pipe.send(("progress", num_bytes, num_tokens)),
                )
                pipe.send(("done",))
            except UnitError as error:
                if error.certain:
                    raise
                pipe.send(("uncertain", str(error), error.first))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone
    except InputError as error:
        pipe.send(("input", str(error)))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = error.filename or job.directory
            pipe.send(("input", f"{where}: {error.strerror}; make room, then the same command goes on"))
        else:
            pipe.send(("fault", traceback.format_exc()))
    except BaseException:
        pipe.send(("fault", traceback.format_exc()))
