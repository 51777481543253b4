"""The loss over a big vocabulary, a chunk of tokens at a time: never all logits at once.

`chunked_cross_entropy` computes a chunk's logits, its loss and, where gradients are wanted, its share of the gradients at
once, in the forward pass: nothing is computed twice, and what is kept is the size of the hidden states and of the head. The
softmax is in fp32. Equal to the plain loss up to rounding.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor
from transformers import Qwen2ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from shards.errors import InputError
from train.data import IGNORED
from train.settings import LossName

CHUNKED_FROM_VOCABULARY = 16_384  # `auto`: below, all logits at once are small and faster
CHUNK_LOGITS = 1 << 24  # logits at a time: 128 MiB in fp32


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropy of `hidden @ weight.T` against `labels`; see `chunked_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk_rows: int, dtype: torch.dtype
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        head = weight.to(dtype)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(labels), chunk_rows):
            rows = hidden[start : start + chunk_rows].to(dtype)
            wanted = labels[start : start + chunk_rows]
            logits = (rows @ head.T).float()
            counted = wanted != IGNORED
            targets = torch.where(counted, wanted, 0).unsqueeze(1)
            normalizer = torch.logsumexp(logits, dim=1, keepdim=True)
            losses = normalizer - logits.gather(1, targets)
            total += torch.where(counted, losses.squeeze(1), 0).sum()
            if not (wants_hidden or wants_weight):
                continue
            gradient = logits.sub_(normalizer).exp_()  # the softmax, in the logits' memory
            gradient.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=gradient.dtype))
            gradient.mul_(counted.unsqueeze(1))
            narrow = gradient.to(dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + chunk_rows] = narrow @ head
            if grad_weight is not None:
                if dtype == torch.float32:
                    grad_weight.addmm_(narrow.T, rows)
                else:
                    grad_weight += narrow.T @ rows
        ctx.grads = grad_hidden, grad_weight, weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_hidden, grad_weight, weight_dtype = ctx.grads
        ctx.grads = None
        (scale,) = grad_outputs
        if grad_hidden is not None:
            grad_hidden = grad_hidden.mul_(scale)
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(scale).to(weight_dtype)
        return grad_hidden, grad_weight, None, None, None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def chunked_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, *, chunk_rows: int | None = None) -> Tensor:
    """The summed cross-entropy, a scalar in fp32, of the logits `hidden @ weight.T`.

    `hidden` is `(tokens, hidden_size)`, `weight` `(vocabulary, hidden_size)`, `labels` `(tokens,)` with −100 where a token
    doesn't count. The matrix products are in autocast's type where it is on. `backward` may be called once.
    """
    rows = chunk_rows or max(1, CHUNK_LOGITS // len(weight))
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        total: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, weight, labels, rows, dtype
        )
    return total


def plain_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The same, all logits at once."""
    return functional.cross_entropy((hidden @ weight.T).float(), labels, ignore_index=IGNORED, reduction="sum")


def liger_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The same by the package liger-kernel, on GPUs."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    total: Tensor = liger_fused_linear_cross_entropy(hidden, weight, labels, ignore_index=IGNORED, reduction="sum")
    return total


def token_losses(model: Any, ids: Tensor) -> Tensor:
    """The loss of each token but the first of each row, shape `(rows, tokens - 1)`, fp32; a few rows' logits at a time.

    `model` is a causal language model with a `model` and an `lm_head`; `ids` are int64 on its device.
    """
    states = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    hidden, targets = states.flatten(0, 1), ids[:, 1:].flatten()
    rows = max(1, CHUNK_LOGITS // model.lm_head.weight.shape[0])
    parts = [
        functional.cross_entropy(
            model.lm_head(hidden[start : start + rows]).float(), targets[start : start + rows], reduction="none"
        )
        for start in range(0, len(targets), rows)
    ]
    return torch.cat(parts).view(len(ids), -1)


_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": plain_cross_entropy,
    "chunked": chunked_cross_entropy,
    "liger": liger_cross_entropy,
}


def chosen_loss(name: LossName, vocab_size: int) -> str:
    """What `auto` means for this vocabulary. Raises `InputError` if the choice can't be had."""
    if name == "liger" and importlib.util.find_spec("liger_kernel") is None:
        raise InputError("loss: liger needs the package: pip install liger-kernel (or choose chunked)")
    if name != "auto":
        return name
    return "chunked" if vocab_size >= CHUNKED_FROM_VOCABULARY else "plain"


def install_loss(model: Qwen2ForCausalLM, name: str) -> None:
    """Let `model(input_ids, labels=…)` compute this loss instead of all logits; without labels nothing changes.

    The model keeps its class, so it is saved and loaded as any other. The loss is the mean over the labels that count, or
    their sum divided by `num_items_in_batch`, as in transformers. Ids may be int32: they are widened on the device.
    """
    original, cross_entropy = model.forward, _LOSSES[name]

    def forward(
        input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        if labels is None:
            output: CausalLMOutputWithPast = original(input_ids=input_ids, **kwargs)
            return output
        assert input_ids is not None
        states = model.model(input_ids=input_ids, use_cache=False, **kwargs).last_hidden_state
        hidden = states[:, :-1].flatten(0, 1)
        targets = labels[:, 1:].flatten().long()
        total = cross_entropy(hidden, model.lm_head.weight, targets)
        count = (targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutputWithPast(loss=total / count)

    model.forward = forward
