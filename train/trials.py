"""What is tried before a training: whether it can begin, the largest micro-batch that fits, `--dry_run`. Writes nothing."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments

import shards
from shards.common.command_line import say
from shards.common.errors import InputError
from shards.common.text import duration, plural, size_text
from train.arguments import MEMORY_REMEDY, build_arguments, check, one_line_errors
from train.callbacks import passes, start_lines
from train.environment import out_of_memory
from train.flops import peak_memory_bytes
from train.run_directory import Plan, new_record
from train.settings import Settings
from train.trainer import BlockTrainer, first_model

CPU_BLOCKS = 8  # on a CPU larger ones are hardly faster, and running out of memory can't be caught
NUM_TIMED = 3
_TRIED_SHARE = 0.92  # of the GPU's memory: the rest is for fragmentation, evaluation and communication


def preflight(trainer: Trainer) -> None:
    """Raise `InputError` if the training could not begin: its loader, optimizer and schedule are made and put aside.

    Trainer makes them again when the training begins. Draws no random number.
    """
    args = trainer.args
    with one_line_errors("training: dataloader"):
        trainer.get_train_dataloader()
    with one_line_errors(f"training: optim: {args.optim.value}"):
        optimizer = trainer.create_optimizer()
    with one_line_errors(f"training: lr_scheduler_type: {args.lr_scheduler_type.value}"):
        schedule = trainer.create_scheduler(args.max_steps, optimizer)
        steps, warmup = args.max_steps, args.get_warmup_steps(args.max_steps)
        for step in sorted({0, 1, warmup, warmup + 1, (warmup + steps) // 2, steps - 1, steps}):
            if isinstance(schedule, LambdaLR) and not all(math.isfinite(rate(step)) for rate in schedule.lr_lambdas):
                raise ValueError(f"the rate of step {step:,} is non-finite; change lr_scheduler_kwargs")
    trainer.optimizer = trainer.lr_scheduler = None


def arguments_for(settings: Settings, data: shards.Data, args: TrainingArguments, plan: Plan) -> TrainingArguments:
    """The arguments, with the micro-batch found where the settings leave it open: the plan's, or by trying."""
    if settings.training.get("per_device_train_batch_size") != "auto":
        return args
    blocks = plan.micro_batch_blocks or find_micro_batch(settings, data, args)
    return build_arguments(settings, data, auto_blocks=blocks)


def find_micro_batch(settings: Settings, data: shards.Data, args: TrainingArguments) -> int:
    """The largest micro-batch in blocks with which a step fits this device's memory."""
    assert settings.global_batch_blocks is not None
    share = settings.global_batch_blocks // args.world_size
    if args.use_cpu:
        return math.gcd(share, CPU_BLOCKS)
    model, block_tokens = first_model(settings, data, args), data.block_tokens
    return largest_micro_batch(lambda blocks: try_step(model, args, torch.Size((blocks, block_tokens))), share)


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
        votes = torch.tensor(int(fits), device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(votes, op=dist.ReduceOp.MIN)
        fits = bool(votes)
    return fits


def try_step(model: nn.Module, args: TrainingArguments, shape: torch.Size) -> None:
    """An AdamW step of a copy of `model` on ids of `shape`, unless memory is out. Draws no random number from CPU's."""
    device, on_gpu = args.device, args.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_per_process_memory_fraction(_TRIED_SHARE, device)
    try:
        trial = copy.deepcopy(model).to(device).train()
        optimizer = torch.optim.AdamW(trial.parameters())
        ids = torch.zeros(shape, dtype=torch.long, device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.bf16):
            loss = trial(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
    finally:
        if on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0, device)


def dry_run(settings: Settings, data: shards.Data) -> list[str]:
    """Lines for people, from a few micro-batches: steps, passes of each set, time, memory, disk. Raises `InputError`.

    Measured in this process alone: what processes send each other, compiling, evaluation and saving come on top.
    """
    settings, args = check(settings, data)
    with out_of_memory(MEMORY_REMEDY):
        args = arguments_for(settings, data, args, Plan())
        with tempfile.TemporaryDirectory() as args.output_dir:  # Trainer makes the run's directory
            trainer = BlockTrainer(settings, data, args)
        args.output_dir = str(settings.output_dir)
        preflight(trainer)
        if trainer.is_fsdp_enabled:
            raise InputError("--dry_run: a model sharded over processes (fsdp) isn't tried; use --max_steps 3")
        if trainer.is_world_process_zero():
            say(f"trying {1 + NUM_TIMED} micro-batches of {plural(args.train_batch_size, 'block')}")
        step_seconds = time_of_step(trainer)
    session = new_record(settings, data, Plan(), [], args, [])["sessions"][-1]
    batch_blocks = trainer.batch_blocks
    of_sets = [f"{path.name} {times:.2f}" for path, times in passes(data, trainer.order, args.max_steps * batch_blocks)]
    rate = batch_blocks * data.block_tokens / step_seconds
    return [
        *start_lines(data, trainer, Plan(), session),
        f"passes   {', '.join(of_sets)}",
        f"time     about {duration(step_seconds * args.max_steps)}: {step_seconds:,.2f} s a step, {rate:,.0f} tokens/s",
        f"memory   {size_text(peak_memory_bytes(args.device))} at the peak of a step",
        f"disk     {disk(trainer)}",
    ]


def time_of_step(trainer: BlockTrainer) -> float:
    """Seconds of a step: its micro-batches, of which a few are tried after one that warms up, and the optimizer's."""
    optimizer, device = trainer.create_optimizer(), trainer.args.device
    batches = itertools.cycle(trainer.get_train_dataloader())  # a short run has fewer than are tried

    def seconds(work: Callable[[], object]) -> float:
        begin = time.monotonic()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.monotonic() - begin

    def micro_batch() -> None:
        batch = next(batches)
        trainer.training_step(trainer.model, batch, num_items_in_batch=batch["labels"].numel())

    forward_and_backward = [seconds(micro_batch) for _ in range(1 + NUM_TIMED)]
    updates = [seconds(optimizer.step) for _ in range(2)]  # the first makes the optimizer's state
    return int(trainer.args.gradient_accumulation_steps) * statistics.median(forward_and_backward[1:]) + updates[-1]


def disk(trainer: BlockTrainer) -> str:
    """What checkpoints and the model take, and what is free. One checkpoint more is there while an old one is replaced."""
    args, out = trainer.args, Path(trainer.args.output_dir).absolute()
    model_bytes = sum(one.nbytes for one in trainer.model.parameters())
    state = (value for values in trainer.optimizer.state.values() for value in values.values())
    checkpoint_bytes = model_bytes + sum(one.nbytes for one in state if isinstance(one, torch.Tensor))
    save_steps = args.save_steps if args.save_steps >= 1 else args.max_steps * args.save_steps  # a share of the run
    by_strategy = {"no": 0, "epoch": trainer.true_epoch(args.max_steps)}
    num_saved = math.ceil(by_strategy.get(args.save_strategy.value, args.max_steps / save_steps))
    num_kept = min(num_saved, (trainer.save_total_limit or num_saved) + 1)
    total = num_kept * checkpoint_bytes + model_bytes
    free = shutil.disk_usage(next(path for path in (out, *out.parents) if path.exists())).free
    lacks = "; that is too little" if free < total else ""
    checkpoints = f"{plural(num_kept, 'checkpoint')} of {size_text(checkpoint_bytes)}"
    return f"{size_text(total)}: {checkpoints} and the model; {size_text(free)} are free{lacks}"
