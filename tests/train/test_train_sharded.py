"""A model whose parameters are spread over processes has the losses, gradients and steps of a whole one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from train.rehearsal import decay_settings
from train.setup import micro_batches

from shards.common.errors import InputError
from train.__main__ import main
from train.run_directory import read_lines

PROGRAM = Path(__file__).with_name("sharded_program.py")


def test_sharded_model_is_the_whole_one() -> None:
    root = PROGRAM.parents[2]
    finished = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(PROGRAM)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.split() == ["equal"]


def test_sharding_on_a_cpu_is_refused(write_config: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="fsdp: shards a model over GPUs"):
        main(["--config", str(write_config()), "--fsdp", "full_shard"])


def test_decay_is_the_last_fifth_of_the_steps_or_the_share_that_is_given() -> None:
    assert decay_settings({}, max_steps=11, warmup_steps=0) == {"num_decay_steps": 3, "decay_type": "linear"}
    assert decay_settings({"num_decay_steps": 0.5}, max_steps=10, warmup_steps=5)["num_decay_steps"] == 5
    assert decay_settings({"num_decay_steps": 4, "decay_type": "cosine"}, max_steps=10, warmup_steps=0) == {
        "num_decay_steps": 4,
        "decay_type": "cosine",
    }


def test_warmup_stable_decay_falls_at_the_end(write_config: Callable[..., Path], tmp_path: Path) -> None:
    settings = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 0.4}}
    main(["--config", str(write_config(training={**settings, "max_steps": 10, "warmup_steps": 2}))])
    rates = [line["learning_rate"] for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert rates == pytest.approx([0, 0.005, 0.01, 0.01, 0.01, 0.01, 0.01, 0.0075, 0.005, 0.0025])


def test_accumulation_follows_from_the_global_batch() -> None:
    assert [micro_batches(256, 32, processes) for processes in (1, 2, 8)] == [(32, 8), (32, 4), (32, 1)]
    assert [micro_batches(256, 128, processes) for processes in (1, 2, 8, 256)] == [(128, 2), (128, 1), (32, 1), (1, 1)]
    with pytest.raises(InputError, match="256 blocks can't be shared by 3 processes in micro-batches of 32"):
        micro_batches(256, 32, 3)
    with pytest.raises(InputError, match="256 blocks can't be shared in micro-batches of 48"):
        micro_batches(256, 48, 1)
    with pytest.raises(InputError, match="4 blocks can't be shared by 8 processes in micro-batches of 1"):
        micro_batches(4, 128, 8)
