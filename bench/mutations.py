"""Deliberate breaks of the code, each of which a test must notice.

    python bench/mutations.py [NAME…] [--jobs N]    # exit status 1 unless all are caught
    python bench/mutations.py --list

The breaks are in `mutations.txt`. For each, the working tree is copied, one snippet replaced by another, and the tests
named are run in the copy, where they must fail; unbroken they must pass. A snippet that isn't there exactly once "no longer
applies": the code has moved on, and the break must follow it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
BREAKS = Path(__file__).with_name("mutations.txt")
TIMEOUT_SECONDS = 600  # a test that hangs is a test that notices
FAILED, PASSED = 1, 0  # exit statuses of pytest; others mean that it could not run the tests
PYTEST = (sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider")
CAPTURE: dict[str, Any] = {
    "stdin": subprocess.DEVNULL,
    "capture_output": True,
    "encoding": "utf-8",
    "errors": "replace",
}


class Break(NamedTuple):
    """One change of one file, and the tests that must fail with it."""

    name: str
    file: str
    tests: str  # as given to pytest
    old: str
    new: str

    def applied(self, tree: Path) -> str | None:
        """The file as it is changed; None if the snippet isn't in it exactly once."""
        path = tree / self.file
        content = path.read_text("utf-8") if path.is_file() else ""
        return content.replace(self.old, self.new) if content.count(self.old) == 1 else None


def read_breaks(text: str) -> list[Break]:
    """Parts separated by empty lines: `# NAME FILE`, the tests, then `-` before each old line and `+` before each new one.

    >>> read_breaks("# a b.py\\ntests/test_b.py -k one\\n-x = 1\\n+x = 2\\n")
    [Break(name='a', file='b.py', tests='tests/test_b.py -k one', old='x = 1', new='x = 2')]
    """
    breaks = []
    for part in text.split("\n\n"):
        lines = part.strip("\n").splitlines()
        if lines and lines[0].startswith("# "):
            _mark, name, file = lines[0].split()
            old, new = ("\n".join(line[1:] for line in lines[2:] if line[0] == sign) for sign in "-+")
            breaks.append(Break(name, file, lines[1], old, new))
    return breaks


def run_tests(tests: str, tree: Path) -> tuple[int, str]:
    """pytest's exit status and its last line."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [*PYTEST, *shlex.split(tests)]
    try:
        ended = subprocess.run(command, cwd=tree, env=environment, timeout=TIMEOUT_SECONDS, **CAPTURE)
    except subprocess.TimeoutExpired:
        return FAILED, f"not done after {TIMEOUT_SECONDS} s"
    lines = [line for line in ended.stdout.splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return ended.returncode, (failed or lines or ended.stderr.splitlines() or [""])[-1]


class Trials:
    """Breaks tried one by one, or several at once, on the files that git tracks or would track, as they were at first."""

    def __init__(self, work: Path) -> None:
        self._work, self._tree = work, work / "tree"
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(listed, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True).stdout.decode().split("\0")
        for name in names:
            if (REPOSITORY / name).is_file():
                (self._tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / name, self._tree / name)
        self._unbroken = functools.cache(self._run_unbroken)

    def try_one(self, change: Break) -> tuple[bool, str]:
        """Whether the break was caught, and what happened."""
        broken = change.applied(self._tree)
        if broken is None:
            return False, "no longer applies"
        with self._copy() as tree:
            (tree / change.file).write_text(broken, "utf-8")
            status, line = run_tests(change.tests, tree)
        if status == PASSED:
            return False, "NOT CAUGHT"
        if status != FAILED:
            return False, f"pytest could not run the tests (exit status {status}): {line}"
        without, line_without = self._unbroken(change.tests)
        if without != PASSED:
            return False, f"fails without the break too: {line_without}"
        return True, f"caught: {line}"

    def _run_unbroken(self, tests: str) -> tuple[int, str]:
        with self._copy() as tree:
            return run_tests(tests, tree)

    @contextlib.contextmanager
    def _copy(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self._work) as name:
            yield Path(shutil.copytree(self._tree, Path(name) / "tree"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="breaks, or how their names begin (all)")
    parser.add_argument("--list", action="store_true", help="list the breaks and say which no longer apply")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="so many at a time (one a core)")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests of Ctrl-C need it, also in a job in the background
    breaks = read_breaks(BREAKS.read_text("utf-8"))
    chosen = [change for change in breaks if not options.names or change.name.startswith(tuple(options.names))]
    if options.list:
        for change in chosen:
            gone = "" if change.applied(REPOSITORY) is not None else "  (no longer applies)"
            print(f"{change.name:28} {change.file:32} {change.tests}{gone}")
        return 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as work, ThreadPoolExecutor(options.jobs) as pool:
        trials = Trials(Path(work))
        num_caught = 0
        for change, (caught, line) in zip(chosen, pool.map(trials.try_one, chosen), strict=True):
            num_caught += caught
            print(f"{change.name:28} {line}", flush=True)
    print(f"{num_caught} of {len(chosen)} breaks caught")
    return 0 if num_caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
