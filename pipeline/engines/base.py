"""An engine runs a function over units: on worker processes of this machine, or on a Ray cluster.

The function is any picklable object with `__call__(task, progress) -> bytes`. What it may raise is of three kinds: bad
input (`InputError`) ends the task, and the caller decides; a `TransientError` is retried with pauses; anything else is a
fault of ours and ends the run with the worker's traceback.
"""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator
from typing import Protocol

from pipeline.plan import Unit
from pipeline.worker import Progress
from shards.common.errors import InputError, TransientError, is_full, machine_error

MAX_TRIES = 2  # of a unit whose worker dies
PAUSES_SECONDS = (1.0, 4.0, 16.0)  # before a unit is tried again after a transient error


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One unit to do; `first` is the offset of its first record where that is known."""

    unit: Unit
    first: int | None = None


Work = Callable[[Task, Progress], bytes]  # what an engine runs for each task; it can be pickled
Outcome = bytes | InputError | RuntimeError
Results = Generator[tuple[Task, Outcome], None, None]


class Engine(Protocol):
    """Runs the tasks of a queue, to which the caller may add while it runs."""

    num_workers: int
    max_threads: int  # that a worker may use where there are fewer tasks than workers

    def run(self, work: Work, tasks: deque[Task], progress: Progress) -> Results:
        """Yields each task that has ended, with what came of it. Raises `InputError` where a worker keeps dying."""
        ...


def outcome_of(work: Work, task: Task, progress: Progress) -> Outcome:
    """Run one task, in a worker: its result, bad input, or (`RuntimeError`) a fault of ours with its traceback."""
    for pause in (*PAUSES_SECONDS, None):
        try:
            return work(task, progress)
        except (TransientError, ConnectionError, TimeoutError) as error:
            if pause is not None:
                time.sleep(pause)
                continue
            if isinstance(error, TransientError):
                return error
            return InputError(f"{where(task)}: {error.strerror or type(error).__name__}; the same command continues")
        except InputError as error:
            return error
        except MemoryError:
            return InputError("a tokenizer worker ran out of memory; use fewer workers; the same command continues")
        except Exception as error:
            if isinstance(error, OSError) and (refused := machine_error(error)):
                cure = "make room, then " if is_full(error) else ""
                return InputError(f"{refused}; {cure}the same command continues")
            return RuntimeError(f"a tokenizer worker failed in unit {task.unit.number}:\n{traceback.format_exc()}")
    raise AssertionError


def where(task: Task) -> str:
    """The beginning of a line about a task."""
    byte_range = task.unit.ranges[0]
    return f"{byte_range.source.path}: unit {task.unit.number} (from {byte_range.start:,} on)"
