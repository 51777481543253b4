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
    watch = _MemoryWatch(process.pid) if watch_memory else None
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


class _MemoryWatch(threading.Thread):
    """The highest sum of PSS over a process and all its descendants, looked at five times a second."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self._root, self._ended, self._peak_bytes = root, threading.Event(), 0
        self.start()

    def run(self) -> None:
        while not self._ended.wait(0.2):
            self._peak_bytes = max(self._peak_bytes, sum(map(_pss, _descendants(self._root))))

    def stop(self) -> int:
        self._ended.set()
        self.join()
        return self._peak_bytes


def _descendants(process: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [process, *(descendant for child in children for descendant in _descendants(child))]


def _pss(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
