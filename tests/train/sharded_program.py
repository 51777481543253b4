"""Run by torchrun with two processes: a sharded (FSDP2) model and Muon over ranks against one process."""

from __future__ import annotations

import copy
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.train.test_train_model import BLOCK_TOKENS, VOCAB_SIZE, gradients, make_batch, make_model, naming
from tests.train.test_train_optimizer import build_muon


def check_sharded_model(*, tied: bool, loss: str) -> None:
    whole, model = make_model(tied=tied), make_model(tied=tied, loss=loss)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    ids = torch.randint(0, VOCAB_SIZE, (4, BLOCK_TOKENS), generator=torch.Generator().manual_seed(0))
    mine = ids[dist.get_rank() :: 2]
    found = model(input_ids=mine, labels=mine).loss
    found.backward()
    expected = whole(input_ids=ids, labels=ids).loss
    expected.backward()
    mean = found.detach().clone()
    dist.all_reduce(mean)
    torch.testing.assert_close(mean / 2, expected.detach(), rtol=1e-6, atol=0)
    pairs = list(zip(model.named_parameters(), whole.named_parameters(), strict=True))
    for (name, sharded), (_, parameter) in pairs:
        message = naming(f"tied={tied} {loss} {name}")
        torch.testing.assert_close(sharded.grad.full_tensor(), parameter.grad, rtol=1e-4, atol=1e-6, msg=message)
    for one in (model, whole):
        build_muon(one).step()
    for (name, sharded), (_, parameter) in pairs:
        # Muon multiplies in bf16, and sharded sums are in another order.
        torch.testing.assert_close(sharded.full_tensor(), parameter, rtol=0, atol=1e-3, msg=naming(name))


def check_muon_over_ranks() -> None:
    """Each rank does its share of the matrices, and the step is that of one process."""
    alone = make_model()
    shared = copy.deepcopy(alone)
    with mock.patch("torch.distributed.is_initialized", return_value=False):
        optimizer = build_muon(alone)
        for seed in range(3):
            gradients(alone, make_batch(seed))
            optimizer.step()
    optimizer, counted = build_muon(shared), 0

    def counting(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        nonlocal counted
        counted += len(matrices)
        return original(matrices, dtype)

    from train.optimizer import orthogonalize as original

    with mock.patch("train.optimizer.orthogonalize", counting):
        for seed in range(3):
            gradients(shared, make_batch(seed))
            optimizer.step()
    assert counted == 3 * 14 / 2, counted
    for (name, parameter), expected in zip(shared.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-6, msg=naming(name))


def main() -> None:
    dist.init_process_group("gloo")
    for tied in (True, False):
        for loss in ("chunked", "plain"):
            check_sharded_model(tied=tied, loss=loss)
    check_muon_over_ranks()
    if dist.get_rank() == 0:
        print("equal")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
