"""`--dry_run` says what a run would take, and writes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from train.__main__ import main

WriteConfig = Callable[..., Path]


def test_what_a_run_takes_is_said_and_nothing_is_written(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"max_steps": 11, "save_steps": 5, "save_total_limit": 2}
    config = write_config(training=training)
    before = sorted(tmp_path.rglob("*"))
    main(["--config", str(config), "--dry_run"])
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


def test_the_passes_are_those_of_each_set_of_a_mixture(
    write_config: WriteConfig, shard_set_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = f"{shard_set_path}:1,{shard_set_path}:3"
    main(["--config", str(write_config()), "--shards", shards, "--max_steps", "22", "--dry_run"])
    assert "passes   tiny 1.00, tiny 3.00\n" in capsys.readouterr().out


def test_the_passes_of_stages_are_those_of_the_run(
    write_config: WriteConfig,
    shard_set_path: Path,
    make_set: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = make_set(tmp_path / "other", train_blocks=11, seed=30)
    stages = json.dumps([{"until": 0.5, "mix": str(shard_set_path)}, {"mix": str(other)}])
    main(["--config", str(write_config()), "--shards", stages, "--max_steps", "11", "--dry_run"])
    assert "passes   tiny 1.00, other 2.00\n" in capsys.readouterr().out
