"""Deliberate breaks of the code, each of which a test must notice.

    python bench/mutations.py [NAME…] [--jobs N]    # exit status 1 unless all are caught

The breaks are in `mutations.txt`. For each, one snippet of a copy of the working tree is replaced by another, and the tests
named, which pass without it (`make test`), must fail. A snippet that isn't there exactly once "no longer applies": the code
has moved on, and the break must follow it. The tests run in forks of a process that has imported the libraries.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
BREAKS = Path(__file__).with_name("mutations.txt")
LIMIT_SECONDS = 600  # a test that hangs is a test that notices
STATUSES = {0: "NOT CAUGHT", 1: "caught", -signal.SIGKILL: "caught: it hangs"}  # others: pytest couldn't run the tests
OPTIONS = ("-x", "-q", "-n", "0", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:randomly")
LIBRARIES = (
    "numpy",
    "pyarrow.parquet",
    "pyarrow.csv",
    "tokenizers",
    "orjson",
    "fsspec",
    "jinja2",
    "rich.console",
    "yaml",
)
TRAINERS = ("torch", "transformers.trainer", "accelerate", "safetensors.torch")


class Break(NamedTuple):
    """One change of one file, and the tests that must fail with it."""

    name: str
    file: str
    tests: str  # as given to pytest
    old: str
    new: str


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


def copy_tree(work: str) -> None:
    """Go into a copy of the files that git tracks or would track."""
    tree = Path(tempfile.mkdtemp(dir=work))
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.check_output(listed, cwd=REPOSITORY, text=True).split("\0"):
        if (REPOSITORY / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, tree / name)
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    sys.dont_write_bytecode = True
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(tree)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests of Ctrl-C need it, also in a job in the background


def try_one(change: Break) -> tuple[str, str]:
    """The break's name, and what happened."""
    path = Path(change.file)
    content = path.read_text("utf-8") if path.is_file() else ""
    if content.count(change.old) != 1:
        return change.name, "no longer applies"
    for library in (*LIBRARIES, *(TRAINERS if "tests/train" in change.tests else ())):
        importlib.import_module(library)
    path.write_text(content.replace(change.old, change.new), "utf-8")
    status, output = run_tests(shlex.split(change.tests))
    path.write_text(content, "utf-8")
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return (
        change.name,
        f"{STATUSES.get(status, f'exit status {status}: {output[-500:]}')} {''.join(failed[-1:])}".strip(),
    )


def run_tests(tests: list[str]) -> tuple[int, str]:
    """pytest's exit status (−9: it hangs) and its output, from a fork."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = os.fork()
        if not process:
            os.setpgid(0, 0)
            for number in (1, 2):
                os.dup2(output.fileno(), number)
            status = 70
            try:
                status = int(pytest.main([*OPTIONS, *tests]))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        deadline = time.monotonic() + LIMIT_SECONDS
        while not (ended := os.waitpid(process, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.killpg(process, signal.SIGKILL)
            time.sleep(0.1)
        output.seek(0)
        return os.waitstatus_to_exitcode(ended[1]), output.read()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="breaks, or how their names begin (all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="so many at a time (one a core)")
    options = parser.parse_args()
    chosen = [
        each for each in read_breaks(BREAKS.read_text("utf-8")) if each.name.startswith(tuple(options.names or [""]))
    ]
    chosen.sort(key=lambda change: "tests/train" in change.tests)  # torch is imported late
    num_caught, context = 0, multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="mutations-") as work:
        pool = ProcessPoolExecutor(options.jobs, context, copy_tree, (work,))
        for name, line in pool.map(try_one, chosen):
            num_caught += line.startswith("caught")
            print(f"{name:28} {line}", flush=True)
        pool.shutdown()
    print(f"{num_caught} of {len(chosen)} breaks caught")
    return 0 if num_caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
