"""How well a model predicts blocks of text: one function for evaluation in training, at its end, and by `train.evaluate`.

The mean loss a token is the same for any number of processes and any micro-batch: each process sums over its own blocks,
and the sums are added. (transformers' own loop averages the means of batches, which is inexact where the last batch is
smaller, and with several processes evaluates some blocks twice.) Padding doesn't count.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

import shards
from shards.torch import IGNORED, BlockDataset, Collator

Floats = npt.NDArray[np.float64]


def spread_evenly(total: int, limit: int | None) -> list[int]:
    """`limit` of the numbers below `total`, spread evenly; all where there are no more, or no limit.

    >>> spread_evenly(7, 3)
    [0, 2, 4]
    """
    count = total if limit is None else min(limit, total)
    return [number * total // count for number in range(count)]


def evaluate_blocks(
    model: Any,
    dataset: BlockDataset,
    numbers: Sequence[int],
    collate: Collator,
    *,
    device: torch.device,
    batch_blocks: int,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    on_batch: Callable[[range], None] = lambda _batches: None,
) -> tuple[Floats, Floats]:
    """The sums of losses (nats) and the numbers of labels at positions 1 … block_tokens − 1, over the blocks `numbers`.

    `model` is a `train.model.Qwen2ForCausalLM`, perhaps wrapped. Every process calls this and gets the sums of all.
    """
    rank, num_ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    # A sharded model takes all processes for each batch, so all go through equally many; and all batches are of one size,
    # for which a compiled model is compiled once: blocks that make up the number have no labels.
    most = -(-len(numbers) // num_ranks)
    mine = list(numbers[rank::num_ranks])
    batch_blocks = min(batch_blocks, most)
    batches = range(0, most, batch_blocks)
    precision = torch.float32 if device.type == "mps" else torch.float64
    totals = torch.zeros(2, len(dataset[numbers[0]]) - 1, dtype=precision, device=device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for first in batches:
            chosen = mine[first : first + batch_blocks]
            batch = collate(dataset.__getitems__(chosen + [0] * (batch_blocks - len(chosen))))
            batch["labels"] = batch["labels"].clone()  # it may be the ids themselves
            batch["labels"][len(chosen) :] = IGNORED
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with autocast():
                losses = model(**batch, num_items_in_batch=1, want_token_losses=True).token_losses
            totals[0] += losses.sum(dim=0, dtype=precision)
            totals[1] += (batch["labels"][:, 1:] != IGNORED).sum(dim=0)
            on_batch(batches)
    if num_ranks > 1:
        dist.all_reduce(totals)
    model.train(was_training)
    sums, counts = totals.double().cpu().numpy()
    return sums, counts


def text_bits(loss: float, splits: Sequence[shards.Split]) -> float:
    """What the texts of `splits` take in bits when a token has `loss` nats.

    These are whole texts, as `num_text_bytes` and `num_text_chars` count them: tokens that nothing predicts are taken to
    cost what the others do, so that packings can be compared. A document's EOS is a token too: saying where a text ends is
    part of its price.
    """
    return loss / math.log(2) * sum(split.num_tokens for split in splits)


def bits_per_byte(data: shards.Data, loss: float | None) -> float | None:
    """What `loss`, in nats a token, is in bits per byte of the validation texts; None if that isn't known."""
    splits = [part["val"] for part in data.sets]
    num_bytes = sum(split.num_text_bytes for split in splits)
    return text_bits(loss, splits) / num_bytes if loss is not None and num_bytes else None
