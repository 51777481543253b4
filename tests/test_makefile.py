"""`make help` lists every target and variable, and each target does what is missing and no more."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from tests.conftest import REPOSITORY

TARGETS = re.findall(r"^([a-z][a-z-]*):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
VARIABLES = ["CORPUS", "SHARDS", "CONFIG", "RUN", "NPROC", "PROMPT", "RUNS", "SWEEP", "ARGS"]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str) -> str:
    return subprocess.run(["make", *arguments], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout


def test_help_lists_every_target_and_variable_with_a_line() -> None:
    lines = make("help").splitlines()
    for name in [*TARGETS, *VARIABLES]:
        assert any(re.fullmatch(rf"  {name} +\S.+", line) for line in lines), name


def test_every_target_without_a_file_is_phony() -> None:
    content = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.+)$", content, re.MULTILINE)
    assert set(phony.split()) == set(TARGETS) and len(TARGETS) > 15


@pytest.mark.parametrize(
    ("arguments", "builds", "trains_on"),
    [
        (("train",), "wikipedia-zh-sample.json", None),
        (("train", "CONFIG=configs/wikipedia-zh-120m.yaml"), None, None),
        (
            ("train", "CORPUS=data/mine.json", "CONFIG=configs/wikipedia-zh-120m.yaml"),
            "data/mine.json",
            "data/shards/mine",
        ),
        (("train", "SHARDS=data/shards/other", "CONFIG=configs/wikipedia-zh-120m.yaml"), None, "data/shards/other"),
    ],
)
def test_train_builds_the_shards_where_it_knows_from_what(
    arguments: tuple[str, ...], builds: str | None, trains_on: str | None
) -> None:
    commands = make("--dry-run", "--always-make", *arguments)
    (training,) = [line for line in commands.splitlines() if "-m train " in line]
    built = [line for line in commands.splitlines() if "-m pipeline build" in line]
    assert (builds is not None) == bool(built)
    assert builds is None or builds in built[0]
    assert (trains_on is not None) == ("--shards" in training)
    assert trains_on is None or f'--shards "{trains_on}"' in training


def test_several_processes_are_started_by_torchrun() -> None:
    checking, training = [line for line in make("--dry-run", "train", "NPROC=8").splitlines() if "-m train " in line]
    assert checking.endswith("--check") and "torch.distributed" not in checking
    assert '-m torch.distributed.run --standalone --nproc-per-node "8" -m train --config' in training
    (training,) = [line for line in make("--dry-run", "train").splitlines() if "-m train " in line]
    assert "torch.distributed" not in training


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("RUN=", "RUN is empty"),
        ("CORPUS=", "CORPUS is empty"),
        ("NPROC=two", "NPROC: expected a number of processes from 1 on, found two"),
        ("NPROC=0", "found 0"),
    ],
)
def test_a_variable_without_sense_is_refused_in_one_line(argument: str, expected: str) -> None:
    # As from a terminal: within `make test` a make would say which directory it enters.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")
    }
    finished = subprocess.run(
        ["make", "-n", "train", argument], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 2 and finished.stdout == ""
    assert expected in finished.stderr and len(finished.stderr.splitlines()) == 1


def test_a_directory_may_end_in_a_slash() -> None:
    assert '--out "data/shards/mine"' in make("-n", "shards", "CORPUS=data/mine/")


@pytest.mark.parametrize("target", ["test", "test-all"])
def test_the_tests_run_in_parallel_unless_asked_otherwise(target: str) -> None:
    (line,) = [line for line in make("-n", target, "ARGS=-n 0 --randomly-seed=7").splitlines() if "-m pytest" in line]
    assert line.index("-n auto") < line.index("-n 0 --randomly-seed=7")  # pytest takes the last
