"""Muon for the hidden matrices, AdamW for all else, as one optimizer for Trainer.

Muon (Jordan et al. 2024) orthogonalizes the momentum of a weight matrix; it is for the matrices between hidden states, not
for embeddings, the head, norms and biases. With `adjust_lr_fn="match_rms_adamw"` (Liu et al. 2025, "Muon is Scalable for
LLM Training") its updates have the size of AdamW's, so one learning rate and one weight decay serve both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

MUON = "muon"
_OUTER = ("embed_tokens", "lm_head")


class MuonWithAdamW(torch.optim.Optimizer):
    """Groups of parameters, each with `use_muon`; state and groups are those of one plain optimizer."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "use_muon": False})
        # Each of the two adds its own settings to its groups, which stay ours.
        self._muon = self._adamw = None
        matrices, others = self._groups(True), self._groups(False)
        if matrices:
            self._muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        if others:
            self._adamw = torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps, weight_decay=0.0)
        parts = [part for part in (self._muon, self._adamw) if part is not None]
        self.param_groups = [group for part in parts for group in part.param_groups]

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
        for part, use_muon in ((self._muon, True), (self._adamw, False)):
            if part is not None:
                # Ours may have been replaced, by loading a checkpoint.
                part.param_groups, part.state = self._groups(use_muon), self.state
                part.step()  # type: ignore[no-untyped-call]
        return loss


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
