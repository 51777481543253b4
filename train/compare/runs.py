"""A run as it can be compared: its settings, its curves and its results, as far as its directory has them by now.

So a run that still goes on, or that crashed, or whose losses are non-finite, is shown too. A directory without `run.json`
isn't a run.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.common.errors import InputError, nearest_path
from shards.common.files import file_digest
from shards.common.text import printable
from shards.mixture import distinct_names
from train.checkpoints import numbered_checkpoints
from train.evaluate import best_evaluation, by_set, perplexity
from train.run_directory import (
    METRICS_NAME,
    MODEL_NAME,
    RECORD_NAME,
    SAMPLES_NAME,
    is_locked,
    part_of,
    read_lines,
    read_record,
)

_IGNORED_SETTINGS = {"output_dir", "tracking.name"}  # they differ always
_SESSION_KEYS = ("device", "processes", "precision", "python", "packages")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One log of a run. `loss` is in nats a token; None if it was not a finite number."""

    step: int
    tokens: int | None  # trained on until then
    seconds: float | None  # of training until then, over all sessions
    loss: float | None
    num_blocks: int | None  # of an evaluation: how many were evaluated

    @property
    def perplexity(self) -> float | None:
        return None if self.loss is None else perplexity(self.loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of one run. None stands for what its files don't say (yet)."""

    path: Path
    name: str  # distinguishes it from the others of the comparison
    state: str  # `training, running`, `training, stopped`, `trained`, `finished`
    settings: dict[str, Any]  # dotted names
    defaults: dict[str, Any]  # of the settings that were not given
    fingerprint: str | None  # of the shard set
    vocab_size: int | None
    tokenizer_digest: str | None  # of the tokenizer.json beside the model
    steps: int | None
    planned_steps: int | None
    tokens: int | None
    seconds: float | None  # of training
    tokens_per_second: float | None  # median of the logs
    bits_per_byte: float | None  # on the validation blocks
    validation_sets: dict[str, float | None]  # where there are several: `wiki_loss`, `wiki_bits_per_byte`, the newest
    training: list[Point]
    validation: list[Point]
    best_validation: Point | None  # see `train.evaluate.best_evaluation`
    samples: dict[str, str]  # what the model wrote last, by prompt

    @property
    def last_training_loss(self) -> float | None:
        return next((point.loss for point in reversed(self.training) if point.loss is not None), None)

    @property
    def last_validation(self) -> Point | None:
        """The newest evaluation whose loss is a number."""
        return next((point for point in reversed(self.validation) if point.loss is not None), None)


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The run directories among `paths` and, where a path is no run, the runs in it. Raises `InputError`."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            what = "expected a run's directory, found a file" if path.exists() else "no such run"
            raise InputError(f"{path}: {what}{nearest_path(path, Path.is_dir)}")
        inside = [path] if (path / RECORD_NAME).is_file() else sorted(p.parent for p in path.glob(f"*/{RECORD_NAME}"))
        if not inside:
            raise InputError(f"{path}: holds no {RECORD_NAME}, and neither does a directory in it: not a run")
        found += inside
    return list(dict.fromkeys(found))


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run directories, in the order given, called by the ends of their paths that tell them apart.

    Raises `InputError` for a record that can't be read.
    """
    return [_read_run(path, name) for path, name in zip(paths, distinct_names(paths), strict=True)]


def _read_run(path: Path, name: str) -> Run:
    record = read_record(path, remedy="; leave this run out")
    settings, planned, data, results = (
        part_of(record, path, key) for key in ("settings", "training_arguments", "shards", "results")
    )
    for session in record.get("sessions", [])[-1:]:
        settings["session"] = {key: session[key] for key in _SESSION_KEYS if key in session}
    state = printable(str(record.get("state")))
    if state == "training":
        state += ", running" if is_locked(path) else ", stopped"
    logs, samples = read_lines(path / METRICS_NAME), read_lines(path / SAMPLES_NAME)
    training, validation = _curve(logs, "loss"), _curve(logs, "eval_loss")
    best = best_evaluation(logs)
    newest = max([*training, *validation], key=lambda point: point.step, default=None)
    rates = [log["tokens_per_second"] for log in logs if log.get("tokens_per_second")]
    tokenizers = (directory / "tokenizer.json" for directory in (path / MODEL_NAME, *numbered_checkpoints(path)))
    tokenizer = next(filter(Path.is_file, tokenizers), None)
    last_sampled = max((sample["step"] for sample in samples), default=0)
    return Run(
        path=path,
        name=name,
        state=state,
        settings={key: value for key, value in flatten(settings).items() if key not in _IGNORED_SETTINGS},
        defaults={f"training.{key}": None if value == "None" else value for key, value in planned.items()},
        fingerprint=data.get("fingerprint"),
        vocab_size=data.get("vocab_size"),
        tokenizer_digest=file_digest(tokenizer) if tokenizer else None,
        steps=results.get("steps", newest and newest.step),
        planned_steps=planned.get("max_steps"),
        tokens=results.get("tokens", newest and newest.tokens),
        seconds=training[-1].seconds if training else None,
        tokens_per_second=statistics.median(rates) if rates else None,
        bits_per_byte=results.get("eval_bits_per_byte"),
        validation_sets=by_set(next((log for log in reversed(logs) if "eval_loss" in log), {})),
        training=training,
        validation=validation,
        best_validation=_point(best, "eval_loss") if best else None,
        samples={sample["prompt"]: sample["text"] for sample in samples if sample["step"] == last_sampled},
    )


def _curve(logs: Sequence[dict[str, Any]], key: str) -> list[Point]:
    return [_point(log, key) for log in logs if key in log]


def _point(log: dict[str, Any], key: str) -> Point:
    return Point(
        step=log["step"],
        tokens=log.get("tokens"),
        seconds=log.get("seconds"),
        loss=log[key],
        num_blocks=log.get("eval_samples"),
    )


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """
    >>> flatten({"model": {"hidden_size": 64}, "loss": "auto"})
    {'model.hidden_size': 64, 'loss': 'auto'}
    """
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """For each setting in which the runs differ, the value in each (None: none), ordered by name.

    What only some runs were given has in the others the value that transformers chose.
    """
    keys = sorted({key for run in runs for key in run.settings}, key=lambda key: (key.startswith("session."), key))
    rows = {key: [run.settings.get(key, run.defaults.get(key)) for run in runs] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values[1:])}


def comparability(runs: Sequence[Run]) -> list[str]:
    """A line if the losses of `runs` are of different tokens or texts; empty if they can be compared."""
    tokenizers = {run.tokenizer_digest for run in runs} - {None}
    vocabularies = {run.vocab_size for run in runs} - {None}
    if len(tokenizers) > 1 or len(vocabularies) > 1:
        have_bits = all(run.bits_per_byte is not None for run in runs)
        instead = (
            "compare bits per byte" if have_bits else "compare the bits per byte of `python -m train.evaluate RUN`"
        )
        return [f"different tokenizers: losses and perplexities per token are not comparable; {instead}"]
    if len({run.fingerprint for run in runs} - {None}) > 1:
        unknown = "" if all(run.tokenizer_digest for run in runs) else ", and perhaps with different tokenizers"
        return [
            f"different shard sets{unknown}: losses per token are of different texts and not comparable; "
            "`python -m train.evaluate RUN --shards DIR` measures each on the same set"
        ]
    return []
