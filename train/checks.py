"""What can be wrong with the section `training` that transformers would notice late, or never. Imports no torch.

`train.rehearsal` checks the rest, with transformers' own functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from train.arguments import require, require_one_of, training_argument_choices

Where = Callable[[str], str]

MUON = "muon"  # our own; see `train.optimizer`
METRICS = ("loss", "eval_loss", "perplexity", "eval_perplexity")  # an evaluation's; of each, less is better
LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
DDP_BACKENDS = ("nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl")
COMPILE_MODES = ("default", "lite", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
MOST_STEPS = 2**31 - 1
MOST_BLOCKS = 2**20  # in a micro-batch, whose positions are drawn at once
MOST_EPOCHS = 1_000_000
MOST_OF_RATES = 1e6  # beyond, numbers of fp32 overflow

# Fields of TrainingArguments that may also be "auto": what the device can do.
AUTO_ARGUMENTS = ("bf16", "torch_compile")

# Fields of TrainingArguments that would contradict how this trainer works.
REFUSED_ARGUMENTS = {
    "auto_find_batch_size": "the order of blocks is counted in global batches of one size",
    "data_seed": "the order of blocks follows `seed`",
    "dataloader_drop_last": "every global batch is full already",
    "deepspeed": "it isn't supported; `fsdp` is",
    "ignore_data_skip": "a resumed run always starts at its own position, without skipping",
    "local_rank": "torchrun sets it",
    "neftune_noise_alpha": "the noise isn't for models that are trained from scratch, and would have no effect here",
    "parallelism_config": "it isn't supported; `fsdp` is",
    "push_to_hub": "push the saved model, RUN/model, with `hf upload`",
    "remove_unused_columns": "a batch has nothing but what the model needs",
    "report_to": "see the section `tracking`",
    "resume_from_checkpoint": "it is an option of the command line",
    "run_name": "see `tracking: name`",
    "save_only_model": "a run can't be continued without the state of its optimizer and its schedule",
    "train_sampling_strategy": "the order of blocks is that of the shard set",
    "use_liger_kernel": "the loss with Liger's kernels is `loss: liger`",
}


def check_training(training: dict[str, Any], where: Where) -> None:
    """Raise `InputError` for a value that is out of range, or that goes with no other."""
    for key in AUTO_ARGUMENTS:
        found = training.get(key, "auto")
        require(found in (True, False, "auto"), where(key), "true, false or auto", found)
    for key, choices in training_argument_choices(training).items():
        allowed = (*choices, MUON) if key == "optim" else choices
        require_one_of(allowed, training[key], where(key))
    for key in ("log_level", "log_level_replica"):
        require_one_of(LOG_LEVELS, training.get(key, "passive"), where(key))
    for key in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        require(1 <= training.get(key, 1) <= MOST_BLOCKS, where(key), f"1 to {MOST_BLOCKS:,}", training.get(key))
    require(0 <= training.get("seed", 42) < 2**32, where("seed"), "0 to 2**32 - 1", training.get("seed"))
    smoothing = training.get("label_smoothing_factor", 0)
    require(smoothing == 0, where("label_smoothing_factor"), "0 (no loss of `loss` smooths)", smoothing)
    _check_length(training, where)
    _check_optimizer(training, where)
    _check_loader(training, where)
    for key, choices in (
        ("metric_for_best_model", METRICS),
        ("torch_compile_mode", COMPILE_MODES),
        ("ddp_backend", DDP_BACKENDS),
    ):
        if training.get(key) is not None:
            require_one_of(choices, training[key], where(key))


def _check_length(training: dict[str, Any], where: Where) -> None:
    """Steps, epochs, and the intervals in which something is done."""
    steps = training.get("max_steps", -1)
    require(steps <= MOST_STEPS, where("max_steps"), f"at most {MOST_STEPS:,}", steps)
    if steps <= 0:
        epochs = training.get("num_train_epochs", 3.0)
        require(epochs > 0, where("num_train_epochs"), "above 0", epochs)
        require(epochs <= MOST_EPOCHS, where("num_train_epochs"), f"at most {MOST_EPOCHS:,}", epochs)
    for key in ("logging", "eval", "save"):
        interval = training.get(f"{key}_steps")
        expected = f"above 0 (for never: {key}_strategy: 'no')"
        require(interval is None or interval > 0, where(f"{key}_steps"), expected, interval)


def _check_optimizer(training: dict[str, Any], where: Where) -> None:
    for key in ("learning_rate", "weight_decay", "adam_epsilon"):
        value = training.get(key, 0.0)
        require(value >= 0, where(key), "0 or more", value)
        require(value <= MOST_OF_RATES, where(key), f"at most {MOST_OF_RATES:,.0f}", value)
    for key in ("adam_beta1", "adam_beta2"):
        value = training.get(key, 0.9)
        require(0 <= value < 1, where(key), "0 or more and less than 1", value)
    given = training.get("optim_args")
    named = given is None or all(part.count("=") == 1 for part in given.split(","))
    require(named, where("optim_args"), "NAME=VALUE,NAME=VALUE", given)
    if training.get("optim") == MUON:
        for key in ("optim_args", "optim_target_modules"):
            require(training.get(key) is None, where(key), "nothing beside optim: muon", training.get(key))
    for key in ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        settings = training.get(key)
        require(settings is None or isinstance(settings, dict), where(key), "a mapping", settings)


def _check_loader(training: dict[str, Any], where: Where) -> None:
    workers = training.get("dataloader_num_workers", 0)
    require(workers >= 0, where("dataloader_num_workers"), "0 or more", workers)
    ahead = training.get("dataloader_prefetch_factor")
    require(ahead is None or ahead >= 1, where("dataloader_prefetch_factor"), "at least 1", ahead)
    for key in ("dataloader_prefetch_factor", "dataloader_persistent_workers"):
        expected = "nothing without loader workers (dataloader_num_workers: 1)"
        require(workers > 0 or not training.get(key), where(key), expected, training.get(key))
