"""The installed command `tokenize-once` reaches every command of the packages, and is packed with all they need."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tokenize_once
from shards.common.errors import InputError
from tests.conftest import REPOSITORY, run_module


@pytest.mark.parametrize("name", tokenize_once.COMMANDS)
def test_each_command_answers_for_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        tokenize_once.main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_every_command_of_the_packages_is_there() -> None:
    for package in ("pipeline", "shards"):
        names = re.findall(r"^    ([a-z]+)\b", run_module(package, "--help").stdout, re.MULTILINE)
        assert len(names) >= 3 and set(names) <= set(tokenize_once.COMMANDS)


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
