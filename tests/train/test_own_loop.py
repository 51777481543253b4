"""The example of a loop of one's own: it stops, goes on on another number of processes, and sees the same batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import shards
from docs.examples.own_loop import GLOBAL_BLOCKS, MICRO_BLOCKS, batches, train
from tests.conftest import REPOSITORY


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
    shard_set_path: Path, tmp_path: Path, accelerator: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shards.open_data(str(shard_set_path))
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
