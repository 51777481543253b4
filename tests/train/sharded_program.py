"""Run by torchrun with two processes: losses, gradients and Muon's step of a sharded (FSDP2) model against a whole one."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from train.loss import install_loss

from tests.train.test_train_loss import BLOCK_TOKENS, VOCAB_SIZE, make_model
from train.optimizer import build_muon


def naming(name: str) -> Callable[[str], str]:
    """A message of `assert_close` that begins with `name`."""
    return lambda text: f"{name}: {text}"


def main() -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    for tied in (True, False):
        for loss in ("chunked", "plain"):
            whole, model = make_model(tied=tied), make_model(tied=tied)
            install_loss(model, loss)
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
                message = f"tied={tied} {loss} {name}"
                torch.testing.assert_close(
                    sharded.grad.full_tensor(),
                    parameter.grad,
                    rtol=1e-4,
                    atol=1e-6,
                    msg=naming(message),
                )
            for one in (model, whole):
                decayed = [name for name, parameter in one.named_parameters() if parameter.ndim == 2]
                build_muon(one, lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, decayed=decayed).step()
            for (name, sharded), (_, parameter) in pairs:
                # Muon multiplies in bf16, and sharded sums are in another order.
                torch.testing.assert_close(sharded.full_tensor(), parameter, rtol=0, atol=1e-3, msg=naming(name))
    if dist.get_rank() == 0:
        print("equal")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
