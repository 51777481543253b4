"""`make help` lists every target and variable, and each target does what is missing and no more."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from tests.conftest import REPOSITORY

CONTENT = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
TARGETS = re.findall(r"^([a-z][a-z-]*):", CONTENT, re.MULTILINE)
VARIABLES = ["CORPUS", "SHARDS", "CONFIG", "RUN", "NPROC", "PROMPT", "RUNS", "SWEEP", "ARGS"]
BUILDS, TRAINS, SEVERAL = "-m pipeline build ", "-m train ", "-m torch.distributed.run "
LARGE = "CONFIG=configs/wikipedia-zh-120m.yaml"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def outside_make() -> dict[str, str]:
    """The environment as in a terminal, without what `make test` leaves to a make within it."""
    left = ("MAKELEVEL", "MAKEFLAGS", "MFLAGS", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if name not in left}


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=REPOSITORY, env=outside_make(), capture_output=True, text=True)


def test_help_lists_every_target_and_variable_with_a_line() -> None:
    lines = make("help").stdout.splitlines()
    for name in [*TARGETS, *VARIABLES]:
        assert any(re.fullmatch(rf"  {name} +\S.+", line) for line in lines), name


def test_every_target_without_a_file_is_phony() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.+)$", CONTENT, re.MULTILINE)
    assert set(phony.split()) == set(TARGETS) and len(TARGETS) > 15


@pytest.mark.parametrize(
    ("arguments", "said", "unsaid"),
    [
        # Shards are built first where it is known from what.
        (["train"], [BUILDS + '"data/sample/wikipedia-zh-sample.json"', TRAINS], ["--shards", SEVERAL]),
        (["train", LARGE], [TRAINS], [BUILDS, "--shards"]),
        (["train", LARGE, "CORPUS=data/mine.json"], [BUILDS + '"data/mine.json"', '--shards "data/shards/mine"'], []),
        (["train", LARGE, "SHARDS=data/shards/other"], [TRAINS, '--shards "data/shards/other"'], [BUILDS]),
        (["train", "SHARDS=data/shards/other"], [TRAINS, '--shards "data/shards/other"'], [BUILDS, "The sample shows"]),
        # A directory may end in a slash.
        (["shards", "CORPUS=data/mine/"], ['--out "data/shards/mine"'], []),
        # torchrun starts several processes, after a check by one.
        (
            ["train", LARGE, "NPROC=8"],
            ["--check\n", SEVERAL + '--standalone --nproc-per-node "8" -m train --config'],
            [],
        ),
        # A prompt may hold quotation marks.
        (["generate", 'PROMPT=say "hi"'], ['-m train.generate "runs/sample" --prompt "$PROMPT"'], []),
        # Tests run in parallel unless asked otherwise: pytest takes the last.
        (["test", "ARGS=-n 0 --randomly-seed=7"], ["-n auto ", "-n 0 --randomly-seed=7"], []),
    ],
)
def test_what_a_target_does(arguments: list[str], said: list[str], unsaid: list[str]) -> None:
    commands = make("--dry-run", "--always-make", *arguments).stdout
    places = [commands.find(text) for text in said]
    assert min(places) >= 0 and places == sorted(places), commands
    assert not [text for text in unsaid if text in commands]


def test_a_variable_without_sense_is_refused_in_one_line() -> None:
    number = "NPROC: expected a number of processes from 1 on, found"
    for argument, expected in {"RUN=": "RUN is empty", "NPROC=two": f"{number} two", "NPROC=0": f"{number} 0"}.items():
        finished = make("-n", "train", argument)
        assert finished.returncode == 2 and finished.stdout == ""
        assert expected in finished.stderr and len(finished.stderr.splitlines()) == 1
