"""The order of an epoch: a bijection for each (number of blocks, seed, epoch), the same for ever, and as good as random.

The seeds of all statistical tests are fixed, so none of them fails by chance; the bounds leave correct orders a chance of
about one in 100,000 for each, whatever the seeds.
"""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import epoch_order, order
from shards.order import MAX_BLOCKS, NUM_ROUNDS, round_keys

Int64s = npt.NDArray[np.int64]
FEW_IN_100_000 = 4.3  # standard deviations

large = st.integers(0, 62).flatmap(lambda bits: st.integers(2**bits // 2 + 1, 2**bits))  # as often short as long
seeds = st.integers(0, 2**64 - 1)


def is_bijection(num_blocks: int, seed: int, epoch: int) -> bool:
    found = epoch_order(num_blocks, seed, epoch, np.arange(num_blocks))
    return bool(found.min() >= 0 and (np.bincount(found, minlength=num_blocks) == 1).all())


@given(st.integers(1, 5000), seeds, st.integers(0, 10**6))
def test_every_block_exactly_once(num_blocks: int, seed: int, epoch: int) -> None:
    assert is_bijection(num_blocks, seed, epoch)


def test_every_block_exactly_once_for_all_small_numbers_of_blocks_and_around_powers_of_two() -> None:
    around = {2**bits + delta for bits in range(17) for delta in (-1, 0, 1)}
    for num_blocks in sorted({*range(1, 600), *around, 100_000} - {0}):
        assert is_bijection(num_blocks, seed=num_blocks % 7, epoch=num_blocks % 3), num_blocks


# The same network in whole numbers of Python, of any size, forwards and backwards.


def mixed(half: int, key: int) -> int:
    value = (half ^ key) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 32) * 0x94D049BB133111EB % 2**64
    return value >> 32


def network(value: int, num_bits: int, keys: Sequence[int], rounds: Sequence[int]) -> int:
    right_bits = num_bits - num_bits // 2
    left, right = divmod(value, 2**right_bits)
    for number in rounds:
        if number % 2 == 0:
            left ^= mixed(right, keys[number]) % 2 ** (num_bits // 2)
        else:
            right ^= mixed(left, keys[number]) % 2**right_bits
    return int(left * 2**right_bits + right)


def walked(value: int, num_blocks: int, seed: int, epoch: int, rounds: Sequence[int]) -> int:
    """Through the network until a block's number comes out. Backwards it passes the same values, in reverse."""
    keys, num_bits = round_keys(seed, epoch), (num_blocks - 1).bit_length()
    value = network(value, num_bits, keys, rounds)
    while value >= num_blocks:
        value = network(value, num_bits, keys, rounds)
    return value


@given(large, seeds, st.integers(0, 2**64), st.data())
def test_backwards_every_block_leads_to_its_position(
    num_blocks: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    """For numbers of blocks that can't be walked through: no two positions give one block, and no block is left out.

    Each round is its own inverse, so the inverse of the network is its rounds from the last to the first.
    """
    numbers = data.draw(st.lists(st.integers(0, num_blocks - 1), min_size=1, max_size=20))
    blocks = epoch_order(num_blocks, seed, epoch, numbers).tolist()
    assert blocks == [walked(number, num_blocks, seed, epoch, range(NUM_ROUNDS)) for number in numbers]
    assert [walked(block, num_blocks, seed, epoch, range(NUM_ROUNDS)[::-1]) for block in blocks] == numbers


def test_any_shape_and_any_number_of_positions() -> None:
    whole = epoch_order(100_000, 1, 2, np.arange(100_000))
    assert np.array_equal(epoch_order(100_000, 1, 2, np.arange(100_000).reshape(100, 10, 100)).reshape(-1), whole)
    assert epoch_order(100_000, 1, 2, 77_777).tolist() == whole[77_777]
    assert epoch_order(100_000, 1, 2, []).shape == (0,)
    assert np.array_equal(epoch_order(100_000, 1, 2, np.arange(100_000)[::-1]), whole[::-1])


# As good as random.


def chi_square_deviations(chi_square: float, degrees: float) -> float:
    """How many standard deviations a chi-square statistic is above what is expected (Wilson & Hilferty 1931)."""
    spread = 2 / (9 * degrees)
    cube_root: float = (chi_square / degrees) ** (1 / 3)
    return (cube_root - (1 - spread)) / math.sqrt(spread)


@pytest.mark.parametrize("num_blocks", [2, 3, 4])
def test_all_orders_of_few_blocks_are_about_equally_likely(num_blocks: int) -> None:
    num_orders = math.factorial(num_blocks)
    counts: Counter[tuple[int, ...]] = Counter()
    for seed, epoch in itertools.product(range(10 * num_orders), range(5)):
        counts[tuple(epoch_order(num_blocks, seed, epoch, range(num_blocks)).tolist())] += 1
    assert len(counts) == num_orders
    chi_square = sum((count - 50) ** 2 / 50 for count in counts.values())
    assert chi_square_deviations(chi_square, num_orders - 1) < FEW_IN_100_000


@pytest.mark.parametrize("num_blocks", [10, 50])
def test_every_block_is_about_equally_often_at_every_position(num_blocks: int) -> None:
    counts = np.zeros((num_blocks, num_blocks), dtype=np.int64)
    for seed in range(2000):
        counts[np.arange(num_blocks), epoch_order(num_blocks, seed, 0, np.arange(num_blocks))] += 1
    expected = 2000 / num_blocks
    # Rows and columns have fixed sums, in each order too (Anderson 1959, for ranks).
    chi_square = float(((counts - expected) ** 2 / expected).sum()) * (num_blocks - 1) / num_blocks
    assert abs(chi_square_deviations(chi_square, (num_blocks - 1) ** 2)) < FEW_IN_100_000


def correlation(left: Int64s, right: Int64s) -> float:
    return float(np.corrcoef(left, right)[0, 1]) * math.sqrt(len(left) - 1)


@pytest.mark.parametrize("lag", [1, 2, 64, 1000, 2**31])
def test_neighbours_are_scattered_in_a_set_of_ten_billion_blocks(lag: int) -> None:
    positions = np.arange(7 * 10**9, 7 * 10**9 + 100_000)
    left, right = (epoch_order(10**10, 2333, 0, (positions + shift) % 10**10) for shift in (0, lag))
    assert abs(correlation(left, right)) < FEW_IN_100_000
    counts = np.bincount(left * 100 // 10**10, minlength=100)
    assert chi_square_deviations(float(((counts - 1000) ** 2 / 1000).sum()), 99) < FEW_IN_100_000


PAIRS: dict[str, Callable[[int], tuple[tuple[int, int], tuple[int, int]]]] = {
    "the next seed": lambda n: ((n, 0), (n + 1, 0)),
    "the next epoch": lambda n: ((2333, n), (2333, n + 1)),
    "seed and epoch exchanged": lambda n: ((n, n + 1), (n + 1, n)),
    "seed and epoch with the same sum": lambda n: ((n, 1), (n + 1, 0)),
    "a seed with another high bit": lambda n: ((n, 0), (n + 2**63, 0)),
    "no shuffling": lambda n: ((n, 0), (-1, 0)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_two_orders_have_nothing_in_common(name: str) -> None:
    """Correlations as by chance; the positions where both have the same block are 0, 1, 2, … as by Poisson's law for 1."""
    num_blocks, num_pairs = 700, 400
    correlations, fixed_points = [], []
    for number in range(num_pairs):
        left, right = (
            np.arange(num_blocks) if seed < 0 else epoch_order(num_blocks, seed, epoch, np.arange(num_blocks))
            for seed, epoch in PAIRS[name](number)
        )
        correlations.append(correlation(left, right))
        fixed_points.append(int((left == right).sum()))
    assert abs(np.mean(correlations)) < FEW_IN_100_000 / math.sqrt(num_pairs)
    assert abs(math.log(np.var(correlations))) < FEW_IN_100_000 * math.sqrt(2 / num_pairs)
    shares = [math.exp(-1) / math.factorial(number) for number in range(4)]
    expected = np.array([*shares, 1 - sum(shares)]) * num_pairs
    counts = np.bincount(np.minimum(fixed_points, 4), minlength=5)
    assert chi_square_deviations(float(((counts - expected) ** 2 / expected).sum()), 4) < FEW_IN_100_000


# What it costs, and what never changes.


def test_memory_does_not_grow_with_the_number_of_blocks() -> None:
    def peak_bytes(num_blocks: int, num_positions: int) -> int:
        positions = np.arange(num_positions, dtype=np.int64) % num_blocks
        tracemalloc.start()
        try:
            epoch_order(num_blocks, 2333, 0, positions)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert max(peak_bytes(num_blocks, 1000) for num_blocks in (2**12, 10**6, 10**10, 2**61 + 1)) < 200_000
    # Of many positions, only the result is kept: 8 bytes each.
    few, many = (peak_bytes(10**10, num_positions) for num_positions in (100_000, 1_000_000))
    assert many - few < 900_000 * 8 * 1.1


@pytest.mark.parametrize("num_blocks", [2**16, 2**16 + 1, 2**40 + 1])
def test_a_position_goes_through_the_network_less_than_twice(num_blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work for a position doesn't grow with the number of blocks, nor does anything come before the first."""
    passed: list[int] = []
    right = order._feistel

    def counted(values: npt.NDArray[np.uint64], num_bits: int, keys: list[int]) -> npt.NDArray[np.uint64]:
        passed.append(len(values))
        return right(values, num_bits, keys)

    monkeypatch.setattr(order, "_feistel", counted)
    epoch_order(num_blocks, 2333, 0, np.arange(50_000))
    assert sum(passed) == pytest.approx(50_000 * 2 ** (num_blocks - 1).bit_length() / num_blocks, rel=0.02)


def test_the_order_is_frozen() -> None:
    """A run that is resumed years later must find the same order: these numbers never change."""
    assert epoch_order(10, 2333, 0, range(10)).tolist() == [7, 1, 0, 6, 3, 2, 9, 8, 5, 4]
    billion = epoch_order(10**9, 2333, 1, [0, 1, 2, 10**9 - 1])
    assert billion.tolist() == [700779790, 7961805, 956608021, 701620980]
    ten_billion = epoch_order(10**10, 2333, 0, [0, 2**32 - 1, 2**32, 2**32 + 1, 10**10 - 1])
    assert ten_billion.tolist() == [2080915028, 9151030806, 4279660894, 1602084247, 7503159623]


@pytest.mark.parametrize("positions", [[-1], [5], [0, 5]])
def test_positions_outside_the_epoch_are_refused(positions: list[int]) -> None:
    with pytest.raises(ValueError, match="positions must lie in 0 … 4"):
        epoch_order(5, 0, 0, positions)


@pytest.mark.parametrize(("num_blocks", "epoch"), [(0, 0), (-1, 0), (MAX_BLOCKS + 1, 0), (5, -1)])
def test_numbers_of_blocks_and_epochs_that_make_no_sense_are_refused(num_blocks: int, epoch: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        epoch_order(num_blocks, 0, epoch, [])
