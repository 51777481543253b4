"""The engine of several machines: Ray runs the same tasks that the local engine runs, on any node of a cluster.

Ray restarts what died: a task whose worker or node is lost is tried again, up to `MAX_RETRIES` times. A task is idempotent,
so it may. Only counts and receipts come back, and no more than `TASKS_PER_CORE` tasks a core are handed out at a time, so
this process holds the same however many units there are.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pipeline
import shards
from pipeline.engines.base import Outcome, Results, Task, Work, outcome_of, where
from pipeline.worker import Progress
from shards.common.errors import InputError

MAX_RETRIES = 5
TASKS_PER_CORE = 2
_SECONDS_BETWEEN_COUNTS = 10.0
_SECONDS_TO_CONNECT = 10.0


@contextlib.contextmanager
def ray_engine(address: str | None, num_workers: int | None) -> Iterator[RayEngine]:
    """An engine on the cluster at `address` (`auto`, `HOST:6379`, `ray://HOST:10001`), or on one of this machine alone.

    A connection that is there already is used and left as it is. Raises `InputError`.
    """
    try:
        import ray
    except ImportError:
        raise InputError("the engine ray needs the package ray: pip install '.[ray]'") from None
    if ray.is_initialized():
        yield RayEngine(num_workers)
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    packages = [str(Path(str(package.__file__)).parent) for package in (pipeline, shards)]
    try:
        _check_reachable(address or "")
        with _sigterm_kept():
            ray.init(
                address=address or "local",
                runtime_env={"py_modules": packages},  # every node runs the code of this machine
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if address else {"include_dashboard": False}),
            )
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        reason = _one_line(error)
        raise InputError(f"ray_address {address}: can't connect to a Ray cluster there: {reason}") from None
    try:
        yield RayEngine(num_workers)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray makes SIGTERM end the process: put back what the caller does at it, and do that if it came meanwhile."""
    answer = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        signal.signal(signal.SIGTERM, answer)
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread, where Ray doesn't either
            signal.signal(signal.SIGTERM, answer)


def _check_reachable(address: str) -> None:
    """Raise `OSError` if nobody listens at `address`: Ray itself would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_CONNECT).close()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


class RayEngine:
    """Tasks on the cluster that this process is connected to."""

    max_threads = 1  # a task has one core

    def __init__(self, num_workers: int | None) -> None:
        """Without `num_workers` all cores of the cluster are used, also those that join later."""
        self._limit = num_workers
        self.num_workers = num_workers or _num_cluster_cores()

    def run(self, work: Work, tasks: deque[Task], progress: Progress) -> Results:
        """See `pipeline.engines.base.Engine`. The progress comes with each task that has ended."""
        import ray

        reference = [ray.put(work)]  # in a list: not taken apart for each task
        remote = ray.remote(num_cpus=1, max_retries=MAX_RETRIES, max_calls=0)(_run_task)
        running: dict[Any, Task] = {}
        try:
            while tasks or running:
                limit = self._limit or TASKS_PER_CORE * _num_cluster_cores()
                while tasks and len(running) < limit:
                    task = tasks.popleft()
                    running[remote.remote(reference, task)] = task
                ready, _others = ray.wait(list(running), num_returns=1, timeout=_SECONDS_BETWEEN_COUNTS)
                for ended in ready:
                    task = running.pop(ended)
                    try:
                        counts, outcome = ray.get(ended)
                    except ray.exceptions.RayTaskError as error:
                        raise RuntimeError(f"{where(task)}: {error}") from None
                    except ray.exceptions.RayError as error:
                        what = f"the tokenizer worker died {MAX_RETRIES + 1} times ({_one_line(error)})"
                        raise InputError(f"{where(task)}: {what}; the same command continues") from None
                    progress(*counts)
                    yield task, outcome
        finally:
            for ended in running:
                ray.cancel(ended, force=True)
            for ended in running:
                with contextlib.suppress(Exception):
                    ray.get(ended, timeout=10)


def _num_cluster_cores() -> int:
    """The cores of all nodes that are there now."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _run_task(reference: list[Any], task: Task) -> tuple[list[int], Outcome]:
    """Runs on a node: the bytes, tokens and rejected records of the task, and its outcome."""
    counts = [(0, 0, 0)]
    gc.disable()
    outcome = outcome_of(_work(reference[0]), task, lambda *more: counts.append(more))
    return list(map(sum, zip(*counts, strict=True))), outcome


@functools.lru_cache(maxsize=1)
def _work(reference: Any) -> Work:
    """The work, which a worker gets once."""
    import ray

    work: Work = ray.get(reference)
    return work
