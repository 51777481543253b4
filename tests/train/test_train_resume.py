"""Interrupted runs: the same command continues to the same bits; nothing finished or foreign is overwritten."""

from __future__ import annotations

import itertools
import json
import pickle
import signal
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from shards.common.command_line import Terminated
from shards.common.errors import InputError
from tests.train.conftest import make_shard_set
from tests.train.runs import (
    Capture,
    WriteConfig,
    as_stopped_at,
    assert_same_bits,
    losses,
    stop_after,
    train_to_the_end,
)
from train.callbacks import StopOnSignal
from train.checkpoints import newest_complete_checkpoint, numbered_checkpoints, read_position, seal_checkpoint
from train.run_directory import read_lines, read_record

NUM_STEPS = 11  # 2 epochs of 22 blocks, 4 blocks a step


@pytest.mark.parametrize(("step", "continues_at"), [(1, 0), (7, 6), (11, 10)], ids=str)
def test_interrupted_run_continues_to_the_same_bits(
    whole_run: Path, write_config: WriteConfig, tmp_path: Path, capsys: Capture, step: int, continues_at: int
) -> None:
    """Epoch 0 ends within step 6; before step 2 there is no checkpoint."""
    config, run = write_config(), tmp_path / "run"
    stop_after(step, config)
    does = f"continues from {run}/checkpoint-{continues_at}" if continues_at else "starts again"
    assert f"stopped at step {step}; the same command {does}" in capsys.readouterr().out
    assert not (run / "model").exists()
    train_to_the_end(config)
    assert (f"continuing from {run}/checkpoint-{continues_at}" in capsys.readouterr().out) == (continues_at > 0)
    assert_same_bits(run, whole_run)
    record = read_record(run)
    assert record["state"] == "finished"
    assert [session["first_step"] for session in record["sessions"]] == ([0, continues_at] if continues_at else [0])


def test_interrupted_twice_with_loader_workers(whole_run: Path, write_config: WriteConfig, tmp_path: Path) -> None:
    config, run = write_config(training={"dataloader_num_workers": 1}), tmp_path / "run"
    stop_after(3, config)
    stop_after(9, config)
    train_to_the_end(config)
    assert losses(run) == losses(whole_run)


def test_sigterm_saves_a_checkpoint_before_the_run_ends(
    whole_run: Path, write_config: WriteConfig, tmp_path: Path
) -> None:
    config, run = write_config(training={"save_steps": 100}), tmp_path / "run"
    before = signal.getsignal(signal.SIGTERM)
    stop_after(3, config, signal_number=signal.SIGTERM)
    assert [path.name for path in numbered_checkpoints(run)] == ["checkpoint-4"]
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (run / "model").exists()
    train_to_the_end(config)
    assert_same_bits(run, whole_run)


