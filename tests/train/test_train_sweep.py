"""Sweeps: what is planned, what is refused before the first run, failures, interruptions, and what is left at the end."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

import train.sweep
from shards.common.errors import InputError
from tests.conftest import REPOSITORY
from tests.train.processes import command
from tests.train.runs import Capture, Patch, WriteConfig
from train.__main__ import load
from train.arguments import typed
from train.run_directory import read_record
from train.settings import load_settings
from train.sweep import check_run, main, plan_sweep

SHORT = {"max_steps": 3, "save_steps": 1, "warmup_steps": 0}


@pytest.fixture
def write_sweep(tmp_path: Path, write_config: WriteConfig) -> WriteConfig:
    """A sweep's file in `tmp_path`, whose runs come to `tmp_path/sweep`."""

    def write(**content: Any) -> Path:
        config = str(write_config(training=SHORT, generation={"prompts": []}))
        path = tmp_path / "sweep.yaml"
        base = {"config": config, "output_dir": str(tmp_path / "sweep")}
        path.write_text(yaml.safe_dump({**base, **content}, sort_keys=False, allow_unicode=True))
        return path

    return write


def finish(
    directory: Path, arguments: list[str], *, state: str = "finished", fingerprint: str | None = None, **training: Any
) -> None:
    """What a run of these arguments would leave, without training."""
    settings, data, _ = load(arguments)
    settings = typed(settings)
    record = {**settings.as_record(), "training": {**settings.training, **training}}
    directory.mkdir(parents=True)
    content = {"state": state, "settings": record, "shards": {"fingerprint": fingerprint or data.fingerprint}}
    (directory / "run.json").write_text(json.dumps(content, default=str))


class FakeRuns:
    """Stands for the processes: a run fails by its name, else it leaves a finished record."""

    def __init__(self, failing: str = "") -> None:
        self.failing, self.names = failing, list[str]()

    def __call__(self, run: train.sweep.SweptRun) -> int:
        self.names.append(run.directory.name)
        if run.directory.name == self.failing:
            return 1
        if not (run.directory / "run.json").exists():
            finish(run.directory, run.arguments)
        return 0


# ---- the plan ----


def test_grid_is_every_combination_with_a_readable_name(write_sweep: WriteConfig) -> None:
    file = write_sweep(grid={"learning_rate": ["1e-3", 0.0025], "model.hidden_size": [16, 32]})
    output_dir, runs = plan_sweep(file)
    names = [f"learning_rate={rate},hidden_size={size}" for rate in ("1e-3", "0.0025") for size in (16, 32)]
    assert [run.directory for run in runs] == [output_dir / name for name in names]
    assert str(runs[1]) == f"{names[1]}: learning_rate 1e-3, model.hidden_size 32"
    assert "--model.hidden_size=32" in runs[1].arguments


def test_values_reach_the_settings_of_each_run(write_sweep: WriteConfig) -> None:
    changes: dict[str, Any] = {"learning_rate": -0.0, "bf16": False, "document_mask": True, "eval_steps": None}
    changes |= {"lr_scheduler_kwargs": {"num_cycles": 2}, "generation.prompts": ["一, 二"]}
    file = write_sweep(fixed={"weight_decay": 0.5, "document_mask": False}, runs=[{"name": "all", **changes}])
    _, (run,) = plan_sweep(file)
    settings = typed(load(run.arguments)[0])
    assert settings.training["lr_scheduler_kwargs"] == {"num_cycles": 2}
    assert (settings.training["bf16"], settings.document_mask) == (False, True)
    assert settings.training["weight_decay"] == 0.5 and settings.training["eval_steps"] is None
    assert settings.generation.prompts == ["一, 二"]
    assert settings.tracking.name == "all"


