"""What a run saves and what it finds in its directory: whole or absent, never over what is another's."""

from __future__ import annotations

import fcntl
import itertools
import math
import pydoc
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
from safetensors import SafetensorError
from transformers import TrainerState

from shards.common.errors import InputError
from tests.train.runs import as_stopped_at, train_to_the_end
from train.__main__ import prepare
from train.callbacks import MetricsFile
from train.checkpoints import newest_complete_checkpoint, numbered_checkpoints
from train.run_directory import append_lines, lock_run, read_lines

WriteConfig = Callable[..., Path]


def train_and_be_killed_at(where: str, config: Path, *arguments: str, call: int = 1) -> None:
    """Killed, as it were, at a call of the function `where`."""
    calls, original = itertools.count(1), cast(Callable[..., Any], pydoc.locate(where))

    def stop(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(where, stop)
        train_to_the_end(config, *arguments)


def test_a_checkpoint_without_its_seal_is_passed_over_and_removed(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = write_config(), tmp_path / "run"
    for call, newest in ((1, None), (2, "checkpoint-2")):
        train_and_be_killed_at("train.checkpoints.seal_checkpoint", config, call=call)
        checkpoint, _, faults = newest_complete_checkpoint(run)
        assert (checkpoint and checkpoint.name, faults) == (newest, [])
        assert numbered_checkpoints(run)[-1].name == f"checkpoint-{2 * call}"
        capsys.readouterr()
    (run / "checkpoint-4" / "of-the-unsealed").touch()
    train_to_the_end(config)
    assert f"continuing from {run}/checkpoint-2" in capsys.readouterr().out
    assert not (run / "checkpoint-4" / "of-the-unsealed").exists()
    assert [line["step"] for line in read_lines(run / "metrics.jsonl") if "loss" in line] == list(range(1, 12))


@pytest.mark.parametrize("where", ["transformers.Trainer._save_checkpoint", "train.checkpoints.seal_checkpoint"])
def test_a_checkpoint_is_there_until_the_one_that_replaces_it_is_sealed(
    whole_run: Path, write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """As when a run goes back to an earlier checkpoint; it is killed in the middle of the exchange."""
    config, run = write_config(), as_stopped_at(whole_run, 6, tmp_path / "run")
    back = ["--resume_from_checkpoint", str(run / "checkpoint-2"), "--max_steps", "4"]
    seal = (run / "checkpoint-4" / "checkpoint.json").read_bytes()
    train_and_be_killed_at(where, config, *back)
    shutil.rmtree(run / "checkpoint-6")
    checkpoint, position, _ = newest_complete_checkpoint(run)
    assert checkpoint == run / "checkpoint-4" and position is not None and position.step == 4
    capsys.readouterr()
    train_to_the_end(config, "--resume_from_checkpoint", "latest", "--max_steps", "5")
    assert f"continuing from {run}/checkpoint-4" in capsys.readouterr().out
    assert (run / "checkpoint-4" / "checkpoint.json").read_bytes() == seal
    assert not list(run.glob("*.old"))


def test_old_checkpoints_go_after_the_new_one_is_sealed(write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(training={"save_steps": 1, "max_steps": 4, "save_total_limit": 1})
    train_and_be_killed_at("train.checkpoints.seal_checkpoint", config, call=4)
    checkpoint, _, _ = newest_complete_checkpoint(tmp_path / "run")
    assert checkpoint is not None and checkpoint.name == "checkpoint-3"
    train_to_the_end(config)
    assert [path.name for path in numbered_checkpoints(tmp_path / "run")] == ["checkpoint-4"]


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("_save_checkpoint", RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data.pkl")),
        ("_save_checkpoint", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 124160")),
        ("_save_checkpoint", RuntimeError("mat1 and mat2 shapes cannot be multiplied")),
        ("save_model", RuntimeError("basic_ios::clear: iostream error")),
        ("save_model", SafetensorError("I/O error: No space left on device (os error 28)")),
    ],
)
def test_a_disk_that_takes_no_more_is_one_line(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    monkeypatch.setattr(f"transformers.Trainer.{where}", mock.Mock(side_effect=error))
    is_ours = "mat1" in str(error)
    with pytest.raises(type(error) if is_ours else InputError, match="mat1" if is_ours else "can't be written"):
        train_to_the_end(write_config(training={"save_steps": 1, "max_steps": 1}))


def test_a_run_goes_on_after_the_samples_of_its_checkpoint(tmp_path: Path) -> None:
    """Only line feeds end their lines."""
    kept = {"step": 1, "text": "one\u2028two\x85three"}
    append_lines(tmp_path / "samples.jsonl", [kept, {"step": 2, "text": "later"}])
    state = TrainerState(global_step=1, max_steps=9, log_history=[{"loss": math.nan, "step": 1}])
    MetricsFile(tmp_path).on_train_begin(None, state, None)
    assert read_lines(tmp_path / "samples.jsonl") == [kept]
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": None}]


def test_what_is_not_ours_is_refused_and_stays(write_config: WriteConfig, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").touch()
    with pytest.raises(InputError, match=r"run: holds something else \(thesis.txt, …\), not a run"):
        prepare(["--config", str(write_config())])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: expected a directory for the run, found a file"):
        prepare(["--config", str(write_config()), "--output_dir", str(tmp_path / "file")])


def test_a_run_in_use_is_refused_and_one_that_is_looked_at_is_not(write_config: WriteConfig, tmp_path: Path) -> None:
    """`train.compare` asks for a shared lock for an instant, whether a process is training there."""
    run = tmp_path / "run"
    with lock_run(run), pytest.raises(InputError, match="another process is training there"):
        train_to_the_end(write_config())
    run.mkdir(exist_ok=True)
    with open(run / ".lock", "ab") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        timer = threading.Timer(0.3, looking.close)
        timer.start()
        started = time.monotonic()
        with lock_run(run):
            assert time.monotonic() - started > 0.1
        timer.join()
    assert not run.exists(), "nothing was written"
