"""The optimizer and the schedule that a run's arguments ask for, tried on one parameter before anything is written.

transformers makes both when the training begins, from arguments that it hasn't looked at before. Here its own functions
make them, in milliseconds and without a random number; what goes wrong is an `InputError` that names the setting.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments, get_scheduler

from shards.common.errors import InputError
from shards.common.text import printable
from train.arguments import convert, require, require_one_of

_FAULTS = (ValueError, TypeError, ImportError, LookupError, ArithmeticError, AttributeError, RuntimeError)
_OF_THE_MODEL = ("galore", "apollo", "lomo")  # take modules of the real model
_WITHOUT_SETTINGS = ("constant", "constant_with_warmup")


@contextlib.contextmanager
def refusing(setting: str, faults: tuple[type[Exception], ...] = _FAULTS) -> Iterator[None]:
    """`faults` become an `InputError` about a setting of the section `training`, with the first line of the error."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except faults as error:
        words = str(error).strip().splitlines()[:1] or [""]
        reason = f"{type(error).__name__} {words[0]}" if isinstance(error, LookupError) else words[0]
        raise InputError(f"training: {setting}: {printable(reason or type(error).__name__)}") from None


def rehearse(args: TrainingArguments, *, use_muon: bool) -> None:
    """Raise `InputError` if the training could not begin with these arguments."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    if not use_muon:
        with refusing(f"optim: {args.optim.value}"):
            _rehearse_optimizer(args, parameter)
    with refusing(f"lr_scheduler_type: {args.lr_scheduler_type.value}"):
        _rehearse_schedule(args, parameter)
    settings = args.gradient_checkpointing_kwargs
    if args.gradient_checkpointing and settings:
        with refusing("gradient_checkpointing_kwargs"):
            checkpoint(torch.neg, parameter, **{"use_reentrant": False, **settings})
    if args.torch_compile and args.torch_compile_backend != "inductor":
        with refusing("torch_compile_backend"):
            from torch._dynamo import list_backends  # takes a second

            known = {backend.value.lower() for backend in DynamoBackend} & {*list_backends(exclude_tags=())}
            require_one_of(sorted(known), args.torch_compile_backend, "training: torch_compile_backend")


def _rehearse_optimizer(args: TrainingArguments, parameter: torch.nn.Parameter) -> None:
    model = torch.nn.ParameterDict({"weight": parameter})
    if any(name in args.optim.value for name in _OF_THE_MODEL):
        if "lomo" not in args.optim.value:
            require(args.optim_target_modules is not None, "optim_target_modules", "names of modules", None)
        with contextlib.suppress(ValueError):
            Trainer.get_optimizer_cls_and_kwargs(args, model)
        return
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
        kind([{"params": [parameter], "weight_decay": args.weight_decay}], **settings)


def _rehearse_schedule(args: TrainingArguments, parameter: torch.nn.Parameter) -> None:
    settings = args.lr_scheduler_kwargs
    if settings and args.lr_scheduler_type.value in _WITHOUT_SETTINGS:
        raise InputError(f"training: lr_scheduler_kwargs: {args.lr_scheduler_type.value} takes none; leave them out")
    steps, warmup = args.max_steps, args.get_warmup_steps(args.max_steps)
    schedule = get_scheduler(
        args.lr_scheduler_type,
        optimizer=torch.optim.SGD([parameter], lr=args.learning_rate),
        num_warmup_steps=warmup,
        num_training_steps=steps,
        scheduler_specific_kwargs=settings,
    )
    if isinstance(schedule, LambdaLR):
        for step in sorted({0, 1, warmup, warmup + 1, (warmup + steps) // 2, steps - 1, steps}):
            for share in schedule.lr_lambdas:
                if not math.isfinite(share(step)):
                    raise ValueError(f"the rate of step {step:,} is no number; change lr_scheduler_kwargs")


def decay_settings(given: dict[str, Any], *, max_steps: int, warmup_steps: int) -> dict[str, Any]:
    """The settings of `warmup_stable_decay`: unless given, the rate falls on a line in the last fifth of the steps.

    A `num_decay_steps` below 1 is a share of the steps, as `warmup_steps` is. Raises `InputError` if the decay does not
    fit behind the warm-up; one step too many, as when both are rounded up, is left out, and so is a fifth not asked for.
    """
    where = "training: lr_scheduler_kwargs: num_decay_steps"
    settings = {"num_decay_steps": 0.2, "decay_type": "linear", **given}
    asked = convert(settings["num_decay_steps"], frozenset({"float"}), where)
    require(asked >= 0, where, "0 or more", asked)
    decay = math.ceil(asked * max_steps) if asked < 1 else math.ceil(asked)
    excess = warmup_steps + decay - max_steps
    if "num_decay_steps" in given and excess > (1 if asked < 1 else 0):
        raise InputError(
            f"{where}: {warmup_steps:,} steps of warm-up and {decay:,} of decay are more than the run's {max_steps:,}"
        )
    settings["num_decay_steps"] = decay - min(decay, max(0, excess))
    return settings
