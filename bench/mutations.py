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
import dataclasses
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

REPOSITORY = Path(__file__).resolve().parent.parent
BREAKS = Path(__file__).with_name("mutations.txt")
TIMEOUT_SECONDS = 600  # a test that hangs is a test that notices
FAILED, PASSED = 1, 0  # exit statuses of pytest; others mean that it could not run the tests


@dataclasses.dataclass(frozen=True, kw_only=True)
class Break:
    """One change of one file, and the tests that must fail with it."""

    name: str
    file: str
    old: str
    new: str
    tests: str  # as given to pytest

    def apply(self, tree: Path) -> bool:
        """Change the file in `tree`; False if the snippet isn't in it exactly once."""
        path = tree / self.file
        content = path.read_text("utf-8") if path.is_file() else ""
        if content.count(self.old) != 1:
            return False
        path.write_text(content.replace(self.old, self.new), "utf-8")
        return True


def read_breaks(text: str) -> list[Break]:
    """Parts separated by empty lines: `# NAME FILE`, the tests, then `-` before each old line and `+` before each new one.

    >>> read_breaks("# a b.py\\ntests/test_b.py -k one\\n-x = 1\\n+x = 2\\n")
    [Break(name='a', file='b.py', old='x = 1', new='x = 2', tests='tests/test_b.py -k one')]
    """
    breaks = []
    for part in text.split("\n\n"):
        lines = part.strip("\n").splitlines()
        if not lines or not lines[0].startswith("# "):
            continue
        _mark, name, file = lines[0].split()
        old, new = ("\n".join(line[1:] for line in lines[2:] if line[0] == sign) for sign in "-+")
        breaks.append(Break(name=name, file=file, old=old, new=new, tests=lines[1]))
    return breaks


def copy_tree(repository: Path, target: Path) -> None:
    """The files that git tracks or would track, as they are now."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=repository, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (repository / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, target / name)


def run_tests(tests: str, tree: Path) -> tuple[int, str]:
    """pytest's exit status and its last line."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ended = subprocess.run(
            [*command, *shlex.split(tests)],
            cwd=tree,
            env={name: value for name, value in environment.items() if name != "PYTHONPATH"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return FAILED, f"not done after {TIMEOUT_SECONDS} s"
    lines = [line for line in ended.stdout.splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return ended.returncode, (failed or lines or ended.stderr.splitlines() or [""])[-1]


class Trials:
    """Breaks tried one by one, or several at once, on the checkout as it was at the beginning."""

    def __init__(self, repository: Path, work: Path) -> None:
        self._work, self._tree = work, work / "tree"
        copy_tree(repository, self._tree)
        self._unbroken = functools.cache(self._run_unbroken)

    def try_one(self, change: Break) -> tuple[bool, str]:
        """Whether the break was caught, and what happened."""
        with self._copy() as tree:
            if not change.apply(tree):
                return False, "no longer applies"
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
    parser.add_argument("--repo", type=Path, default=REPOSITORY, help="the checkout that is broken (this one)")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests of Ctrl-C need it, also in a job in the background
    breaks = read_breaks(BREAKS.read_text("utf-8"))
    chosen = [change for change in breaks if not options.names or change.name.startswith(tuple(options.names))]
    if options.list:
        for change in chosen:
            path = options.repo / change.file
            applies = path.is_file() and path.read_text("utf-8").count(change.old) == 1
            print(f"{change.name:28} {change.file:32} {change.tests}{'' if applies else '  (no longer applies)'}")
        return 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as work, ThreadPoolExecutor(options.jobs) as pool:
        trials = Trials(options.repo, Path(work))
        num_caught = 0
        for change, (caught, line) in zip(chosen, pool.map(trials.try_one, chosen), strict=True):
            num_caught += caught
            print(f"{change.name:28} {line}", flush=True)
    print(f"{num_caught} of {len(chosen)} breaks caught")
    return 0 if num_caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
