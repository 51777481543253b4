"""One run from its settings to its summary: build, train, save, evaluate, generate.

The model is saved before the last evaluation and the samples, so nothing that happens after training can lose it.
Under torchrun every process comes through here; only the first reads the run's directory, writes and prints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

import shards
from shards.common.command_line import Terminated, say
from shards.common.errors import InputError
from shards.common.text import plural, printable
from shards.tokenizer_files import copy_tokenizer
from train import run_directory
from train.arguments import build_arguments, preflight, typed
from train.callbacks import RunCallback, StopOnSignal
from train.checkpoints import (
    DataPosition,
    newest_complete_checkpoint,
    tidy_checkpoints,
)
from train.environment import out_of_memory
from train.head_loss import chosen_loss
from train.log_lines import MetricsFile, PlainLines, ProgressLines, end_lines, start_lines
from train.model import add_chat_template, build_model
from train.model_card import write_model_card
from train.record import Record
from train.run_directory import Plan
from train.sampling import (
    Continuation,
    NonFiniteError,
    SamplesAtEvaluation,
    continue_prompts,
    load_model,
    load_tokenizer,
    sample_records,
)
from train.settings import Settings
from train.tracking import Tracking
from train.trainer import BlockTrainer

# In messages of torch.save and safetensors.
_WRITE_FAILURES = ("PytorchStreamWriter", "inline_container", "iostream error", "os error")


def check(settings: Settings, data: shards.Data) -> tuple[Settings, TrainingArguments]:
    """The settings with typed values, and the arguments for this machine. Raises `InputError`; writes nothing."""
    settings = typed(settings)
    return settings, build_arguments(settings, epoch_blocks=shards.epoch_blocks(data))


def train(
    settings: Settings,
    data: shards.Data,
    command: Sequence[str],
    *,
    resume: str | None = None,
    allow_data_change: bool = False,
) -> None:
    """Train, save, evaluate and sample. Raises `InputError`, and `KeyboardInterrupt` when it is stopped.

    `resume` is that of `run_directory.plan_run`.
    """
    settings, args = check(settings, data)
    run, is_first = settings.output_dir, args.process_index == 0
    with contextlib.ExitStack() as stack:
        stack.callback(_leave_process_group)
        if is_first:
            stack.enter_context(run_directory.lock_run(run))
        plan = _shared(plan_first(run, resume) if is_first else None)
        stack.enter_context(out_of_memory(lambda: memory_remedy(settings, plan)))
        position = data_position(settings, data, args)
        changes = check_continuation(settings, data, plan, position, args, allow_data_change=allow_data_change)
        trainer = build_trainer(settings, data, args, position)
        preflight(trainer)
        trainer.accelerator.wait_for_everyone()  # none has an objection: from here on the first one writes
        if not is_first:
            run_training(trainer, plan)
            evaluate(trainer)
            return
        first_step = plan.position.step if plan.position else 0
        say(*run_directory.rewind_metrics(run, first_step, is_last=first_step == args.max_steps))
        record = Record(settings, data, plan, command, args, data_changes=changes)
        record.write("training")
        trainer.add_callback(MetricsFile(run / run_directory.METRICS_NAME))
        trainer.add_callback(PlainLines if args.disable_tqdm else ProgressLines)
        say(*start_lines(data, trainer, plan, record.session, record.changes))
        tracking = Tracking(settings.tracking, run, record.content["tracking_id"])
        stack.push(tracking.finish)
        say(*tracking.start(trainer, {"run": str(run), "shards": record.content["shards"]}))
        say(*sample_at_evaluations(trainer, data, tracking))
        run_training(trainer, plan)
        record.write("trained")
        say(*write_model_card(run, record.content, data))
        metrics = evaluate(trainer)
        samples = sample(settings)
        steps = trainer.state.global_step
        records = sample_records(samples, steps, settings.generation)
        run_directory.append_lines(run / run_directory.SAMPLES_NAME, records)
        tracking.log_samples(samples, steps)
        results = record.add_results(trainer, metrics)
        record.write("finished")
        say(*write_model_card(run, record.content, data, samples))
        say(*end_lines(run, results, record.session["seconds"], samples))


def plan_first(run: Path, resume: str | None) -> Plan:
    """The plan, with its checkpoint under its name: what was cut short is gone."""
    plan = run_directory.plan_run(run, resume)
    tidy_checkpoints(run)
    return plan


def _shared(plan: Plan | None) -> Plan:
    """The first process's plan, in every process: it alone has read and hashed the checkpoints."""
    plans = [plan]
    if dist.is_initialized():
        dist.broadcast_object_list(plans)
    assert plans[0] is not None
    return plans[0]


