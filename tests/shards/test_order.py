"""The order of an epoch: a bijection for each (number of blocks, seed, epoch), the same for ever, and as good as random.

The seeds of all statistical tests are fixed, so none of them fails by chance; the bounds leave correct orders a chance of
about one in 100,000 for each, whatever the seeds.
"""

from __future__ import annotations

import functools
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

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
FEW_IN_100_000 = 4.3  # standard deviations

large = st.integers(0, 62).flatmap(lambda bits: st.integers(2**bits // 2 + 1, 2**bits))  # as often short as long
seeds = st.integers(0, 2**64 - 1)


@given(st.integers(1, 5000), seeds, st.integers(0, 10**6))
def test_every_block_exactly_once(num_blocks: int, seed: int, epoch: int) -> None:
    assert is_bijection(num_blocks, seed, epoch)


def test_every_block_exactly_once_for_all_small_numbers_of_blocks_and_around_powers_of_two() -> None:
    around = {2**bits + delta for bits in range(17) for delta in (-1, 0, 1)}
    others = np.random.default_rng(0).integers(1, 100_000, 60).tolist()
    for num_blocks in sorted({*range(1, 600), *around, *others, 100_000} - {0}):
        assert is_bijection(num_blocks, seed=num_blocks % 7, epoch=num_blocks % 3), num_blocks


def is_bijection(num_blocks: int, seed: int, epoch: int) -> bool:
    found = epoch_order(num_blocks, seed, epoch, np.arange(num_blocks))
    return bool(found.min() >= 0 and (np.bincount(found, minlength=num_blocks) == 1).all())


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


def block_at(position: int, num_blocks: int, seed: int, epoch: int) -> int:
    return walked(position, num_blocks, seed, epoch, range(NUM_ROUNDS))


def position_of(block: int, num_blocks: int, seed: int, epoch: int) -> int:
    """The inverse of `epoch_order`. Each round is its own inverse, so they are done from the last to the first."""
    return walked(block, num_blocks, seed, epoch, range(NUM_ROUNDS)[::-1])


@given(large, seeds, st.integers(0, 2**64), st.data())
def test_backwards_every_block_leads_to_its_position(
    num_blocks: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    """For numbers of blocks that can't be walked through: no two positions give one block, and no block is left out."""
    numbers = data.draw(st.lists(st.integers(0, num_blocks - 1), min_size=1, max_size=20))
    blocks = epoch_order(num_blocks, seed, epoch, numbers).tolist()
    assert [position_of(block, num_blocks, seed, epoch) for block in blocks] == numbers
    positions = [position_of(number, num_blocks, seed, epoch) for number in numbers]
    assert epoch_order(num_blocks, seed, epoch, positions).tolist() == numbers


@pytest.mark.parametrize("num_blocks", [10**10, 2**32, 2**32 + 1, 2**40, 2**40 - 1, 10**18, MAX_BLOCKS])
def test_positions_beyond_32_bits_are_right(num_blocks: int) -> None:
    positions = np.random.default_rng(num_blocks).integers(0, num_blocks, 300).tolist()
    positions += [0, num_blocks - 1, *(p for p in (2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**53 + 1) if p < num_blocks)]
    found = epoch_order(num_blocks, 2333, 1, positions)
    assert found.tolist() == [block_at(position, num_blocks, 2333, 1) for position in positions]
    assert len(set(found.tolist())) == len(set(positions))
    # A quarter of each bit of the numbers at least is set: none is lost, at the top in particular.
    set_bits = [(found >> bit & 1).mean() for bit in range((num_blocks // 2).bit_length() - 1)]
    assert min(set_bits) > 0.25 and found.max() > num_blocks * 0.9


@given(st.integers(1, 10**10), st.integers(0, 2**32), st.data())
def test_a_position_alone_gives_what_the_whole_gives(num_blocks: int, seed: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, num_blocks - 1), min_size=1, max_size=50))
    together = epoch_order(num_blocks, seed, 3, positions)
    alone = [int(epoch_order(num_blocks, seed, 3, [position])[0]) for position in positions]
    assert together.tolist() == alone
    assert len(set(together.tolist())) == len(set(positions))
    assert together.min() >= 0 and together.max() < num_blocks


def test_any_shape_and_any_number_of_positions() -> None:
    whole = epoch_order(100_000, 1, 2, np.arange(100_000))
    assert np.array_equal(epoch_order(100_000, 1, 2, np.arange(100_000).reshape(100, 10, 100)).reshape(-1), whole)
    assert epoch_order(100_000, 1, 2, 77_777).tolist() == whole[77_777]
    assert epoch_order(100_000, 1, 2, []).shape == (0,)
    backwards = np.arange(100_000)[::-1]
    assert np.array_equal(epoch_order(100_000, 1, 2, backwards), whole[::-1])


# Few blocks: every order, and every place of every block, about equally often.


def chi_square_deviations(chi_square: float, degrees: float) -> float:
    """How many standard deviations a chi-square statistic is above what is expected (Wilson & Hilferty 1931)."""
    spread = 2 / (9 * degrees)
    cube_root: float = (chi_square / degrees) ** (1 / 3)
    return (cube_root - (1 - spread)) / math.sqrt(spread)


def counts_of_orders(num_blocks: int) -> list[int]:
    """How often each order occurs among 50 times as many as there are."""
    num_orders = math.factorial(num_blocks)
    counts: Counter[tuple[int, ...]] = Counter()
    for seed, epoch in itertools.product(range(10 * num_orders), range(5)):
        counts[tuple(epoch_order(num_blocks, seed, epoch, range(num_blocks)).tolist())] += 1
    assert len(counts) == num_orders
    return list(counts.values())


@pytest.mark.parametrize("num_blocks", [2, 3, 4])
def test_all_orders_of_few_blocks_are_about_equally_likely(num_blocks: int) -> None:
    counts = counts_of_orders(num_blocks)
    chi_square = sum((count - 50) ** 2 / 50 for count in counts)
    assert chi_square_deviations(chi_square, len(counts) - 1) < FEW_IN_100_000


def test_all_orders_of_five_blocks_occur_and_none_much_more_often_than_others() -> None:
    """From 5 to some 50 blocks, six rounds make some orders likelier than others, however good the mixing function is:
    of 5 blocks, between 0.4 and 2.7 times as often as on average. From about 100 blocks on no statistic shows it."""
    counts = counts_of_orders(5)
    assert min(counts) > 0.2 * 50 and max(counts) < 3.3 * 50


def test_every_block_is_about_equally_often_at_every_position() -> None:
    num_orders, deviations = 200, []
    for num_blocks in range(2, 51):
        counts = np.zeros((num_blocks, num_blocks), dtype=np.int64)
        for seed in range(num_orders):
            counts[np.arange(num_blocks), epoch_order(num_blocks, seed, 0, np.arange(num_blocks))] += 1
        expected = num_orders / num_blocks
        # Rows and columns have fixed sums, in each order too (Anderson 1959, for ranks).
        chi_square = float(((counts - expected) ** 2 / expected).sum()) * (num_blocks - 1) / num_blocks
        deviations.append(chi_square_deviations(chi_square, (num_blocks - 1) ** 2))
    assert max(deviations) < FEW_IN_100_000
    assert abs(sum(deviations)) < FEW_IN_100_000 * math.sqrt(len(deviations))


# Many blocks: statistics of an order, each about normal with mean 0 and variance 1 for a random one.


def sixteenths(found: Ints) -> float:
    """Blocks from each sixteenth of the set are spread evenly over the sixteenths of the epoch."""
    num_blocks = len(found)
    table = np.zeros((16, 16), dtype=np.int64)
    np.add.at(table, (np.arange(num_blocks) * 16 // num_blocks, found * 16 // num_blocks), 1)
    sides = table.sum(axis=1), table.sum(axis=0)
    expected = np.outer(*sides) / num_blocks
    return chi_square_deviations(float(((table - expected) ** 2 / expected).sum()) * (1 - 1 / num_blocks), 15**2)


def gaps(found: Ints) -> float:
    """All distances from a block to the next are about equally frequent."""
    num_blocks = len(found)
    sizes = (np.diff(found) % num_blocks - 1) * 64 // (num_blocks - 1)
    room = np.bincount(np.arange(num_blocks - 1) * 64 // (num_blocks - 1), minlength=64) / (num_blocks - 1)
    expected = room * (num_blocks - 1)
    chi_square = float(((np.bincount(sizes, minlength=64) - expected) ** 2 / expected).sum())
    return chi_square_deviations(chi_square, 63)


def near_gaps(found: Ints) -> float:
    """Neighbours in the set are as seldom neighbours in the epoch as by chance: Poisson."""
    close = int((np.abs(np.diff(found)) <= len(found) // 100).sum())
    expected = 2 * (len(found) // 100)
    return (close - expected) / math.sqrt(expected)


def serial_correlation(found: Ints, lag: int) -> float:
    values = found - (len(found) - 1) / 2
    products = float((values * np.roll(values, lag)).mean() / (values**2).mean())
    return (products + 1 / (len(found) - 1)) * math.sqrt(len(found))


def trend(found: Ints) -> float:
    return correlation(found, np.arange(len(found)))


def correlation(left: Ints, right: Ints) -> float:
    return float(np.corrcoef(left, right)[0, 1]) * math.sqrt(len(left) - 1)


def bits(found: Ints) -> float:
    """Each of the lowest six bits of the blocks' numbers changes from block to block as often as by chance."""
    digits = (found[:, None] >> np.arange(6)) & 1
    shares = digits.mean(axis=0)
    expected = 2 * len(found) * float((shares * (1 - shares)).sum())
    return (int((digits[1:] != digits[:-1]).sum()) - expected) / math.sqrt(6 * len(found) / 4)


STATISTICS: dict[str, Callable[[Ints], float]] = {
    "sixteenths": sixteenths,
    "gaps": gaps,
    "near gaps": near_gaps,
    "neighbours": functools.partial(serial_correlation, lag=1),
    "next but one": functools.partial(serial_correlation, lag=2),
    "64 apart": functools.partial(serial_correlation, lag=64),
    "trend": trend,
    "bits": bits,
}
NUM_ORDERS = 150


@functools.cache
def statistics_of(num_blocks: int, *, ours: bool) -> dict[str, Floats]:
    """Each statistic of 150 orders: ours, seed after seed and epoch after epoch, or NumPy's permutations."""
    rng = np.random.default_rng(num_blocks)
    orders = (
        epoch_order(num_blocks, number // 3, number % 3, np.arange(num_blocks)) if ours else rng.permutation(num_blocks)
        for number in range(NUM_ORDERS)
    )
    rows = [[statistic(found) for statistic in STATISTICS.values()] for found in orders]
    return dict(zip(STATISTICS, np.array(rows).T, strict=True))


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("num_blocks", [1000, 4096, 4097, 16_000])
def test_orders_are_as_random_as_numpys_permutations(num_blocks: int, name: str) -> None:
    ours, numpys = (statistics_of(num_blocks, ours=of)[name] for of in (True, False))
    # Both are about normal, with the same mean …
    assert abs(ours.mean() - numpys.mean()) < FEW_IN_100_000 * math.sqrt(2 / NUM_ORDERS)
    assert abs(ours.mean()) < FEW_IN_100_000 / math.sqrt(NUM_ORDERS) + 0.1
    # … and the same variance (whose logarithm has a variance of 2/n) …
    assert abs(math.log(ours.var() / numpys.var())) < FEW_IN_100_000 * math.sqrt(4 / NUM_ORDERS)
    # … and the same distribution (Kolmogorov & Smirnov): one in 100,000 pairs of samples is further apart.
    assert largest_distance(ours, numpys) < math.sqrt(-math.log(1e-5 / 2) / NUM_ORDERS)


def largest_distance(left: Floats, right: Floats) -> float:
    """The largest difference between two empirical distribution functions."""
    every = np.concatenate([left, right])
    shares = [np.searchsorted(np.sort(sample), every, side="right") / len(sample) for sample in (left, right)]
    return float(np.abs(shares[0] - shares[1]).max())


@pytest.mark.parametrize("lag", [1, 2, 1000, 2**31])
def test_neighbours_are_scattered_in_a_set_of_ten_billion_blocks(lag: int) -> None:
    positions = np.arange(7 * 10**9, 7 * 10**9 + 100_000)
    left, right = (epoch_order(10**10, 2333, 0, (positions + shift) % 10**10) for shift in (0, lag))
    assert abs(correlation(left, right)) < FEW_IN_100_000
    counts = np.bincount(left * 100 // 10**10, minlength=100)
    assert chi_square_deviations(float(((counts - 1000) ** 2 / 1000).sum()), 99) < FEW_IN_100_000


# Other seeds, other epochs: other orders, with nothing in common.


def test_seeds_and_epochs_give_different_orders() -> None:
    orders = {tuple(epoch_order(100, seed, epoch, range(100)).tolist()) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


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
    """Correlations as by chance; the places where both have the same block are 0, 1, 2, … as by Poisson's law for 1."""
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


# What it costs.


def test_memory_does_not_grow_with_the_number_of_blocks() -> None:
    peaks = [peak_bytes(num_blocks, 1000) for num_blocks in (2**12, 10**6, 10**10, 2**61 + 1)]
    assert max(peaks) < 200_000
    # Of many positions, only the result is kept: 8 bytes each.
    few, many = (peak_bytes(10**10, num_positions) for num_positions in (100_000, 1_000_000))
    assert many - few < 900_000 * 8 * 1.1


def peak_bytes(num_blocks: int, num_positions: int) -> int:
    positions = np.arange(num_positions, dtype=np.int64) % num_blocks
    tracemalloc.start()
    try:
        epoch_order(num_blocks, 2333, 0, positions)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("num_blocks", [2**16, 2**16 + 1, 10**10, 2**40 + 1])
def test_a_position_goes_through_the_network_less_than_twice(num_blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work for a position does not grow with the number of blocks, nor does anything come before the first."""
    passed = 0
    right = order._feistel

    def counted(values: npt.NDArray[np.uint64], num_bits: int, keys: list[int]) -> npt.NDArray[np.uint64]:
        nonlocal passed
        passed += len(values)
        return right(values, num_bits, keys)

    monkeypatch.setattr(order, "_feistel", counted)
    epoch_order(num_blocks, 2333, 0, np.arange(50_000))
    expected = 50_000 * 2 ** (num_blocks - 1).bit_length() / num_blocks
    assert passed == pytest.approx(expected, rel=0.02)
    assert passed < 50_000 * 2.04


def test_the_order_is_frozen() -> None:
    """A run that is resumed years later must find the same order: these numbers never change."""
    assert epoch_order(10, 2333, 0, range(10)).tolist() == FROZEN_TEN
    assert epoch_order(10**9, 2333, 1, [0, 1, 2, 10**9 - 1]).tolist() == FROZEN_BILLION
    assert epoch_order(10**10, 2333, 0, [0, 2**32 - 1, 2**32, 2**32 + 1, 10**10 - 1]).tolist() == FROZEN_TEN_BILLION


FROZEN_TEN = [7, 1, 0, 6, 3, 2, 9, 8, 5, 4]
FROZEN_BILLION = [700779790, 7961805, 956608021, 701620980]
FROZEN_TEN_BILLION = [2080915028, 9151030806, 4279660894, 1602084247, 7503159623]


@pytest.mark.parametrize("positions", [[-1], [5], [0, 5]])
def test_positions_outside_the_epoch_are_refused(positions: list[int]) -> None:
    with pytest.raises(ValueError, match="positions must lie in 0 … 4"):
        epoch_order(5, 0, 0, positions)


@pytest.mark.parametrize(("num_blocks", "epoch"), [(0, 0), (-1, 0), (MAX_BLOCKS + 1, 0), (5, -1)])
def test_numbers_of_blocks_and_epochs_that_make_no_sense_are_refused(num_blocks: int, epoch: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        epoch_order(num_blocks, 0, epoch, [])
