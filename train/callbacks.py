"""What happens beside a training: its logs as lines and in `metrics.jsonl`, samples at evaluations, the end at SIGTERM."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from tqdm import tqdm
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import shards
from shards.common.command_line import Terminated, say
from shards.common.files import write_atomically
from shards.common.text import duration, plural, printable
from train.evaluate import by_set
from train.flops import flops_a_token
from train.run_directory import METRICS_NAME, MODEL_NAME, SAMPLES_NAME, Plan, append_lines, json_lines, read_lines
from train.sampling import Continuation, continue_prompts
from train.settings import GenerationSettings

if TYPE_CHECKING:
    from train.trainer import BlockTrainer

MAX_REPETITIONS = 4
SAME_REQUEST_SECONDS = 30  # torchrun forwards a SIGTERM that its workers got too
MAX_SAMPLE_TOKENS = 64  # of a sample during training
_CPU_STEP_FLOPS = 1e13  # in a step: two minutes on two cores
# With several processes they must stop at the same step, and asking each other makes a GPU wait: not at each step.
_STEPS_BETWEEN_QUESTIONS = 10


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Keeps each log in `metrics.jsonl`, a line each: `step`, `epoch` and whatever was logged. For one process only.

    A training that begins has the logs of its checkpoint there, and in `samples.jsonl` no sample of a step to come.
    """

    def __init__(self, run: Path) -> None:
        self._run = run

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        logs = [{"step": log.get("step"), **log} for log in state.log_history]
        write_atomically(self._run / METRICS_NAME, json_lines(logs))
        if samples := read_lines(self._run / SAMPLES_NAME):  # those of the last step are written after its checkpoint
            stop = min(state.global_step + 1, state.max_steps)
            write_atomically(self._run / SAMPLES_NAME, json_lines(one for one in samples if one["step"] < stop))

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **_: Any) -> None:
        append_lines(self._run / METRICS_NAME, [{"step": state.global_step, **(logs or {})}])


class PlainLines(TrainerCallback):  # type: ignore[misc]
    """One readable line for each log, above the bars if there are some."""

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **_: Any) -> None:
        if line := log_line(logs or {}, state.global_step, state.max_steps):
            tqdm.write(line)
            sys.stdout.flush()


class ProgressLines(PlainLines, ProgressCallback):  # type: ignore[misc]
    """The same lines, and the Trainer's bar on a terminal."""


class SamplesAtEvaluation(TrainerCallback):  # type: ignore[misc]
    """Continues the prompts at each evaluation before the last step, and gives the samples and the step to `keep`.

    What the model wrote at its end comes from the saved model. For the first process only. A failure ends the samples,
    never the training.
    """

    def __init__(
        self, settings: GenerationSettings, tokenizer: Any, keep: Callable[[list[Continuation], int], None]
    ) -> None:
        self._tokenizer, self._keep, self._failed = tokenizer, keep, False
        self._settings = dataclasses.replace(settings, max_new_tokens=min(settings.max_new_tokens, MAX_SAMPLE_TOKENS))

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step >= state.max_steps or self._failed:
            return
        was_training = model.training
        try:
            model.eval()
            self._keep(list(continue_prompts(model, self._tokenizer, self._settings)), state.global_step)
        except Exception as error:
            self._failed = True
            reason = (str(error) or type(error).__name__).splitlines()[0]
            say(f"no samples from step {state.global_step:,} on: {printable(reason)}")
        finally:
            model.train(was_training)


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """SIGTERM while a model trains: the step at hand is finished, a checkpoint is saved, then the run ends.

    Schedulers send it some time before they kill, and it may arrive twice: repeats within half a minute are the same
    request, a later one ends the run at once. So does Ctrl-C: who presses it waits for the prompt.
    """

    requested_at: float | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _note(self, *_: object) -> None:
        now = time.monotonic()
        if self.requested_at is None:
            self.requested_at = now
        elif now - self.requested_at > SAME_REQUEST_SECONDS:
            raise Terminated

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        requested = self.requested_at is not None
        if args.world_size > 1:
            if args.device.type != "cpu" and state.global_step % _STEPS_BETWEEN_QUESTIONS:
                return
            answer = torch.tensor([int(requested)], device=args.device)
            dist.all_reduce(answer, op=dist.ReduceOp.MAX)
            requested = bool(answer.item())
        if requested:
            self.requested_at = self.requested_at or time.monotonic()
            control.should_save = control.should_training_stop = True