def _leave_process_group() -> None:
    """End the communication threads before the interpreter does: what still refers to the group is collected first."""
    gc.collect()
    PartialState().destroy_process_group()


def data_position(settings: Settings, data: shards.Data, args: TrainingArguments) -> DataPosition:
    """What a checkpoint of this run says about its data, at step 0."""
    return DataPosition(
        step=0,
        global_batch_blocks=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        block_tokens=data.block_tokens,
        seed=settings.seed,
        fingerprint=data.fingerprint,
        shuffle=settings.shuffle,
        document_mask=settings.document_mask,
    )


def check_continuation(
    settings: Settings,
    data: shards.Data,
    plan: Plan,
    position: DataPosition,
    args: TrainingArguments,
    *,
    allow_data_change: bool,
) -> list[str]:
    """What of the data is not as it was, where that is allowed: a phrase each.

    Raises `InputError` if the plan's checkpoint can't be continued with these settings.
    """
    checkpoint = plan.checkpoint
    if checkpoint is None or plan.position is None:
        return []
    was, is_now = ({**dataclasses.asdict(one), "step": 0} for one in (plan.position, position))
    changes = run_directory.changed_settings(was, is_now)
    reasons = [] if allow_data_change else list(changes)
    tokenizers = (directory / "tokenizer.json" for directory in (checkpoint, data.tokenizer_path))
    if allow_data_change and len({path.read_bytes() for path in tokenizers}) > 1:
        reasons.append("its tokenizer is another one than the shard set's")
    if before := run_directory.record_part(checkpoint.parent, "settings", "model"):
        reasons += run_directory.changed_settings(before, dataclasses.asdict(settings.model), "model")
    if reasons:
        remedy = "" if allow_data_change or reasons != changes else ", or --allow_data_change to go on with the new"
        raise InputError(
            f"{checkpoint}: can't be continued with these settings: {'; '.join(reasons)}; "
            f"use the old ones, or another --output_dir{remedy}"
        )
    # A sharded optimizer (fsdp) is a directory, as `optimizer_0`.
    has_optimizer = any(path.name.startswith("optimizer") for path in checkpoint.iterdir())
    if not (has_optimizer and (checkpoint / "scheduler.pt").is_file()):
        raise InputError(
            f"{checkpoint}: has no state of the optimizer or of the schedule, so it can't be continued; "
            "choose another checkpoint, or another --output_dir"
        )
    if plan.position.step > args.max_steps:
        has = plural(plan.position.step, "step")
        raise InputError(f"{checkpoint}: has {has} already, the settings ask for {args.max_steps:,}")
    return changes


