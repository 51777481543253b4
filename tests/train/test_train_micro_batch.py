"""`per_device_train_batch_size: auto` takes the largest micro-batch that fits, and leaves the global batch as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train.run
from shards.common.errors import InputError
from tests.train.runs import stop_after, train_to_the_end
from train.micro_batch import largest_micro_batch
from train.run_directory import record_part


def attempt_with_room_for(most_blocks: int) -> Callable[[int], None]:
    def attempt(blocks: int) -> None:
        if blocks > most_blocks:
            raise torch.OutOfMemoryError("simulated")

    return attempt


@pytest.mark.parametrize(
    ("share_blocks", "most_blocks", "expected"),
    [(256, 1000, 256), (256, 100, 64), (96, 100, 32), (96, 9, 8), (5, 3, 1)],
)
def test_the_largest_power_of_two_that_fits_and_divides_the_share(
    share_blocks: int, most_blocks: int, expected: int
) -> None:
    assert largest_micro_batch(attempt_with_room_for(most_blocks), share_blocks) == expected


def test_a_model_that_does_not_fit_at_all_is_out_of_memory() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        largest_micro_batch(attempt_with_room_for(0), 8)


def test_a_run_keeps_the_micro_batch_that_was_found(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = write_config(), tmp_path / "run"
    options = ["--output_dir", str(run), "--max_steps", "4", "--save_steps", "2"]
    options += ["--per_device_train_batch_size", "auto", "--global_batch_blocks", "4"]
    with monkeypatch.context() as patch:
        patch.setattr(train.run, "find_micro_batch", lambda *_arguments: 2)
        stop_after(3, monkeypatch, config, *options)
    train_to_the_end(config, *options)
    arguments = record_part(run, "training_arguments")
    assert (arguments["per_device_train_batch_size"], arguments["gradient_accumulation_steps"]) == (2, 2)


def test_without_a_global_batch_there_is_no_step_to_keep(write_config: Callable[..., Path]) -> None:
    config = write_config(training={"per_device_train_batch_size": "auto"})
    with pytest.raises(InputError, match="per_device_train_batch_size: expected global_batch_blocks"):
        train_to_the_end(config)
