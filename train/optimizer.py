"""AdamW, or Muon for the hidden matrices and AdamW for all else, with three named groups of parameters.

Muon (Jordan et al. 2024) orthogonalizes the momentum of a weight matrix; it is for the matrices between hidden states, not
for embeddings, the head, norms and biases. Its updates are scaled to the size of AdamW's (Liu et al. 2025, "Muon is
Scalable for LLM Training"), so one learning rate and one weight decay serve both.

The update is that of torch.optim.Muon, which takes matrices one by one and multiplies in bf16 everywhere: on a CPU without
instructions for it one matrix of 768 × 192 takes seconds. Here matrices of one shape are orthogonalized together, in bf16
where the device has it and in fp32 elsewhere. With several ranks each orthogonalizes its share of them, and all gather
the results: the same update as by one process. Sharded parameters (DTensor) are gathered first, one shape at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from train.model import bf16_pays
from train.settings import GroupSettings

MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic Newton–Schulz: https://kellerjordan.github.io/posts/muon/
_ITERATIONS = 5
_STACKED_ELEMENTS = 1 << 26  # orthogonalized at a time, unless ranks would be idle


def group_of(name: str, parameter: Tensor) -> str:
    """`hidden` for the matrices between hidden states, `embedding` for embedding and head, `norm` for norms and biases."""
    if parameter.ndim != 2:
        return "norm"
    return "embedding" if "embed_tokens" in name or "lm_head" in name else "hidden"


def parameter_groups(
    model: nn.Module, settings: GroupSettings, *, learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """The trained parameters of `model` in the groups of `group_of`, each with its rate and decay, for an optimizer."""
    differences = {
        "hidden": (1.0, None),
        "embedding": (settings.embedding_learning_rate_multiplier, settings.embedding_weight_decay),
        "norm": (settings.norm_learning_rate_multiplier, settings.norm_weight_decay),
    }
    groups = []
    for name, (multiplier, decay) in differences.items():
        rate, decay = learning_rate * multiplier, weight_decay if decay is None else decay
        members = [one for path, one in model.named_parameters() if one.requires_grad and group_of(path, one) == name]
        groups.append({"params": members, "name": name, "lr": rate, "weight_decay": decay})
    return [group for group in groups if group["params"]]


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrices of `(number, rows, columns)` with all singular values brought to 0.7 – 1.2, in `dtype`."""
    a, b, c = _COEFFICIENTS
    rows, columns = matrices.shape[-2:]
    x = matrices.to(dtype)
    x = x.mT if rows > columns else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if rows > columns else x


def orthogonalize_over_ranks(matrices: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """As `orthogonalize`, each rank its share: with 5 matrices rank 0 of 2 does 0, 1 and 2, rank 1 does 3 and 4.

    Every rank gives the same matrices and gets all results.
    """
    num_ranks = dist.get_world_size() if dist.is_initialized() else 1
    if num_ranks == 1:
        return list(orthogonalize(torch.stack(matrices), dtype).unbind())
    share = -(-len(matrices) // num_ranks)
    start = dist.get_rank() * share
    mine = torch.zeros(share, *matrices[0].shape, dtype=dtype, device=matrices[0].device)
    if own := matrices[start : start + share]:
        mine[: len(own)] = orthogonalize(torch.stack(own), dtype)
    gathered = mine.new_empty(num_ranks * share, *matrices[0].shape)
    dist.all_gather_into_tensor(gathered, mine)
    return list(gathered[: len(matrices)].unbind())


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the group `hidden`, AdamW for the others; state and groups are those of one plain optimizer."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "momentum": MOMENTUM})
        others = self._groups(is_hidden=False)
        # AdamW adds its own settings to its groups, which stay ours.
        fused = all(parameter.device.type in ("cpu", "cuda") for group in others for parameter in group["params"])
        self._adamw = torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps, fused=fused) if others else None

    def _groups(self, *, is_hidden: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if (group["name"] == "hidden") == is_hidden]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        assert closure is None, "the Trainer has none"
        for group in self._groups(is_hidden=True):
            for matrices in _by_shape(group["params"]):
                self._muon_step(group, matrices)
        if self._adamw is not None:
            # Ours may have been replaced, by loading a checkpoint.
            self._adamw.param_groups, self._adamw.state = self._groups(is_hidden=False), self.state
            self._adamw.step()

    def _muon_step(self, group: dict[str, Any], matrices: list[Tensor]) -> None:
        """Update matrices of one shape: Nesterov momentum, orthogonalized."""
        updates = []
        for matrix in matrices:
            assert matrix.grad is not None
            state = self.state[matrix]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(matrix)
            momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
            update = matrix.grad.lerp(momentum, group["momentum"])
            updates.append(update.full_tensor() if isinstance(update, DTensor) else update)
        dtype = torch.bfloat16 if bf16_pays(on_cpu=updates[0].device.type == "cpu") else torch.float32
        rate = group["lr"] * 0.2 * math.sqrt(max(matrices[0].shape))
        for matrix, update in zip(matrices, orthogonalize_over_ranks(updates, dtype), strict=True):
            update = update.to(matrix.dtype)
            if isinstance(matrix, DTensor):
                update = distribute_tensor(update, matrix.device_mesh, matrix.placements, src_data_rank=None)
            matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


def _by_shape(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters that have gradients, in lists of one shape that together are not too large."""
    num_ranks = dist.get_world_size() if dist.is_initialized() else 1
    shapes: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            shapes.setdefault(parameter.shape, []).append(parameter)
    for shape, members in shapes.items():
        most = max(num_ranks, _STACKED_ELEMENTS // shape.numel())
        yield from (members[start : start + most] for start in range(0, len(members), most))
