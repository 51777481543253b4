"""Muon for the hidden matrices, AdamW for all else, as one optimizer for Trainer.

Muon (Jordan et al. 2024) orthogonalizes the momentum of a weight matrix; it is for the matrices between hidden states, not
for embeddings, the head, norms and biases. Its updates are scaled to the size of AdamW's (Liu et al. 2025, "Muon is
Scalable for LLM Training"), so one learning rate and one weight decay serve both.

The update is that of torch.optim.Muon, which takes matrices one by one and multiplies in bf16 everywhere: on a CPU without
instructions for it one matrix of 768 × 192 takes seconds. Here matrices of one shape are orthogonalized together, in bf16
where the device has it and in fp32 elsewhere. Sharded parameters (DTensor) are gathered, one shape at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from train.model import bf16_pays

MOMENTUM = 0.95
_OUTER = ("embed_tokens", "lm_head")
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic Newton–Schulz: https://kellerjordan.github.io/posts/muon/
_ITERATIONS = 5
_STACKED_ELEMENTS = 1 << 26  # orthogonalized at a time


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


class MuonWithAdamW(torch.optim.Optimizer):
    """Groups of parameters, each with `use_muon`; state and groups are those of one plain optimizer."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "momentum": MOMENTUM, "use_muon": False})
        others = self._groups(False)
        # AdamW adds its own settings to its groups, which stay ours.
        fused = all(parameter.device.type in ("cpu", "cuda") for group in others for parameter in group["params"])
        adamw = (
            torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps, weight_decay=0.0, fused=fused) if others else None
        )
        self._adamw = adamw
        self._dtypes: dict[str, torch.dtype] = {}

    def _groups(self, use_muon: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["use_muon"] == use_muon]

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self._groups(True):
            for matrices in _by_shape(group["params"]):
                self._muon_step(group, matrices)
        if self._adamw is not None:
            # Ours may have been replaced, by loading a checkpoint.
            self._adamw.param_groups, self._adamw.state = self._groups(False), self.state
            self._adamw.step()
        return loss

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
        stacked = orthogonalize(torch.stack(updates), self._dtype(updates[0].device.type))
        rate = group["lr"] * 0.2 * math.sqrt(max(matrices[0].shape))
        for matrix, update in zip(matrices, stacked.to(matrices[0].dtype).unbind(), strict=True):
            if isinstance(matrix, DTensor):
                update = distribute_tensor(update, matrix.device_mesh, matrix.placements, src_data_rank=None)
            matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)

    def _dtype(self, device: str) -> torch.dtype:
        if device not in self._dtypes:
            self._dtypes[device] = torch.bfloat16 if bf16_pays(on_cpu=device == "cpu") else torch.float32
        return self._dtypes[device]


def _by_shape(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters that have gradients, in lists of one shape that together are not too big."""
    shapes: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            shapes.setdefault(parameter.shape, []).append(parameter)
    for shape, members in shapes.items():
        most = max(1, _STACKED_ELEMENTS // shape.numel())
        yield from (members[start : start + most] for start in range(0, len(members), most))


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes this parameter of the model."""
    return parameter.ndim == 2 and not any(outer in name for outer in _OUTER)


def build_muon(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float], eps: float, decayed: Iterable[str]
) -> MuonWithAdamW:
    """The optimizer of all parameters of `model` that are trained; those named in `decayed` have weight decay."""
    names = set(decayed)
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((is_hidden_matrix(name, parameter), name in names), []).append(parameter)
    return MuonWithAdamW(
        [
            {"params": parameters, "use_muon": use_muon, "weight_decay": weight_decay if decays else 0.0}
            for (use_muon, decays), parameters in groups.items()
        ],
        lr=lr,
        betas=betas,
        eps=eps,
    )
