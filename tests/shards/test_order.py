"""The order of an epoch: a bijection for each (number of blocks, seed, epoch), the same for ever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import epoch_order


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1), st.integers(0, 10**6))
def test_every_block_exactly_once(num_blocks: int, seed: int, epoch: int) -> None:
    order = epoch_order(num_blocks, seed, epoch, np.arange(num_blocks))
    assert np.array_equal(np.sort(order), np.arange(num_blocks))


@given(st.integers(1, 10**10), st.integers(0, 2**32), st.data())
def test_a_position_alone_gives_what_the_whole_gives(num_blocks: int, seed: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, num_blocks - 1), min_size=1, max_size=50))
    together = epoch_order(num_blocks, seed, 3, positions)
    alone = [int(epoch_order(num_blocks, seed, 3, [position])[0]) for position in positions]
    assert together.tolist() == alone
    assert len(set(together.tolist())) == len(set(positions))
    assert together.min() >= 0 and together.max() < num_blocks


def test_seeds_and_epochs_give_different_orders() -> None:
    orders = {tuple(epoch_order(100, seed, epoch, range(100)).tolist()) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


def test_all_orders_of_few_blocks_are_about_equally_likely() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(200):
        for epoch in range(60):
            order = tuple(epoch_order(4, seed, epoch, range(4)).tolist())
            counts[order] = counts.get(order, 0) + 1
    expected = 200 * 60 / 24
    assert len(counts) == 24
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 60  # 23 degrees of freedom: 60 has a probability of 4e-5


def test_neighbours_are_scattered() -> None:
    order = epoch_order(100_000, 2333, 0, np.arange(100_000)).astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02


def test_the_order_is_frozen() -> None:
    """A run that is resumed years later must find the same order: these numbers never change."""
    assert epoch_order(10, 2333, 0, range(10)).tolist() == FROZEN_TEN
    assert epoch_order(10**9, 2333, 1, [0, 1, 2, 10**9 - 1]).tolist() == FROZEN_BILLION


FROZEN_TEN = [7, 1, 0, 6, 3, 2, 9, 8, 5, 4]
FROZEN_BILLION = [700779790, 7961805, 956608021, 701620980]


@pytest.mark.parametrize("positions", [[-1], [5], [0, 5]])
def test_positions_outside_the_epoch_are_refused(positions: list[int]) -> None:
    with pytest.raises(ValueError, match="positions must lie in 0 … 4"):
        epoch_order(5, 0, 0, positions)
