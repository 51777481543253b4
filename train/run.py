"""One run from its settings to its summary: build, train, save, evaluate, generate.

The model is saved before the last evaluation and the samples, so nothing that happens after training can lose it.
Under torchrun every process comes through here; only the first reads the run's directory, writes and prints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import TrainingArguments

import shards
from shards.common.command_line import Terminated, say
from shards.common.errors import InputError
from shards.common.text import plural, printable
from train import callbacks, run_directory
from train.arguments import MEMORY_REMEDY, check
from train.environment import out_of_memory
from train.evaluate import best_evaluation, bits_per_byte, by_set, gzip_bits_per_byte
from train.model_card import write_model_card
from train.run_directory import Plan, changed_settings, record_part, write_record
from train.sampling import Continuation, NonFiniteError, continue_prompts, ids_of, load_model, load_tokenizer
from train.settings import Settings
from train.tracking import Tracking
from train.trainer import BlockTrainer, data_position
from train.trials import arguments_for, preflight

# In messages of torch.save and safetensors.
_WRITE_FAILURES = ("PytorchStreamWriter", "inline_container", "iostream error", "os error")


def train(
    settings: Settings, data: shards.Data, command: Sequence[str], *, resume: str | None, allow_data_change: bool
) -> None:
    """Train, save, evaluate and sample. Raises `InputError`, and `KeyboardInterrupt` when it is stopped."""
    started = time.monotonic()
    settings, args = check(settings, data)
    run, is_first = settings.output_dir, args.process_index == 0
    with contextlib.ExitStack() as stack:
        stack.callback(_leave_process_group)
        plans = [Plan()]
        if is_first:  # it alone reads and hashes checkpoints
            stack.enter_context(run_directory.lock_run(run))
            plans = [run_directory.plan_run(run, resume)]
        if dist.is_initialized():
            dist.broadcast_object_list(plans)
        (plan,) = plans
        stack.enter_context(out_of_memory(MEMORY_REMEDY))
        args = arguments_for(settings, data, args, plan)
        changes = check_continuation(settings, data, plan, args, allow_data_change=allow_data_change)
        trainer = BlockTrainer(settings, data, args)
        preflight(trainer)
        tokenizer = load_tokenizer(data.tokenizer_path) if settings.generation.prompts else None
        for prompt in settings.generation.prompts:
            ids_of(tokenizer, prompt, data.vocab_size)
        trainer.accelerator.wait_for_everyone()  # none has an objection: from here on the first one writes
        if not is_first:
            run_training(trainer, plan, resume)
            trainer.evaluate(all_blocks=True)
            return
        record = run_directory.new_record(settings, data, plan, command, args, changes)
        write_record(run, record, "training")
        say(*callbacks.start_lines(data, trainer, plan, record["sessions"][-1]))
        trainer.add_callback(callbacks.MetricsFile(run))
        trainer.add_callback(callbacks.PlainLines if args.disable_tqdm else callbacks.ProgressLines)
        tracking = Tracking(settings.tracking, run, record["tracking_id"])
        stack.push(tracking.finish)
        say(*tracking.start(trainer, {"run": str(run), "shards": record["shards"]}))

        def keep_samples(samples: list[Continuation], step: int) -> None:
            how = {name: getattr(settings.generation, name) for name in ("temperature", "top_p", "top_k", "seed")}
            lines = [{"step": step, **dataclasses.asdict(one), **how} for one in samples]
            run_directory.append_lines(run / run_directory.SAMPLES_NAME, lines)
            tracking.log_samples(samples, step)

        if settings.generation.prompts and settings.generation.every_evaluation and args.eval_strategy != "no":
            if trainer.is_fsdp_enabled:
                say("the model is sharded (fsdp): the prompts are continued at the end only")
            else:
                trainer.add_callback(callbacks.SamplesAtEvaluation(settings.generation, tokenizer, keep_samples))
        run_training(trainer, plan, resume)
        write_record(run, record, "trained")
        say(*write_model_card(run, record, data))
        metrics = trainer.evaluate(all_blocks=True)
        if not metrics:
            say("no validation blocks in the shard set: evaluation skipped")
        samples = sample(settings)
        keep_samples(samples, trainer.state.global_step)
        record["sessions"][-1]["seconds"] = time.monotonic() - started
        record["results"] = results(trainer, data, metrics)
        write_record(run, record, "finished")
        say(*write_model_card(run, record, data, samples))
        say(*callbacks.end_lines(run, record, samples))


def _leave_process_group() -> None:
    """End the communication threads before the interpreter does: what still refers to the group is collected first."""
    gc.collect()
    PartialState().destroy_process_group()


def check_continuation(
    settings: Settings, data: shards.Data, plan: Plan, args: TrainingArguments, *, allow_data_change: bool
) -> list[str]:
    """What of the data has changed, if that is allowed. Raises `InputError` if the checkpoint can't be continued so."""
    checkpoint = plan.checkpoint
    if checkpoint is None or plan.position is None:
        return []
    was, is_now = plan.position, data_position(settings, data, args, plan.position.step)
    changes = changed_settings(dataclasses.asdict(was), dataclasses.asdict(is_now))
    reasons = [] if allow_data_change else list(changes)
    tokenizers = (directory / "tokenizer.json" for directory in (checkpoint, data.tokenizer_path))
    if allow_data_change and len({path.read_bytes() for path in tokenizers}) > 1:
        reasons.append("its tokenizer is another one than the shard set's")
    model, training = (record_part(checkpoint.parent, "settings", name) for name in ("model", "training"))
    if model:
        now = {"model": dataclasses.asdict(settings.model), **kinds_of_state(settings.training)}
        reasons += changed_settings({"model": model, **kinds_of_state(training)}, now)
    if reasons:
        remedy = "" if allow_data_change or reasons != changes else ", or --allow_data_change to go on with the new"
        raise InputError(
            f"{checkpoint}: can't be continued with these settings: {'; '.join(reasons)}; "
            f"use the old ones, or another --output_dir{remedy}"
        )
    if plan.position.step > args.max_steps:
        has = plural(plan.position.step, "step")
        asked = f"the settings ask for {args.max_steps:,}; ask for more, or choose another --output_dir"
        raise InputError(f"{checkpoint}: has {has} already, {asked}")
    return changes


