"""The mean loss a token on the validation blocks, the same for any number of processes and any micro-batch.

Filling doesn't count, whatever the training does: the loss is the one that `train.evaluate` finds.

transformers' own loop averages the means of batches, which is inexact where the last batch is smaller, and with several
processes evaluates some blocks twice. Here each process sums over its own blocks, and the sums are added.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from train.data import IGNORED


def evaluate_held_out(trainer: Any, *, most_blocks: int | None = None) -> dict[str, float]:
    """`eval_loss` in nats a token, and `eval_runtime` in seconds, `eval_samples`, `eval_samples_per_second` (blocks).

    Of more than `most_blocks` so many are taken, or up to half as few, each time the same ones, spread evenly.
    `trainer` is a Trainer with an `eval_dataset`, a `text_collator`, and a model whose loss is divided by
    `num_items_in_batch` (`train.loss`). Every process calls this.
    """
    args, dataset, model = trainer.args, trainer.eval_dataset, trainer.model_wrapped
    start = time.monotonic()
    was_training = model.training
    model.eval()
    chosen = range(0, len(dataset), -(-len(dataset) // most_blocks) if most_blocks else 1)
    mine = list(chosen[args.process_index :: args.world_size])
    # A sharded model takes all processes for each batch, so all go through equally many; and all batches are of one size,
    # for which a compiled model is compiled once: blocks that make them up have no labels.
    most = -(-len(chosen) // args.world_size)
    batch_blocks = min(args.per_device_eval_batch_size, most)
    starts = range(0, most, batch_blocks)
    trainer.callback_handler.eval_dataloader = starts  # its length is that of the progress bar
    precision = torch.float32 if args.device.type == "mps" else torch.float64
    totals = torch.zeros(2, dtype=precision, device=args.device)  # sum of losses, number of labels
    with torch.no_grad():
        for first in starts:
            numbers = mine[first : first + batch_blocks]
            batch = trainer.text_collator(dataset.__getitems__(numbers + [0] * (batch_blocks - len(numbers))))
            batch["labels"][len(numbers) :] = IGNORED
            batch = {name: tensor.to(args.device) for name, tensor in batch.items()}
            with trainer.compute_loss_context_manager():
                total = model(**batch, num_items_in_batch=1).loss
            totals[0] += total
            totals[1] += (batch["labels"][:, 1:] != IGNORED).sum()
            handler = trainer.callback_handler
            trainer.control = handler.on_prediction_step(args, trainer.state, trainer.control)
    if args.world_size > 1:
        torch.distributed.all_reduce(totals)
    model.train(was_training)
    loss, count = totals.tolist()
    seconds = time.monotonic() - start
    return {
        "eval_loss": loss / max(count, 1),
        "eval_runtime": seconds,
        "eval_samples": len(chosen),
        "eval_samples_per_second": len(chosen) / max(seconds, 1e-9),
    }
