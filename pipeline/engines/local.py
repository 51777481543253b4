"""The local engine: worker processes that each do one unit at a time.

A worker that dies doesn't hang the build: its unit is tried once more in a new process, then the build fails naming the
unit. When the build's process dies, its workers end by themselves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pipeline.engines.base import MAX_TRIES, Results, Task, Work, outcome_of, where
from pipeline.worker import Progress
from shards.common.errors import InputError

_SECONDS_TO_END = 1.0
_WORKER_NAME = "tokenizer worker"
_GUARD = "in a script, which has to be a file, call `build` below `if __name__ == '__main__':`"
_HELD_BACK = (signal.SIGINT, signal.SIGTERM)


def num_cores() -> int:
    """The cores that this process may use, by its affinity and by the limit of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, -(-int(quota) // int(period))))
    return cores


@dataclasses.dataclass(kw_only=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    task: Task | None = None
    has_begun: bool = False


class LocalEngine:
    """Worker processes of this machine."""

    max_threads = 3  # beside the one that reads and writes: more would wait for that

    def __init__(self, num_workers: int | None = None, *, may_fork: bool = True) -> None:
        """Forked workers share the loaded tokenizer; `may_fork` is off where a library may have started threads."""
        self.num_workers = num_workers or num_cores()
        self._method = "fork" if sys.platform == "linux" and may_fork else "spawn"
        self._context: Any = multiprocessing.get_context(self._method)
        self._workers: list[_Worker] = []

    def run(self, work: Work, tasks: deque[Task], progress: Progress) -> Results:
        """See `pipeline.engines.base.Engine`."""
        num_deaths: Counter[int] = Counter()
        try:
            while tasks or any(worker.task for worker in self._workers):
                self._hand_out(work, tasks)
                busy = {worker.pipe: worker for worker in self._workers if worker.task}
                for pipe in multiprocessing.connection.wait(list(busy)):
                    worker = busy[pipe]  # type: ignore[index]
                    task = worker.task
                    assert task is not None
                    try:
                        message = worker.pipe.recv()
                    except (EOFError, ConnectionResetError):
                        self._note_death(worker, task, num_deaths)
                        tasks.appendleft(task)
                        continue
                    worker.has_begun = True
                    if isinstance(message, tuple):
                        progress(*message)
                    else:
                        worker.task = None
                        yield task, message
        finally:
            self._stop()

    def _hand_out(self, work: Work, tasks: deque[Task]) -> None:
        idle = [worker for worker in self._workers if worker.task is None]
        while tasks and (idle or len(self._workers) < self.num_workers):
            worker = idle.pop() if idle else self._start(work)
            worker.task = tasks.popleft()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died: its pipe will say so
                worker.pipe.send(worker.task)

    def _start(self, work: Work) -> _Worker:
        ours, theirs = self._context.Pipe()
        forks = self._method == "fork"
        # A forked worker inherits our ends of all pipes: it closes them, or no worker would see that we are gone.
        inherited = [ours, *(worker.pipe for worker in self._workers)] if forks else []
        arguments = (theirs, work if forks else None, inherited)
        process = self._context.Process(target=_worker_main, args=arguments, name=_WORKER_NAME, daemon=True)
        with _signals_held_back(spawns=not forks):
            process.start()
        theirs.close()
        self._workers.append(_Worker(process=process, pipe=ours))
        if not forks:  # by `start` this would hang if the worker died before it has read all of it
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                ours.send(work)
        return self._workers[-1]

    def _note_death(self, worker: _Worker, task: Task, num_deaths: Counter[int]) -> None:
        """Raise `InputError` if a unit has cost too many workers."""
        worker.process.join()
        self._workers.remove(worker)
        worker.pipe.close()
        number = task.unit.number
        num_deaths[number] += 1
        if num_deaths[number] >= MAX_TRIES:
            code = worker.process.exitcode
            line = (
                f"{where(task)}: the tokenizer worker died {num_deaths[number]} times (exit code {code}); "
                "if memory ran out, use fewer workers"
            )
            if not worker.has_begun:
                line = f"{where(task)}: the tokenizer workers end as they start (exit code {code}); {_GUARD}"
            raise InputError(f"{line}; the same command continues")

    def _stop(self) -> None:
        for worker in self._workers:
            if worker.task is not None:
                worker.process.terminate()
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join(timeout=_SECONDS_TO_END)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers = []


@contextlib.contextmanager
def _signals_held_back(*, spawns: bool) -> Iterator[None]:
    """SIGINT and SIGTERM wait until the end, so that a process started within has no moment without an answer to them."""
    if spawns:
        multiprocessing.resource_tracker.ensure_running()  # the first spawned process starts it, and that lets them through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_if_worker() -> None:
    """A spawned worker first runs the caller's script. If that has no main guard it comes to `build`, where it ends."""
    if multiprocessing.current_process().name == _WORKER_NAME:
        raise SystemExit(1)


def _worker_main(pipe: Connection, work: Work | None, inherited: list[Connection]) -> None:
    for connection in inherited:
        connection.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)
    gc.disable()  # records hold no cycles, and there are many of them
    parent = os.getppid()

    def progress(*counts: int) -> None:
        if os.getppid() != parent:
            os._exit(1)  # nobody waits for the result
        with contextlib.suppress(OSError):
            pipe.send(counts)

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        pipe.send((0, 0, 0))  # it has begun
        work = work or pipe.recv()
        while True:
            pipe.send(outcome_of(work, pipe.recv(), progress))
