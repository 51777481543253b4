"""Blocks as a loop of torch gets them: from any position on, with labels, in workers, in the example's loop."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader

import shards
from docs.examples.own_loop import GLOBAL_BLOCKS, MICRO_BLOCKS, batches, train
from shards.torch import IGNORED, BlockDataset, DocumentCollator, PaddingCollator, RunSampler, collate_blocks
from tests.conftest import REPOSITORY
from tests.train.runs import Capture


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_samplers_of_ranks_deal_micro_batches_in_turn_and_go_on_in_any_number(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a rank stopped in the middle of a micro-batch, and where the positions don't come out even."""
    monkeypatch.setattr("shards.torch._CHUNK_POSITIONS", 10)
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


def test_blocks_are_cut_anew_in_each_epoch_where_the_order_says_so(shard_set_path: Path) -> None:
    split = shards.open(shard_set_path)["train"]
    dataset, order = BlockDataset(shards.open(shard_set_path), "train"), shards.RunOrder((len(split),), 3, "offset")
    start, stop = 2 * len(split) - 2, 2 * len(split) + 6
    loader = DataLoader(
        dataset, batch_size=4, sampler=RunSampler(order, start=start, stop=stop), collate_fn=collate_blocks
    )
    found = np.concatenate([batch["input_ids"] for batch in loader])
    assert np.array_equal(found, split.offset_blocks(order.blocks(start, stop)))
    assert not np.array_equal(found[2:], split[order.blocks(start, stop)[2:] % len(split)])
    assert torch.equal(dataset[-1], dataset[len(split) - 1])
    with pytest.raises(IndexError):  # or a loop over the dataset would not end
        dataset[len(split)]


def test_padding_is_no_label_nor_is_the_first_token_of_a_masked_document(packed_sets: dict[str, Path]) -> None:
    without, mixed = (shards.open_data(spec.format(**packed_sets)) for spec in ("{concat}", "{concat}:1,{best-fit}:1"))
    assert shards.torch.has_padding(mixed) and not shards.torch.has_padding(without)
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


# ---- the example of a loop of one's own ----


def ids(loader: Any) -> list[torch.Tensor]:
    return [batch["input_ids"] for batch in loader]


@pytest.mark.parametrize("world_size", [2, 4])
def test_other_numbers_of_processes_see_the_same_batches(shard_set_path: Path, world_size: int) -> None:
    """Each step's, whose positions are in turn those of the ranks."""
    data = shards.open_data(str(shard_set_path))
    whole = torch.cat(ids(batches(data, first_step=0, stop=5)))
    ranks = [ids(batches(data, first_step=2, stop=5, rank=r, world_size=world_size)) for r in range(world_size)]
    dealt = torch.cat([micro_batch for turn in zip(*ranks, strict=True) for micro_batch in turn])
    assert whole.dtype == torch.int64 and torch.equal(dealt, whole[2 * GLOBAL_BLOCKS :])
    assert len(ranks[0]) == 3 * GLOBAL_BLOCKS // MICRO_BLOCKS // world_size


@pytest.mark.parametrize("accelerator", [None, Accelerator], ids=["plain", "accelerate"])
def test_a_loop_that_was_stopped_ends_like_one_that_was_not(
    shard_set_path: Path, tmp_path: Path, accelerator: Any, capsys: Capture
) -> None:
    data = shards.open_data(str(shard_set_path))
    AcceleratorState._reset_state(reset_partial_state=True)  # which an earlier test's training in bf16 leaves
    made = accelerator(cpu=True) if accelerator else None
    whole = train(data, tmp_path / "whole.pt", stop=6, accelerator=made)
    lines = capsys.readouterr().out.splitlines()
    train(data, tmp_path / "parts.pt", stop=4)
    parts = train(data, tmp_path / "parts.pt", stop=6, accelerator=made)
    assert capsys.readouterr().out.splitlines() == lines and len(lines) == 6
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped(shard_set_path: Path, tmp_path: Path) -> None:
    data = shards.open_data(str(shard_set_path))
    whole = train(data, tmp_path / "whole.pt", stop=6)
    train(data, tmp_path / "parts.pt", stop=4)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "docs.examples.own_loop", str(shard_set_path), str(tmp_path / "parts.pt"), "--stop", "6"]
    subprocess.run([*command, "--accelerate"], check=True, cwd=REPOSITORY)
    found = torch.load(tmp_path / "parts.pt", weights_only=True)
    assert found["step"] == 6
    for name, expected in whole.state_dict().items():
        torch.testing.assert_close(found["model"][name], expected, rtol=1e-3, atol=1e-4)
