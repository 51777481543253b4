"""One run from its settings to its summary: build, train, save, evaluate, generate.

The model is saved before the last evaluation and the samples, so nothing that happens after training can lose it.
Under torchrun every process comes through here; only the first writes and prints.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

import shards
from shards.common.command_line import Terminated, say
from shards.common.errors import InputError
from train import run_directory
from train.checkpoints import SAVING_DIRECTORY, newest_complete_checkpoint, numbered_checkpoints
from train.memory import out_of_memory
from train.model_card import write_model_card
from train.report import Record, end_lines, start_lines
from train.run_directory import Plan
from train.samples import SamplesAtEvaluation
from train.sampling import Continuation, NoNumbersError, continue_prompts, load_model, load_tokenizer, sample_records
from train.settings import GenerationSettings, Settings
from train.setup import build_arguments, build_trainer, check_continuation, data_position
from train.stopping import StopOnSignal
from train.tracking import Tracking
from train.trainer import BlockTrainer, wait_for_all_ranks


def train(settings: Settings, data: shards.Data, plan: Plan, command: Sequence[str]) -> None:
    """Train, save, evaluate and sample. Raises `InputError`, and `KeyboardInterrupt` when it is stopped."""
    args = build_arguments(settings, num_blocks=shards.epoch_blocks(data))
    with contextlib.ExitStack() as stack:
        stack.callback(PartialState().destroy_process_group)  # torchrun warns otherwise
        stack.enter_context(out_of_memory(lambda: memory_remedy(settings, plan)))
        position = data_position(settings, data, args)
        changes = check_continuation(settings, data, plan, position, args)
        wait_for_all_ranks()  # each has read the run's directory; from here on the first writes into it
        if run_directory.process_rank() != 0:
            trainer = build_trainer(settings, data, args, position)
            run_training(trainer, plan)
            evaluate(trainer, data)
            return
        run = settings.output_dir
        stack.enter_context(run_directory.lock_run(run))
        if run_directory.state_of(run) != plan.seen:
            raise InputError(f"{run}: another process has trained there meanwhile; start the same command again")
        shutil.rmtree(run / SAVING_DIRECTORY, ignore_errors=True)
        first_step = plan.position.step if plan.position else 0
        say(*run_directory.rewind_metrics(run, first_step, is_last=first_step == args.max_steps))
        record = Record(settings, data, plan, command, args, data_changes=changes)
        record.write("training")
        trainer = build_trainer(settings, data, args, position)
        say(*start_lines(data, trainer, plan, record))
        tracking = Tracking(settings.tracking, run)
        stack.push(tracking.finish)
        say(*tracking.start(trainer, {"run": str(run), "shards": record.content["shards"]}))
        if settings.generation.every_evaluation:
            sample_at_evaluations(trainer, data, settings.generation, tracking)
        run_training(trainer, plan)
        record.write("trained")
        say(*write_model_card(run, record.content, data))
        metrics = evaluate(trainer, data)
        samples = sample(settings)
        steps = trainer.state.global_step
        records = sample_records(samples, steps, settings.generation)
        run_directory.append_lines(run / run_directory.SAMPLES_NAME, records)
        tracking.log_samples(samples, steps)
        results = record.add_results(trainer, metrics)
        record.write("finished")
        say(*write_model_card(run, record.content, data, samples))
        say(*end_lines(run, results, record.session["seconds"], samples))


def run_training(trainer: BlockTrainer, plan: Plan) -> None:
    """Train to the last step and save the model. Raises `KeyboardInterrupt` if it was stopped before."""
    run = Path(trainer.args.output_dir)
    stop = StopOnSignal()
    trainer.add_callback(stop)
    try:
        with stop.listening():
            trainer.train(resume_from_checkpoint=str(plan.checkpoint) if plan.checkpoint else None)
        if trainer.state.global_step < trainer.args.max_steps:  # a stop that Trainer takes for an end
            raise Terminated if stop.requested else KeyboardInterrupt
    except KeyboardInterrupt:
        if trainer.is_world_process_zero():
            say("", f"stopped at step {trainer.state.global_step:,}; the same command {what_comes_next(run, plan)}")
        raise
    trainer.delete_old_checkpoints()  # killed while it saved the last, a run has one too many
    trainer.save_final_model(run / run_directory.MODEL_NAME)


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
    model = settings.output_dir / run_directory.MODEL_NAME
    comes = f"the same command with that {what_comes_next(settings.output_dir, plan)}"
    if model.is_dir() and not numbered_checkpoints(settings.output_dir):
        comes = f"the trained model is {model}"
    return f"choose a smaller --per_device_train_batch_size ({same}) and --per_device_eval_batch_size; {comes}"


def evaluate(trainer: BlockTrainer, data: shards.Data) -> dict[str, float]:
    """Loss and perplexity on all validation blocks; empty if there are none."""
    if len(data["val"]) == 0:
        if trainer.is_world_process_zero():
            say("no validation blocks in the shard set: evaluation skipped")
        return {}
    return dict(trainer.evaluate())


def sample_at_evaluations(
    trainer: BlockTrainer, data: shards.Data, settings: GenerationSettings, tracking: Tracking
) -> None:
    """Let the prompts be continued at each evaluation, where there are any."""
    args = trainer.args
    if not settings.prompts or args.eval_strategy == "no":
        return
    if trainer.is_fsdp_enabled:
        say("the model is sharded (fsdp): the prompts are continued at the end only")
        return

    path = Path(args.output_dir, run_directory.SAMPLES_NAME)
    tokenizer = load_tokenizer(data.tokenizer_path)
    trainer.add_callback(SamplesAtEvaluation(path, settings, tokenizer, on_samples=tracking.log_samples))


def sample(settings: Settings) -> list[Continuation]:
    """Continue the prompts with the model as it was saved: what a user will load. None if its outputs are no numbers."""
    if not settings.generation.prompts:
        return []
    model, tokenizer = load_model(settings.output_dir / run_directory.MODEL_NAME)
    try:
        return list(continue_prompts(model, tokenizer, settings.generation))
    except NoNumbersError as error:  # the training has diverged
        say(f"no samples: {error}")
        return []
