"""Commands and ranks in processes forked from one that has imported torch: importing it takes seconds, forking none."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes

from shards.common.command_line import run_command
from train.environment import prepare_environment

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.train.quick"])
PATIENCE_SECONDS = 120
Main = Callable[[list[str]], int | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """One that runs. It leads a process group, and has its output in a file."""

    process: Any
    _files: Path

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    @property
    def output(self) -> str:
        return self._files.with_suffix(".out").read_text()

    @property
    def errors(self) -> str:
        return self._files.with_suffix(".err").read_text()

    def wait_until(self, reached: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not reached():
            assert self.process.is_alive() and time.monotonic() < deadline, self.output + self.errors
            time.sleep(0.02)

    def status(self) -> int:
        """Its exit status, when it has ended."""
        self.process.join(PATIENCE_SECONDS)
        assert self.process.exitcode is not None, self.output + self.errors
        return int(self.process.exitcode)


@contextlib.contextmanager
def command(
    main: Main, *arguments: object, files: Path, prepare: Callable[[], None] | None = None
) -> Iterator[Command]:
    """Run `main` as a command line does; `prepare` is called first. What still runs at the end is killed."""
    prepare_environment()
    process = FORKS.Process(target=_run, args=(main, list(map(str, arguments)), files, prepare))
    process.start()
    try:
        yield Command(process=process, _files=files)
    finally:
        process.kill()
        process.join()


def _run(main: Main, arguments: list[str], files: Path, prepare: Callable[[], None] | None) -> None:
    os.setsid()
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(files.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as a command has it: a loader's workers import nothing anew
    if prepare is not None:
        prepare()
    run_command(main, arguments)


def in_two_processes(function: Callable[..., object], *arguments: object) -> None:
    """Call it in two processes that have the environment of torchrun; raises what one of them raised."""
    prepare_environment()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    start_processes(_as_rank, (port, function, arguments), nprocs=2, start_method="forkserver")


def _as_rank(rank: int, port: int, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}
    torch.set_num_threads(1)
    function(*arguments)
