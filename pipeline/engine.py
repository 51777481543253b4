"""The local engine: worker processes that each do one unit at a time.

No text passes between processes: a worker gets a unit and answers with counts. A worker that dies doesn't hang the build:
its unit is tried once more in a new process, then the build fails naming the unit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import gc
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Literal, NoReturn

from pipeline.carried_unit import keep_files, run_carried_task
from pipeline.dedup import hash_receipt_path, write_hashes
from pipeline.documents import DocumentEncoder
from pipeline.receipts import receipt_path
from pipeline.sources import removed
from pipeline.tokenizers import ReferenceEncoder, load_encoder
from pipeline.units import Unit
from pipeline.work import Job, Progress, UnitError, UnitRecords, process_unit
from shards.common.errors import InputError, TransientError, machine_error
from shards.common.urls import is_url

TaskKind = Literal["build", "hash"]
MAX_TRIES = 2
_SECONDS_TO_END = 1.0
_HELD_BACK = (signal.SIGINT, signal.SIGTERM)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One unit to do; `first` is the offset of its first record where that is known."""

    unit: Unit
    kind: TaskKind = "build"
    first: int | None = None
    drops: bytes = b""  # for a worker that can't read them (`pipeline.carried_unit`)


@dataclasses.dataclass(kw_only=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    task: Task | None = None


def run_task(job: Job, task: Task, progress: Progress) -> bytes | dict[str, bytes]:
    """What a worker of any engine does for one task. Raises `UnitError`.

    Returns, for `keep_receipt`, the receipt's content where the set is built in a store, and all files where they are
    carried; else nothing.
    """
    if job.url:
        from pipeline.remote_unit import run_remote_task

        return run_remote_task(job, task, progress, _run_local_task)
    if job.carried:
        return run_carried_task(job, task, progress, _run_local_task)
    _run_local_task(job, task, progress)
    return b""


def _run_local_task(job: Job, task: Task, progress: Progress) -> None:
    if task.kind == "hash":
        records = UnitRecords(task.unit, job.sources, job.settings, first=task.first)
        texts = (texts for texts, _batch in records.batches())
        write_hashes(job.directory, task.unit.number, texts, records.stretches)
        return
    reference = functools.partial(
        load_encoder, ReferenceEncoder.name, job.tokenizer_json, parse_special=job.settings.parses_special_tokens
    )
    process_unit(task.unit, job, load_document_encoder(job), reference, first=task.first, progress=progress)


def keep_receipt(job: Job, task: Task, content: bytes | dict[str, bytes]) -> None:
    """Write the receipt that a worker has put into the store, or all that it has sent, to where the build reads it."""
    if isinstance(content, dict):
        keep_files(job, task, content)
    elif content:
        path_of = hash_receipt_path if task.kind == "hash" else receipt_path
        path_of(job.directory, task.unit.number).write_bytes(content)


def outcome_of(job: Job, task: Task, progress: Progress) -> tuple[Any, ...]:
    """Do one task; what became of it: `done` with the receipt's content, `uncertain` (a `UnitError` that may be one of a
    false start), `input` with the line of an `InputError`, or `fault` with a traceback.
    """
    try:
        return "done", run_task(job, task, progress)
    except UnitError as error:
        return ("input", str(error)) if error.certain else ("uncertain", str(error), error.firsts)
    except (TransientError, BrokenPipeError, ConnectionResetError):
        raise
    except InputError as error:
        return "input", str(error)
    except OSError as error:
        line = machine_error(error)
        if line is None:
            trace = traceback.format_exc()
            sources = (job.sources[stretch.source] for stretch in task.unit.stretches)
            gone = removed(sources) if isinstance(error, FileNotFoundError) else None
            return ("input", gone) if gone else ("fault", trace)
        where = "" if error.filename else f"{job.directory}: "
        cure = "make room, then " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return "input", f"{where}{line}; {cure}the same command goes on"
    except MemoryError:
        return "input", "a tokenizer worker ran out of memory; use fewer --workers, then the same command goes on"
    except BaseException:
        return "fault", traceback.format_exc()


@functools.lru_cache(maxsize=2)
def _document_encoder(encoder: str, tokenizer_json: bytes, eos_id: int, parse: bool, closes: bool) -> DocumentEncoder:
    loaded = load_encoder(encoder, tokenizer_json, parse_special=parse)
    return DocumentEncoder(loaded, tokenizer_json, eos_id, closes=closes)


def load_document_encoder(job: Job) -> DocumentEncoder:
    """Loaded once: a forked worker has its parent's at once."""
    settings = job.settings
    return _document_encoder(
        job.encoder, job.tokenizer_json, job.eos_id, settings.parses_special_tokens, settings.closes_documents
    )


def run_tasks(
    job: Job, tasks: Sequence[Task], num_workers: int, progress: Progress
) -> Generator[tuple[int, UnitError | None], None, None]:
    """Do all `tasks`; yields the number of each unit that has ended, and the error if it ended in an uncertain one.

    Raises `InputError` for bad input and `RuntimeError` with the worker's traceback for a fault of ours.
    """
    method = _start_method(job)
    context: Any = multiprocessing.get_context(method)
    waiting = deque(tasks)
    num_tries: dict[int, int] = {}
    workers: list[_Worker] = []

    def start_worker() -> _Worker:
        ours, theirs = context.Pipe()
        # A forked worker inherits our ends of all pipes: it closes them, or no worker would see that we are gone.
        inherited = [ours, *(worker.pipe for worker in workers)] if method == "fork" else []
        process = context.Process(target=_worker_main, args=(theirs, job, inherited), daemon=True)
        with signals_held_back(spawns=method == "spawn"):  # a worker has no answer to them before it runs our code
            process.start()
        theirs.close()
        workers.append(_Worker(process=process, pipe=ours))
        return workers[-1]

    def hand_out(worker: _Worker) -> None:
        worker.task = waiting.popleft() if waiting else None
        with contextlib.suppress(BrokenPipeError):  # it has died: its pipe will say so
            worker.pipe.send(worker.task)

    if method == "fork" and any(task.kind == "build" for task in tasks):
        load_document_encoder(job)
    try:
        for _ in range(min(num_workers, len(tasks))):
            hand_out(start_worker())
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
                    hand_out(start_worker())
                    continue
                if kind == "progress":
                    progress(*values)
                elif kind == "done":
                    keep_receipt(job, worker.task, values[0])
                    hand_out(worker)
                    yield number, None
                elif kind == "uncertain":
                    hand_out(worker)
                    yield number, UnitError(values[0], firsts=values[1], certain=False)
                else:
                    raise_outcome(number, kind, values[0])
    finally:
        for worker in workers:
            if worker.task is not None:
                worker.process.terminate()
            worker.pipe.close()
        for worker in workers:
            worker.process.join(timeout=_SECONDS_TO_END)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def raise_outcome(number: int, kind: str, message: str) -> NoReturn:
    """Raise what ended unit `number`, and with it the build."""
    if kind == "input":
        raise InputError(message)
    raise RuntimeError(f"a tokenizer worker failed in unit {number}:\n{message}")


def _start_method(job: Job) -> str:
    """Forked workers share the loaded tokenizers. Where a library may have started threads, new ones are spawned."""
    only_streams = not job.url and all(source.is_stream and not is_url(source.path) for source in job.sources)
    return "fork" if sys.platform == "linux" and only_streams else "spawn"


def _check_tries(job: Job, task: Task, num_tries: int, exit_code: int | None) -> None:
    if num_tries < MAX_TRIES:
        return
    stretch = task.unit.stretches[0]
    raise InputError(
        f"{job.sources[stretch.source].path}: unit {task.unit.number} (from {stretch.start:,} on): the tokenizer worker "
        f"died {num_tries} times (exit code {exit_code}); if memory ran out, use fewer --workers; the same command goes on"
    )


@contextlib.contextmanager
def signals_held_back(*, spawns: bool) -> Generator[None, None, None]:
    """SIGINT and SIGTERM wait until the end; a process that is started within has them held back from its start on."""
    if spawns:
        multiprocessing.resource_tracker.ensure_running()  # the first spawned process starts it, and that lets them through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def take_signals() -> None:
    """In a process that was started within `signals_held_back`: SIGTERM ends it now, and at SIGINT the parent decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)


def _worker_main(pipe: Connection, job: Job, inherited: list[Connection]) -> None:
    for connection in inherited:
        connection.close()
    take_signals()
    gc.disable()  # records hold no cycles, and there are many of them
    parent = os.getppid()

    def progress(*counts: int) -> None:
        if os.getppid() != parent:
            os._exit(1)  # nobody waits for the result
        pipe.send(("progress", *counts))

    try:
        while (task := pipe.recv()) is not None:
            try:
                pipe.send(outcome_of(job, task, progress))
            except TransientError as error:
                pipe.send(("input", str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone
