"""The TrainingArguments of a run: typed by transformers' own parser, completed for this machine, tried before use."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from shards.common.errors import InputError
from shards.common.text import nearest, printable
from train.head_loss import has_triton
from train.model import bf16_pays
from train.settings import Settings
from train.training_fields import AUTO_ARGUMENTS, MUON
from train.values import read_json, require

MOST_STEPS = 2**31 - 1
METRICS = ("loss", "eval_loss", "perplexity", "eval_perplexity")  # an evaluation's; of each, less is better
_RANGES = (  # least and most, where transformers and torch look late or never
    ("per_device_train_batch_size", 1, 2**20),
    ("per_device_eval_batch_size", 1, 2**20),
    ("gradient_accumulation_steps", 1, 2**20),
    ("learning_rate", 0, None),
    ("weight_decay", 0, None),
    ("dataloader_prefetch_factor", 1, None),
    ("seed", 0, 2**32 - 1),
)
_FAULTS = (ValueError, TypeError, ImportError, LookupError, ArithmeticError, AttributeError, RuntimeError)


class _Parser(HfArgumentParser):  # type: ignore[misc]
    """transformers' parser, whose errors are exceptions: it knows each field's type and choices."""

    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentTypeError(message)


def typed(settings: Settings) -> Settings:
    """`settings` with the values of `training` in the types of their fields. Raises `InputError`, naming the place."""
    parser = _Parser(TrainingArguments, allow_abbrev=False)
    defaults = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    values = {}
    for key, value in settings.training.items():
        where = settings.origin.get(key, f"training: {key}")
        word = value.strip().lower() if isinstance(value, str) else value
        if word in (None, "none", "null"):
            require(defaults[key] is None, where, "a value", None)
            continue
        if (key in AUTO_ARGUMENTS and word == "auto") or (key == "optim" and word == MUON):
            values[key] = word
            continue
        values[key] = _typed(parser, key, value, where)
    return dataclasses.replace(settings, training=values)


def _typed(parser: _Parser, key: str, value: Any, where: str) -> Any:
    if isinstance(value, str) and value.strip().startswith("["):
        value = read_json(value, where)
    words = value if isinstance(value, list) else [value]
    spelled = [word if isinstance(word, str) else json.dumps(word) for word in words]
    try:
        found = getattr(
            parser.parse_args([f"--{key}", *spelled] if len(spelled) > 1 else [f"--{key}={spelled[0]}"]), key
        )
    except (argparse.ArgumentTypeError, IndexError) as error:
        reason = str(error).partition(": ")[2] or "expected a value"
        choices = [member.value for member in OptimizerNames] + [MUON] if key == "optim" else []
        raise InputError(f"{where}: {printable(reason)[:600]}{nearest(str(value), choices)}") from None
    if isinstance(found, float) and not math.isfinite(found):
        raise InputError(f"{where}: expected a finite number, found {found}")
    return read_json(found, where) if isinstance(found, str) and found.startswith("{") else found


def build_arguments(settings: Settings, *, epoch_blocks: int) -> TrainingArguments:
    """What the user set (`typed`), and defaults that suit this machine and this trainer. Raises `InputError`."""
    training = settings.training
    on_cpu = bool(training.get("use_cpu")) or not torch.accelerator.is_available()
    values: dict[str, Any] = {
        "per_device_eval_batch_size": training.get("per_device_train_batch_size", 8),
        "dataloader_pin_memory": not on_cpu,
        "accelerator_config": {"non_blocking": not on_cpu},
        "disable_tqdm": not sys.stderr.isatty(),  # where no bar can be drawn
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # looking for them makes a GPU wait, and they shall be seen
        "save_total_limit": 10,
        "greater_is_better": False,  # of a loss and of a perplexity
        **training,
        "output_dir": str(settings.output_dir),
        "use_cpu": on_cpu,
        "use_cache": True,  # as it shall be saved; the loss is computed without one
        "report_to": [],
        "remove_unused_columns": False,
        "ignore_data_skip": True,
    }
    if settings.global_batch_blocks is not None:
        most, num_processes = values.get("per_device_train_batch_size", 8), int(os.environ.get("WORLD_SIZE", "1"))
        values["per_device_train_batch_size"], values["gradient_accumulation_steps"] = micro_batches(
            settings.global_batch_blocks, most, num_processes
        )
    if values.get("optim") == MUON:
        values["optim"] = "adamw_torch"  # `BlockTrainer.create_optimizer` makes Muon
    if values.get("bf16", "auto") == "auto":
        values["bf16"] = bf16_pays(on_cpu=on_cpu) and not values.get("fp16", False)
    if values.get("torch_compile") == "auto":
        values["torch_compile"] = not on_cpu and has_triton()
    if on_cpu and values.get("fsdp"):
        raise InputError("training: fsdp: shards a model over GPUs, and this run uses the CPU; leave it out")
    if "LOCAL_RANK" in os.environ:
        values.setdefault("ddp_find_unused_parameters", False)  # all are used, and looking costs each step
        if on_cpu:
            values.setdefault("ddp_backend", "gloo")
    for name, least, most in _RANGES:
        value = values.get(name)
        expected = f"{least} or more" if most is None else f"{least} to {most:,}"
        where = settings.origin.get(name, f"training: {name}")
        require(value is None or (least <= value and (most is None or value <= most)), where, expected, value)
    for name in ("logging_steps", "eval_steps", "save_steps"):
        never = f"above 0 (for never: {name.partition('_')[0]}_strategy: 'no')"
        where = settings.origin.get(name, f"training: {name}")
        require(values.get(name) is None or values[name] > 0, where, never, values.get(name))
    metric = values.get("metric_for_best_model")
    require(metric is None or metric in METRICS, "training: metric_for_best_model", ", ".join(METRICS), metric)
    with one_line_errors("training"):
        args = TrainingArguments(**values)
    if args.gradient_checkpointing and args.gradient_checkpointing_kwargs:
        with one_line_errors("training: gradient_checkpointing_kwargs"):
            options = {"use_reentrant": False, **args.gradient_checkpointing_kwargs}
            checkpoint(torch.neg, torch.zeros(2, requires_grad=True), **options)
    if args.torch_compile:
        with one_line_errors("training: torch_compile"):
            torch.compile(torch.neg, backend=args.torch_compile_backend, mode=args.torch_compile_mode)
    if args.n_gpu > 1:
        raise InputError(
            f"{args.n_gpu} GPUs are visible to one process: start one for each with `torchrun --nproc-per-node "
            f"{args.n_gpu} -m train …` (make: NPROC={args.n_gpu}), or choose one with CUDA_VISIBLE_DEVICES=0"
        )
    if args.max_steps <= 0:
        require(args.num_train_epochs > 0, "training: num_train_epochs", "above 0", args.num_train_epochs)
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        steps = args.num_train_epochs * epoch_blocks / batch
        args.max_steps = max(1, math.ceil(min(steps, MOST_STEPS + 1)))
    require(args.max_steps <= MOST_STEPS, "training", f"at most {MOST_STEPS:,} steps", args.max_steps)
    if args.lr_scheduler_type == "warmup_stable_decay":
        warmup = args.get_warmup_steps(args.max_steps)
        given = args.lr_scheduler_kwargs or {}
        args.lr_scheduler_kwargs = decay_settings(given, max_steps=args.max_steps, warmup_steps=warmup)
    return args


def micro_batches(global_batch_blocks: int, most_blocks: int, num_processes: int) -> tuple[int, int]:
    """A micro-batch in blocks, `most_blocks` or a process's share if that is less; and how many a process has in a step.

    256 blocks on 4 processes: 2 micro-batches of 32 each, or, where 128 are allowed, one of 64. Raises `InputError` if
    they can't be shared evenly.
    """
    micro_batch = max(1, min(most_blocks, global_batch_blocks // num_processes))
    steps, rest = divmod(global_batch_blocks, micro_batch * num_processes)
    if rest:
        processes = f" by {num_processes} processes" if num_processes > 1 else ""
        raise InputError(
            f"global_batch_blocks: {global_batch_blocks} blocks can't be shared{processes} in "
            f"micro-batches of {micro_batch}; choose another --per_device_train_batch_size"
        )
    return micro_batch, steps


def decay_settings(given: dict[str, Any], *, max_steps: int, warmup_steps: int) -> dict[str, Any]:
    """The settings of `warmup_stable_decay`: unless given, the rate falls linearly in the last fifth of the steps.

    A `num_decay_steps` below 1 is a share of the steps, as `warmup_steps` is. Raises `InputError` if the decay does not
    fit after the warm-up; one step too many, as when both are rounded up, is left out, and so is a fifth not asked for.
    """
    where = "training: lr_scheduler_kwargs: num_decay_steps"
    settings = {"num_decay_steps": 0.2, "decay_type": "linear", **given}
    asked = settings["num_decay_steps"]
    is_number = isinstance(asked, int | float) and math.isfinite(asked) and asked >= 0
    require(is_number, where, "a number from 0 on", asked)
    decay = math.ceil(asked * max_steps) if asked < 1 else math.ceil(asked)
    excess = warmup_steps + decay - max_steps
    if "num_decay_steps" in given and excess > (1 if asked < 1 else 0):
        raise InputError(
            f"{where}: {warmup_steps:,} steps of warm-up and {decay:,} of decay are more than the run's {max_steps:,}"
        )
    settings["num_decay_steps"] = decay - min(decay, max(0, excess))
    return settings


@contextlib.contextmanager
def one_line_errors(setting: str) -> Iterator[None]:
    """What transformers and torch raise about a `setting` is an `InputError` with the first line of the error."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except _FAULTS as error:
        words = str(error).strip().splitlines()[:1] or [""]
        reason = f"{type(error).__name__} {words[0]}" if isinstance(error, LookupError) else words[0]
        raise InputError(f"{setting}: {printable(reason or type(error).__name__)}") from None


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
