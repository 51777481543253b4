"""Running a command and seeing what it costs: CPU, time, memory, and how busy the machine was with other things."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent


class Cost(NamedTuple):
    cpu_seconds: float  # user and system time of all processes
    wall_seconds: float
    other_cores: float  # cores that other programs, or other guests of the machine, kept busy meanwhile
    peak_bytes: int = 0  # PSS of all processes together, if it was watched
    num_tokens: int = 0  # EOS left out


def run_build(sources: Sequence[Path], out: Path, num_workers: int, *, watch_memory: bool = False) -> Cost:
    """One `python -m pipeline build` of `sources` to `out`, which is removed before."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()  # what an earlier one left to be written is not this one's
    cost = run([*build_command(sources, out), "--workers", str(num_workers)], watch_memory=watch_memory)
    splits = json.loads((out / "manifest.json").read_bytes())["splits"].values()
    return cost._replace(num_tokens=sum(split["num_tokens"] - split["num_documents"] for split in splits))


def build_command(sources: Sequence[Path], out: Path) -> list[str]:
    return [sys.executable, "-m", "pipeline", "build", *map(str, sources), "--out", str(out), "--quiet"]


def run(command: Sequence[str], *, watch_memory: bool = False) -> Cost:
    """Raises `SystemExit` if the command fails."""
    before, busy_before, begin = _children_seconds(), _busy_seconds(), time.perf_counter()
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    watch = MemoryWatch(process.pid) if watch_memory else None
    if process.wait() != 0:
        raise SystemExit(f"failed with status {process.returncode}: {' '.join(command)}")
    wall = time.perf_counter() - begin
    cpu = _children_seconds() - before
    others = max(0.0, _busy_seconds() - busy_before - cpu) / wall
    return Cost(cpu, wall, others, watch.stop() if watch else 0)


def run_and_read(command: Sequence[str]) -> dict[str, Any]:
    """The JSON in the last line that the command prints."""
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if ended.returncode != 0:
        raise SystemExit(f"failed with status {ended.returncode}: {' '.join(command)}\n{ended.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _busy_seconds() -> float:
    """Seconds that all cores together were not idle since the machine's start; time stolen by other guests is in it."""
    user, nice, system, _idle, _wait, irq, soft_irq, steal = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    )
    return (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")


class MemoryWatch(threading.Thread):
    """The highest memory of a process and all its descendants, looked at five times a second, less often where there are
    so many of them that looking takes long: `peak_bytes`, the sum of PSS, and `largest_bytes`, the RSS of one process."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self._root, self._ended = root, threading.Event()
        self.peak_bytes = self.largest_bytes = 0
        self.start()

    def run(self) -> None:
        pause = 0.05
        while not self._ended.wait(pause):
            begin = time.thread_time()
            processes = descendants(self._root)
            self.peak_bytes = max(self.peak_bytes, sum(map(_pss, processes)))
            self.largest_bytes = max(self.largest_bytes, *map(_highest_rss, processes), 0)
            pause = max(0.2, 10 * (time.thread_time() - begin))

    def stop(self) -> int:
        self._ended.set()
        self.join()
        return self.peak_bytes


def descendants(process: int) -> list[int]:
    """The process itself and all below it."""
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [process, *(descendant for child in children for descendant in descendants(child))]


def _memory(process: int, file: str, key: str) -> int:
    """Bytes that `/proc/PROCESS/FILE` gives for a key in kB; 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{process}/{file}").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _pss(process: int) -> int:
    return _memory(process, "smaps_rollup", "Pss")


def _highest_rss(process: int) -> int:
    return _memory(process, "status", "VmHWM")
