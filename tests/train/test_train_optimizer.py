"""Muon and AdamW as one optimizer over named groups: each does its own parameters, alone and over ranks."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.train.processes import in_two_processes
from tests.train.runs import losses, stop_after, train_to_the_end, weights
from tests.train.test_train_model import BLOCK_TOKENS, VOCAB_SIZE, gradients, make_batch, make_model, naming
from train.optimizer import MuonWithAdamW, group_of, orthogonalize, parameter_groups
from train.settings import GroupSettings

SETTINGS: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8}


def build_muon(model: Any, **settings: Any) -> MuonWithAdamW:
    groups = parameter_groups(model, GroupSettings(**settings), learning_rate=0.01, weight_decay=0.1)
    return MuonWithAdamW(groups, **SETTINGS)


def test_groups_have_todays_values_or_their_own() -> None:
    model = make_model()
    groups = parameter_groups(model, GroupSettings(), learning_rate=0.01, weight_decay=0.1)
    found = [(group["name"], group["lr"], group["weight_decay"], len(group["params"])) for group in groups]
    assert found == [("hidden", 0.01, 0.1, 14), ("embedding", 0.01, 0.1, 1), ("norm", 0.01, 0.0, 11)]
    settings = GroupSettings(embedding_learning_rate_multiplier=3, embedding_weight_decay=0.0, norm_weight_decay=None)
    groups = parameter_groups(model, settings, learning_rate=0.01, weight_decay=0.1)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.01, 0.1), (0.03, 0.0), (0.01, 0.1)]


def test_each_parameter_is_updated_as_by_its_own_optimizer() -> None:
    model = make_model()
    reference = copy.deepcopy(model)
    optimizer, named = build_muon(model), dict(reference.named_parameters())
    of: dict[str, Any] = {"hidden": [], "embedding": [], "norm": []}
    for name, parameter in named.items():
        of[group_of(name, parameter)].append(parameter)
    muon = torch.optim.Muon(of["hidden"], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    decayed, others = {"params": of["embedding"], "weight_decay": 0.1}, {"params": of["norm"], "weight_decay": 0.0}
    adamw = torch.optim.AdamW([decayed, others], fused=True, **SETTINGS)
    before = copy.deepcopy(reference)
    for seed in range(3):
        for (name, parameter), found in zip(reference.named_parameters(), model.parameters(), strict=True):
            torch.manual_seed(len(name) + seed)
            parameter.grad = torch.randn_like(parameter)
            found.grad = parameter.grad.clone()
        for part in (optimizer, muon, adamw):
            part.step()
    for (name, parameter), start in zip(model.named_parameters(), before.parameters(), strict=True):
        expected = named[name]
        if group_of(name, parameter) == "hidden":  # torch's multiplies in bf16
            assert (parameter - expected).norm() < 0.03 * (expected - start).norm(), name
        else:
            assert torch.equal(parameter, expected), name


@pytest.mark.parametrize("shape", [(4, 16, 40), (3, 40, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalized_together_is_orthogonalized_alone(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalize(matrices, dtype)
    assert found.dtype == dtype and found.shape == shape
    for matrix, together in zip(matrices, found.float(), strict=True):
        torch.testing.assert_close(orthogonalize(matrix[None], dtype)[0].float(), together, rtol=0, atol=0.02)
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        assert torch.linalg.svdvals(together)[values > 0.05 * values.max()].min() > 0.6
        assert torch.linalg.svdvals(together).max() < 1.3
        wanted = left @ right
        assert (together * wanted).sum() > 0.9 * together.norm() * wanted.norm()


def test_many_matrices_are_done_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for limit in (1 << 26, 2000):
        monkeypatch.setattr("train.optimizer._STACKED_ELEMENTS", limit)
        model = make_model()
        optimizer = build_muon(model)
        gradients(model, make_batch())
        optimizer.step()
        results.append([parameter.detach().clone() for parameter in model.parameters()])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-6)


def test_a_run_with_muon_and_rates_of_groups_continues_to_the_same_bits(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    groups = {"embedding_learning_rate_multiplier": 2, "embedding_weight_decay": 0.0}
    config = write_config(training={"optim": "muon"}, groups=groups)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train_to_the_end(config, "--output_dir", str(whole))
    stop_after(5, config, "--output_dir", str(stopped))
    train_to_the_end(config, "--output_dir", str(stopped))
    assert losses(stopped) == losses(whole)
    assert all(torch.equal(tensor, weights(stopped)[name]) for name, tensor in weights(whole).items())
    state = torch.load(whole / "checkpoint-11" / "optimizer.pt", weights_only=True)["param_groups"]
    found = [(group["name"], group["initial_lr"], group["weight_decay"]) for group in state]
    assert found == [("hidden", 0.01, 0.0), ("embedding", 0.02, 0.0), ("norm", 0.01, 0.0)]


# ---- over two processes ----


def check_sharded_models() -> None:
    """A sharded model's losses, gradients and steps are those of one process."""
    mesh = init_device_mesh("cpu", (2,))
    ids = torch.randint(0, VOCAB_SIZE, (4, BLOCK_TOKENS), generator=torch.Generator().manual_seed(0))
    mine = ids[dist.get_rank() :: 2]
    for tied, loss in itertools.product((True, False), ("chunked", "plain")):
        whole, model = make_model(tied=tied), make_model(tied=tied, loss=loss)
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        found, expected = model(input_ids=mine, labels=mine).loss, whole(input_ids=ids, labels=ids).loss
        found.backward()
        expected.backward()
        mean = found.detach().clone()
        dist.all_reduce(mean)
        torch.testing.assert_close(mean / 2, expected.detach(), rtol=1e-6, atol=0)
        pairs = list(zip(model.named_parameters(), whole.parameters(), strict=True))
        for (name, sharded), parameter in pairs:
            message = naming(f"tied={tied} {loss} {name}")
            torch.testing.assert_close(sharded.grad.full_tensor(), parameter.grad, rtol=1e-4, atol=1e-6, msg=message)
        for one in (model, whole):
            build_muon(one).step()
        for (name, sharded), parameter in pairs:
            # Muon multiplies in bf16, and sharded sums are in another order.
            torch.testing.assert_close(sharded.full_tensor(), parameter, rtol=0, atol=1e-3, msg=naming(name))


def three_steps(model: Any) -> None:
    optimizer = build_muon(model)
    for seed in range(3):
        gradients(model, make_batch(seed))
        optimizer.step()


def check_muon_over_ranks(shared: Any, alone: Any) -> None:
    """Each rank does its share of the matrices, and the steps are those that one process has done with `alone`."""
    counted = []

    def counting(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        counted.append(len(matrices))
        return orthogonalize(matrices, dtype)

    with mock.patch("train.optimizer.orthogonalize", counting):
        three_steps(shared)
    assert sum(counted) == 3 * 14 / 2, counted
    for (name, parameter), expected in zip(shared.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-6, msg=naming(name))


def check_both() -> None:
    alone = make_model()
    shared = copy.deepcopy(alone)
    three_steps(alone)
    dist.init_process_group("gloo")
    check_muon_over_ranks(shared, alone)
    check_sharded_models()
    dist.destroy_process_group()


def test_over_two_processes_models_and_steps_are_those_of_one() -> None:
    in_two_processes(check_both)