def build_trainer(
    settings: Settings, data: shards.Data, args: TrainingArguments, position: DataPosition
) -> BlockTrainer:
    """The Trainer with its model and datasets."""
    with out_of_memory("the machine can't hold this model; choose a smaller one (section `model`)"):
        model = build_model(
            settings.model,
            settings.generation,
            vocab_size=data.vocab_size,
            eos_id=data.eos_id,
            block_tokens=data.block_tokens,
            seed=settings.seed,
        )
    model.head_loss = chosen_loss(settings.loss, model.config.vocab_size, on_cpu=args.use_cpu)

    def add_tokenizer(directory: Path) -> None:
        copy_tokenizer(data.tokenizer_path, directory)
        add_chat_template(directory)

    if not len(data["val"]):
        args.eval_strategy, args.do_eval = type(args.eval_strategy)("no"), False
    trainer = BlockTrainer(
        settings=settings, data=data, model=model, args=args, position=position, add_files=add_tokenizer
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(RunCallback(trainer))
    return trainer


def run_training(trainer: BlockTrainer, plan: Plan) -> None:
    """Train to the last step and save the model. Raises `KeyboardInterrupt` if it was stopped before."""
    run = Path(trainer.args.output_dir)
    stop = StopOnSignal()
    trainer.add_callback(stop)
    try:
        with stop.listening(), faults_of_files(run, plan.checkpoint, trainer):
            trainer.train(resume_from_checkpoint=str(plan.checkpoint) if plan.checkpoint else None)
        if trainer.state.global_step < trainer.args.max_steps:  # a stop that Trainer takes for an end
            raise Terminated if stop.requested else KeyboardInterrupt
    except KeyboardInterrupt:
        if trainer.is_world_process_zero():
            say("", f"stopped at step {trainer.state.global_step:,}; the same command {what_comes_next(run, plan)}")
        raise
    with faults_of_files(run, None, trainer):
        trainer.save_final_model(run / run_directory.MODEL_NAME)


@contextlib.contextmanager
def faults_of_files(run: Path, checkpoint: Path | None, trainer: BlockTrainer) -> Iterator[None]:
    """What can't be loaded of a checkpoint before the first step, or be written, as on a full disk, is one `InputError`.

    A checkpoint that is whole may still be a stranger's, with objects in it that `weights_only` refuses.
    """
    try:
        yield
    except (torch.OutOfMemoryError, InputError, OSError):
        raise
    except Exception as error:
        reason = printable((str(error) or type(error).__name__).splitlines()[0])[:300]
        if checkpoint is not None and not trainer.has_begun:
            reason = "it holds objects that are no weights" if "weights_only" in str(error).lower() else reason
            raise InputError(f"{checkpoint}: the checkpoint can't be loaded: {reason}") from None
        if isinstance(error, RuntimeError | SafetensorError) and any(sign in str(error) for sign in _WRITE_FAILURES):
            raise InputError(f"{run}: can't be written ({reason}); make room, then the same command goes on") from None
        raise


def what_comes_next(run: Path, plan: Plan) -> str:
    """What the same command does next: `continues from runs/x/checkpoint-500`."""
    checkpoint, _, _ = newest_complete_checkpoint(run, check_content=False)
    start = f"continues from {checkpoint}" if checkpoint else "starts again: there is no checkpoint yet"
    if plan.resume in (None, "latest"):
        return start
    without = f"; without --resume_from_checkpoint it {start}" if checkpoint else ""
    return f"starts from {plan.checkpoint} again{without}"


def memory_remedy(settings: Settings, plan: Plan) -> str:
    """What to do when a training ran out of memory."""
    same = "a step stays the same"
    if settings.global_batch_blocks is None:
        same = f"with as many times more --gradient_accumulation_steps {same}"
    comes = f"the same command with that {what_comes_next(settings.output_dir, plan)}"
    return f"choose a smaller --per_device_train_batch_size ({same}) and --per_device_eval_batch_size; {comes}"


def evaluate(trainer: BlockTrainer) -> dict[str, float]:
    """Loss and perplexity on all validation blocks; empty if there are none."""
    if trainer.eval_dataset is None:
        if trainer.is_world_process_zero():
            say("no validation blocks in the shard set: evaluation skipped")
        return {}
    return trainer.evaluate(all_blocks=True)


def sample_at_evaluations(trainer: BlockTrainer, data: shards.Data, tracking: Tracking) -> list[str]:
    """Let the prompts be continued at each evaluation, where there are any. Returns lines for the user."""
    settings, args = trainer.settings.generation, trainer.args
    if not (settings.prompts and settings.every_evaluation) or args.eval_strategy == "no":
        return []
    if trainer.is_fsdp_enabled:
        return ["the model is sharded (fsdp): the prompts are continued at the end only"]
    path = Path(args.output_dir, run_directory.SAMPLES_NAME)
    tokenizer = load_tokenizer(data.tokenizer_path)
    trainer.add_callback(SamplesAtEvaluation(path, settings, tokenizer, on_samples=tracking.log_samples))
    return []


def sample(settings: Settings) -> list[Continuation]:
    """Continue the prompts with the model as it was saved: what a user will load. Empty if its outputs are non-finite."""
    if not settings.generation.prompts:
        return []
    model, tokenizer = load_model(settings.output_dir / run_directory.MODEL_NAME)
    try:
        return list(continue_prompts(model, tokenizer, settings.generation))
    except NonFiniteError as error:  # the training has diverged
        say(f"no samples: {error}")
        return []
