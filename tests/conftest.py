"""Corpora, a small tokenizer and shard sets for the tests. Nothing here needs a network."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.hub_server import data_sets_of, hub  # noqa: F401
from tests.object_stores import running, server  # noqa: F401

# A busy machine makes an example slow, which is no fault of the code. Every run tries others.
hypothesis.settings.register_profile("patient", deadline=None, max_examples=50)
hypothesis.settings.load_profile("patient")

os.environ["HF_HUB_OFFLINE"] = "1"
REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLE = REPOSITORY / "data" / "sample" / "wikipedia-zh-sample.json"


def pytest_sessionstart(session: pytest.Session) -> None:
    # A suite that is started in the background (`make test &`) inherits that SIGINT is ignored, and so would its processes.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # pytest-randomly itself keeps the seed of the order to itself under `-q`.
    seed = session.config.getoption("randomly_seed", None)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # none in the processes of pytest-xdist
    if seed is not None and reporter is not None and not hasattr(session.config, "workerinput"):
        reporter.write_line(f'random order; the same again: make test ARGS="--randomly-seed={seed}"')


def sample_records() -> list[dict[str, str]]:
    records: list[dict[str, str]] = json.loads(SAMPLE.read_text(encoding="utf-8"))
    return records


def write_corpus(path: Path, records: Sequence[Any], layout: str = "array") -> Path:
    """Write `records` as JSON Lines (`lines`), one after another (`joined`, `jq`), or as an array, in several ways."""
    dumped = [json.dumps(record, ensure_ascii=layout == "escaped") for record in records]
    contents = {
        "lines": "".join(line + "\n" for line in dumped),
        "array": "[\n" + ",\n".join(dumped) + "\n]\n",
        "pretty": json.dumps(list(records), ensure_ascii=False, indent=2),
        "compact": "[" + ", ".join(dumped) + "]",
        "escaped": "[" + ",".join(dumped) + "]",
        "joined": "".join(dumped),
        "jq": "\n".join(json.dumps(record, ensure_ascii=False, indent=2) for record in records),
    }
    path.write_text(contents[layout], encoding="utf-8")
    return path


@pytest.fixture(scope="session", autouse=True)
def no_flushing() -> Iterator[None]:
    """Many small files, and no power failure: flushing them took longer than all else in many tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


@pytest.fixture
def not_flushed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], list[str]]:
    """What a power failure could take of what lies at a path: who flushes a file or directory gives it the time 0."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.utime(descriptor, ns=(0, 0)))
    return lambda path: [str(one) for one in (path, *path.rglob("*")) if one.stat().st_mtime_ns]


def needs_compiler() -> None:
    """Skip the test where the native encoder can't be compiled."""
    from pipeline.native import NoCompiler, compiled

    try:
        compiled()
    except NoCompiler as error:
        pytest.skip(str(error))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A directory that `make` fills, once for all processes of a run of the suite: nobody may change it."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # this process has a directory of its own in that of the run
        base = base.parent
    with open(base / f"{name}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = base / f"{name}.made"
        if not made.exists():
            (base / name).mkdir()
            make(base / name)
            made.touch()
    return base / name


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 600 entries, trained on the sample corpus."""
    from pipeline.train_tokenizer import train_tokenizer

    return made_once(
        tmp_path_factory, "tokenizer", lambda directory: train_tokenizer([str(SAMPLE)], directory, vocab_size=600)
    )


class InlineEngine:
    """Units are done in the test's own process, the last first or in an order that follows from `seed`."""

    num_workers = max_threads = 1

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed) if seed is not None else None

    def run(self, work: Any, tasks: deque[Any], progress: Any) -> Generator[tuple[Any, Any], None, None]:
        from pipeline.engines.base import outcome_of

        while tasks:
            if self._random is not None:
                tasks.rotate(self._random.randrange(len(tasks)))
            task = tasks.pop()
            yield task, outcome_of(work, task, progress)


def use_engine(monkeypatch: pytest.MonkeyPatch, engine: object) -> None:
    """Have builds use `engine`."""
    from pipeline import build

    monkeypatch.setattr(build, "_engine", lambda *_arguments: contextlib.nullcontext(engine))


@pytest.fixture
def inline_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    use_engine(monkeypatch, InlineEngine())


def run_module(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m …` in a process of its own, output captured."""
    return run_python("-m", *arguments, **options)


def run_python(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, output captured, with `env` added to the environment."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), **options.pop("env", {})}
    usual: dict[str, Any] = {"cwd": REPOSITORY, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 120}
    return subprocess.run([sys.executable, *map(str, arguments)], env=env, text=True, **(usual | options))


def assert_one_error_line(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit status 2, and one line on stderr that begins with `error: ` and holds all `parts`."""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2, result.stderr
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in errors[0]


def directory_bytes(directory: Path) -> dict[str, bytes]:
    """Every file below `directory` with its content."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def change(path: Path, edit: Callable[[bytes], bytes]) -> None:
    """Change a file's content; its times stay."""
    status = path.stat()
    path.write_bytes(edit(path.read_bytes()))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip(path: Path, place: int = -1) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    change(path, lambda _content: bytes(content))
