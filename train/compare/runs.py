"""A run as it can be compared: its settings, its curves and its results, from whatever its directory holds by now.

A run that still goes on, that crashed, that went back to a checkpoint, whose losses are non-finite, or whose files are
damaged in part is shown as far as it can be read; `notices` says what is missing. A directory without `run.json` isn't a
run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from shards.common.errors import InputError, nearest_path
from shards.common.text import plural, printable
from train.checkpoints import numbered_checkpoints
from train.run_directory import (
    METRICS_NAME,
    MODEL_NAME,
    RECORD_NAME,
    SAMPLES_NAME,
    is_locked,
    read_lines_and_damage,
    read_record,
)

# What is said of a run elsewhere, or differs always; the last where a session says nothing.
_IGNORED_SETTINGS = {"output_dir", "tracking.name", "session"}
_SESSION_KEYS = ("device", "processes", "precision", "python", "packages")
Kind = TypeVar("Kind")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One log of a run. `loss` is in nats a token; None if it was not a finite number."""

    step: int
    tokens: int | None  # trained on until then
    seconds: float | None  # of training until then, over all sessions
    loss: float | None
    num_blocks: int | None = None  # of an evaluation: how many were evaluated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of one run. None stands for what its files don't say (yet)."""

    path: Path
    name: str  # distinguishes it from the others of the comparison
    state: str  # `training, running`, `training, stopped`, `trained`, `finished`
    settings: dict[str, Any]  # dotted names
    defaults: dict[str, Any]  # of the settings that were not given, as far as the record has them
    fingerprint: str | None  # of the shard set
    vocab_size: int | None
    tokenizer_digest: str | None  # SHA-256 of the tokenizer.json beside the model
    steps: int | None
    planned_steps: int | None
    tokens: int | None
    seconds: float | None  # of training
    tokens_per_second: float | None  # median of the logs
    bits_per_byte: float | None  # on the validation blocks, if the record has it
    training: list[Point]
    validation: list[Point]
    samples: dict[str, str]  # what the model wrote last, by prompt
    notices: list[str]

    @property
    def last_training_loss(self) -> float | None:
        return next((point.loss for point in reversed(self.training) if point.loss is not None), None)

    @property
    def last_validation(self) -> Point | None:
        """The newest evaluation whose loss is a number."""
        return next((point for point in reversed(self.validation) if point.loss is not None), None)

    @property
    def best_validation(self) -> Point | None:
        """The first evaluation with the lowest loss, of those on the most blocks: others are of other texts."""
        most = max((point.num_blocks or 0 for point in self.validation), default=0)
        found = [point for point in self.validation if (point.num_blocks or 0) == most and point.loss is not None]
        return min(found, key=lambda point: (point.loss, point.step), default=None)


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
    parts = [path.resolve().parts for path in paths]
    length = 1
    while len({part[-length:] for part in parts}) < len(set(parts)):
        length += 1
    names = [printable("/".join(part[-length:])) for part in parts]
    return [_read_run(path, name) for path, name in zip(paths, names, strict=True)]


