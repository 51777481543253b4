"""The loss over a big vocabulary, a chunk of tokens at a time: never all logits at once.

`chunked_cross_entropy` computes a chunk's logits, its loss and, where gradients are wanted, its share of the gradients at
once, in the forward pass: nothing is computed twice, one buffer serves all chunks, and what is kept is the size of the
hidden states and of the head. The softmax is in fp32. Equal to the plain loss up to rounding.

With tied weights the embedding's gradient is added into the head's (`TiedGradient`), so that there is one, not two.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor
from transformers import Qwen2ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from shards.common.errors import InputError
from train.data import IGNORED
from train.settings import LossName
from train.softmax import has_triton, softmax_for

CHUNKED_FROM_VOCABULARY = 16_384  # `auto` on a GPU: below, all logits at once are small and faster
CHUNKED_FROM_VOCABULARY_CPU = 2_048  # on a CPU the buffer that is used again is what makes it fast
CHUNK_LOGITS = 1 << 28  # logits at a time on a GPU: 512 MiB in bf16 …
CHUNK_LOGITS_BIG = 3 << 29  # … and up to 3 GiB on a GPU with this much memory or more, 12 % faster
BIG_GPU_BYTES = 32 << 30
CHUNK_TILE = 128  # rows of a product that one multiprocessor of a GPU computes at a time …
CHUNK_TILE_COLUMNS = 256  # … and columns
CHUNK_ROWS_CPU = 256  # tokens at a time on a CPU: measured fastest for vocabularies of 8,192 and of 151,646 …
CHUNK_LOGITS_CPU = 1 << 24  # … but no more logits than these, 64 MiB, unless the rows get fewer than 128: 5 % slower
EVALUATION_LOGITS = 1 << 24
# Causal attention over the whole block, said beforehand: else transformers looks for documents in the positions, and under
# torch.compile, where it can't, makes a mask that keeps attention from its fast path.
WHOLE_BLOCK = {"full_attention": None}


@dataclasses.dataclass
class TiedGradient:
    """Takes the head's gradient from its backward pass to the embedding's, which adds its own and hands on the sum."""

    gradient: Tensor | None = None


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropy of `hidden @ weight.T` against `labels`; see `chunked_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        chunk_rows: int,
        dtype: torch.dtype,
        tied: TiedGradient | None,
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        wants_gradient = wants_hidden or wants_weight
        softmax, logits_dtype = softmax_for(hidden.device, dtype)
        head = weight.to(dtype)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        make = torch.empty_like if len(labels) else torch.zeros_like  # the first chunk's product is written, not added
        grad_weight = make(weight, dtype=torch.float32) if wants_weight else None
        losses = hidden.new_empty(len(labels), dtype=torch.float32)
        buffer = hidden.new_empty(min(chunk_rows, len(labels)), len(weight), dtype=logits_dtype)
        for start in range(0, len(labels), chunk_rows):
            chunk = slice(start, start + chunk_rows)
            rows = hidden[chunk].to(dtype)
            logits = buffer[: len(rows)]
            if logits.dtype == dtype:
                torch.mm(rows, head.T, out=logits)
            else:
                logits.copy_(rows @ head.T)
            factors = softmax(logits, labels[chunk], losses[chunk])
            if not wants_gradient:
                continue
            gradient = logits.to(dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = (gradient @ head) * factors
            if grad_weight is not None:
                add_product(grad_weight, gradient.T, (rows * factors).to(dtype), keep=start > 0)
        total = losses.sum()
        ctx.grads = grad_hidden, grad_weight, weight.dtype
        ctx.tied = tied
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, weight_dtype = ctx.grads
        tied: TiedGradient | None = ctx.tied
        ctx.grads = ctx.tied = None
        (scale,) = grad_outputs
        if grad_hidden is not None:
            grad_hidden = grad_hidden.mul_(scale)
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(scale).to(weight_dtype)
            if tied is not None:
                tied.gradient, grad_weight = grad_weight, None
        return grad_hidden, grad_weight, None, None, None, None


class _TiedEmbedding(torch.autograd.Function):
    """Rows of the tied matrix. The backward pass adds their gradients into the head's."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, tied: TiedGradient) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.tied = tied
        return functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, Tensor, None]:
        (ids,), (gradient,) = ctx.saved_tensors, grad_outputs
        total = ctx.tied.gradient  # the head's backward pass comes first: its gradient flows through this one's output
        ctx.tied.gradient = None
        total.index_add_(0, ids.flatten(), gradient.flatten(0, -2).to(total.dtype))
        return None, total, None


def add_product(total: Tensor, left: Tensor, right: Tensor, *, keep: bool) -> None:
    """`total += left @ right`, or `=` unless `keep`, where `total` is in fp32 and the matrices in another type, perhaps."""
    beta = 1 if keep else 0
    if left.dtype == torch.float32:
        total.addmm_(left, right, beta=beta)
    elif total.device.type == "cuda":
        torch.addmm(total, left, right, beta=beta, out_dtype=torch.float32, out=total)  # not rounded in between
    elif keep:
        total += left @ right
    else:
        total.copy_(left @ right)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def tied_embedding(ids: Tensor, weight: Tensor, tied: TiedGradient) -> Tensor:
    """`weight[ids]`, shape `(…, hidden_size)`. `tied` must go to the `chunked_cross_entropy` of the same pass."""
    embedded: Tensor = _TiedEmbedding.apply(ids, weight, tied)  # type: ignore[no-untyped-call]
    return embedded


