"""The order of an epoch: a bijection for each (number of blocks, seed, epoch), the same for ever, and as good as random;
and that of a run: epochs, windows, mixtures, and the slices of ranks.

The seeds of all statistical tests are fixed, so none of them fails by chance; the bounds leave correct orders a chance of
about one in 100,000 for each, whatever the seeds.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import tracemalloc
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shards
from shards.order import MAX_BLOCKS, WINDOW_BLOCKS, dealing_tree, epoch_order, set_seed, window_order

Int64s = npt.NDArray[np.int64]
FEW_IN_100_000 = 4.3  # standard deviations


def test_every_block_exactly_once_for_all_small_numbers_of_blocks_and_around_powers_of_two() -> None:
    around = {2**bits + delta for bits in range(17) for delta in (-1, 0, 1)}
    for num_blocks in sorted({*range(1, 300), *around, 100_000} - {0}):
        found = epoch_order(num_blocks, num_blocks % 7, num_blocks % 3, np.arange(num_blocks))
        assert np.array_equal(np.sort(found), np.arange(num_blocks)), num_blocks


@pytest.mark.parametrize("order", [epoch_order, window_order])
def test_it_is_a_function_of_the_position_alone_of_any_shape(order: Callable[..., Int64s]) -> None:
    whole = order(100_000, 1, 2, np.arange(100_000))
    places = np.random.default_rng(0).permutation(100_000)
    assert np.array_equal(order(100_000, 1, 2, places), whole[places])
    assert np.array_equal(order(100_000, 1, 2, places.reshape(100, 10, 100)).reshape(-1), whole[places])
    assert order(100_000, 1, 2, []).shape == (0,) and order(10**10, 3, 1, [10**10 - 1])[0] < 10**10


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
    num_blocks, num_pairs = 700, 200
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
    few, many = (peak_bytes(10**10, num_positions) for num_positions in (100_000, 500_000))
    assert many - few < 400_000 * 8 * 1.1


def test_the_order_is_frozen() -> None:
    """A run that is resumed years later must find the same order: these numbers never change."""
    assert epoch_order(10, 2333, 0, range(10)).tolist() == [7, 1, 0, 6, 3, 2, 9, 8, 5, 4]
    billion = epoch_order(10**9, 2333, 1, [0, 1, 2, 10**9 - 1])
    assert billion.tolist() == [700779790, 7961805, 956608021, 701620980]
    ten_billion = epoch_order(10**10, 2333, 0, [0, 2**32 - 1, 2**32, 2**32 + 1, 10**10 - 1])
    assert ten_billion.tolist() == [2080915028, 9151030806, 4279660894, 1602084247, 7503159623]
    largest = epoch_order(MAX_BLOCKS - 1, 2333, 0, [0, 1, MAX_BLOCKS // 2, MAX_BLOCKS - 2])
    assert largest.tolist() == [3754308705215893644, 4087680227749086632, 1347710023413901693, 1495549425953525927]


@pytest.mark.parametrize(
    ("num_blocks", "epoch", "positions"),
    [(5, 0, [-1]), (5, 0, [5]), (5, 0, [0, 5]), (0, 0, []), (-1, 0, []), (MAX_BLOCKS + 1, 0, []), (5, -1, [])],
)
def test_what_makes_no_sense_is_refused(num_blocks: int, epoch: int, positions: list[int]) -> None:
    for order in (epoch_order, window_order):
        with pytest.raises(ValueError, match=r"positions must lie in 0 … 4" if positions else "expected"):
            order(num_blocks, 0, epoch, positions)


# ---- the order of a run ----


def test_window_order_stays_within_windows_that_move_from_epoch_to_epoch() -> None:
    num_blocks = 10 * WINDOW_BLOCKS
    firsts = []
    for epoch in range(4):
        order = window_order(num_blocks, 7, epoch, np.arange(num_blocks)).reshape(10, WINDOW_BLOCKS)
        spans = (order - order.min(axis=1, keepdims=True)).max(axis=1)
        assert (spans == WINDOW_BLOCKS - 1).sum() >= 9  # one may go around the end
        assert all(abs(np.corrcoef(window, np.arange(WINDOW_BLOCKS))[0, 1]) < 0.06 for window in order)
        firsts.append(tuple(order.min(axis=1)))
        assert list(firsts[-1]) != sorted(firsts[-1])
    assert len({first[0] % WINDOW_BLOCKS for first in firsts}) == 4


def test_the_last_and_shorter_window_is_shuffled_too() -> None:
    order = window_order(WINDOW_BLOCKS + 1000, 7, 0, np.arange(WINDOW_BLOCKS, WINDOW_BLOCKS + 1000))
    assert (np.diff(order) == 1).sum() < 10


@pytest.mark.parametrize("shuffle", shards.SHUFFLES)
@pytest.mark.parametrize("num_blocks", [1, 9, WINDOW_BLOCKS - 1, WINDOW_BLOCKS, WINDOW_BLOCKS + 1, 5 * WINDOW_BLOCKS])
def test_each_epoch_has_each_block_once_for_every_shuffle(shuffle: shards.Shuffle, num_blocks: int) -> None:
    order = shards.RunOrder((num_blocks,), 5, shuffle)
    epochs = order.blocks(0, 3 * num_blocks).reshape(3, num_blocks)
    assert np.array_equal(
        order.blocks(num_blocks // 2, 2 * num_blocks), epochs.reshape(-1)[num_blocks // 2 : 2 * num_blocks]
    )
    if shuffle == "offset":
        epochs = epochs - num_blocks * np.arange(3)[:, None]
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.arange(num_blocks))
    in_order = [np.array_equal(epoch, np.arange(num_blocks)) for epoch in epochs]
    assert all(in_order) if shuffle == "none" or num_blocks == 1 else not any(in_order)


def test_the_sets_of_a_mixture_are_not_shuffled_alike() -> None:
    blocks = shards.RunOrder((50, 50), 5, weights=(1, 1)).blocks(0, 100)
    assert blocks[blocks < 50].tolist() != (blocks[blocks >= 50] - 50).tolist()


def test_with_offset_each_set_counts_its_own_epochs() -> None:
    order = shards.RunOrder((3, 2), 5, "offset", (1, 1), (shards.Stage(8, (0, 1)),))
    blocks, plain = order.blocks(0, 14), dataclasses.replace(order, shuffle="global").blocks(0, 14)
    epochs, numbers = np.divmod(blocks, 5)
    assert np.array_equal(numbers, plain)
    for of_set, size in ((numbers < 3, 3), (numbers >= 3, 2)):
        assert epochs[of_set].tolist() == [place // size for place in range(of_set.sum())]


# Of one size, of very different ones, and a few heavy ones among many light ones.
weights = st.lists(st.integers(1, 40) | st.sampled_from([1, 10**6, 10**12]), min_size=1, max_size=12).map(tuple)


@given(weights=weights, start=st.integers(0, 10**15))
def test_no_set_is_ever_farther_from_its_share_than_the_tree_says(weights: tuple[int, ...], start: int) -> None:
    """At every position, however far: at most one block for up to four sets, below two for any number."""
    tree = dealing_tree(weights)
    limit, total = tree.max_deviation(), sum(weights)
    assert limit <= (1 if len(weights) <= 4 else 1.5)
    dealt = {number: (first, slots) for number, first, slots in tree.deal(start, np.arange(500))}
    assert np.array_equal(np.sort(np.concatenate([slots for _, slots in dealt.values()])), np.arange(500))
    for number, (first, slots) in dealt.items():
        counts = first + np.searchsorted(slots, np.arange(501))
        for position in range(0, 501, 25):
            exact = Fraction((start + position) * weights[number], total)
            assert abs(int(counts[position]) - exact) <= Fraction(limit) + Fraction(1, 10**9)


@given(weights=weights, cuts=st.lists(st.integers(0, 300), min_size=2, max_size=2).map(sorted), data=st.data())
def test_a_mixture_follows_from_the_position(weights: tuple[int, ...], cuts: list[int], data: st.DataObject) -> None:
    sizes = tuple(data.draw(st.integers(5, 900)) for _ in weights)
    later = (
        shards.Stage(90, weights[::-1]),
        shards.Stage(90, weights),
        shards.Stage(200, (0,) * (len(weights) - 1) + (1,)),
    )
    order = shards.RunOrder(sizes, 3, weights=weights, later=later if data.draw(st.booleans()) else ())
    whole = order.blocks(0, 300)
    assert np.array_equal(order.blocks(*cuts), whole[slice(*cuts)])
    sets = np.searchsorted(np.cumsum(sizes), whole[: cuts[0]], side="right")
    assert order.counts(cuts[0]) == np.bincount(sets, minlength=len(sizes)).tolist()


def test_each_set_of_a_mixture_comes_whole_before_it_repeats() -> None:
    sizes = (150, 70, 9)
    order = shards.RunOrder(sizes, 5, weights=(5, 3, 2))
    blocks = order.blocks(0, 4000)
    first = 0
    for number, size in enumerate(sizes):
        own = blocks[(blocks >= first) & (blocks < first + size)] - first
        for epoch in range(len(own) // size):
            expected = epoch_order(size, set_seed(5, number), epoch, np.arange(size))
            assert np.array_equal(own[epoch * size : (epoch + 1) * size], expected)
        first += size


def dealt(step: int, world_size: int, micro_batch: int, accumulation: int) -> list[list[list[int]]]:
    """The positions of the micro-batches of each rank in a step."""
    sizes = {"world_size": world_size, "micro_batch_blocks": micro_batch, "accumulation_steps": accumulation}
    return [shards.rank_positions(step, rank=rank, **sizes).tolist() for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_any_number_of_ranks_trains_on_the_same_global_batches(world_size: int, accumulation: int) -> None:
    for step in range(40):
        positions = np.array(dealt(step, world_size, 48 // world_size // accumulation, accumulation))
        assert positions.shape == (world_size, accumulation, 48 // world_size // accumulation)
        assert np.sort(positions.reshape(-1)).tolist() == list(range(step * 48, (step + 1) * 48))


def test_rank_positions_are_as_accelerate_deals_batches_out() -> None:
    """Micro-batch by micro-batch to one rank after another, as its `BatchSamplerShard` does."""
    micro_batches = [list(range(4 * number, 4 * number + 4)) for number in range(3 * 2 * 5)]
    for rank in range(3):
        assert [batch for step in range(5) for batch in dealt(step, 3, 4, 2)[rank]] == micro_batches[rank::3]
