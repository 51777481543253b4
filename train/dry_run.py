"""`--dry_run`: what a run would take, from a few of its micro-batches. Nothing is written.

Measured in this process alone: what processes send each other, compiling, evaluation and saving come on top.
"""

from __future__ import annotations

import math
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

import shards
from shards.common.command_line import say
from shards.common.errors import InputError
from shards.common.text import duration, plural, size_text
from train.arguments import preflight
from train.environment import out_of_memory
from train.flops import peak_memory_bytes
from train.log_lines import passes, start_lines
from train.run import MEMORY_REMEDY, arguments_for, build_trainer, check
from train.run_directory import Plan, new_record
from train.settings import Settings
from train.trainer import BlockTrainer

NUM_TIMED = 3


def dry_run(settings: Settings, data: shards.Data) -> list[str]:
    """Lines for people: steps, passes of each set, time, memory, disk. Raises `InputError`."""
    settings, args = check(settings, data)
    with out_of_memory(MEMORY_REMEDY):
        args = arguments_for(settings, data, args, Plan())
        with tempfile.TemporaryDirectory() as args.output_dir:  # Trainer makes the run's directory
            trainer = build_trainer(settings, data, args)
        args.output_dir = str(settings.output_dir)
        preflight(trainer)
        if trainer.is_fsdp_enabled:
            raise InputError("--dry_run: a model sharded over processes (fsdp) isn't tried; use --max_steps 3")
        if trainer.is_world_process_zero():
            say(f"trying {1 + NUM_TIMED} micro-batches of {plural(args.train_batch_size, 'block')}")
        step_seconds = time_of_step(trainer)
    session = new_record(settings, data, Plan(), [], args, [])["sessions"][-1]
    num_blocks = args.max_steps * trainer.position.global_batch_blocks
    of_sets = [f"{path.name} {times:.2f}" for path, times in passes(data, trainer.order, num_blocks)]
    rate = trainer.position.global_batch_blocks * trainer.position.block_tokens / step_seconds
    return [
        *start_lines(data, trainer, Plan(), session),
        f"passes   {', '.join(of_sets)}",
        f"time     about {duration(step_seconds * args.max_steps)}: {step_seconds:,.2f} s a step, {rate:,.0f} tokens/s",
        f"memory   {size_text(peak_memory_bytes(args.device))} at the peak of a step",
        f"disk     {disk(trainer)}",
    ]


def time_of_step(trainer: BlockTrainer) -> float:
    """Seconds of a step: its micro-batches, of which a few are tried after one that warms up, and the optimizer's."""
    optimizer, batches, seconds = trainer.create_optimizer(), iter(trainer.get_train_dataloader()), []
    for _ in range(1 + NUM_TIMED):
        batch, begin = next(batches), time.monotonic()
        trainer.training_step(trainer.model, batch, num_items_in_batch=batch["labels"].numel())
        _wait_for(trainer.args.device)
        seconds.append(time.monotonic() - begin)
    updates = []
    for _ in range(2):  # the first makes the optimizer's state
        begin = time.monotonic()
        optimizer.step()
        _wait_for(trainer.args.device)
        updates.append(time.monotonic() - begin)
    num_micro_batches: int = trainer.args.gradient_accumulation_steps
    return num_micro_batches * statistics.median(seconds[1:]) + updates[-1]


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def disk(trainer: BlockTrainer) -> str:
    """What checkpoints and the model take, and what is free. One checkpoint more is there while an old one is replaced."""
    args, out = trainer.args, Path(trainer.args.output_dir).absolute()
    model_bytes = sum(one.numel() * one.element_size() for one in trainer.model.parameters())
    state = (value for values in trainer.optimizer.state.values() for value in values.values())
    state_bytes = sum(one.numel() * one.element_size() for one in state if isinstance(one, torch.Tensor))
    save_steps = args.save_steps if args.save_steps >= 1 else args.max_steps * args.save_steps  # a share of the run
    by_strategy = {"no": 0, "epoch": trainer.true_epoch(args.max_steps)}
    num_saved = math.ceil(by_strategy.get(args.save_strategy.value, args.max_steps / save_steps))
    num_kept = min(num_saved, (trainer.save_total_limit or num_saved) + 1)
    total = num_kept * (model_bytes + state_bytes) + model_bytes
    free = shutil.disk_usage(next(path for path in (out, *out.parents) if path.exists())).free
    lacks = "; that is too little" if free < total else ""
    return (
        f"{size_text(total)}: {plural(num_kept, 'checkpoint')} of {size_text(model_bytes + state_bytes)} and the model; "
        f"{size_text(free)} are free{lacks}"
    )
