"""Continued runs that are not quite as they were: changed settings, damaged checkpoints, signals and other commands."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3

from shards.common.errors import InputError
from shards.common.files import file_digest
from tests.train.runs import as_stopped_at, losses, stop_after, train_to_the_end
from train.__main__ import prepare
from train.callbacks import MetricsFile
from train.checkpoints import newest_complete_checkpoint
from train.run import train
from train.run_directory import read_lines, read_record

WriteConfig = Callable[..., Path]
NUM_STEPS = 11  # 2 epochs of 22 blocks, 4 blocks a step


@pytest.fixture
def stopped_run(whole_run: Path, tmp_path: Path) -> Path:
    """A run with checkpoints of steps 2, 4 and 6."""
    return as_stopped_at(whole_run, 6, tmp_path / "run")


def rates(run: Path) -> dict[int, float]:
    return {line["step"]: line["learning_rate"] for line in read_lines(run / "metrics.jsonl") if "loss" in line}


def test_changed_settings_hold_from_the_checkpoint_on(
    stopped_run: Path, write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    before, metrics = rates(stopped_run), stopped_run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("{", "[", 1))  # damaged: its lines are the checkpoint's again
    changes = ["--learning_rate", "0.02", "--weight_decay", "0.5", "--logging_steps", "2", "--save_steps", "5"]
    train_to_the_end(write_config(), *changes)
    told = capsys.readouterr().out
    assert "changed since then: learning_rate 0.01 before, 0.02 now" in told
    after = rates(stopped_run)
    assert sorted(after) == [1, 2, 3, 4, 5, 6, 8, 10, 11]
    assert {step: after[step] for step in range(1, 7)} == {step: before[step] for step in range(1, 7)}
    # On a line from 0.02 after 2 steps of warming up to 0 at step 11. A log has the rate of its step.
    assert [after[step] for step in (8, 10, 11)] == pytest.approx([0.02 * (12 - step) / 9 for step in (8, 10, 11)])
    assert [path.name for path in stopped_run.glob("checkpoint-1*")] != []
    groups = torch.load(stopped_run / "checkpoint-11" / "optimizer.pt", weights_only=True)["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.5, 0.0}
    assert {path.name for path in stopped_run.glob("checkpoint-*")} == {
        f"checkpoint-{step}" for step in (2, 4, 6, 10, 11)
    }


def test_a_longer_run_goes_on_by_the_schedule_of_its_new_length(
    stopped_run: Path, write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    stopped_run: Path, write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, _, _ = newest_complete_checkpoint(stopped_run)
    assert checkpoint == stopped_run / "checkpoint-6"
    for name in ("model.safetensors", "scheduler.pt", "optimizer.pt"):
        path = checkpoint / name
        content = path.read_bytes()
        for damaged, fault in ((content[:-1], "has "), (flipped(content), "has other bytes than were written")):
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=f"{name}: {fault}.*the checkpoint is damaged"):
                train_to_the_end(write_config(), "--resume_from_checkpoint", str(checkpoint))
        if name != "optimizer.pt":
            path.write_bytes(content)
    train_to_the_end(write_config())
    told = capsys.readouterr().out
    assert f"{path}: has other bytes" in told and f"continuing from {stopped_run}/checkpoint-4" in told
    assert [step for step, _, _ in losses(stopped_run)] == list(range(1, NUM_STEPS + 1))


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_others_may_read_what_is_saved(whole_run: Path) -> None:
    for path in (*(whole_run / "model").iterdir(), *(whole_run / "checkpoint-11").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640, path  # by the umask of `whole_run`


def test_only_the_first_process_reads_the_checkpoints(
    stopped_run: Path, write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("train.checkpoints.file_digest", lambda *_, **__: pytest.fail("another process read them"))
    prepare(["--config", str(write_config())])


def test_a_command_that_was_begun_while_another_trained_changes_nothing(
    stopped_run: Path, write_config: WriteConfig
) -> None:
    arguments = ["--config", str(write_config())]
    settings, data, _ = prepare(arguments)
    train_to_the_end(write_config())
    before = {path: path.read_bytes() for path in stopped_run.rglob("*.json*")}
    with pytest.raises(InputError, match="holds a finished run"):
        train(settings, data, arguments, resume=None, allow_data_change=False)
    assert {path: path.read_bytes() for path in stopped_run.rglob("*.json*")} == before


def test_a_run_from_anothers_checkpoint_reports_its_changes_once_and_where_it_starts_again(
    stopped_run: Path,
    write_config: WriteConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = stopped_run / "checkpoint-6"
    start = ["--resume_from_checkpoint", str(given), "--output_dir", str(tmp_path / "new"), "--seed", "7"]
    start += ["--learning_rate", "0.02", "--allow_data_change"]
    stop_after(7, monkeypatch, write_config(), *start)
    told, changes = capsys.readouterr().out, ["learning_rate 0.01 before, 0.02 now", "seed 42 before, 7 now"]
    assert [told.count(f"changed since then: {change}") for change in changes] == [1, 1]
    assert sorted(read_record(tmp_path / "new")["sessions"][-1]["changes"]) == changes
    assert "stopped at step 7; the same command without --resume_from_checkpoint starts again: " in told
    stop_after(9, monkeypatch, write_config(), *start)
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
