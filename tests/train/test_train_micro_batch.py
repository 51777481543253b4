"""`per_device_train_batch_size: auto` takes the largest micro-batch that fits, and leaves the global batch as it is."""

from __future__ import annotations

import pytest
import torch

from train.micro_batch import largest_micro_batch


@pytest.mark.parametrize(
    ("share_blocks", "most_that_fit", "expected"),
    [(256, 1000, 256), (256, 100, 64), (96, 100, 32), (96, 9, 8), (5, 3, 1)],
)
def test_the_largest_power_of_two_that_fits_and_divides_the_share(
    share_blocks: int, most_that_fit: int, expected: int
) -> None:
    def attempt(blocks: int) -> None:
        if blocks > most_that_fit:
            raise torch.OutOfMemoryError("simulated")

    assert largest_micro_batch(attempt, share_blocks) == expected


def test_a_model_that_does_not_fit_at_all_is_out_of_memory() -> None:
    def attempt(blocks: int) -> None:
        raise torch.OutOfMemoryError("simulated")

    with pytest.raises(torch.OutOfMemoryError):
        largest_micro_batch(attempt, 8)