def _read_run(path: Path, name: str) -> Run:
    record = read_record(path, remedy="; leave this run out")
    results, planned, data = (_of(record, key, dict) or {} for key in ("results", "training_arguments", "shards"))
    sessions, state = _of(record, "sessions", list) or [None], printable(str(record.get("state") or "unknown"))[:40]
    logs, notices = _read_lines(path / METRICS_NAME)
    training = _curve(logs, "loss")
    step_tokens = next((point.tokens // point.step for point in training if point.tokens and point.step), 0)
    validation = _curve(logs, "eval_loss", step_tokens)
    steps, max_steps = _count(results, "steps"), _count(planned, "max_steps")
    if not validation and (loss := _number(results, "eval_loss")) is not None and steps is not None:
        validation = [Point(step=steps, tokens=_count(results, "tokens"), seconds=None, loss=loss)]
    for what, curve in (("training", training), ("validation", validation)):
        bad = [point.step for point in curve if point.loss is None]
        if not curve:
            notices.append(f"no {what} losses in {METRICS_NAME}")
        elif bad:
            notices.append(f"{len(bad):,} of {len(curve):,} {what} losses are non-finite, first at step {bad[0]:,}")
    samples, sample_notices = _read_samples(path / SAMPLES_NAME)
    newest = max([*training, *validation], key=lambda point: point.step, default=None)
    rates = [rate for log in logs if "loss" in log and (rate := _number(log, "tokens_per_second"))]
    session = sessions[-1] if isinstance(sessions[-1], dict) else {}
    settings = {
        **(_of(record, "settings", dict) or {}),
        "session": {k: session[k] for k in _SESSION_KEYS if k in session},
    }
    if state == "training":
        state += ", running" if is_locked(path) else ", stopped"
    return Run(
        path=path,
        name=name,
        state=state,
        settings={key: value for key, value in flatten(settings).items() if key not in _IGNORED_SETTINGS},
        defaults={f"training.{key}": None if value == "None" else value for key, value in planned.items()},
        fingerprint=_of(data, "fingerprint", str),
        vocab_size=_count(data, "vocab_size"),
        tokenizer_digest=_tokenizer_digest(path),
        steps=steps if steps is not None else newest.step if newest else None,
        planned_steps=max_steps or None,
        tokens=_count(results, "tokens") or (newest.tokens if newest else None),
        seconds=max((point.seconds for point in training if point.seconds is not None), default=None),
        tokens_per_second=_number(results, "tokens_per_second") or (statistics.median(rates) if rates else None),
        bits_per_byte=_number(results, "eval_bits_per_byte"),
        training=training,
        validation=validation,
        samples=samples,
        notices=[*notices, *sample_notices],
    )


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The objects of a JSON Lines file, and what is wrong with it."""
    records, damaged = read_lines_and_damage(path)
    lines_are = plural(len(damaged), "line") + (" is" if len(damaged) == 1 else " are")
    return records, [f"{path.name}: {lines_are} damaged and left out, first line {damaged[0]:,}"] if damaged else []


def _read_samples(path: Path) -> tuple[dict[str, str], list[str]]:
    """The samples of the newest step; a second evaluation of the same step replaces the first."""
    records, notices = _read_lines(path)
    newest = max((_count(record, "step") or 0 for record in records), default=0)
    samples = {}
    for record in records:
        prompt, text = _of(record, "prompt", str), _of(record, "text", str)
        if (_count(record, "step") or 0) == newest and prompt is not None and text is not None:
            samples[prompt] = text
    return samples, notices


def _tokenizer_digest(run: Path) -> str | None:
    for directory in (run / MODEL_NAME, *numbered_checkpoints(run)):
        if (directory / "tokenizer.json").is_file():
            return hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest()
    return None


def _curve(logs: Iterable[dict[str, Any]], key: str, step_tokens: int = 0) -> list[Point]:
    """The logs that have `key`, by rising steps: what a run trained again replaces what it had logged before.

    Those that don't say how many tokens there were until then had `step_tokens` a step.
    """
    points: list[Point] = []
    for log in logs:
        step = _count(log, "step")
        if step is None or key not in log:
            continue
        while points and points[-1].step >= step:
            points.pop()
        tokens = _count(log, "tokens") or step * step_tokens or None
        seconds, loss = _number(log, "seconds"), _number(log, key)
        point = Point(step=step, tokens=tokens, seconds=seconds, loss=loss, num_blocks=_count(log, "eval_samples"))
        points.append(point)
    return points


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


def _of(record: dict[str, Any], key: str, kind: type[Kind]) -> Kind | None:
    """The value of `key` if it is of that kind, else None."""
    value = record.get(key)
    return value if isinstance(value, kind) else None


def _number(record: dict[str, Any], key: str) -> float | None:
    """The value of `key` if it is a finite number, else None."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) >= 2**1023 or math.isnan(value):
        return None
    return float(value)


def _count(record: dict[str, Any], key: str) -> int | None:
    """The value of `key` if it is a count, else None."""
    value = _number(record, key)
    return int(value) if value is not None and 0 <= value < 2**63 else None
