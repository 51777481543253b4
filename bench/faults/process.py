"""Commands in processes that can be killed and whose system calls can be made to fail.

A command is a fork of a process that has imported everything already: importing torch takes seconds, and is not what is
tested. It leads a process group, and runs the command line's own `main`.
"""

from __future__ import annotations

import atexit
import ctypes
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
from typing import NamedTuple, NoReturn

from bench.measure import refusal
from shards.common.command_line import run_command

LIMIT_SECONDS = 300.0
INJECTOR = Path(__file__).with_name("injector.c")
Main = Callable[[list[str]], int | None]


class Fault(NamedTuple):
    """From the `nth` call of this name on (only that one if `once`), below the directory, the call fails. 0: it counts."""

    call: str
    below: Path
    nth: int
    error: str = "EIO"
    once: bool = False

    def arm(self) -> None:
        where, number = os.fsencode(self.below), getattr(errno, self.error)
        ctypes.CDLL(None).fault_arm(self.call.encode(), where, ctypes.c_long(self.nth), number, int(self.once))

    @property
    def name(self) -> str:
        return f"{self.call} {self.error} {'once' if self.once else 'from then on'}"


class Ended(NamedTuple):
    """A command's status as of a shell (137: killed), and what it said on stderr."""

    status: int
    errors: str

    @property
    def is_clear(self) -> bool:
        """Success, a signal's status, or exactly one line that says what is wrong."""
        has_trace = "Traceback" in self.errors or "Exception ignored" in self.errors
        return not has_trace and (self.status in (0, 130, 143) or refusal(*self) is not None)


class Command:
    """`main(arguments)` in a process of its own, begun at once."""

    def __init__(self, main: Main, arguments: list[str], work: Path, fault: Fault | None = None):
        self._errors = work / f"command-{time.monotonic_ns()}.err"
        self._errors.touch()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(main, arguments, fault)

    def _run(self, main: Main, arguments: list[str], fault: Fault | None) -> NoReturn:
        status: object = 1
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(self._errors, os.O_WRONLY), 2)
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

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within so many seconds; it is not reaped."""
        deadline = time.monotonic() + seconds
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def signal(self, number: signal.Signals) -> None:
        """To it alone; SIGKILL to all its processes."""
        (os.killpg if number == signal.SIGKILL else os.kill)(self.pid, number)

    def end(self) -> Ended:
        """Wait for it. Raises `TimeoutError`, and kills it, if it hangs."""
        hangs = not self.wait(LIMIT_SECONDS)
        if hangs:
            self.signal(signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        errors = self._errors.read_text(errors="replace")
        self._errors.unlink()
        if hangs:
            raise TimeoutError(f"still running after {LIMIT_SECONDS:.0f} s: {errors[-500:]}")
        return Ended(status if status >= 0 else 128 - status, errors)


def begin_with_injector(work: Path) -> None:
    """Start this program again with the injector loaded, unless it is."""
    if hasattr(ctypes.CDLL(None), "fault_arm"):
        return
    compiler, library = shutil.which("cc") or "gcc", work / "injector.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, INJECTOR, "-ldl"], check=True)
    command = [sys.executable, "-m", "bench.faults", *sys.argv[1:]]
    os.execve(sys.executable, command, {**os.environ, "LD_PRELOAD": str(library)})


def count_calls(main: Main, arguments: list[str], work: Path, fault: Fault) -> int:
    """How often the command makes the call of a fault that only counts."""
    fault.arm()
    Command(main, arguments, work).end()
    return int(ctypes.CDLL(None).fault_count())


def damage(directory: Path, rng: random.Random) -> str | None:
    """Damage one file below the directory, as a bad disk or a person might; says what was done."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and not path.is_symlink()]
    if not files:
        return None
    path = rng.choice(files)
    content = path.read_bytes()
    place = rng.randrange(len(content) or 1)
    changed = bytearray(content)
    if content:
        changed[place] ^= 1 << rng.randrange(8)
    ways: dict[str, bytes | None] = {
        "truncated": content[:place],
        "emptied": b"",
        "a byte changed": bytes(changed),
        "replaced by noise": rng.randbytes(len(content)),
        "grown": content + b"\0",
        "removed": None,
    }
    how, new = rng.choice(list(ways.items()))
    if new is None:
        path.unlink()
    else:
        path.write_bytes(new)
    return f"{path.relative_to(directory)} {how}"
