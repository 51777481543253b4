"""Commands in processes that can be killed and whose system calls can be made to fail.

A command is a fork of a process that has imported everything already: importing torch takes seconds, and is not what is
tested. It leads a process group, has its own output files, and runs the command line's own `main`.
"""

from __future__ import annotations

import atexit
import ctypes
import dataclasses
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from shards.common.command_line import run_command

LIMIT_SECONDS = 300.0
INJECTOR = Path(__file__).with_name("injector.c")


@dataclasses.dataclass(frozen=True)
class Fault:
    """From the `nth` call of this name on (only that one if `once`), below the directory, the call fails."""

    call: str
    below: Path
    nth: int
    error: str = "EIO"
    once: bool = False

    def arm(self) -> None:
        injector = ctypes.CDLL(None).fault_arm
        injector(
            self.call.encode(),
            os.fsencode(self.below),
            ctypes.c_long(self.nth),
            getattr(errno, self.error),
            int(self.once),
        )

    @property
    def name(self) -> str:
        return f"{self.call} {self.error} {'once' if self.once else 'from then on'}"


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended: its status as of a shell (137: killed), and what it said."""

    status: int
    output: str
    errors: str

    @property
    def is_clear(self) -> bool:
        """Success, a signal's status, or exactly one line that says what is wrong."""
        lines = [line for line in self.errors.splitlines() if line.startswith("error: ")]
        if "Traceback" in self.errors or "Exception ignored" in self.errors:
            return False
        return self.status in (0, 130, 143) or (self.status == 2 and len(lines) == 1)


class Command:
    """`main(arguments)` in a process of its own, begun at once."""

    def __init__(
        self, main: Callable[[list[str]], int | None], arguments: list[str], work: Path, fault: Fault | None = None
    ):
        self._files = [work / f"command-{time.monotonic_ns()}.{name}" for name in ("out", "err")]
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(main, arguments, fault)

    def _run(self, main: Callable[[list[str]], int | None], arguments: list[str], fault: Fault | None) -> NoReturn:
        status: object = 1
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number, path in enumerate(self._files, start=1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            if fault is not None:
                fault.arm()
            run_command(main, arguments)
        except SystemExit as exit_:
            status = exit_.code
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                atexit._run_exitfuncs()
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status if isinstance(status, int) else 1)

    def wait(self, seconds: float = LIMIT_SECONDS) -> bool:
        """Whether it has ended within so many seconds; it is not reaped."""
        deadline = time.monotonic() + seconds
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.pid, number)

    def children(self) -> list[int]:
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except FileNotFoundError:
            return []

    def end(self, seconds: float = LIMIT_SECONDS) -> Ended:
        """Wait for it. Raises `TimeoutError`, and kills it, if it hangs."""
        hangs = not self.wait(seconds)
        if hangs:
            self.signal(signal.SIGKILL, group=True)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        texts = []
        for path in self._files:  # killed at once, it has made none
            texts.append(path.read_text(errors="replace") if path.exists() else "")
            path.unlink(missing_ok=True)
        output, errors = texts
        if hangs:
            raise TimeoutError(f"still running after {seconds:.0f} s: {errors[-500:]}")
        return Ended(status if status >= 0 else 128 - status, output, errors)


def begin_with_injector(work: Path) -> None:
    """Start this program again with the injector loaded, unless it is."""
    if hasattr(ctypes.CDLL(None), "fault_arm"):
        return
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("error: a C compiler is needed for the faults of system calls: install gcc")
    library = work / "injector.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, INJECTOR, "-ldl"], check=True)
    os.execve(
        sys.executable,
        [sys.executable, "-m", "bench.faults", *sys.argv[1:]],
        {**os.environ, "LD_PRELOAD": str(library)},
    )


def count_calls(
    main: Callable[[list[str]], int | None], arguments: list[str], work: Path, below: Path, call: str
) -> int:
    """How often the command makes this call on files below the directory."""
    fault = Fault(call, below, 0)
    counted = work / "count"

    def counting(argv: list[str]) -> int | None:
        try:
            return main(argv)
        finally:
            counted.write_text(str(ctypes.CDLL(None).fault_count()))

    Command(counting, arguments, work, fault).end()
    return int(counted.read_text())


def damage(directory: Path, rng: random.Random) -> str | None:
    """Damage one file below the directory, as a bad disk or a person might; says what was done."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and not path.is_symlink()]
    if not files:
        return None
    path = rng.choice(files)
    content = path.read_bytes()
    how = rng.choice(["truncated", "emptied", "a byte changed", "removed", "replaced by noise", "grown"])
    place = rng.randrange(len(content)) if content else 0
    if how == "removed":
        path.unlink()
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(content[:place])
    elif how == "grown":
        path.write_bytes(content + b"\0")
    elif how == "replaced by noise":
        path.write_bytes(rng.randbytes(len(content)))
    elif content:
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :])
    return f"{path.relative_to(directory)} {how}"
