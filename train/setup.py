"""From settings to a Trainer that is ready: arguments, the position in the data, the model, the datasets."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

import shards
from shards.common.errors import InputError
from shards.common.text import plural, printable
from shards.vocabulary import copy_tokenizer
from train import run_directory
from train.callbacks import MetricsFile, PlainLines, ProgressLines, wants_bar
from train.checkpoints import DataPosition, differences
from train.checks import MOST_STEPS, MUON
from train.data import BlockDataset, has_filling, steps_of_epochs
from train.environment import release_memory_at_once
from train.fused import install_gated_mlp
from train.loss import chosen_loss, install_loss
from train.memory import out_of_memory
from train.model import add_chat_template, bf16_pays, build_model, must_use_cpu
from train.rehearsal import decay_settings, rehearse
from train.run_directory import Plan
from train.settings import Settings
from train.softmax import has_triton
from train.trainer import BlockTrainer

BIG_VOCABULARY = 65_536  # on a CPU, memory is given back at once from here on


def build_arguments(settings: Settings, *, num_blocks: int) -> TrainingArguments:
    """The TrainingArguments: what the user set, and defaults that suit this machine and this trainer."""
    on_cpu = bool(settings.training.get("use_cpu")) or must_use_cpu()
    values: dict[str, Any] = {
        "per_device_eval_batch_size": settings.training.get("per_device_train_batch_size", 8),
        "dataloader_pin_memory": not on_cpu,
        "accelerator_config": {"non_blocking": not on_cpu},
        "disable_tqdm": not wants_bar(),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # looking for them makes a GPU wait, and they shall be seen
        "save_total_limit": 10,
        "greater_is_better": False,  # of a loss and of a perplexity
        **settings.training,
        "output_dir": str(settings.output_dir),
        "use_cpu": on_cpu,
        "report_to": [],
        "remove_unused_columns": False,
        "ignore_data_skip": True,
    }
    if settings.global_batch_blocks is not None:
        micro_batch, steps = micro_batches(
            settings.global_batch_blocks, values.get("per_device_train_batch_size", 8), run_directory.num_processes()
        )
        values["per_device_train_batch_size"], values["gradient_accumulation_steps"] = micro_batch, steps
    if values.get("optim") == MUON:
        values["optim"] = "adamw_torch"  # TrainingArguments knows no Muon; `build_trainer` makes it
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
    try:
        args = TrainingArguments(**values)
    except (ValueError, TypeError, ImportError, KeyError, AttributeError, NotImplementedError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise InputError(f"training: {printable(reason)}") from None
    if args.max_steps <= 0:
        args.max_steps = steps_of_epochs(args.num_train_epochs, num_blocks, global_batch_blocks(args))
        if args.max_steps > MOST_STEPS:
            raise InputError(f"training: num_train_epochs: {args.max_steps:,} steps; expected at most {MOST_STEPS:,}")
    if args.lr_scheduler_type == "warmup_stable_decay":
        warmup = args.get_warmup_steps(args.max_steps)
        args.lr_scheduler_kwargs = decay_settings(
            args.lr_scheduler_kwargs or {}, max_steps=args.max_steps, warmup_steps=warmup
        )
    rehearse(args, use_muon=settings.training.get("optim") == MUON)
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


def global_batch_blocks(args: TrainingArguments) -> int:
    """Blocks in one step, over all ranks and accumulation steps."""
    return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)


def data_position(settings: Settings, data: shards.ShardSet | shards.Mixture, args: TrainingArguments) -> DataPosition:
    """What a checkpoint of this run says about its data, at step 0."""
    return DataPosition(
        step=0,
        global_batch_blocks=global_batch_blocks(args),
        block_tokens=data.block_tokens,
        seed=settings.seed,
        fingerprint=data.fingerprint,
        shuffle=settings.shuffle,
        document_mask=settings.document_mask,
    )


def check_continuation(
    settings: Settings,
    data: shards.ShardSet | shards.Mixture,
    plan: Plan,
    position: DataPosition,
    args: TrainingArguments,
) -> list[str]:
    """What of the data is not as it was, where that is allowed: a phrase each.

    Raises `InputError` if the plan's checkpoint can't be continued with these settings.
    """
    if plan.checkpoint is None or plan.position is None:
        return []
    changes = differences(plan.position, position)
    reasons = [] if plan.allow_data_change else list(changes)
    if plan.allow_data_change and not same_tokenizer(plan.checkpoint, data):
        reasons.append("its tokenizer is another one than the shard set's")
    before = run_directory.record_part(plan.checkpoint.parent, "settings", "model")
    if before:
        reasons += run_directory.changed_settings(before, dataclasses.asdict(settings.model), "model")
    if reasons:
        raise InputError(
            f"{plan.checkpoint}: can't be continued with these settings: {'; '.join(reasons)}; "
            "use the old ones, or another --output_dir"
            + ("" if plan.allow_data_change or reasons != changes else ", or --allow_data_change to go on with the new")
        )
    if not holds_training_state(plan.checkpoint):
        raise InputError(
            f"{plan.checkpoint}: has no state of the optimizer or of the schedule, so it can't be continued; "
            "choose another checkpoint, or another --output_dir"
        )
    if plan.position.step > args.max_steps:
        raise InputError(
            f"{plan.checkpoint}: has {plural(plan.position.step, 'step')} already, the settings ask for {args.max_steps:,}"
        )
    return changes


def holds_training_state(checkpoint: Path) -> bool:
    """Whether optimizer and schedule are in it; a sharded optimizer (fsdp) is a directory, as `optimizer_0`."""
    has_optimizer = any(path.name.startswith("optimizer") for path in checkpoint.iterdir())
    return has_optimizer and (checkpoint / "scheduler.pt").is_file()


def same_tokenizer(checkpoint: Path, data: shards.ShardSet | shards.Mixture) -> bool:
    """Whether ids mean the same to the checkpoint's model as in the data."""
    name = "tokenizer.json"
    return (checkpoint / name).read_bytes() == (data.tokenizer_path / name).read_bytes()


