"""Softmax, cross-entropy and their gradient for a chunk of logits: the inner step of `train.loss`."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from train.data import IGNORED

# Takes logits `(tokens, vocabulary)`, labels `(tokens,)` and `losses` `(tokens,)` in fp32 to write each token's loss to.
# Where the logits were there is then, times the factors `(tokens, 1)` that are returned, the gradient by the logits.
Softmax = Callable[[Tensor, Tensor, Tensor], Tensor]


def softmax_in_place(logits: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
    """A `Softmax` of torch's plain operations, for logits in fp32, all in their memory."""
    counted = (labels != IGNORED).unsqueeze(1)
    targets = torch.where(counted, labels.unsqueeze(1), 0)
    of_targets = logits.gather(1, targets)
    highest = logits.amax(dim=1, keepdim=True)
    sums = logits.sub_(highest).exp_().sum(dim=1, keepdim=True)
    losses.copy_(torch.where(counted, sums.log() + highest - of_targets, 0).squeeze(1))
    logits.scatter_add_(1, targets, -sums)  # softmax − one-hot, times the sum
    return torch.where(counted, 1 / sums, 0)


def softmax_scaled(logits: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
    """As `softmax_in_place`, with factors of one: what others leave unscaled may be too big for fp16."""
    factors = softmax_in_place(logits, labels, losses)
    logits.mul_(factors)
    return torch.ones_like(factors)


def softmax_for(device: torch.device, dtype: torch.dtype) -> tuple[Softmax, torch.dtype]:
    """The fastest `Softmax` where matrices are multiplied in `dtype` on this device, and the logits' type that it takes."""
    if dtype == torch.float16:
        return softmax_scaled, torch.float32
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
