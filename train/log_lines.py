"""What is printed and kept of a running training: lines, a progress bar, `metrics.jsonl`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import shards
from shards.common.text import duration, plural, visible
from train.run_directory import MODEL_NAME, Plan, append_lines

if TYPE_CHECKING:
    from train.sampling import Continuation
    from train.trainer import BlockTrainer


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Appends each log to a JSON Lines file: `step`, `epoch` and whatever was logged. For one process only."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if logs:
            append_lines(self._path, [{"step": state.global_step, **finite(logs)}])


def finite(logs: dict[str, Any]) -> dict[str, Any]:
    """`logs` with null for what JSON has no number for."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in logs.items()
    }


class PlainLines(TrainerCallback):  # type: ignore[misc]
    """One readable line for each log, above the bars if there are some."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        line = log_line(logs or {}, state.global_step, state.max_steps)
        if state.is_world_process_zero and line is not None:
            tqdm.write(line)
            sys.stdout.flush()


class ProgressLines(PlainLines, ProgressCallback):  # type: ignore[misc]
    """The same lines, and the Trainer's bar on a terminal."""


def wants_bar() -> bool:
    """Whether standard error is a terminal, where a bar can be drawn."""
    return sys.stderr.isatty()


def log_line(logs: dict[str, Any], step: int, max_steps: int) -> str | None:
    """One line for a log of the Trainer; None for those that the summary at the end says better."""
    width = len(f"{max_steps:,}")
    head = f"step {step:>{width},}/{max_steps:,}  epoch {logs.get('epoch', 0.0):.2f}"
    if "eval_loss" in logs:
        return f"{head}  validation loss {logs['eval_loss']:.4f}  perplexity {logs['eval_perplexity']:,.1f}"
    if "loss" not in logs:
        return None
    parts: tuple[tuple[str, Callable[[float], str]], ...] = (
        ("tokens", lambda tokens: f"{tokens / 1e6:,.2f} M tokens"),
        ("loss", lambda loss: f"loss {loss:.4f}"),
        ("learning_rate", lambda rate: f"lr {rate:.2e}"),
        ("grad_norm", lambda norm: f"grad {norm:.2f}"),
        ("tokens_per_second", lambda rate: f"{rate:,.0f} tokens/s"),
        ("mfu", lambda share: f"MFU {100 * share:.1f} %"),
        ("peak_memory_bytes", lambda size: f"{size / 1e9:.1f} GB"),
        ("seconds_left", lambda seconds: f"{duration(seconds)} left"),
    )
    return "  ".join([head, *(text(logs[key]) for key, text in parts if logs.get(key) is not None)])


def start_lines(
    data: shards.Data, trainer: BlockTrainer, plan: Plan, session: dict[str, Any], changes: Sequence[str]
) -> list[str]:
    """What is about to be trained, on what, where."""
    args = trainer.args
    num_parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    vocab_size, rows = data.vocab_size, trainer.model.config.vocab_size
    vocabulary = f"{vocab_size:,}" + (f" padded to {rows:,}" if rows != vocab_size else "")
    processes = f", {args.world_size} processes" if args.world_size > 1 else ""
    batch_blocks = trainer.position.global_batch_blocks
    lines = [
        f"shards   {data.description}: {len(data['train']):,} training and {len(data['val']):,} validation "
        f"blocks of {data.block_tokens:,} tokens",
        f"model    {num_parameters / 1e6:,.2f} M parameters, vocabulary {vocabulary}",
        f"device   {session['device']}, {session['precision']}{processes}",
        f"steps    {args.max_steps:,} of {plural(batch_blocks, 'block')} = {batch_blocks * data.block_tokens:,} tokens: "
        f"{trainer.true_epoch(args.max_steps):.2f} epochs",
        f"run      {Path(args.output_dir)}",
        *plan.notices,
    ]
    if plan.checkpoint is not None:
        lines.append(f"continuing from {plan.checkpoint}")
        lines += [f"changed since then: {change}" for change in changes]
    return lines


def end_lines(run: Path, results: dict[str, Any], seconds: float, samples: Sequence[Continuation]) -> list[str]:
    """The samples and the summary."""

    def number(value: float | None, spec: str) -> str:
        return "-" if value is None else format(value, spec)

    first, last = number(results["first_train_loss"], ".4f"), number(results["last_train_loss"], ".4f")
    lines = ["", *(f"{sample_text(sample)}\n" for sample in samples)]
    lines += [
        f"steps            {results['steps']:,} ({results['epochs']:.2f} epochs, {results['tokens']:,} tokens)",
        f"time             {seconds:,.0f} s, {number(results['tokens_per_second'], ',.0f')} tokens/s",
        f"training loss    {first} → {last}",
    ]
    if results["eval_loss"] is not None:
        perplexity = number(results["eval_perplexity"], ",.1f")
        lines.append(f"validation loss  {results['eval_loss']:.4f}, perplexity {perplexity}")
    return [*lines, f"model            {run / MODEL_NAME}"]


def sample_text(sample: Continuation) -> str:
    """The text as a reader sees it, the prompt in 【】."""
    return f"【{visible(sample.prompt)}】{visible(sample.text)}".rstrip()