def build_trainer(
    settings: Settings, data: shards.ShardSet | shards.Mixture, args: TrainingArguments, position: DataPosition
) -> BlockTrainer:
    """The Trainer with its model, datasets and, in the first process, the callbacks that print and write."""
    with out_of_memory("the machine can't hold this model; choose a smaller one (section `model`)"):
        model = build_model(
            settings.model,
            settings.generation,
            vocab_size=data.vocab_size,
            eos_id=data.eos_id,
            block_tokens=data.block_tokens,
            seed=settings.seed,
        )

    if args.use_cpu and model.config.vocab_size >= BIG_VOCABULARY:
        release_memory_at_once()
    install_gated_mlp(model)
    install_loss(model, chosen_loss(settings.loss, model.config.vocab_size, on_cpu=args.use_cpu))

    def add_tokenizer(directory: Path) -> None:
        copy_tokenizer(data.tokenizer_path, directory)
        add_chat_template(directory)

    has_val_blocks = len(data["val"]) > 0
    if not has_val_blocks:
        args.eval_strategy, args.do_eval = type(args.eval_strategy)("no"), False
    trainer = BlockTrainer(
        model=model,
        args=args,
        train_dataset=BlockDataset(data, "train"),
        eval_dataset=BlockDataset(data, "val") if has_val_blocks else None,
        position=position,
        order=shards.run_order(data, settings.seed, settings.shuffle),
        epoch_blocks=shards.epoch_blocks(data),
        document_mask=settings.document_mask,
        has_filling=has_filling(data),
        eval_blocks=settings.eval_blocks,
        eos_id=data.eos_id,
        use_muon=settings.training.get("optim") == MUON,
        finish_checkpoint=add_tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if run_directory.process_rank() == 0:
        trainer.add_callback(PlainLines if args.disable_tqdm else ProgressLines)
        trainer.add_callback(MetricsFile(settings.output_dir / run_directory.METRICS_NAME))
    return trainer
