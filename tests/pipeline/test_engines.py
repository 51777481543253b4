"""The local engine: three kinds of errors, worker processes that die, and what becomes of them when their parent ends."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from pipeline.engines import base
from pipeline.engines.base import Task, outcome_of
from pipeline.engines.local import LocalEngine, num_cores
from pipeline.plan import Unit
from pipeline.sources import ByteRange, Source
from shards.common.errors import InputError, TransientError
from tests.conftest import REPOSITORY, run_python

SOURCE = Source(path="/corpus", name="corpus", format="json-lines", num_bytes=1000, modified_ns=0)


def task(number: int) -> Task:
    byte_range = ByteRange(source=SOURCE, start=10 * number, stop=10 * number + 10, num_bytes=10)
    return Task(unit=Unit(number=number, ranges=(byte_range,)))


class Faulty:
    """Work that does `act(unit's number)` and returns the number."""

    def __init__(self, act: Callable[[int], object] = lambda _number: None) -> None:
        self.act = act

    def __call__(self, task: Task, progress: Any) -> bytes:
        progress(10, 1, 0)
        self.act(task.unit.number)
        return str(task.unit.number).encode()


def ignore(*_counts: int) -> None: ...


def raises(*errors: BaseException) -> Callable[[int], None]:
    """The errors one after another, then none."""
    left = list(errors)

    def act(_number: int) -> None:
        if left:
            raise left.pop(0)

    return act


@pytest.mark.parametrize("may_fork", [True, False])
def test_all_tasks_are_done_also_those_that_are_added_while_it_runs(may_fork: bool) -> None:
    counts: list[int] = []
    tasks, results = deque(map(task, range(5))), []
    engine = LocalEngine(2, may_fork=may_fork)
    work = Faulty(abs)  # which can be pickled
    for done, result in engine.run(work, tasks, lambda *more: counts.append(more[0])):
        assert isinstance(result, bytes)
        results.append(int(result))
        if done.unit.number < 3:
            tasks.append(task(done.unit.number + 10))
    assert sorted(results) == [0, 1, 2, 3, 4, 10, 11, 12]
    assert sum(counts) == 80 and multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), r"/corpus: unit 4 \(from 40 on\): reset; the same command c"),
        (TimeoutError(), r"/corpus: unit 4 \(from 40 on\): TimeoutError; the same command continues"),
        (TransientError("gone"), "gone"),
    ],
)
def test_a_transient_error_is_retried_with_pauses(error: Exception, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    assert outcome_of(Faulty(raises(*[error] * 3)), task(4), ignore) == b"4"
    assert pauses == [1.0, 4.0, 16.0]
    outcome = outcome_of(Faulty(raises(*[error] * 4)), task(4), ignore)
    assert isinstance(outcome, InputError) and re.match(line, str(outcome))


def test_an_error_of_a_source_is_not_taken_for_the_parents_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "PAUSES_SECONDS", (0.0,))
    tasks = deque(map(task, range(2)))
    results = [result for _task, result in LocalEngine(1).run(Faulty(raises(*[BrokenPipeError()] * 3)), tasks, ignore)]
    assert str(results[0]) == "/corpus: unit 0 (from 0 on): BrokenPipeError; the same command continues"
    assert results[1] == b"1"


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (InputError("bad input"), InputError, "bad input"),
        (
            MemoryError(),
            InputError,
            "a tokenizer worker ran out of memory; use fewer workers; the same command continues",
        ),
        (
            OSError(errno.ENOSPC, "No space", "/disk"),
            InputError,
            "/disk: No space; make room, then the same command con",
        ),
        (OSError(errno.EIO, "I/O error", "/disk"), InputError, "/disk: I/O error; the same command continues"),
        (KeyError("what"), RuntimeError, r".*failed in unit 0:\n(.*\n)*KeyError: 'what'"),
    ],
)
def test_all_but_a_fault_of_ours_is_one_line(error: Exception, kind: type[Exception], line: str) -> None:
    outcome = outcome_of(Faulty(raises(error)), task(0), ignore)
    assert isinstance(outcome, kind) and re.match(line, str(outcome))


def test_a_worker_that_dies_is_replaced_once(tmp_path: Path) -> None:
    def die_once(number: int) -> None:
        if number == 3 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    done = LocalEngine(2).run(Faulty(die_once), deque(map(task, range(6))), ignore)
    assert sorted(int(result) for _task, result in done if isinstance(result, bytes)) == list(range(6))
    assert (tmp_path / "died").exists()


def test_a_unit_that_kills_its_workers_fails_by_name() -> None:
    running = LocalEngine(1).run(Faulty(lambda number: number == 3 and os._exit(9)), deque(map(task, range(6))), ignore)
    with pytest.raises(InputError, match=r"/corpus: unit 3 \(from 30 on\): .* died 2 times \(exit code 9\); if memory"):
        list(running)
    assert multiprocessing.active_children() == []


def test_workers_end_when_the_caller_stops() -> None:
    running = LocalEngine(2).run(Faulty(lambda number: time.sleep(100 * number)), deque(map(task, range(3))), ignore)
    next(running)
    begin = time.monotonic()
    running.close()
    assert multiprocessing.active_children() == [] and time.monotonic() - begin < 20


PARENT = """
import os, sys, time
from collections import deque
from pipeline.engines.local import LocalEngine
from tests.pipeline.test_engines import Faulty, ignore, task

class Busy(Faulty):
    def __call__(self, task, progress):
        print(os.getpid(), flush=True)
        while True:
            progress(1, 1, 0)
            time.sleep(0.01)

list(LocalEngine(2).run(Busy(), deque(map(task, range(4))), ignore))
"""


def test_workers_end_when_their_parent_dies() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while any(_is_running(worker) for worker in workers):
        assert time.monotonic() < deadline, "still there"
        time.sleep(0.05)
    parent.stdout.close()


def _is_running(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


UNGUARDED = """
import sys
from pathlib import Path
from pipeline.build import build
from pipeline.settings import BuildSettings
from shards.common.errors import InputError

print("begun")
try:
    build([sys.argv[1]], sys.argv[2], tokenizer_name=sys.argv[3], settings=BuildSettings(), num_workers=2)
except InputError as error:
    sys.exit(str(error))
"""


def test_a_script_without_a_main_guard_ends_in_one_line(tmp_path: Path) -> None:
    """Of a table: its workers are spawned, and each begins with running the script again."""
    script, corpus = tmp_path / "script.py", tmp_path / "corpus.csv"
    script.write_text(UNGUARDED)
    corpus.write_text("text\n一\n", encoding="utf-8")
    tokenizer = Tokenizer(models.BPE({f"w{number}": number for number in range(9_000)}, []))
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))  # more than fits in a pipe
    result = run_python(script, corpus, tmp_path / "set", tmp_path / "tokenizer.json")
    assert re.fullmatch(
        r".*corpus\.csv: unit 0 \(from 0 on\): the tokenizer workers end as they start \(exit code \d+\); "
        r"in a script, which has to be a file, call `build` below `if __name__ == '__main__':`; .*\n",
        result.stderr,
    ), result.stderr
    assert result.returncode == 1 and not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("limit", "expected"), [("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1), ("", 8), (None, 8)]
)
def test_cores_of_affinity_and_control_group(limit: str | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_text(path: Path, *_more: Any) -> str:
        assert path == Path("/sys/fs/cgroup/cpu.max")
        if limit is None:
            raise FileNotFoundError(path)
        return limit

    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)))
    monkeypatch.setattr(Path, "read_text", read_text)
    assert num_cores() == expected
    assert LocalEngine(3).num_workers == 3 and LocalEngine().num_workers == expected
