"""What the tests of interrupted and continued runs share."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from train.__main__ import main
from train.callbacks import MetricsFile
from train.checkpoints import numbered_checkpoints
from train.run_directory import read_lines, read_record

WriteConfig = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def train_to_the_end(config: Path, *arguments: str) -> None:
    main(["--config", str(config), *arguments])


def stop_after(step: int, config: Path, *arguments: str, signal_number: signal.Signals = signal.SIGINT) -> None:
    """Train, and be interrupted as by Ctrl-C when `step` has been logged."""
    on_log = MetricsFile.on_log

    def interrupt(self: MetricsFile, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        on_log(self, args, state, control, **kwargs)
        if state.global_step == step:
            signal.raise_signal(signal_number)

    with Patch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(MetricsFile, "on_log", interrupt)
        train_to_the_end(config, *arguments)


def as_stopped_at(run: Path, step: int, stopped: Path) -> Path:
    """A copy of the finished `run` as if it had been stopped when checkpoint `step` was the newest."""
    shutil.copytree(run, stopped)
    shutil.rmtree(stopped / "model")
    for checkpoint in numbered_checkpoints(stopped):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
    (stopped / "run.json").write_text(json.dumps({**read_record(stopped), "state": "training"}))
    return stopped


def losses(run: Path) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm of each step."""
    return [
        (line["step"], line["loss"], line["grad_norm"]) for line in read_lines(run / "metrics.jsonl") if "loss" in line
    ]


def assert_same_bits(found: Path, expected: Path) -> None:
    """Two runs logged the same things and losses, and end with the same weights."""
    assert losses(found) == losses(expected)
    logged = [
        [{"loss", "eval_loss", "train_runtime"} & line.keys() for line in read_lines(run / "metrics.jsonl")]
        for run in (found, expected)
    ]
    assert logged[0] == logged[1]
    assert weights(found).keys() == weights(expected).keys()
    assert all(torch.equal(tensor, weights(expected)[name]) for name, tensor in weights(found).items())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")
