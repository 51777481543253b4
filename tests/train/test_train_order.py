"""Blocks as a loop of torch gets them: from any position on, with labels, in the loader's workers."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import shards
from shards.torch import IGNORED, BlockDataset, DocumentCollator, PaddingCollator, RunSampler, collate_blocks


def test_the_sampler_goes_on_from_its_state() -> None:
    order = shards.RunOrder((9,), 1)
    whole = list(RunSampler(order, stop=10_000))
    sampler = RunSampler(order, stop=10_000)
    first = list(itertools.islice(sampler, 33))
    state = sampler.state_dict()
    assert (first, state, len(sampler)) == (whole[:33], {"position": 33}, 10_000)
    other = RunSampler(order, stop=10_000)
    other.load_state_dict(state)
    assert list(other) == whole[33:] and list(other) == []


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_get_the_micro_batches_in_turn_and_go_on_in_any_number(world_size: int) -> None:
    """Also where a rank stopped in the middle of a micro-batch, and where the positions don't come out even."""
    order = shards.RunOrder((90,), 1)
    deal = {"stop": 103, "world_size": world_size, "micro_batch_blocks": 4}
    samplers = [RunSampler(order, rank=rank, **deal) for rank in range(world_size)]
    for rank, sampler in enumerate(samplers):
        own = [position for position in range(103) if position // 4 % world_size == rank]
        assert len(sampler) == len(own)
        assert list(itertools.islice(sampler, 10)) == order.blocks(0, 103)[own][:10].tolist()
        assert sampler.state_dict() == {"position": 2 * 4 * world_size}
    for other_size in (1, 2, 5):
        rest = []
        for rank in range(other_size):
            other = RunSampler(order, stop=103, rank=rank, world_size=other_size, micro_batch_blocks=2)
            other.load_state_dict(samplers[0].state_dict())
            rest += list(other)
        assert sorted(rest) == sorted(order.blocks(8 * world_size, 103).tolist())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_blocks_with_eos_as_a_label(shard_set_path: Path, num_workers: int) -> None:
    shard_set = shards.open(shard_set_path)
    dataset = BlockDataset(shard_set, "train")
    sampler = RunSampler(shards.RunOrder((len(dataset),), 3), start=4, stop=12)
    loader = DataLoader(dataset, batch_size=4, sampler=sampler, collate_fn=collate_blocks, num_workers=num_workers)
    batches = list(loader)
    expected = shard_set["train"][shards.RunOrder((len(dataset),), 3).blocks(4, 12)]
    assert set(batches[0]) == {"input_ids", "labels"}
    found = torch.cat([batch["labels"] for batch in batches])
    assert found.dtype == torch.int64
    assert np.array_equal(found.numpy(), expected)
    assert (found[:, -1] == shard_set.eos_id).all()
    assert torch.equal(dataset.__getitems__([3, 1]), torch.stack([dataset[3], dataset[1]]))


def test_padding_is_no_label_nor_is_the_first_token_of_a_masked_document() -> None:
    blocks = torch.tensor([[1, 9, 9, 9], [9, 2, 9, 3]])
    labels = PaddingCollator(9)(blocks)["labels"]
    assert labels.tolist() == [[1, 9, IGNORED, IGNORED], [9, 2, 9, 3]]
    masked = DocumentCollator(9)(blocks)
    assert masked["labels"].tolist() == [[1, 9, IGNORED, IGNORED], [9, IGNORED, 9, IGNORED]]
    assert masked["position_ids"].tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    packed = DocumentCollator(9, cu_seqlens=True)(blocks)
    assert packed["cu_seqlens"].tolist() == [0, 2, 3, 4, 5, 7, 8] and packed["max_seqlen"] == 2
    assert packed["cu_seqlens"].dtype == torch.int32 and packed.keys() - masked.keys() == {"cu_seqlens", "max_seqlen"}


@pytest.mark.parametrize("spec", ["{0}", "{0}:0.5,{0}:0.5"])
def test_dataset_travels_to_a_spawned_worker_without_its_data(shard_set_path: Path, spec: str) -> None:
    dataset = BlockDataset(shards.open_data(spec.format(shard_set_path)), "train")
    dataset[0]
    content = pickle.dumps(dataset)
    assert len(content) < 1000
    assert torch.equal(pickle.loads(content)[5], dataset[5])
