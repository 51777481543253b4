"""`per_device_train_batch_size: auto`: the largest micro-batch that fits, found by trying a step before the training.

The global batch stays what the settings say, so the order of blocks and the arithmetic of a step do too.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

CPU_BLOCKS = 8  # on a CPU larger ones are hardly faster, and running out of memory can't be caught
_TRIED_SHARE = 0.92  # of the GPU's memory: the rest is for fragmentation, evaluation and communication


def largest_micro_batch(attempt: Callable[[int], None], share_blocks: int) -> int:
    """The largest power of two that divides `share_blocks` for which `attempt` has enough memory, on every rank.

    `share_blocks` is a process's share of the global batch. Raises `torch.OutOfMemoryError` if one block is too much.

    >>> largest_micro_batch(lambda blocks: None, 96)
    32
    """
    blocks = share_blocks & -share_blocks
    while not _fits(attempt, blocks):
        if blocks == 1:
            raise torch.OutOfMemoryError("a micro-batch of one block doesn't fit")
        blocks //= 2
    return blocks


def _fits(attempt: Callable[[int], None], blocks: int) -> bool:
    fits = True
    try:
        attempt(blocks)
    except torch.OutOfMemoryError:
        fits = False
    gc.collect()  # the error's frames hold the step's tensors, until here
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if dist.is_initialized():
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        votes = torch.tensor(int(fits), device=device)
        dist.all_reduce(votes, op=dist.ReduceOp.MIN)
        fits = bool(votes)
    return fits


def try_step(model: nn.Module, device: torch.device, *, blocks: int, block_tokens: int, bf16: bool) -> None:
    """Forward, backward and an AdamW step of a copy of `model` on `blocks` blocks. Draws no random number from CPU's.

    Raises `torch.OutOfMemoryError`.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_per_process_memory_fraction(_TRIED_SHARE, device)
    try:
        trial = copy.deepcopy(model).to(device).train()
        optimizer = torch.optim.AdamW(trial.parameters())
        ids = torch.zeros(blocks, block_tokens, dtype=torch.long, device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = trial(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
    finally:
        if on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