def test_a_repeated_sigterm_is_the_same_request_and_a_later_one_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun forwards a SIGTERM that its workers got too."""
    stop, now = StopOnSignal(), time.monotonic()
    with stop.listening():
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.2)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested_at is not None
        monkeypatch.setattr("train.callbacks.time.monotonic", lambda: now + 40)
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)


def test_what_follows_the_last_step_is_logged_once(
    whole_run: Path, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(training={"save_steps": NUM_STEPS}, generation={"prompts": ["ab"]})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("train.run.results", mock.Mock(side_effect=KeyboardInterrupt))
        train_to_the_end(config)
    assert read_record(tmp_path / "run")["state"] == "trained"
    train_to_the_end(config)
    assert [sample["step"] for sample in read_lines(tmp_path / "run" / "samples.jsonl")] == [NUM_STEPS]
    assert_same_bits(tmp_path / "run", whole_run)


@pytest.fixture
def stopped_run(whole_run: Path, tmp_path: Path) -> Path:
    """The whole run as if it had been stopped after its last checkpoint."""
    return as_stopped_at(whole_run, NUM_STEPS, tmp_path / "run")


def test_checkpoints_name_their_data_and_all_their_files(stopped_run: Path) -> None:
    checkpoint, _, faults = newest_complete_checkpoint(stopped_run)
    assert checkpoint == stopped_run / "checkpoint-11"
    assert faults == []
    position = read_position(checkpoint)
    assert (position.step, position.global_batch_blocks, position.block_tokens, position.seed) == (11, 4, 16, 42)
    sealed = json.loads((checkpoint / "checkpoint.json").read_bytes())["files"]
    assert {*sealed, "checkpoint.json"} == {path.name for path in checkpoint.iterdir()} > {"tokenizer.json"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--seed", "7"], "can't be continued with these settings: seed 42 before, 7 now"),
        (["--shuffle", "window"], "shuffle 'global' before, 'window' now"),
        (["--per_device_train_batch_size", "3"], "global_batch_blocks 4 before, 6 now"),
        (["--model.hidden_size", "32"], "model.hidden_size 16 before, 32 now"),
        (["--optim", "adafactor"], "optim 'adamw_torch' before, 'adafactor' now; use the old ones"),
        (
            ["--lr_scheduler_type", "reduce_lr_on_plateau", "--eval_strategy", "steps"],
            "lr_scheduler_type by loss False before, True now; use the old ones",
        ),
        (["--max_steps", "5"], "checkpoint-11: has 11 steps already, the settings ask for 5"),
    ],
)
def test_other_settings_are_refused(
    stopped_run: Path, write_config: WriteConfig, arguments: list[str], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        train_to_the_end(write_config(), *arguments)
    assert read_record(stopped_run)["state"] == "training"


def test_other_data_is_refused_and_can_be_allowed(
    stopped_run: Path, whole_run: Path, write_config: WriteConfig, tmp_path: Path, capsys: Capture
) -> None:
    other = make_shard_set(tmp_path / "other", seed=1)
    options = ["--shards", str(other), "--num_train_epochs", "3", "--seed", "7"]
    with pytest.raises(InputError, match=r"fingerprint '.*, or --allow_data_change to go on with the new"):
        train_to_the_end(write_config(), *options)
    options.append("--allow_data_change")
    train_to_the_end(write_config(), *options)
    output = capsys.readouterr().out
    assert (
        "changed since then: the shard set's fingerprint " in output
        and "changed since then: seed 42 before, 7 now" in output
    )
    assert losses(stopped_run)[:NUM_STEPS] == losses(whole_run) and losses(stopped_run)[-1][0] == 17
    assert read_position(stopped_run / "checkpoint-17").seed == 7
    options += ["--model.hidden_size", "32", "--output_dir", str(tmp_path / "new")]
    with pytest.raises(InputError, match=r"size 16 before, 32 now; use the old ones, or another --output_dir$"):
        train_to_the_end(write_config(), *options, "--resume_from_checkpoint", str(stopped_run / "checkpoint-17"))


def test_another_tokenizer_is_never_allowed(stopped_run: Path, write_config: WriteConfig) -> None:
    path = stopped_run / "checkpoint-11" / "tokenizer.json"
    content, position = path.read_bytes(), read_position(path.parent)
    path.write_bytes(content.replace(b"endoftext", b"endOFtext"))
    seal_checkpoint(path.parent, position)
    with pytest.raises(InputError, match="its tokenizer is another one than the shard set's"):
        train_to_the_end(write_config(), "--allow_data_change", "--num_train_epochs", "3")


def test_later_stages_of_an_unfinished_run_may_change_and_begun_ones_may_not(
    write_config: WriteConfig, shard_set_path: Path, tmp_path: Path
) -> None:
    other, third = (
        make_shard_set(tmp_path / name, train_blocks=6, seed=seed) for name, seed in (("other", 30), ("third", 9))
    )
    first, run, whole = f"{shard_set_path}:0.7,{other}:0.3", tmp_path / "run", tmp_path / "whole"

    def options(until: Any, mix: Path, run: Path = run) -> list[str]:
        stages = json.dumps([{"until": until, "mix": first}, {"mix": str(mix)}])
        return ["--max_steps", "12", "--save_steps", "5", "--output_dir", str(run), "--shards", stages]

    config = write_config()
    stop_after(7, config, *options(0.5, other))  # its checkpoint is that of step 5
    with pytest.raises(InputError, match=r"fingerprint .* before, .* now"):
        train_to_the_end(config, *options("4steps", other))
    stop_after(11, config, *options("8steps", third))
    assert read_record(run)["sessions"][-1]["changes"][0].startswith("shards [{'until': 0.5")
    with pytest.raises(InputError, match=r"fingerprint .* before, .* now"):
        train_to_the_end(config, *options("8steps", other))
    train_to_the_end(config, *options("8steps", third))
    train_to_the_end(config, *options("8steps", third, whole))
    assert losses(run) == losses(whole)
    assert "Share of the blocks trained on" in (run / "model" / "README.md").read_text()


def test_a_run_with_documents_masked_keeps_its_mask(whole_run: Path, write_config: WriteConfig, tmp_path: Path) -> None:
    config, short = write_config(document_mask=True), tmp_path / "short"
    train_to_the_end(config, "--max_steps", "4", "--output_dir", str(short))
    assert losses(short)[0] == losses(whole_run)[0]  # each block here is one document: nothing to mask
    run = as_stopped_at(short, 4, tmp_path / "run")
    with pytest.raises(InputError, match="document_mask True before, False now"):
        train_to_the_end(config, "--document_mask", "false")
    train_to_the_end(config)
    assert [step for step, _, _ in losses(run)] == list(range(1, NUM_STEPS + 1))


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


HARM = pickle.dumps(Harm(Path("owned")))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *itertools.product(("optimizer.pt", "scheduler.pt", "rng_state.pth"), (None, HARM)),
        ("optimizer.pt", b""),
        ("scheduler.pt", b"PK\x03\x04" + bytes(60)),
        ("model.safetensors", HARM),
    ],
)
def test_a_checkpoint_from_a_stranger_is_refused_with_a_line(
    stopped_run: Path, write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | None
) -> None:
    monkeypatch.chdir(stopped_run.parent)
    checkpoint = stopped_run / "checkpoint-11"
    position = read_position(checkpoint)
    torch.save(Harm(Path("owned too")), checkpoint / "training_args.bin")  # never loaded
    if content is None:
        torch.save({"state": Harm(Path("owned"))}, checkpoint / name)
    else:
        (checkpoint / name).write_bytes(content)
    seal_checkpoint(checkpoint, position)
    with pytest.raises(InputError, match="checkpoint-11: the checkpoint can't be loaded: ") as refused:
        train_to_the_end(write_config(), "--num_train_epochs", "3")
    assert name == "model.safetensors" or content is not None or "objects that are no weights" in str(refused.value)
    assert not list(stopped_run.parent.glob("owned*"))