def test_names_are_safe(write_sweep: WriteConfig) -> None:
    _, (run,) = plan_sweep(write_sweep(grid={"shards": ["../a b;$(x)\n中"]}))
    assert run.directory.parent.name == "sweep" and re.fullmatch(r"[\w=,.-]+", run.directory.name, re.ASCII)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"grid": {"learning_rat": [1]}}, "run 1: unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ({"grid": {"learning_rate": 1}}, 'grid: learning_rate: expected a list, such as ["a", "b"], found 1'),
        ({"grid": {"seed": [1, 2, 1]}}, "two runs with the name 'seed=1'"),
        ({"grid": {"output_dir": ["a"]}}, "unknown key 'output_dir'"),
        ({"fixed": {"resume_from_checkpoint": "x"}, "grid": {"seed": [1]}}, "fixed: unknown key 'resume"),
        ({"grid": {"seed": list(range(1001))}}, "expected at most 1,000 runs, found 1001"),
        ({"grid": {"seed": [1]}, "runs": [{"seed": 1}]}, "expected either `grid` or `runs`"),
        ({"runs": [{"name": "../up", "seed": 1}]}, "name of a run: expected letters"),
        ({"grid": {"shards": ["a/wiki", "b/wiki"]}}, "two runs with the name"),
        ({"runs": [{"name": "compare.html", "seed": 1}]}, "name of a run: expected letters"),
        ({"runs": [{"name": "a", "seed": 1}, {"name": "A", "seed": 2}]}, "two runs with the name 'A'"),
        ({"runs": [{"seed": 1}, {"seed": 1}]}, "the same settings"),
        ({"runs": [3]}, "runs[0]: expected a mapping, found 3"),
        ({"gird": {}}, "unknown key 'gird'; did you mean 'grid'?"),
        ({"grid": {"seed": [1]}, "config": 3}, "config: expected text, found 3"),
    ],
)
def test_what_can_not_be_planned_is_refused(write_sweep: WriteConfig, content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        plan_sweep(write_sweep(**content))
    assert message in str(caught.value)


@pytest.mark.parametrize("bad", ["x", "-1"])
def test_a_bad_value_in_the_last_run_is_found_before_the_first_starts(
    write_sweep: WriteConfig, tmp_path: Path, monkeypatch: Patch, bad: str
) -> None:
    fake = FakeRuns()
    monkeypatch.setattr(train.sweep, "run_one", fake)
    with pytest.raises(InputError, match=f"run learning_rate={bad}: .*--learning_rate"):
        main([str(write_sweep(grid={"learning_rate": ["1e-3", bad]}))])
    assert not fake.names and not (tmp_path / "sweep").exists()


def test_a_dry_run_trains_and_writes_nothing(write_sweep: WriteConfig, tmp_path: Path, capsys: Capture) -> None:
    assert main([str(write_sweep(grid={"learning_rate": ["1e-3"]})), "--dry-run"]) == 0
    assert "run 1 of 1  learning_rate=1e-3: learning_rate 1e-3 (new)" in capsys.readouterr().out
    assert not (tmp_path / "sweep").exists()


# ---- going through the runs ----


def test_goes_on_after_a_failure_and_tries_it_again(
    write_sweep: WriteConfig, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    file = write_sweep(grid={"seed": [1, 2, 3]})
    fake = FakeRuns(failing="seed=2")
    monkeypatch.setattr(train.sweep, "run_one", fake)
    assert main([str(file)]) == 1
    output = capsys.readouterr()
    assert fake.names == ["seed=1", "seed=2", "seed=3"]
    assert "run 2 of 3  seed=2: seed 2 (new)" in output.out
    assert output.err == "1 of 3 runs failed: seed=2 (exit status 1)\n"
    again = FakeRuns()
    monkeypatch.setattr(train.sweep, "run_one", again)
    assert main([str(file)]) == 0
    assert again.names == ["seed=2"]
    assert (tmp_path / "sweep" / "compare.html").read_bytes().startswith(b"<!doctype html>")


@pytest.mark.parametrize(
    ("state", "changes", "message"),
    [
        ("finished", {"weight_decay": 0.5}, r"other settings \(training.weight_decay 0.5 before, None now\)"),
        ("training", {"weight_decay": 0.5}, r"other settings \(training.weight_decay 0.5 before, None now\)"),
        ("finished", {"fingerprint": "0" * 64}, r"other settings \(the shard set's fingerprint '0{64}' before"),
    ],
)
def test_a_run_of_another_kind_under_the_same_name_is_refused(
    write_sweep: WriteConfig, state: str, changes: dict[str, Any], message: str
) -> None:
    file = write_sweep(grid={"seed": [1]})
    _, (run,) = plan_sweep(file)
    finish(run.directory, run.arguments, state=state, **changes)
    with pytest.raises(InputError, match=message):
        check_run(run, file)


@pytest.mark.slow
def test_ctrl_c_ends_the_run_which_is_a_process_of_its_own(write_sweep: WriteConfig, tmp_path: Path) -> None:
    file, run = write_sweep(runs=[{"name": "long", "max_steps": 100, "save_steps": 20}]), tmp_path / "sweep" / "long"
    with command(main, file, files=tmp_path / "command") as sweep:
        sweep.wait_until((run / "checkpoint-20" / "checkpoint.json").exists)
        os.kill(sweep.pid, signal.SIGINT)
        assert sweep.status() == 130, sweep.errors
    assert set(sweep.errors.splitlines()) == {"interrupted"}
    assert "run 1 of 1  long: max_steps 100, save_steps 20" in sweep.output
    assert read_record(run)["state"] == "training"


def test_the_projects_sweep_names_settings_that_exist() -> None:
    output_dir, runs = plan_sweep(REPOSITORY / "configs" / "sweep.yaml")
    assert output_dir == Path("runs/sweep") and len(runs) == 4
    for run in runs:
        options = dict(argument.removeprefix("--").split("=", 1) for argument in run.arguments)
        config = REPOSITORY / options.pop("config")
        assert load_settings(config, options).training["num_train_epochs"] == "6"
