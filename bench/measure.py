"""Running a command and seeing what it costs, and the Markdown tables that say so."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
PEERS_VENV = REPOSITORY / "bench" / ".peers-venv"  # made by `make peers`


class Ended(NamedTuple):
    """How a command ended, and what it cost. Memory is 0 unless it was watched."""

    status: int
    output: str
    errors: str
    wall_seconds: float
    cpu_seconds: float  # user and system time of all processes
    total_bytes: int  # the highest PSS of all processes together
    largest_bytes: int  # the highest RSS of any one

    def last_line(self) -> Any:
        """The JSON in the last line that was printed."""
        return json.loads(self.output.splitlines()[-1])


def refusal(status: int, errors: str) -> str | None:
    """The one line of bad input, or None if a command ended in any other way."""
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    return lines[0] if status == 2 and len(lines) == 1 and "Traceback" not in errors else None


def ours(module: str, *arguments: object) -> list[str]:
    """The command `python -m MODULE …` of this project's environment."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def run(
    command: Sequence[object],
    *,
    watch_memory: bool = False,
    may_fail: bool = False,
    limit_seconds: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Raises `SystemExit` if the command fails and may not. It is killed, status −9, when the limit is reached."""
    words = list(map(str, command))
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    options: Any = {"cwd": REPOSITORY, "env": environment, "encoding": "utf-8", "errors": "replace"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        watch = MemoryWatch(process.pid) if watch_memory else None
        try:
            texts = process.communicate(timeout=limit_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            texts = process.communicate()
        except BaseException:
            process.kill()
            raise
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    memory = watch.stop() if watch else (0, 0)
    if process.returncode and not may_fail:
        raise SystemExit(f"failed with status {process.returncode}: {' '.join(words)}\n{texts[1][-2000:]}")
    return Ended(process.returncode, texts[0], texts[1], wall, cpu, *memory)


class MemoryWatch(threading.Thread):
    """Looks at a process and all its descendants five times a second, less often where there are many of them."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self._root, self._ended, self._total, self._largest = root, threading.Event(), 0, 0
        self.start()

    def run(self) -> None:
        pause = 0.05
        while not self._ended.wait(pause):
            begin, total = time.thread_time(), 0
            for process in process_tree(self._root):
                with contextlib.suppress(psutil.Error):  # it has ended
                    memory = process.memory_full_info()
                    total, self._largest = total + memory.pss, max(self._largest, memory.rss)
            self._total = max(self._total, total)
            pause = max(0.2, 10 * (time.thread_time() - begin))

    def stop(self) -> tuple[int, int]:
        """The highest PSS of all together and the highest RSS of one, in bytes."""
        self._ended.set()
        self.join()
        return self._total, self._largest


def process_tree(root: int) -> list[psutil.Process]:
    """The process itself and all below it."""
    try:
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def print_head(*titles: str) -> None:
    print(f"\n| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)


def print_row(*cells: object) -> None:
    print(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |", flush=True)


def every(values: Sequence[float], form: str) -> str:
    return ", ".join(map(form.format, values))


def print_rounds(name: str, values: Sequence[float], form: str, target: str = "") -> None:
    """A row of a measure's median, its target, and every round."""
    print_row(name, form.format(statistics.median(values)), target, every(values, form))


def ratios(left: Sequence[float], right: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(left, right, strict=True)]


def print_machine(*what: str) -> None:
    cpu_info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(": ")[1] for line in cpu_info if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Python {platform.python_version()}"
    print("; ".join([cores, f"load before {os.getloadavg()[0]:.1f}", *what]), flush=True)