@torch.compiler.disable  # type: ignore[untyped-decorator]
def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    chunk_rows: int | None = None,
    tied: TiedGradient | None = None,
) -> Tensor:
    """The summed cross-entropy, a scalar in fp32, of the logits `hidden @ weight.T`.

    `hidden` is `(tokens, hidden_size)`, `weight` `(vocabulary, hidden_size)`, `labels` `(tokens,)` with −100 where a token
    doesn't count. The matrix products are in autocast's type where it is on. `backward` may be called once. With `tied`,
    the gradient of `weight` goes to the `tied_embedding` that was given the same object.
    """
    device = hidden.device.type
    rows = chunk_rows or rows_at_a_time(weight, hidden.device)
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        total: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, weight, labels, rows, dtype, tied
        )
    return total


def rows_at_a_time(weight: Tensor, device: torch.device) -> int:
    """How many tokens' logits there are at once."""
    vocab_size, hidden_size = weight.shape
    if device.type == "cpu":
        return min(CHUNK_ROWS_CPU, max(CHUNK_ROWS_CPU // 2, CHUNK_LOGITS_CPU // vocab_size))
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" and has_triton() else None
    if properties is None or properties.total_memory < BIG_GPU_BYTES:  # without the kernel logits take twice the bytes
        return tiles(CHUNK_LOGITS // vocab_size)
    # As many as give each multiprocessor one tile of the hidden states' gradient: 8,448 for a width of 512 on an H100.
    columns = math.ceil(hidden_size / CHUNK_TILE_COLUMNS)
    return tiles(min(properties.multi_processor_count * CHUNK_TILE // columns, CHUNK_LOGITS_BIG // vocab_size))


def tiles(rows: int) -> int:
    """`rows` rounded down to whole tiles, if it is one or more."""
    return rows // CHUNK_TILE * CHUNK_TILE or max(1, rows)


def plain_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The same, all logits at once."""
    return functional.cross_entropy((hidden @ weight.T).float(), labels, ignore_index=IGNORED, reduction="sum")


def liger_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The same by the package liger-kernel, on GPUs."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    total: Tensor = liger_fused_linear_cross_entropy(hidden, weight, labels, ignore_index=IGNORED, reduction="sum")
    return total


def token_losses(model: Any, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
    """The loss of each token but the first of each row, shape `(rows, tokens - 1)`, fp32; a few rows' logits at a time.

    `model` is a causal language model with a `model` and an `lm_head`; `input_ids` are int64 on its device. Documents are
    kept apart by `position_ids` that restart (`train.data.DocumentCollator`).
    """
    output = model.model(input_ids=input_ids, position_ids=position_ids, use_cache=False)
    hidden, targets = output.last_hidden_state[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten()
    rows = max(1, EVALUATION_LOGITS // model.lm_head.weight.shape[0])
    parts = [
        functional.cross_entropy(
            model.lm_head(hidden[start : start + rows]).float(), targets[start : start + rows], reduction="none"
        )
        for start in range(0, len(targets), rows)
    ]
    return torch.cat(parts).view(len(input_ids), -1)


_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": plain_cross_entropy,
    "chunked": chunked_cross_entropy,
    "liger": liger_cross_entropy,
}


def chosen_loss(name: LossName, vocab_size: int, *, on_cpu: bool) -> str:
    """What `auto` means for this vocabulary. Raises `InputError` if the choice can't be had."""
    if name == "liger" and importlib.util.find_spec("liger_kernel") is None:
        raise InputError("loss: liger needs the package: pip install liger-kernel (or choose chunked)")
    if name != "auto":
        return name
    least = CHUNKED_FROM_VOCABULARY_CPU if on_cpu else CHUNKED_FROM_VOCABULARY
    return "chunked" if vocab_size >= least else "plain"


def install_loss(model: Qwen2ForCausalLM, name: str) -> None:
    """Let `model(input_ids, labels=…)` compute this loss instead of all logits; without labels nothing changes.

    The model keeps its class, so it is saved and loaded as any other. The loss is the mean over the labels that count, or
    their sum divided by `num_items_in_batch`, as in transformers. Ids may be int32: they are widened on the device.
    """
    original, cross_entropy = model.forward, _LOSSES[name]
    share_gradient = name == "chunked" and model.config.tie_word_embeddings

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
        if "position_ids" not in kwargs:
            kwargs.setdefault("attention_mask", WHOLE_BLOCK)
        head, tied = model.lm_head.weight, TiedGradient()
        if share_gradient and torch.is_grad_enabled() and head is model.model.embed_tokens.weight:
            states = model.model(inputs_embeds=tied_embedding(input_ids, head, tied), use_cache=False, **kwargs)
            cross_entropy_here: Callable[..., Tensor] = functools.partial(chunked_cross_entropy, tied=tied)
        else:
            states = model.model(input_ids=input_ids, use_cache=False, **kwargs)
            cross_entropy_here = cross_entropy
        hidden = states.last_hidden_state[:, :-1].flatten(0, 1)
        targets = labels[:, 1:].flatten().long()
        total = cross_entropy_here(hidden, head, targets)
        count = (targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutputWithPast(loss=total / count)

    model.forward = forward
