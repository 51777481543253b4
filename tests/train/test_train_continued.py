"""Continued runs that are not quite as they were, and what a run saves: whole or absent, never over what is another's."""

from __future__ import annotations

import errno
import fcntl
import itertools
import math
import os
import pydoc
import shutil
import stat
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
import torch
from blake3 import blake3
from safetensors import SafetensorError
from transformers import TrainerState

from shards.common.errors import InputError
from shards.common.files import file_digest
from tests.conftest import flip
from tests.train.runs import Capture, Patch, WriteConfig, as_stopped_at, losses, stop_after, train_to_the_end
from train.__main__ import prepare
from train.callbacks import MetricsFile
from train.checkpoints import (
    DataPosition,
    newest_complete_checkpoint,
    numbered_checkpoints,
    read_position,
    remove,
    remove_oldest,
    seal_checkpoint,
)
from train.run import train
from train.run_directory import append_lines, lock_run, read_lines, read_record, write_record

NUM_STEPS = 11  # 2 epochs of 22 blocks, 4 blocks a step


@pytest.fixture
def stopped_run(whole_run: Path, tmp_path: Path) -> Path:
    """A run with checkpoints of steps 2, 4 and 6."""
    return as_stopped_at(whole_run, 6, tmp_path / "run")


def rates(run: Path) -> dict[int, float]:
    return {line["step"]: line["learning_rate"] for line in read_lines(run / "metrics.jsonl") if "loss" in line}


