"""The loss over a large vocabulary, a chunk of tokens at a time: all logits never exist at once.

`chunked_cross_entropy` computes a chunk's logits, its loss and, where gradients are wanted, its share of the gradients in
the forward pass: nothing is computed twice, one buffer serves all chunks, and what is kept has the size of the hidden
states and of the head. The softmax is in fp32. Equal to the plain loss up to rounding.

With tied weights the embedding's gradient is added into the head's (`TiedGradient`), so that there is one, not two.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from shards.torch import IGNORED

CHUNKED_FROM_VOCABULARY = 16_384  # `auto` on a GPU: below, all logits at once are small and faster
CHUNKED_FROM_VOCABULARY_CPU = 2_048  # on a CPU the buffer that is used again is what makes it fast
CHUNK_LOGITS = 1 << 28  # logits at a time on a GPU: 512 MiB in bf16 …
CHUNK_LOGITS_BIG = 3 << 29  # … and up to 3 GiB on a GPU with this much memory or more, 12 % faster
BIG_GPU_BYTES = 32 << 30
CHUNK_TILE = 128  # rows of a product that one multiprocessor of a GPU computes at a time …
CHUNK_TILE_COLUMNS = 256  # … and columns
CHUNK_ROWS_CPU = 256  # tokens at a time on a CPU: measured fastest for vocabularies of 8,192 and of 151,646 …
CHUNK_LOGITS_CPU = 1 << 24  # … but no more logits than these, 64 MiB, unless the rows get fewer than 128: 5 % slower

# Takes logits `(tokens, vocabulary)`, labels `(tokens,)` and `losses` `(tokens,)` in fp32 to write each token's loss to.
# It leaves the gradient by the logits in their place, up to the factors `(tokens, 1)` that it returns.
Softmax = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclasses.dataclass
class TiedGradient:
    """Takes the head's gradient from its backward pass to the embedding's, which adds its own and hands on the sum."""

    gradient: Tensor | None = None


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropy of `hidden @ weight.T` against `labels`; see `chunked_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk_rows: int, tied: TiedGradient | None
    ) -> Tensor:
        losses, *gradients = _run_chunks(hidden, weight, labels, chunk_rows, ctx.needs_input_grad[:2])
        ctx.gradients, ctx.weight_dtype, ctx.tied = gradients, weight.dtype, tied
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.gradients
        tied: TiedGradient | None = ctx.tied
        ctx.gradients = ctx.tied = None
        (scale,) = grad_outputs
        if grad_hidden is not None:
            grad_hidden = grad_hidden.mul_(scale)
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(scale).to(ctx.weight_dtype)
            if tied is not None:
                tied.gradient, grad_weight = grad_weight, None
        return grad_hidden, grad_weight, None, None, None


def _run_chunks(
    hidden: Tensor, weight: Tensor, labels: Tensor, chunk_rows: int, wanted: tuple[bool, bool] = (False, False)
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Each token's loss, `(tokens,)`; and the gradients by `hidden` and by `weight` of their sum, where `wanted`."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    softmax, logits_dtype = softmax_for(hidden.device, dtype)
    make = torch.empty_like if len(labels) else torch.zeros_like  # the first chunk's product is written, not added
    grad_hidden = torch.empty_like(hidden) if wanted[0] else None
    grad_weight = make(weight, dtype=torch.float32) if wanted[1] else None
    losses = hidden.new_empty(len(labels), dtype=torch.float32)
    buffer = hidden.new_empty(min(chunk_rows, len(labels)), len(weight), dtype=logits_dtype)
    with torch.autocast(device, enabled=False):
        head = weight.to(dtype)
        for start in range(0, len(labels), chunk_rows):
            chunk = slice(start, start + chunk_rows)
            rows = hidden[chunk].to(dtype)
            logits = buffer[: len(rows)]
            if logits.dtype == dtype:
                torch.mm(rows, head.T, out=logits)
            else:
                logits.copy_(rows @ head.T)
            factors = softmax(logits, labels[chunk], losses[chunk])
            if not any(wanted):
                continue
            gradient = logits.to(dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = (gradient @ head) * factors
            if grad_weight is not None:
                _add_product(grad_weight, gradient.T, (rows * factors).to(dtype), keep=start > 0)
    return losses, grad_hidden, grad_weight


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, keep: bool) -> None:
    """`total += left @ right`, or `=` unless `keep`; `total` is in fp32, the matrices perhaps in another type."""
    beta = 1 if keep else 0
    if left.dtype == torch.float32:
        total.addmm_(left, right, beta=beta)
    elif total.device.type == "cuda":
        torch.addmm(total, left, right, beta=beta, out_dtype=torch.float32, out=total)  # not rounded in between
    elif keep:
        total += left @ right
    else:
        total.copy_(left @ right)


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
    rows = chunk_rows or rows_at_a_time(weight, hidden.device)
    total: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, labels, rows, tied)  # type: ignore[no-untyped-call]
    return total


@torch.compiler.disable  # type: ignore[untyped-decorator]
def token_losses(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of each token, `(tokens,)` in fp32, 0 where it doesn't count; without gradients."""
    return _run_chunks(hidden, weight, labels, rows_at_a_time(weight, hidden.device))[0]


