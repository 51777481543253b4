"""The softmax of a chunk of logits as one GPU kernel (Triton): a row is read twice and written once, with one exp each.

The logits x of a row become e = exp(x − max), except at the row's label, where e − sum(e) is written: sum(e) times the
gradient of the cross-entropy by the logits. What multiplies rows of this by something can divide by sum(e) there, where
there is less to divide, and so the kernel needs no third reading.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shards.torch import IGNORED

BLOCK, WARPS = 32_768, 32  # logits at a time, and warps to a row: measured fastest on an H200, 4.8 TB/s


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(logits, labels, losses, factors, columns, ignored: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    logits += row * columns
    label = tl.load(labels + row)
    counted = label != ignored
    lanes = tl.arange(0, block)
    last = (columns - 1) // block * block

    highest = tl.full((block,), float("-inf"), tl.float32)
    for start in range(0, columns, block):
        ids = start + lanes
        highest = tl.maximum(highest, tl.load(logits + ids, ids < columns, float("-inf")).to(tl.float32))
    top = tl.max(highest, 0)
    of_label = tl.load(logits + tl.where(counted, label, 0)).to(tl.float32)
    tl.debug_barrier()  # the label's logit has been read before it is overwritten

    sums = tl.zeros((block,), tl.float32)
    for back in range(0, columns, block):  # from the end, which the cache still holds
        ids = last - back + lanes
        inside = ids < columns
        powers = tl.exp(tl.load(logits + ids, inside, float("-inf")).to(tl.float32) - top)
        sums += powers
        tl.store(logits + ids, powers.to(logits.dtype.element_ty), inside, cache_modifier=".cs")  # not read again here
    total = tl.sum(sums, 0)
    tl.debug_barrier()  # the label's power has been written before it is overwritten
    if counted:
        tl.store(logits + label, (tl.exp(of_label - top) - total).to(logits.dtype.element_ty))
    tl.store(losses + row, tl.where(counted, tl.log(total) + top - of_label, 0.0))
    tl.store(factors + row, tl.where(counted, 1 / total, 0.0))


def softmax_kernel(logits: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
    """A `train.head_loss.Softmax` for logits in bf16 or fp32, contiguous, and labels in int64."""
    factors = torch.empty_like(losses)
    _kernel[(len(logits),)](
        logits, labels, losses, factors, logits.shape[1], ignored=IGNORED, block=BLOCK, num_warps=WARPS
    )
    return factors.unsqueeze(1)