def test_changed_settings_hold_from_the_checkpoint_on(
    stopped_run: Path, write_config: WriteConfig, capsys: Capture
) -> None:
    before, metrics = rates(stopped_run), stopped_run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("{", "[", 1))  # damaged: its lines are the checkpoint's again
    changes = ["--learning_rate", "0.02", "--weight_decay", "0.5", "--logging_steps", "2", "--save_steps", "5"]
    train_to_the_end(write_config(), *changes)
    assert "changed since then: learning_rate 0.01 before, 0.02 now" in capsys.readouterr().out
    after = rates(stopped_run)
    assert sorted(after) == [1, 2, 3, 4, 5, 6, 8, 10, 11]
    assert [after[step] for step in range(1, 7)] == [before[step] for step in range(1, 7)]
    # On a line from 0.02 after 2 steps of warming up to 0 at step 11. A log has the rate of its step.
    assert [after[step] for step in (8, 10, 11)] == pytest.approx([0.02 * (12 - step) / 9 for step in (8, 10, 11)])
    groups = torch.load(stopped_run / "checkpoint-11" / "optimizer.pt", weights_only=True)["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.5, 0.0}
    assert [path.name[11:] for path in numbered_checkpoints(stopped_run)] == ["2", "4", "6", "10", "11"]
    seconds = [line["seconds"] for line in read_lines(metrics) if "loss" in line]
    assert seconds == sorted(seconds), "of all sessions"


def test_a_longer_run_goes_on_by_the_schedule_of_its_new_length(
    stopped_run: Path, write_config: WriteConfig, monkeypatch: Patch, capsys: Capture
) -> None:
    used: list[float] = []

    def note_rate(_self: MetricsFile, _args: Any, _state: Any, _control: Any, *, optimizer: Any, **_: Any) -> None:
        used.append(optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(MetricsFile, "on_step_begin", note_rate)
    train_to_the_end(write_config(), "--num_train_epochs", "4", "--resume_from_checkpoint")
    assert "changed since then: num_train_epochs 2.0 before, 4.0 now" in capsys.readouterr().out
    assert used == pytest.approx([0.01 * (22 - step) / 20 for step in range(6, 22)])
    assert [rates(stopped_run)[step] for step in range(7, 23)] == used


def test_a_flipped_byte_is_seen_and_the_checkpoint_before_it_taken(
    stopped_run: Path, write_config: WriteConfig, capsys: Capture
) -> None:
    checkpoint, _, _ = newest_complete_checkpoint(stopped_run)
    assert checkpoint == stopped_run / "checkpoint-6"
    for name in ("model.safetensors", "scheduler.pt", "optimizer.pt"):
        path = checkpoint / name
        content = path.read_bytes()
        for damaged, fault in ((content[:-1], "has "), (content, "has other bytes than were written")):
            path.write_bytes(damaged)
            flip(path, len(content) // 2)
            with pytest.raises(InputError, match=f"{name}: {fault}.*the checkpoint is damaged"):
                train_to_the_end(write_config(), "--resume_from_checkpoint", str(checkpoint))
        if name != "optimizer.pt":
            path.write_bytes(content)
    train_to_the_end(write_config())
    told = capsys.readouterr().out
    assert f"{path}: has other bytes" in told and f"continuing from {stopped_run}/checkpoint-4" in told
    assert [step for step, _, _ in losses(stopped_run)] == list(range(1, NUM_STEPS + 1))


def test_others_may_read_what_is_saved(whole_run: Path) -> None:
    for path in (*(whole_run / "model").iterdir(), *(whole_run / "checkpoint-11").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640, path  # by the umask of `whole_run`


def test_only_the_first_process_reads_the_checkpoints(
    stopped_run: Path, write_config: WriteConfig, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("train.checkpoints.file_digest", lambda *_, **__: pytest.fail("another process read them"))
    prepare(["--config", str(write_config())])


def test_a_command_that_was_begun_while_another_trained_changes_nothing(
    whole_run: Path, write_config: WriteConfig, tmp_path: Path
) -> None:
    settings, data, _ = prepare(["--config", str(write_config())])
    run = shutil.copytree(whole_run, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*.json*")}
    with pytest.raises(InputError, match="holds a finished run"):
        train(settings, data, [], resume=None, allow_data_change=False)
    assert {path: path.read_bytes() for path in run.rglob("*.json*")} == before


def test_a_run_from_anothers_checkpoint_reports_its_changes_once_and_where_it_starts_again(
    stopped_run: Path, write_config: WriteConfig, tmp_path: Path, capsys: Capture
) -> None:
    given = stopped_run / "checkpoint-6"
    start = ["--resume_from_checkpoint", str(given), "--output_dir", str(tmp_path / "new"), "--seed", "7"]
    start += ["--learning_rate", "0.02", "--allow_data_change"]
    stop_after(7, write_config(), *start)
    told, changes = capsys.readouterr().out, ["learning_rate 0.01 before, 0.02 now", "seed 42 before, 7 now"]
    assert [told.count(f"changed since then: {change}") for change in changes] == [1, 1]
    assert sorted(read_record(tmp_path / "new")["sessions"][-1]["changes"]) == changes
    assert f"stopped at step 7; the same command continues from {given}\n" in told
    stop_after(9, write_config(), *start)
    expected = f"the same command without --resume_from_checkpoint continues from {tmp_path / 'new'}/checkpoint-8\n"
    assert expected in capsys.readouterr().out


def test_a_file_that_can_not_be_hashed_is_an_error_with_a_number(tmp_path: Path) -> None:
    """Its number is what makes one clear line of it."""
    with pytest.raises(OSError) as told:
        file_digest(tmp_path, all_cores=True)
    assert told.value.errno == errno.EISDIR
    (tmp_path / "large").write_bytes(bytes(range(256)) * 140_000)
    assert file_digest(tmp_path / "large", all_cores=True) == blake3((tmp_path / "large").read_bytes()).hexdigest()
    (tmp_path / "empty").touch()
    assert file_digest(tmp_path / "empty", all_cores=True) == blake3(b"").hexdigest()


def test_a_small_file_is_hashed_in_a_small_buffer(tmp_path: Path) -> None:
    """To zero megabytes takes ten times as long as to hash it, and a set may have 40,000 files."""
    (tmp_path / "small").write_bytes(b"0123")
    tracemalloc.start()
    try:
        assert file_digest(tmp_path / "small") == blake3(b"0123").hexdigest()
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()


# ---- what is saved, and what is found in the directory ----


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


def test_the_seal_says_that_all_is_on_the_disk(
    tmp_path: Path, not_flushed: Callable[[Path], list[str]], monkeypatch: Patch
) -> None:
    """A seal that names a file elsewhere isn't one, and of a checkpoint that is deleted the seal goes first."""
    (checkpoint := tmp_path / "checkpoint-1").mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    position = DataPosition(step=1, global_batch_blocks=4, block_tokens=16, seed=42, fingerprint="0")
    seal_checkpoint(checkpoint, position)
    assert not_flushed(tmp_path) == [] and read_position(checkpoint) == position
    seal = checkpoint / "checkpoint.json"
    seal.write_text(seal.read_text().replace('"model', '"../checkpoint-1/model'))
    with pytest.raises(InputError, match="expected names of files within the checkpoint"):
        read_position(checkpoint)
    monkeypatch.setattr(shutil, "rmtree", lambda *_arguments, **_options: None)
    remove(checkpoint)
    assert [path.name for path in checkpoint.iterdir()] == ["model.safetensors"]


def test_a_checkpoint_without_its_seal_is_passed_over_and_removed(
    write_config: WriteConfig, tmp_path: Path, capsys: Capture
) -> None:
    config, run = write_config(), tmp_path / "run"
    for call, newest in ((1, None), (2, "checkpoint-2")):
        train_and_be_killed_at("train.checkpoints.seal_checkpoint", config, call=call)
        checkpoint, _, faults = newest_complete_checkpoint(run)
        assert (checkpoint and checkpoint.name, faults) == (newest, [])
        assert numbered_checkpoints(run)[-1].name == f"checkpoint-{2 * call}"
        capsys.readouterr()
    (run / "checkpoint-4" / "of-the-unsealed").touch()
    (run / "checkpoint-best.old").mkdir()  # the user's
    train_to_the_end(config)
    assert f"continuing from {run}/checkpoint-2" in capsys.readouterr().out
    assert not (run / "checkpoint-4" / "of-the-unsealed").exists() and (run / "checkpoint-best.old").exists()
    assert [line["step"] for line in read_lines(run / "metrics.jsonl") if "loss" in line] == list(range(1, 12))


@pytest.mark.parametrize("where", ["transformers.Trainer._save_checkpoint", "train.checkpoints.seal_checkpoint"])
def test_a_run_that_goes_back_leaves_its_later_checkpoints_and_keeps_the_one_it_went_back_to(
    whole_run: Path, write_config: WriteConfig, tmp_path: Path, capsys: Capture, where: str
) -> None:
    """It is killed while it saves the first of its new course. A later one of the old course would count as newer."""
    config, run = write_config(training={"save_total_limit": 1}), as_stopped_at(whole_run, 6, tmp_path / "run")
    back = ["--resume_from_checkpoint", str(run / "checkpoint-2"), "--max_steps", "4"]
    assert (run / "checkpoint-4").is_dir() and (run / "checkpoint-6").is_dir()
    train_and_be_killed_at(where, config, *back)
    checkpoint, position, _ = newest_complete_checkpoint(run)
    assert checkpoint == run / "checkpoint-2" and position is not None and position.step == 2
    capsys.readouterr()
    train_to_the_end(config, "--resume_from_checkpoint", "latest", "--max_steps", "5")
    assert f"continuing from {run}/checkpoint-2" in capsys.readouterr().out
    assert [path.name for path in numbered_checkpoints(run)] == ["checkpoint-5"]


def test_the_checkpoint_that_a_run_goes_on_from_is_not_written_anew(
    whole_run: Path, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever asks for one at that step: it is the only whole one."""
    run, found = as_stopped_at(whole_run, 6, tmp_path / "run"), []

    def save(callback: Any, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        callback._trainer.has_begun = True
        if state.global_step == 6:
            callback._trainer._save_checkpoint(callback._trainer.model, None)
            found.append((run / "checkpoint-6").stat().st_ino)

    monkeypatch.setattr("train.trainer.RunCallback.on_step_begin", save)
    expected = (run / "checkpoint-6").stat().st_ino
    train_to_the_end(write_config(), "--max_steps", "7")
    assert found == [expected]


def test_old_checkpoints_go_after_the_new_one_is_sealed_and_the_model_is_flushed(
    write_config: WriteConfig, tmp_path: Path, not_flushed: Callable[[Path], list[str]]
) -> None:
    config = write_config(training={"save_steps": 1, "max_steps": 4, "save_total_limit": 1})
    train_and_be_killed_at("train.checkpoints.seal_checkpoint", config, call=4)
    checkpoint, _, _ = newest_complete_checkpoint(tmp_path / "run")
    assert checkpoint is not None and checkpoint.name == "checkpoint-3"
    (copy := tmp_path / "run" / "checkpoint-1-mine").mkdir()  # the user's
    train_to_the_end(config)
    assert [path.name for path in numbered_checkpoints(tmp_path / "run")] == ["checkpoint-4"] and copy.is_dir()
    assert not_flushed(tmp_path / "run" / "model") == []


def test_the_best_checkpoint_stays_also_in_a_run_that_was_moved(tmp_path: Path) -> None:
    for step in (1, 2, 9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for num_kept, left in ((None, [1, 2, 9, 10]), (3, [2, 9, 10]), (1, [2, 10])):
        remove_oldest(tmp_path, num_kept, best="runs/before/checkpoint-2")
        assert [path.name for path in numbered_checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in left]


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
    write_config: WriteConfig, monkeypatch: Patch, where: str, error: Exception
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


def test_what_is_not_ours_is_refused_and_stays(write_config: WriteConfig, whole_run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").touch()
    with pytest.raises(
        InputError,
        match=r"holds something else \(thesis.txt, …\), not a run; choose another [^,]+$",
    ):
        prepare(["--config", str(write_config())])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: expected a directory for the run, found a file"):
        prepare(["--config", str(write_config()), "--output_dir", str(tmp_path / "file")])
    (tmp_path / "trained").mkdir()
    write_record(tmp_path / "trained", {}, "trained")
    with pytest.raises(InputError, match="trained: holds a trained model and no checkpoint to continue from"):
        prepare(["--config", str(write_config()), "--output_dir", str(tmp_path / "trained")])
    (tmp_path / "finished").mkdir()
    write_record(tmp_path / "finished", {}, "finished")
    for run, what in (("run", "something else"), ("finished", "a finished run")):
        start = ["--output_dir", str(tmp_path / run), "--resume_from_checkpoint", str(whole_run / "checkpoint-2")]
        with pytest.raises(InputError, match=f"{run}: holds {what}"):
            prepare(["--config", str(write_config()), *start])


def test_a_run_in_use_is_refused_and_one_that_is_looked_at_is_not(write_config: WriteConfig, tmp_path: Path) -> None:
    """`train.compare` asks for a shared lock for an instant, whether a process is training there."""
    run = tmp_path / "run"
    with lock_run(run), pytest.raises(InputError, match="another process is training there"):
        train_to_the_end(write_config())
    run.mkdir(exist_ok=True)
    with open(run / ".run.json.lock", "ab") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        timer = threading.Timer(0.3, looking.close)
        timer.start()
        started = time.monotonic()
        with lock_run(run):
            assert time.monotonic() - started > 0.1
        timer.join()
    assert not run.exists(), "nothing was written"


def test_names_that_are_not_utf8_are_written_and_read(tmp_path: Path) -> None:
    name = os.fsdecode(b"set\xff")
    write_record(tmp_path, {"shards": name}, "training")
    append_lines(tmp_path / "metrics.jsonl", [{"step": 1, "shards": name}])
    assert read_record(tmp_path)["shards"] == read_lines(tmp_path / "metrics.jsonl")[0]["shards"] == name
