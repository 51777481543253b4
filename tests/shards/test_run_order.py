"""The order of a run: epochs, windows, mixtures, and the slices of ranks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shards
from shards.mixture import _per_mille
from shards.order import WINDOW_BLOCKS, epoch_order, mixture_pattern, set_seed, window_order
from tests.shards.foreign_files import byte_fallback_tokenizer
from tests.shards.sets import TEXTS, text_units, write_set

SIZES = [1, 2, 100, WINDOW_BLOCKS - 1, WINDOW_BLOCKS, WINDOW_BLOCKS + 1, 5 * WINDOW_BLOCKS, 50_000]


@pytest.mark.parametrize("num_blocks", SIZES)
def test_window_order_has_each_block_once(num_blocks: int) -> None:
    for epoch in range(3):
        order = window_order(num_blocks, 7, epoch, np.arange(num_blocks))
        assert np.array_equal(np.sort(order), np.arange(num_blocks))


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


def test_window_order_is_a_function_of_the_position_alone() -> None:
    whole = window_order(10_000, 3, 1, np.arange(10_000))
    places = np.random.default_rng(0).permutation(10_000)
    assert np.array_equal(window_order(10_000, 3, 1, places), whole[places])
    assert window_order(10_000, 3, 1, np.array([[5], [6]])).shape == (2, 1)
    assert window_order(10**10, 3, 1, [10**10 - 1])[0] < 10**10
    for num_blocks, epoch, position, expected in (
        (10, 1, 10, "positions must lie in 0 … 9"),
        (0, 1, 0, "num_blocks: expected 1 to"),
        (10, -1, 0, "epoch: expected at least 0"),
    ):
        with pytest.raises(ValueError, match=expected):
            window_order(num_blocks, 3, epoch, [position])


@pytest.mark.parametrize("shuffle", shards.SHUFFLES)
@pytest.mark.parametrize("num_blocks", [1, 9, 5000])
def test_each_epoch_has_each_block_once_for_every_shuffle(shuffle: shards.Shuffle, num_blocks: int) -> None:
    order = shards.RunOrder((num_blocks,), 5, shuffle)
    epochs = order.blocks(0, 3 * num_blocks).reshape(3, num_blocks)
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.arange(num_blocks))
    assert np.array_equal(
        order.blocks(num_blocks // 2, 2 * num_blocks), epochs.reshape(-1)[num_blocks // 2 : 2 * num_blocks]
    )
    in_order = [np.array_equal(epoch, np.arange(num_blocks)) for epoch in epochs]
    assert all(in_order) if shuffle == "none" or num_blocks == 1 else not any(in_order)


shares = st.lists(st.integers(1, 40), min_size=1, max_size=5).map(_per_mille)


@settings(deadline=None)  # a set of one block has as many epochs as positions
@given(per_mille=shares, start=st.integers(0, 5000), data=st.data())
def test_any_1000_positions_have_exactly_the_shares(
    per_mille: tuple[int, ...], start: int, data: st.DataObject
) -> None:
    sizes = tuple(data.draw(st.integers(1, 900)) for _ in per_mille)
    order = shards.RunOrder(sizes, 3, per_mille=per_mille)
    sets = np.searchsorted(np.cumsum(sizes), order.blocks(start, start + 1000), side="right")
    assert np.bincount(sets, minlength=len(sizes)).tolist() == list(per_mille)


@given(per_mille=shares)
def test_fewer_positions_have_nearly_the_shares(per_mille: tuple[int, ...]) -> None:
    sets, ranks = mixture_pattern(per_mille)
    for number, share in enumerate(per_mille):
        so_far = np.cumsum(sets == number)
        assert (np.abs(so_far - np.arange(1, 1001) * share / 1000) < len(per_mille) + 1).all()
        assert ranks[sets == number].tolist() == list(range(share))


def test_each_set_of_a_mixture_comes_whole_before_it_repeats() -> None:
    sizes = (150, 70, 9)
    order = shards.RunOrder(sizes, 5, per_mille=(500, 300, 200))
    blocks = order.blocks(0, 4000)
    first = 0
    for number, size in enumerate(sizes):
        own = blocks[(blocks >= first) & (blocks < first + size)] - first
        for epoch in range(len(own) // size):
            expected = epoch_order(size, set_seed(5, number), epoch, np.arange(size))
            assert np.array_equal(own[epoch * size : (epoch + 1) * size], expected)
        first += size
    parts = [order.blocks(start, start + 13) for start in range(0, 1300, 13)]
    assert np.array_equal(np.concatenate(parts), blocks[:1300])


def test_any_number_of_ranks_trains_on_the_same_global_batches() -> None:
    order = shards.RunOrder((1000,), 1)
    global_batch = 48
    batches = []
    for world_size in (1, 2, 3, 8):
        for accumulation in (1, 2):
            micro_batch = global_batch // world_size // accumulation
            steps = []
            for step in range(40):
                dealt = [
                    shards.rank_positions(
                        step,
                        rank=rank,
                        world_size=world_size,
                        micro_batch_blocks=micro_batch,
                        accumulation_steps=accumulation,
                    )
                    for rank in range(world_size)
                ]
                assert all(positions.shape == (accumulation, micro_batch) for positions in dealt)
                positions = np.sort(np.concatenate([part.reshape(-1) for part in dealt]))
                assert positions.tolist() == list(range(step * global_batch, (step + 1) * global_batch))
                steps.append(frozenset(order.blocks(0, 2000)[positions].tolist()))
            batches.append(steps)
    assert all(steps == batches[0] for steps in batches)


def test_rank_positions_are_as_accelerate_deals_batches_out() -> None:
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, SequentialSampler

    micro_batch, world_size, accumulation = 4, 3, 2
    sampler = SequentialSampler(range(micro_batch * world_size * accumulation * 5))
    for rank in range(world_size):
        dealt = BatchSamplerShard(BatchSampler(sampler, micro_batch, True), world_size, rank)
        expected = [
            batch.tolist()
            for step in range(5)
            for batch in shards.rank_positions(
                step,
                rank=rank,
                world_size=world_size,
                micro_batch_blocks=micro_batch,
                accumulation_steps=accumulation,
            )
        ]
        assert list(dealt) == expected


# ---- mixtures of real sets ----


@pytest.fixture(scope="module")
def other_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("other") / "set", text_units(TEXTS[120:135]), block_tokens=64)


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_mixture_is_used_like_a_set(built_set: Path, other_set: Path, name: str) -> None:
    mixture = shards.open_data(f"{built_set}:0.75, {other_set}:0.25")
    assert isinstance(mixture, shards.Mixture) and mixture.per_mille == (750, 250)
    sets = [shards.open(path) for path in (built_set, other_set)]
    split, whole = mixture[name], np.concatenate([part[name][:] for part in sets])
    assert len(split) == len(whole)
    for key in (
        0,
        -1,
        len(whole) - 1,
        slice(3, -3),
        slice(None, None, -7),
        [],
        [5, 2, -1],
        np.arange(len(whole))[::-3],
    ):
        assert np.array_equal(split[key], whole[key]), key
    assert split[0].shape == (64,) and split[0].dtype == np.uint32
    for wrong in (len(whole), -len(whole) - 1, [0, len(whole)]):
        with pytest.raises(IndexError, match="must lie in"):
            split[wrong]
    for field in ("block_tokens", "vocab_size", "eos_id", "tokenizer_path"):
        assert getattr(mixture, field) == getattr(sets[0], field)


def test_the_blocks_of_a_mixture_come_by_its_shares(built_set: Path, other_set: Path) -> None:
    mixture = shards.open_data(f"{built_set}:0.75, {other_set}:0.25")
    sizes = [len(shards.open(path)["train"]) for path in (built_set, other_set)]
    numbers = shards.run_order(mixture, 7).blocks(0, 3000)
    assert Counter((numbers[:1000] >= sizes[0]).tolist()) == {False: 750, True: 250}
    assert len(mixture["train"]) == sum(sizes) == shards.epoch_blocks(mixture)
    alone = shards.open_data(str(built_set))
    assert shards.epoch_blocks(alone) == sizes[0] and shards.run_order(alone, 7) == shards.RunOrder((sizes[0],), 7)


def test_passes_give_shares_by_size_and_make_the_epoch(built_set: Path, other_set: Path) -> None:
    sizes = [len(shards.open(path)["train"]) for path in (built_set, other_set)]
    mixture = shards.open_data(f"{built_set}:1epoch,{other_set}:40epochs")
    total = sizes[0] + 40 * sizes[1]
    assert shards.epoch_blocks(mixture) == total
    assert isinstance(mixture, shards.Mixture)
    assert abs(mixture.per_mille[1] - 40_000 * sizes[1] / total) < 1
    seen = Counter(shards.run_order(mixture, 0).blocks(0, total)[:].tolist())
    repeats = [seen[sizes[0] + number] for number in range(sizes[1])]
    assert min(repeats) >= 38 and max(repeats) <= 42 and max(repeats) - min(repeats) <= 1
    assert shards.epoch_blocks(shards.open_data(f"{other_set},{built_set}")) == sum(sizes)


def test_fingerprints_of_mixtures_differ_by_sets_and_shares(built_set: Path, other_set: Path) -> None:
    specs = [f"{built_set}:0.5,{other_set}:0.5", f"{built_set}:0.6,{other_set}:0.4", f"{other_set}:0.5,{built_set}:0.5"]
    fingerprints = {shards.open_data(spec).fingerprint for spec in (*specs, str(built_set))}
    assert len(fingerprints) == 4
    assert shards.open_data(shards.open_data(specs[1]).description).fingerprint in fingerprints


def test_mixtures_that_make_no_sense_are_refused(built_set: Path, other_set: Path, tmp_path: Path) -> None:
    blocks = write_set(tmp_path / "b", [{"train": [[1]]}], block_tokens=32)
    tokenizer = write_set(tmp_path / "c", [{"train": [[1]]}], block_tokens=64, tokenizer=byte_fallback_tokenizer())
    empty = write_set(tmp_path / "d", [{"val": [[1]]}], block_tokens=64)
    for spec, message in (
        (f"{built_set}:0.5,{other_set}", "expected PATH:WEIGHT for each set"),
        (f"{built_set}:0,{other_set}:1", "expected a weight above 0"),
        (f"{built_set}:1,{other_set}:2epochs", "found both"),
        (f"{built_set}:1,{other_set}:0.00001", "its share is below 1 in 1,000"),
        (f"{built_set}:1.2.3,{other_set}:1", "expected PATH:WEIGHT for each set"),
        (f"{built_set}:1,{tmp_path / 'none'}:1", "no such shard set"),
        (f"{built_set}:1,{blocks}:1", "has blocks of 32 tokens"),
        (f"{built_set}:1,{tokenizer}:1", "has another tokenizer"),
        (f"{built_set}:1,{empty}:1", "has no training blocks"),
    ):
        with pytest.raises(shards.InputError, match=message):
            shards.open_data(spec)
