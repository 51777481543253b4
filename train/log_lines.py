"""What is printed and kept of a running training: lines, a progress bar, `metrics.jsonl`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import shards
from shards.common.files import write_atomically
from shards.common.text import duration, plural, visible
from train.evaluate import by_set
from train.run_directory import METRICS_NAME, MODEL_NAME, SAMPLES_NAME, Plan, append_lines, json_lines, read_lines
from train.sampling import Continuation

MAX_REPETITIONS = 4

if TYPE_CHECKING:  # which `train.generate` needs not import
    from train.trainer import BlockTrainer


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Keeps each log in `metrics.jsonl`, a line each: `step`, `epoch` and whatever was logged. For one process only.

    A training that begins has the logs of its checkpoint there, and in `samples.jsonl` no sample of a step to come.
    """

    def __init__(self, run: Path) -> None:
        self._run = run

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        logs = [{"step": log.get("step"), **log} for log in state.log_history]
        write_atomically(self._run / METRICS_NAME, json_lines(logs))
        samples, step = read_lines(self._run / SAMPLES_NAME), state.global_step
        if samples:  # those of the last step are written after its checkpoint
            kept = [one for one in samples if one.get("step", 0) <= step and one.get("step", 0) < state.max_steps]
            write_atomically(self._run / SAMPLES_NAME, json_lines(kept))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        append_lines(self._run / METRICS_NAME, [{"step": state.global_step, **(logs or {})}])


class PlainLines(TrainerCallback):  # type: ignore[misc]
    """One readable line for each log, above the bars if there are some."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if line := log_line(logs or {}, state.global_step, state.max_steps):
            tqdm.write(line)
            sys.stdout.flush()


class ProgressLines(PlainLines, ProgressCallback):  # type: ignore[misc]
    """The same lines, and the Trainer's bar on a terminal."""


def log_line(logs: dict[str, Any], step: int, max_steps: int) -> str | None:
    """One line for a log of the Trainer; None for those that the summary at the end says better."""
    width = len(f"{max_steps:,}")
    head = f"step {step:>{width},}/{max_steps:,}  epoch {logs.get('epoch', 0.0):.2f}"
    if "eval_loss" in logs:
        of_sets = [f"{key[: -len('_loss')]} {loss:.4f}" for key, loss in by_set(logs).items() if key.endswith("_loss")]
        losses = f"{logs['eval_loss']:.4f}" + (f" ({', '.join(of_sets)})" if of_sets else "")
        return f"{head}  validation loss {losses}  perplexity {logs['eval_perplexity']:,.1f}"
    if "loss" not in logs:
        return None
    parts: dict[str, Callable[[float], str]] = {
        "tokens": lambda tokens: f"{tokens / 1e6:,.2f} M tokens",
        "loss": lambda loss: f"loss {loss:.4f}",
        "learning_rate": lambda rate: f"lr {rate:.2e}",
        "grad_norm": lambda norm: f"grad {norm:.2f}",
        "tokens_per_second": lambda rate: f"{rate:,.0f} tokens/s",
        "mfu": lambda share: f"MFU {100 * share:.1f} %",
        "peak_memory_bytes": lambda size: f"{size / 1e9:.1f} GB",
        "seconds_left": lambda seconds: f"{duration(seconds)} left",
    }
    return "  ".join([head, *(text(logs[key]) for key, text in parts.items() if logs.get(key) is not None)])


def start_lines(data: shards.Data, trainer: BlockTrainer, plan: Plan, session: dict[str, Any]) -> list[str]:
    """What is about to be trained, on what, where."""
    args = trainer.args
    num_parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    vocab_size, rows = data.vocab_size, trainer.model.config.vocab_size
    vocabulary = f"{vocab_size:,}" + (f" padded to {rows:,}" if rows != vocab_size else "")
    processes = f", {args.world_size} processes" if args.world_size > 1 else ""
    batch_blocks, num_evaluated = trainer.position.global_batch_blocks, sum(map(len, trainer.validation.values()))
    lines = [
        f"shards   {data.description}: {len(data['train']):,} training and {num_evaluated:,} validation "
        f"blocks of {data.block_tokens:,} tokens",
        *repetitions(data, trainer.order, args.max_steps * batch_blocks),
        f"model    {num_parameters / 1e6:,.2f} M parameters, vocabulary {vocabulary}",
        f"device   {session['device']}, {session['precision']}{processes}",
        f"steps    {args.max_steps:,} of {plural(batch_blocks, 'block')} = {batch_blocks * data.block_tokens:,} tokens: "
        f"{trainer.true_epoch(args.max_steps):.2f} epochs"
        + (
            f", in micro-batches of {plural(args.train_batch_size, 'block')}"
            if batch_blocks > args.train_batch_size
            else ""
        ),
        f"run      {Path(args.output_dir)}",
        *plan.notices,
    ]
    if plan.checkpoint is not None:
        lines.append(f"continuing from {plan.checkpoint}")
        lines += [f"changed since then: {change}" for change in session["changes"]]
    return lines


def passes(data: shards.Data, order: shards.RunOrder, run_blocks: int) -> list[tuple[Path, float]]:
    """Each set, and how often a run of so many blocks passes over it."""
    counts = zip(data.sets, order.counts(run_blocks), order.sizes, strict=True)
    return [(part.path, count / size) for part, count, size in counts]


def repetitions(data: shards.Data, order: shards.RunOrder, run_blocks: int) -> list[str]:
    """A line for each set of a mixture that the run repeats more often than helps (Muennighoff et al. 2023: 4 passes)."""
    advice = f"more than {MAX_REPETITIONS} passes teach little; a smaller share avoids that"
    return [
        f"warning  {path}: {times:,.1f} passes in this run: {advice}"
        for path, times in passes(data, order, run_blocks)
        if times > MAX_REPETITIONS and len(data.sets) > 1
    ]


def end_lines(run: Path, record: dict[str, Any], samples: Sequence[Continuation]) -> list[str]:
    """The samples and the summary."""
    results, seconds = record["results"], record["sessions"][-1]["seconds"]

    def number(key: str, spec: str) -> str:
        return "-" if results[key] is None else format(results[key], spec)

    lines = [
        "",
        *(f"{sample_text(sample)}\n" for sample in samples),
        f"steps            {results['steps']:,} ({results['epochs']:.2f} epochs, {results['tokens']:,} tokens)",
        f"time             {seconds:,.0f} s, {number('tokens_per_second', ',.0f')} tokens/s",
        f"training loss    {number('first_train_loss', '.4f')} → {number('last_train_loss', '.4f')}",
    ]
    if results["eval_loss"] is not None:
        lines += [
            f"validation loss  {results['eval_loss']:.4f}; lowest {number('best_eval_loss', '.4f')}, "
            f"at step {number('best_eval_step', ',')}",
            f"  bits per byte  {number('eval_bits_per_byte', '.2f')}; lowest {number('best_eval_bits_per_byte', '.2f')}; "
            f"guessing {number('guessing_bits_per_byte', '.2f')}, gzip {number('gzip_bits_per_byte', '.2f')}",
        ]
    return [*lines, f"model            {run / MODEL_NAME}"]


def sample_text(sample: Continuation) -> str:
    """The text as a reader sees it, the prompt in 【】."""
    return f"【{visible(sample.prompt)}】{visible(sample.text)}".rstrip()
