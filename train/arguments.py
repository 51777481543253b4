"""The TrainingArguments of a run: typed by transformers' own annotations, completed for this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import math
import os
import sys
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from torch.utils.checkpoint import checkpoint
from transformers import TrainingArguments
from transformers.activations import ACT2FN

import shards
from shards.common.errors import InputError, choice
from shards.common.text import printable
from train.head_loss import has_triton
from train.model import bf16_pays
from train.settings import MUON, Settings
from train.values import Allowed, Count, NotNegative, Seed, convert

MEMORY_REMEDY = (
    "choose a smaller --per_device_train_batch_size (with global_batch_blocks, or as many times more "
    "--gradient_accumulation_steps, a step stays the same) and --per_device_eval_batch_size; "
    "the same command with that goes on from the newest checkpoint"
)
# What transformers and torch check late or never, and values of our own.
_KINDS: dict[str, Any] = {
    "per_device_train_batch_size": Literal["auto"] | Count,
    "per_device_eval_batch_size": Count,
    "gradient_accumulation_steps": Count,
    "dataloader_prefetch_factor": Count | None,
    "learning_rate": NotNegative,
    "weight_decay": NotNegative,
    "seed": Seed,
    "max_steps": Annotated[
        int, Allowed("1 to 2,147,483,647, or -1 (num_train_epochs)", lambda value: value == -1 or 0 < value < 2**31)
    ],
    "num_train_epochs": Annotated[float, Allowed("above 0, at most 1,000,000", lambda value: 0 < value <= 1e6)],
    # An evaluation's; of each, less is better.
    "metric_for_best_model": Literal["loss", "eval_loss", "perplexity", "eval_perplexity"] | None,
    "bf16": Literal["auto"] | bool,
    "torch_compile": Literal["auto"] | bool,
}
for _name in ("logging", "eval", "save"):
    _never = Allowed(f"above 0 (for never: {_name}_strategy: 'no')", lambda value: value > 0)
    _KINDS[f"{_name}_steps"] = Annotated[float, _never]
_KINDS["eval_steps"] |= None  # `logging_steps`


def check(settings: Settings, data: shards.Data) -> tuple[Settings, TrainingArguments]:
    """The settings with typed values, and the arguments for this machine. Raises `InputError`; writes nothing."""
    settings = typed(settings)
    choice("model: hidden_act", settings.model.hidden_act, sorted(ACT2FN))
    return settings, build_arguments(settings, data)


def typed(settings: Settings) -> Settings:
    """`settings` with the values of `training` in the types of their fields. Raises `InputError`, naming the place."""
    hints, values = typing.get_type_hints(TrainingArguments), {}
    choices = {field.name: field.metadata.get("choices", ()) for field in dataclasses.fields(TrainingArguments)}
    for name, hint in hints.items():
        for kind in typing.get_args(hint):
            if isinstance(kind, enum.EnumType):
                choices[name] = [member.value for member in typing.cast(Any, kind)]
    choices["optim"] = [*choices["optim"], MUON]
    for name, value in settings.training.items():
        where = settings.origin[name]
        if choices[name] and value is not None:
            values[name] = choice(where, str(value), choices[name])
        else:
            values[name] = convert(value, _KINDS.get(name, hints[name]), where)
    return dataclasses.replace(settings, training=values)


def build_arguments(settings: Settings, data: shards.Data, *, auto_blocks: int = 1) -> TrainingArguments:
    """What the user set (`typed`; `auto_blocks` for `auto`), and defaults that suit this machine. Raises `InputError`."""
    training, micro_batch = settings.training, settings.training.get("per_device_train_batch_size", 8)
    if micro_batch == "auto":
        where = settings.origin["per_device_train_batch_size"]
        if settings.global_batch_blocks is None:
            raise InputError(
                f"{where}: auto finds how many blocks fit at a time; set global_batch_blocks, those of a step"
            )
        micro_batch = auto_blocks
    on_cpu = bool(training.get("use_cpu")) or not torch.accelerator.is_available()
    values: dict[str, Any] = {
        "per_device_eval_batch_size": micro_batch,
        "dataloader_pin_memory": not on_cpu,
        "accelerator_config": {"non_blocking": not on_cpu},
        "disable_tqdm": not sys.stderr.isatty(),  # where no bar can be drawn
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # looking for them makes a GPU wait, and they shall be seen
        "save_total_limit": 10,
        "greater_is_better": False,  # of a loss and of a perplexity
        "bf16": "auto",
        **training,
        "per_device_train_batch_size": micro_batch,
        "output_dir": str(settings.output_dir),
        "use_cpu": on_cpu,
        "use_cache": True,  # as it shall be saved; the loss is computed without one
        "report_to": [],
        "remove_unused_columns": False,
        "ignore_data_skip": True,
    }
    if settings.global_batch_blocks is not None:
        # A scheduler may set WORLD_SIZE alone.
        num_processes = int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1
        values["per_device_train_batch_size"], values["gradient_accumulation_steps"] = micro_batches(
            settings.global_batch_blocks, micro_batch, num_processes
        )
    if values.get("optim") == MUON:
        values["optim"] = "adamw_torch"  # `BlockTrainer.create_optimizer` makes Muon
    if values["bf16"] == "auto":
        values["bf16"] = bf16_pays(on_cpu=on_cpu) and not values.get("fp16", False)
    if values.get("torch_compile") == "auto":
        values["torch_compile"] = not on_cpu and has_triton()
    if on_cpu and values.get("fsdp"):
        raise InputError("training: fsdp: shards a model over GPUs, and this run uses the CPU; leave it out")
    if "LOCAL_RANK" in os.environ:
        values.setdefault("ddp_find_unused_parameters", False)  # all are used, and looking costs each step
        if on_cpu:
            values.setdefault("ddp_backend", "gloo")
    with one_line_errors("training"):
        args = TrainingArguments(**values)
    if args.n_gpu > 1:
        raise InputError(
            f"{args.n_gpu} GPUs are visible to one process: start one for each with `torchrun --nproc-per-node "
            f"{args.n_gpu} -m train …` (make: NPROC={args.n_gpu}), or choose one with CUDA_VISIBLE_DEVICES=0"
        )
    if args.gradient_checkpointing and args.gradient_checkpointing_kwargs:
        with one_line_errors("training: gradient_checkpointing_kwargs"):
            options = {"use_reentrant": False, **args.gradient_checkpointing_kwargs}
            checkpoint(torch.neg, torch.zeros(2, requires_grad=True), **options)
    if args.torch_compile:
        with one_line_errors("training: torch_compile"):
            torch.compile(torch.neg, backend=args.torch_compile_backend, mode=args.torch_compile_mode)
    if args.max_steps <= 0:
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        args.max_steps = max(1, math.ceil(args.num_train_epochs * shards.epoch_blocks(data) / batch))
    if args.lr_scheduler_type == "warmup_stable_decay":
        warmup = args.get_warmup_steps(args.max_steps)
        args.lr_scheduler_kwargs = decay_settings(args.lr_scheduler_kwargs or {}, args.max_steps, warmup)
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


def decay_settings(given: dict[str, Any], max_steps: int, warmup_steps: int) -> dict[str, Any]:
    """The settings of `warmup_stable_decay`: unless given, the rate falls linearly in the last fifth of the steps.

    A `num_decay_steps` below 1 is a share of the steps, as `warmup_steps` is. Raises `InputError` if the decay does not
    fit after the warm-up; one step too many, as when both are rounded up, is left out, and so is a fifth not asked for.
    """
    settings = {"num_decay_steps": 0.2, "decay_type": "linear", **given}
    where = "training: lr_scheduler_kwargs: num_decay_steps"
    asked = convert(settings["num_decay_steps"], NotNegative, where)
    decay, room = math.ceil(asked * max_steps if asked < 1 else asked), max(0, max_steps - warmup_steps)
    if "num_decay_steps" in given and decay > room + (1 if asked < 1 else 0):
        raise InputError(
            f"{where}: {warmup_steps:,} steps of warm-up and {decay:,} of decay are more than the run's {max_steps:,}"
        )
    return {**settings, "num_decay_steps": min(decay, room)}


@contextlib.contextmanager
def one_line_errors(setting: str) -> Iterator[None]:
    """What transformers and torch raise about a `setting` is an `InputError` with the first line of the error."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        words = str(error).strip().partition("\n")[0]
        reason = f"{type(error).__name__} {words}" if isinstance(error, LookupError) or not words else words
        raise InputError(f"{setting}: {printable(reason)}") from None
