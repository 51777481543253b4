"""What is tried before a training: `--dry_run` writes nothing, `auto` finds the largest micro-batch that fits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from shards.common.errors import InputError
from tests.train.conftest import make_shard_set
from tests.train.runs import Capture, Patch, WriteConfig, stop_after, train_to_the_end
from train.run_directory import record_part
from train.trials import largest_micro_batch


def test_what_a_run_takes_is_said_and_nothing_is_written(
    write_config: WriteConfig, tmp_path: Path, capsys: Capture
) -> None:
    config = write_config(training={"max_steps": 11, "save_steps": 5, "save_total_limit": 2})
    before = sorted(tmp_path.rglob("*"))
    train_to_the_end(config, "--dry_run")
    assert sorted(tmp_path.rglob("*")) == before
    output = capsys.readouterr().out
    assert "steps    11 of 4 blocks = 64 tokens: 2.00 epochs, in micro-batches of 2 blocks\n" in output
    assert "passes   tiny 2.00\n" in output
    assert re.search(r"time     about [\d.]+ s: [\d.]+ s a step, [\d,]+ tokens/s\n", output)
    # Weights, and two moments of each in AdamW: three times the model, and a step's number for each parameter.
    disk = re.search(r"disk     ([\d.]+) kB: 3 checkpoints of ([\d.]+) kB and the model; ", output)
    assert disk is not None
    whole, checkpoint = map(float, disk.groups())
    assert whole - 3 * checkpoint == pytest.approx(checkpoint / 3, rel=0.02)


@pytest.mark.parametrize(
    ("shards", "max_steps", "passes"),
    [
        ("{0}:1,{1}:3", 22, "tiny 1.00, other 6.00"),
        ([{"until": 0.5, "mix": "{0}"}, {"mix": "{1}"}], 11, "tiny 1.00, other 2.00"),
        ("{0}:1epochs,{1}:2epochs", -1, "tiny 2.00, other 4.00"),  # two epochs
        ("{0}", 1, "tiny 0.18"),  # fewer micro-batches than are tried
    ],
)
def test_the_passes_are_those_of_the_run_over_each_set(
    write_config: WriteConfig, tmp_path: Path, capsys: Capture, shards: object, max_steps: int, passes: str
) -> None:
    tiny, other = make_shard_set(tmp_path / "tiny"), make_shard_set(tmp_path / "other", train_blocks=11, seed=30)
    spec = json.dumps(shards).replace("{0}", str(tiny)).replace("{1}", str(other))
    train_to_the_end(write_config(), "--shards", spec.strip('"'), "--max_steps", str(max_steps), "--dry_run")
    assert f"passes   {passes}\n" in capsys.readouterr().out


@pytest.mark.parametrize(("share", "most", "expected"), [(256, 1000, 256), (256, 100, 64), (96, 9, 8), (5, 3, 1)])
def test_the_largest_power_of_two_that_fits_and_divides_the_share(share: int, most: int, expected: int) -> None:
    def attempt(blocks: int) -> None:
        if blocks > most:
            raise torch.OutOfMemoryError("simulated")

    assert largest_micro_batch(attempt, share) == expected
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        largest_micro_batch(attempt, share)


def test_a_run_keeps_the_micro_batch_that_was_found(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: Patch
) -> None:
    auto = ["--max_steps", "4", "--per_device_train_batch_size", "auto"]
    with pytest.raises(InputError, match="per_device_train_batch_size: auto finds how many blocks fit"):
        train_to_the_end(write_config(), *auto)
    auto += ["--global_batch_blocks", "4"]
    with monkeypatch.context() as patch:
        patch.setattr("train.trials.find_micro_batch", lambda *_arguments: 2)
        stop_after(3, write_config(), *auto)
    train_to_the_end(write_config(), *auto)
    arguments = record_part(tmp_path / "run", "training_arguments")
    assert (arguments["per_device_train_batch_size"], arguments["gradient_accumulation_steps"]) == (2, 2)
