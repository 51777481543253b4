"""What a user sees of a running training: lines, a progress bar, and `metrics.jsonl`."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from train.run_directory import append_lines


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


def log_line(logs: dict[str, Any], step: int, max_steps: int) -> str | None:
    """One line for a log of the Trainer; None for those that the summary at the end tells better."""
    width = len(f"{max_steps:,}")
    head = f"step {step:>{width},}/{max_steps:,}  epoch {logs.get('epoch', 0.0):.2f}"
    if "loss" in logs:
        seen = f"  {logs['tokens'] / 1e6:,.2f} M tokens" if "tokens" in logs else ""
        line = f"{head}{seen}  loss {logs['loss']:.4f}  lr {logs.get('learning_rate', 0.0):.2e}"
        if "grad_norm" in logs:
            line += f"  grad {logs['grad_norm']:.2f}"
        if "tokens_per_second" in logs:
            line += f"  {logs['tokens_per_second']:,.0f} tokens/s"
        if "mfu" in logs:
            line += f"  MFU {100 * logs['mfu']:.1f} %"
        if "peak_memory_bytes" in logs:
            line += f"  {logs['peak_memory_bytes'] / 1e9:.1f} GB"
        if logs.get("seconds_left"):
            line += f"  {duration(logs['seconds_left'])} left"
        return line
    if "eval_loss" in logs:
        return f"{head}  validation loss {logs['eval_loss']:.4f}  perplexity {logs['eval_perplexity']:,.1f}"
    return None


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def wants_bar() -> bool:
    """Whether standard error is a terminal, where a bar can be drawn."""
    return sys.stderr.isatty()