# ---- lines for people ----


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
        "loss": "loss {:.4f}".format,
        "learning_rate": "lr {:.2e}".format,
        "grad_norm": "grad {:.2f}".format,
        "tokens_per_second": "{:,.0f} tokens/s".format,
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
    batch_blocks, num_evaluated = trainer.batch_blocks, sum(map(len, trainer.validation.values()))
    in_micro_batches = f", in micro-batches of {plural(args.train_batch_size, 'block')}"
    lines = [
        f"shards   {data.description}: {len(data['train']):,} training and {num_evaluated:,} validation "
        f"blocks of {data.block_tokens:,} tokens",
        *repetitions(data, trainer.order, args.max_steps * batch_blocks),
        f"model    {num_parameters / 1e6:,.2f} M parameters, vocabulary {vocabulary}",
        f"device   {session['device']}, {session['precision']}{processes}",
        *slowness(data, trainer),
        f"steps    {args.max_steps:,} of {plural(batch_blocks, 'block')} = {batch_blocks * data.block_tokens:,} tokens: "
        f"{trainer.true_epoch(args.max_steps):.2f} epochs{in_micro_batches * (batch_blocks > args.train_batch_size)}",
        f"run      {Path(args.output_dir)}",
        *plan.notices,
    ]
    if plan.checkpoint is not None:
        lines.append(f"continuing from {plan.checkpoint}")
        lines += [f"changed since then: {change}" for change in session["changes"]]
    return lines


def slowness(data: shards.Data, trainer: BlockTrainer) -> list[str]:
    """A warning where a step is too much for a CPU: its first line would come after minutes, without a word before."""
    step_flops = flops_a_token(trainer.model.config, data.block_tokens) * trainer.batch_blocks * data.block_tokens
    is_slow = trainer.args.device.type == "cpu" and step_flops > _CPU_STEP_FLOPS
    cure = "--dry_run measures one; configs/sample.yaml has a model for CPUs"
    return [f"warning  a step is {step_flops:.0e} operations, minutes on a CPU: {cure}"] * is_slow


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


class _Missing:
    def __format__(self, _spec: str) -> str:
        return "-"


def end_lines(run: Path, record: dict[str, Any], samples: Sequence[Continuation]) -> list[str]:
    """The samples and the summary."""
    lines = [
        "steps            {steps:,} ({epochs:.2f} epochs, {tokens:,} tokens)",
        "time             {seconds:,.0f} s, {tokens_per_second:,.0f} tokens/s",
        "training loss    {first_train_loss:.4f} → {last_train_loss:.4f}",
    ]
    if record["results"]["eval_loss"] is not None:
        lines += [
            "validation loss  {eval_loss:.4f}; lowest {best_eval_loss:.4f}, at step {best_eval_step:,}",
            "  bits per byte  {eval_bits_per_byte:.2f}; lowest {best_eval_bits_per_byte:.2f}; "
            "guessing {guessing_bits_per_byte:.2f}, gzip {gzip_bits_per_byte:.2f}",
        ]
    values = {"seconds": record["sessions"][-1]["seconds"], **record["results"]}
    known = {key: _Missing() if value is None else value for key, value in values.items()}
    texts = [f"{sample}\n" for sample in samples]
    return ["", *texts, *(line.format_map(known) for line in lines), f"model            {run / MODEL_NAME}"]
