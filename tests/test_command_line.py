"""What all commands do the same way: Ctrl-C as early as may be, a full disk, the words of an error, counts."""

from __future__ import annotations

import doctest
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import shards.common.command_line
import shards.common.text
from shards.common.command_line import byte_count, progress_bar
from tests.conftest import REPOSITORY, assert_one_error_line, run_module

# Each imports NumPy on its way.
PROGRAMS = [
    "-m pipeline --help",
    "-m shards --help",
    "-m train --config configs/sample.yaml",
    "tokenize_once.py info x",
]
INTERRUPTED_IMPORT = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_while_modules_are_imported_leaves_no_traceback(program: str, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text(INTERRUPTED_IMPORT)
    finished = subprocess.run(
        [sys.executable, *program.split()],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_of_a_program_that_imports_the_packages_is_its_own() -> None:
    program = "import signal, shards, pipeline, train; print(signal.getsignal(signal.SIGINT).__name__)"
    finished = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert finished.stdout == "default_int_handler\n", finished.stderr


def test_ctrl_c_is_ignored_by_a_command_whose_caller_wants_so(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text(INTERRUPTED_IMPORT.replace("time.sleep(9)", "raise SystemExit(7)"))
    finished = subprocess.run(
        [sys.executable, "-m", "shards"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert finished.returncode == 7


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("num_lines", [1, 100_000])  # within the buffer, and beyond it
def test_a_full_disk_under_standard_output_is_named(num_lines: int, unbuffered: str) -> None:
    program = (
        "from shards.common.command_line import run_command\n"
        f"run_command(lambda arguments: [print('line') for _ in range({num_lines})] and None, [])"
    )
    with open("/dev/full", "w") as full:
        finished = subprocess.run(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert finished.stderr == "error: standard output: No space left on device\n"
    assert finished.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["pipeline", "build", "a", "--out", "b", "--workers", "x"],
            "error: --workers: expected a whole number, found 'x'",
        ),
        (
            ["pipeline", "build", "a", "--out", "b", "--val-fraction", "x"],
            "--val-fraction: expected a number, found 'x'",
        ),
        (["shards", "cat", "a", "--block", "1.5"], "error: --block: expected a whole number, found '1.5'"),
        (["train.generate", "a", "--num", "x"], "error: --num: expected a whole number, found 'x'"),
    ],
)
def test_a_value_that_isnt_a_number_is_reported_as_other_wrong_values_are(arguments: list[str], expected: str) -> None:
    assert_one_error_line(run_module(*arguments), expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2147483648", 1 << 31), ("2GiB", 1 << 31), ("64 MiB", 1 << 26), ("1.5kB", 1500), ("1_000", 1000), ("7b", 7)]
    + [(text, None) for text in ("", "-1", "1.5", "GiB", "2Gx", "1e3", "٣", "9" * 30, "1.GB")],
)
def test_bytes_are_a_number_or_one_with_a_unit(text: str, expected: int | None) -> None:
    if expected is None:
        with pytest.raises(ValueError):
            byte_count(text)
    else:
        assert byte_count(text) == expected


def test_ctrl_c_while_a_library_cleans_up_leaves_no_traceback() -> None:
    program = """
import atexit, signal
from shards.common.command_line import run_command
atexit.register(lambda: signal.raise_signal(signal.SIGINT))
run_command(lambda argv: print("done"), [])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "done\n", "")


@pytest.mark.parametrize(("name", "status", "line"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_that_python_drops_comes_again(name: str, status: int, line: str) -> None:
    program = f"""
import signal, time, weakref
from shards.common.command_line import run_command

class Thing:
    pass

def main(argv):
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.{name}))
    del thing
    time.sleep(60)

run_command(main, [])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, timeout=50)
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "", f"{line}\n")


def test_no_more_memory_is_one_line() -> None:
    program = (
        "from shards.common.command_line import run_command\ndef main(argv): raise MemoryError\nrun_command(main, [])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert_one_error_line(ended, "error: the system gave no more memory")


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(shards.common.text).failed == 0
    assert doctest.testmod(shards.common.command_line).failed == 0


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown_where_somebody_looks(
    is_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal, raising=False)
    for show in (True, False):
        with progress_bar(200, "verifying", show=show) as progress:
            progress.update(200)
        assert ("verifying" in capsys.readouterr().err) == (is_terminal and show)