def kinds_of_state(training: dict[str, Any]) -> dict[str, Any]:
    """What decides the content of a checkpoint's optimizer and schedule: one of another kind can't go on from it."""
    optimizer = str(training.get("optim") or "adamw_torch").removesuffix("_fused")
    by_loss = training.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy")
    return {"optim": optimizer, "lr_scheduler_type by loss": by_loss}


def run_training(trainer: BlockTrainer, plan: Plan, resume: str | None) -> None:
    """Train to the last step and save the model. Raises `KeyboardInterrupt` if it was stopped before."""
    run = Path(trainer.args.output_dir)
    stop = callbacks.StopOnSignal()
    trainer.add_callback(stop)
    try:
        with stop.listening(), faults_of_files(run, plan.checkpoint, trainer):
            trainer.train(resume_from_checkpoint=str(plan.checkpoint) if plan.checkpoint else None)
        if trainer.state.global_step < trainer.args.max_steps:  # a stop that Trainer takes for an end
            raise KeyboardInterrupt if stop.requested_at is None else Terminated
    except KeyboardInterrupt:
        if trainer.is_world_process_zero():
            has_saved = trainer.saved_step > (plan.position.step if plan.position else 0)
            checkpoint = run / f"checkpoint-{trainer.saved_step}" if has_saved else plan.checkpoint
            is_other = has_saved and resume not in (None, "latest")
            same = f"the same command{' without --resume_from_checkpoint' * is_other}"
            does = f"continues from {checkpoint}" if checkpoint else "starts again: there is no checkpoint yet"
            say("", f"stopped at step {trainer.state.global_step:,}; {same} {does}")
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


def results(trainer: BlockTrainer, data: shards.Data, metrics: dict[str, float]) -> dict[str, Any]:
    """What came out of the run, for its record."""
    steps = trainer.state.global_step
    logs = [log for log in trainer.state.log_history if "loss" in log]
    validation = list(trainer.validation.values())
    losses = [log["loss"] for log in logs if math.isfinite(log["loss"])] or [None]
    best = best_evaluation(trainer.state.log_history) or {}
    values = {
        "steps": steps,
        "epochs": trainer.true_epoch(steps),
        "tokens": steps * trainer.batch_blocks * data.block_tokens,
        "tokens_per_second": statistics.median_high(log["tokens_per_second"] for log in logs) if logs else None,
        "first_train_loss": losses[0],
        "last_train_loss": losses[-1],
        "eval_loss": metrics.get("eval_loss"),
        "eval_perplexity": metrics.get("eval_perplexity"),
        "eval_bits_per_byte": bits_per_byte(validation, metrics.get("eval_loss")),
        **{f"eval_{key}": value for key, value in by_set(metrics).items()},
        "best_eval_loss": best.get("eval_loss"),
        "best_eval_step": best.get("step"),
        "best_eval_bits_per_byte": bits_per_byte(validation, best.get("eval_loss")),
        "guessing_bits_per_byte": bits_per_byte(validation, math.log(data.vocab_size)),
        "gzip_bits_per_byte": gzip_bits_per_byte(data, validation),
    }
    return run_directory.finite(values)
