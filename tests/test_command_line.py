"""What all commands do the same way: Ctrl-C as early as may be, a full disk, the words of an error, counts.

The installed command `tokenize-once` reaches them all, and is packed with all they need.
"""

from __future__ import annotations

import functools
import importlib
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tokenize_once
from shards.common.command_line import Parser, byte_count, progress_bar, token_count
from shards.common.errors import InputError
from tests.conftest import REPOSITORY, run_python

# Each imports NumPy on its way.
PROGRAMS = [
    "-m pipeline --help",
    "-m shards --help",
    "-m train --config configs/sample.yaml",
    "tokenize_once.py info x",
]
INTERRUPTED_IMPORT = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"


def run_as_command(program: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the `main` that `program` defines as a command's."""
    lines = [program, "from shards.common.command_line import run_command", "run_command(main, [])"]
    return run_python("-c", "\n".join(lines), **options)


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_while_modules_are_imported_leaves_no_traceback(program: str, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text(INTERRUPTED_IMPORT)
    finished = run_python(*program.split(), env={"PYTHONPATH": str(tmp_path)})
    assert (finished.returncode, finished.stdout, finished.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_of_a_program_that_imports_the_packages_is_its_own() -> None:
    program = "import signal, shards, pipeline, train; print(signal.getsignal(signal.SIGINT).__name__)"
    finished = run_python("-c", program)
    assert finished.stdout == "default_int_handler\n", finished.stderr


def test_ctrl_c_is_ignored_by_a_command_whose_caller_wants_so(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text(INTERRUPTED_IMPORT.replace("time.sleep(9)", "raise SystemExit(7)"))
    ignore = functools.partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    assert run_python("-m", "shards", env={"PYTHONPATH": str(tmp_path)}, preexec_fn=ignore).returncode == 7


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("num_lines", [1, 100_000])  # within the buffer, and beyond it
def test_a_full_disk_under_standard_output_is_named(num_lines: int, unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        program = f"def main(argv):\n  for _ in range({num_lines}): print('line')"
        finished = run_as_command(program, stdout=full, env={"PYTHONUNBUFFERED": unbuffered})
    line = "error: standard output: No space left on device; make room, then repeat the command\n"
    assert (finished.returncode, finished.stderr) == (2, line)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (int, "a whole number"),
        (float, "a number"),
        (byte_count, "bytes, such as 64MiB"),
        (token_count, r"1 to 10\^15 tokens, such as 1e9"),
    ],
)
def test_a_value_that_isnt_a_number_is_reported_as_other_wrong_values_are(
    kind: Callable[[str], object], expected: str
) -> None:
    parser = Parser()
    parser.add_argument("--option", type=kind)
    with pytest.raises(InputError, match=f"^--option: expected {expected}, found 'x'"):
        parser.parse_args(["--option", "x"])
    with pytest.raises(InputError, match=r"^unrecognized argument 'invalid other value: x'"):
        parser.parse_args(["invalid other value: x"])


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


@pytest.mark.parametrize(
    ("body", "ended"),
    [
        ("import atexit, signal\natexit.register(lambda: signal.raise_signal(signal.SIGINT))\nmain = print", (-2, "")),
        ("def main(argv): raise MemoryError", (2, "error: the system gave no more memory")),
        (
            "from shards.common.errors import InputError\n"
            "def main(argv): raise InputError('\\x1b]0;a\\x07\\x9b2J\\u202e')",
            (2, "error: \\x1b]0;a\\x07\\x9b2J\\u202e\n"),
        ),
        (
            "import signal\ndef main(argv):\n    try: signal.raise_signal(signal.SIGTERM)\n"
            "    except KeyboardInterrupt: raise KeyboardInterrupt from None",
            (143, "terminated\n"),
        ),
    ],
    ids=["Ctrl-C while a library cleans up", "no more memory", "escapes in an error", "a library's Ctrl-C at SIGTERM"],
)
def test_what_ends_a_command_leaves_no_traceback(body: str, ended: tuple[int, str]) -> None:
    found = run_as_command(body)
    assert (found.returncode, found.stderr[: len(ended[1])]) == ended and len(found.stderr.splitlines()) <= 1


@pytest.mark.parametrize(("name", "status", "line"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_that_python_drops_comes_again(name: str, status: int, line: str) -> None:
    ended = run_as_command(f"""
import signal, time, weakref

class Thing:
    pass

def main(argv):
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.{name}))
    del thing
    time.sleep(60)
""")
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "", f"{line}\n")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown_where_somebody_looks(
    is_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal, raising=False)
    for show in (True, False):
        with progress_bar(200, "verifying", show=show) as progress:
            progress.update(200)
        assert ("verifying" in capsys.readouterr().err) == (is_terminal and show)


# ---- tokenize-once, which reaches every command ----


@pytest.mark.parametrize("name", tokenize_once.COMMANDS)
def test_each_command_answers_for_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        tokenize_once.main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_a_mistyped_command_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no command 'biuld'; did you mean 'build'\?"):
        tokenize_once.main(["biuld"])


def test_all_packages_are_installed_with_their_data() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    module, function = settings["project"]["scripts"]["tokenize-once"].split(":")
    assert callable(getattr(importlib.import_module(module), function))
    tops = [pattern.removesuffix("*") for pattern in settings["tool"]["setuptools"]["packages"]["find"]["include"]]
    files = {path for top in tops for path in Path(REPOSITORY, top).rglob("*.*") if path.is_file()}
    packed = {path for path in files if (path.parent / "__init__.py").is_file() and path.suffix == ".py"}
    for package, patterns in settings["tool"]["setuptools"]["package-data"].items():
        packed |= {path for pattern in patterns for path in Path(REPOSITORY, *package.split(".")).glob(pattern)}
    assert tops == ["pipeline", "shards", "train"]
    assert {path for path in files if "__pycache__" not in path.parts} == packed


def test_a_closed_stdout_is_no_fault() -> None:
    command = f"exec '{sys.executable}' -c \"$1\" >&-"
    program = "from shards.common.command_line import run_command; run_command(lambda arguments: None, [])"
    finished = subprocess.run(["sh", "-c", command, "sh", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")