def plain_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """As `chunked_cross_entropy`, all logits at once."""
    return functional.cross_entropy((hidden @ weight.T).float(), labels, ignore_index=IGNORED, reduction="sum")


def chosen_loss(name: str, vocab_size: int, *, on_cpu: bool) -> str:
    """What `auto` means for this vocabulary: `plain` or `chunked`."""
    if name != "auto":
        return name
    return "chunked" if vocab_size >= (CHUNKED_FROM_VOCABULARY_CPU if on_cpu else CHUNKED_FROM_VOCABULARY) else "plain"


def rows_at_a_time(weight: Tensor, device: torch.device) -> int:
    """How many tokens' logits there are at once."""
    vocab_size, hidden_size = weight.shape
    if device.type == "cpu":
        return min(CHUNK_ROWS_CPU, max(CHUNK_ROWS_CPU // 2, CHUNK_LOGITS_CPU // vocab_size))
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" and has_triton() else None
    if properties is None or properties.total_memory < BIG_GPU_BYTES:  # without the kernel logits take twice the bytes
        rows = CHUNK_LOGITS // vocab_size
    else:
        # As many as give each multiprocessor one tile of the hidden states' gradient: 8,448 for a width of 512 on an H100.
        columns = math.ceil(hidden_size / CHUNK_TILE_COLUMNS)
        rows = min(properties.multi_processor_count * CHUNK_TILE // columns, CHUNK_LOGITS_BIG // vocab_size)
    return rows // CHUNK_TILE * CHUNK_TILE or max(1, rows)


def softmax_in_place(logits: Tensor, labels: Tensor, losses: Tensor, *, scaled: bool = False) -> Tensor:
    """A `Softmax` of torch's plain operations, for logits in fp32, in their memory; if `scaled`, its factors are one."""
    counted = (labels != IGNORED).unsqueeze(1)
    targets = torch.where(counted, labels.unsqueeze(1), 0)
    of_targets = logits.gather(1, targets)
    highest = logits.amax(dim=1, keepdim=True)
    sums = logits.sub_(highest).exp_().sum(dim=1, keepdim=True)
    losses.copy_(torch.where(counted, sums.log() + highest - of_targets, 0).squeeze(1))
    logits.scatter_add_(1, targets, -sums)  # softmax − one-hot, times the sum
    factors = torch.where(counted, 1 / sums, 0)
    if not scaled:
        return factors
    logits.mul_(factors)
    return torch.ones_like(factors)


def softmax_for(device: torch.device, dtype: torch.dtype) -> tuple[Softmax, torch.dtype]:
    """The fastest `Softmax` where matrices are multiplied in `dtype` on this device, and the logits' type that it takes."""
    if dtype == torch.float16:  # unscaled values may be too large for it
        return functools.partial(softmax_in_place, scaled=True), torch.float32
    if device.type != "cuda" or not has_triton():
        return softmax_in_place, torch.float32
    from train.softmax_kernel import softmax_kernel

    return softmax_kernel, dtype


@functools.cache
def has_triton() -> bool:
    """Whether kernels can be compiled for the GPU here: Triton, the C compiler that it calls, and a GPU from 2017 on."""
    if importlib.util.find_spec("triton") is None or not torch.cuda.is_available():
        return False
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    return compiler is not None and torch.cuda.get_device_capability()[0] >= 7
