"""The engine of several machines: Ray runs the very tasks that the local engine runs, on any node of a cluster.

Ray restarts what died: a task whose worker or node is lost, or to whom a store didn't answer, is tried again, up to
`MAX_RETRIES` times. A task is idempotent, so it may. Only counts and receipts come back (and a unit's files, of a set for
Hugging Face, which is put from this machine), and no more than `TASKS_PER_CORE` tasks a core are handed out at a time, so
this process holds the same however many units there are.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import socket
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pipeline
import shards
from pipeline.carried_unit import with_drops
from pipeline.engine import Task, keep_receipt, outcome_of, raise_outcome
from pipeline.work import Job, Progress, UnitError
from shards.common.errors import InputError, TransientError

MAX_RETRIES = 5
TASKS_PER_CORE = 2
_SECONDS_BETWEEN_COUNTS = 10.0
_SECONDS_TO_CONNECT = 10.0


@contextlib.contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """Be connected to the cluster at `address` (`auto`, `HOST:6379`, `ray://HOST:10001`), or to one of this machine alone.

    A connection that is there already is used and left as it is. Raises `InputError`.
    """
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray: needs the package ray: pip install '.[ray]'") from None
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    _check_reachable(address)
    packages = [str(Path(str(package.__file__)).parent) for package in (pipeline, shards)]
    try:
        ray.init(
            address=address or "local",
            runtime_env={"py_modules": packages},  # every node runs the code of this machine
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if address else {"include_dashboard": False}),
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"--ray-address {address}: can't connect to a Ray cluster there: {reason}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Raise `InputError` if nobody listens at `address`: Ray itself would wait for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--ray-address {address}: can't connect to a Ray cluster there: {error}; start it with `ray start --head`"
        ) from None


def num_cluster_cores() -> int:
    """The cores of all nodes that are there now."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def run_tasks_on_ray(
    job: Job, tasks: Sequence[Task], num_workers: int, progress: Progress
) -> Generator[tuple[int, UnitError | None], None, None]:
    """As `pipeline.engine.run_tasks`. With `num_workers` 0, all cores of the cluster are used, also those that join later.

    The progress comes with each task that has ended.
    """
    import ray

    reference = [ray.put(job)]  # in a list: not taken apart for each task
    remote = ray.remote(num_cpus=1, max_retries=MAX_RETRIES, retry_exceptions=[TransientError], max_calls=0)(_run_task)
    waiting = deque(tasks)
    running: dict[Any, Task] = {}
    try:
        while waiting or running:
            limit = num_workers or TASKS_PER_CORE * num_cluster_cores()
            while waiting and len(running) < limit:
                task = waiting.popleft()
                running[remote.remote(reference, with_drops(job, task))] = task
            ready, _others = ray.wait(list(running), num_returns=1, timeout=_SECONDS_BETWEEN_COUNTS)
            for ended in ready:
                task = running.pop(ended)
                number = task.unit.number
                counts, kind, *values = _result(job, task, ended)
                progress(*counts)
                if kind == "done":
                    keep_receipt(job, task, values[0])
                    yield number, None
                elif kind == "uncertain":
                    yield number, UnitError(values[0], firsts=values[1], certain=False)
                else:
                    raise_outcome(number, kind, values[0])
    finally:
        for reference_ in running:
            ray.cancel(reference_, force=True)
        for reference_ in running:
            with contextlib.suppress(Exception):
                ray.get(reference_, timeout=10)


def _result(job: Job, task: Task, ended: Any) -> tuple[Any, ...]:
    import ray

    stretch = task.unit.stretches[0]
    where = f"{job.sources[stretch.source].path}: unit {task.unit.number} (from {stretch.start:,} on)"
    try:
        outcome: tuple[Any, ...] = ray.get(ended)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise InputError(str(cause) if isinstance(cause, InputError) else f"{where}: {cause}") from None
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{where}: the tokenizer worker died {MAX_RETRIES + 1} times ({reason}); the same command goes on"
        ) from None
    return outcome


def _run_task(reference: list[Any], task: Task) -> tuple[Any, ...]:
    """Runs on a node: the bytes, tokens and rejected records of the task, then its outcome (`outcome_of`)."""
    counts = [0, 0, 0]

    def progress(*more: int) -> None:
        for place, number in enumerate(more):
            counts[place] += number

    gc.disable()
    return (counts, *outcome_of(_job(reference[0]), task, progress))


@functools.lru_cache(maxsize=1)
def _job(reference: Any) -> Job:
    """The job, which a worker gets once."""
    import ray

    job: Job = ray.get(reference)
    return job
