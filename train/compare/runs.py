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
from typing import Any

from shards.common.errors import InputError, nearest_path
from shards.common.text import printable
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
    name: str  # tells it from the others of the comparison
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
        if (path / RECORD_NAME).is_file():
            found.append(path)
            continue
        inside = sorted(child.parent for child in path.glob(f"*/{RECORD_NAME}") if child.is_file())
        if not inside:
            raise InputError(f"{path}: holds no {RECORD_NAME}, and neither does a directory in it: not a run")
        found += inside
    return list(dict.fromkeys(found))


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run directories, in the order given. Raises `InputError` for a record that can't be read."""
    return [_read_run(path, name) for path, name in zip(paths, short_names(paths), strict=True)]


def short_names(paths: Sequence[Path]) -> list[str]:
    """The ends of the paths that tell them apart: `["a", "b"]` for `runs/a` and `runs/b`."""
    parts = [path.resolve().parts for path in paths]
    length = 1
    while len({part[-length:] for part in parts}) < len(set(parts)):
        length += 1
    return [printable("/".join(part[-length:])) for part in parts]


def _read_run(path: Path, name: str) -> Run:
    record = read_record(path, remedy="; leave this run out")
    logs, notices = _read_json_lines(path / METRICS_NAME)
    results, planned = _mapping(record.get("results")), _mapping(record.get("training_arguments"))
    data, sessions = _mapping(record.get("shards")), record.get("sessions")
    training = _curve(logs, "loss")
    rates = [rate for log in logs if "loss" in log and (rate := number(log.get("tokens_per_second")))]
    step_tokens = next((point.tokens // point.step for point in training if point.tokens and point.step), None)
    validation = _curve(logs, "eval_loss", step_tokens)
    loss = number(results.get("eval_loss"))
    steps = whole(results.get("steps"))
    if not validation and loss is not None and steps is not None:
        validation = [Point(step=steps, tokens=whole(results.get("tokens")), seconds=None, loss=loss)]
    if not training:
        notices.append(f"no training losses in {METRICS_NAME}")
    if not validation:
        notices.append("no validation loss")
    for what, curve in (("training", training), ("validation", validation)):
        bad = [point.step for point in curve if point.loss is None]
        if bad:
            notices.append(f"{len(bad):,} of {len(curve):,} {what} losses are non-finite, first at step {bad[0]:,}")
    newest = max([*training, *validation], key=lambda point: point.step, default=None)
    max_steps = whole(planned.get("max_steps"))
    samples, sample_notices = _read_samples(path / SAMPLES_NAME)
    last_session = _mapping(sessions[-1]) if isinstance(sessions, list) and sessions else {}
    return Run(
        path=path,
        name=name,
        state=_state(path, record.get("state")),
        settings=_settings(_mapping(record.get("settings")), last_session),
        defaults={f"training.{key}": None if value == "None" else value for key, value in planned.items()},
        fingerprint=_string(data.get("fingerprint")),
        vocab_size=whole(data.get("vocab_size")),
        tokenizer_digest=_tokenizer_digest(path),
        steps=steps if steps is not None else newest.step if newest else None,
        planned_steps=max_steps if max_steps and max_steps > 0 else None,
        tokens=whole(results.get("tokens")) or (newest.tokens if newest else None),
        seconds=max((point.seconds for point in training if point.seconds is not None), default=None),
        tokens_per_second=number(results.get("tokens_per_second")) or (statistics.median(rates) if rates else None),
        bits_per_byte=number(results.get("eval_bits_per_byte")),
        training=training,
        validation=validation,
        samples=samples,
        notices=[*notices, *sample_notices],
    )


# ---- files ----


def _read_json_lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The objects of a JSON Lines file, and what is wrong with it."""
    try:
        records, damaged = read_lines_and_damage(path)
    except OSError as error:
        return [], [f"{path.name} can't be read ({error.strerror})"]
    if not damaged:
        return records, []
    lines_are = "line is" if len(damaged) == 1 else "lines are"
    return records, [f"{path.name}: {len(damaged):,} {lines_are} damaged and left out, first line {damaged[0]:,}"]


def _read_samples(path: Path) -> tuple[dict[str, str], list[str]]:
    """The samples of the newest step, in the order in which they were written."""
    records, notices = _read_json_lines(path)
    stepped = [(whole(record.get("step")) or 0, record) for record in records]
    newest = max((step for step, _ in stepped), default=0)
    samples: dict[str, str] = {}  # a second evaluation of the same step replaces the first
    for step, record in stepped:
        prompt, text = record.get("prompt"), record.get("text")
        if step == newest and isinstance(prompt, str) and isinstance(text, str):
            samples[prompt] = text
    return samples, notices


def _tokenizer_digest(run: Path) -> str | None:
    for directory in (run / MODEL_NAME, *numbered_checkpoints(run)):
        try:
            return hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest()
        except OSError:
            continue
    return None


def _state(run: Path, state: Any) -> str:
    if state != "training":
        return printable(str(state))[:40] if state else "unknown"
    return "training, running" if is_locked(run) else "training, stopped"


# ---- curves ----


def _curve(logs: Iterable[dict[str, Any]], key: str, step_tokens: int | None = None) -> list[Point]:
    """The logs that have `key`, by rising steps: what a run trained again replaces what it had logged before.

    Those that don't say how many tokens there were until then had `step_tokens` a step.
    """
    points: list[Point] = []
    for log in logs:
        step = whole(log.get("step"))
        if step is None or key not in log:
            continue
        while points and points[-1].step >= step:
            points.pop()
        tokens = whole(log.get("tokens"))
        if tokens is None and step_tokens is not None:
            tokens = step * step_tokens
        seconds, loss, num_blocks = (number(log.get(name)) for name in ("seconds", key, "eval_samples"))
        points.append(Point(step=step, tokens=tokens, seconds=seconds, loss=loss, num_blocks=whole(num_blocks)))
    return points


# ---- settings ----


def _settings(settings: dict[str, Any], session: dict[str, Any]) -> dict[str, Any]:
    """Dotted names and values: what the run was set to, and what it ran on last."""
    flat = flatten({**settings, "session": {key: session[key] for key in _SESSION_KEYS if key in session}})
    return {key: value for key, value in flat.items() if key not in _IGNORED_SETTINGS}


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


# ---- values of unknown kind ----


def number(value: Any) -> float | None:
    """`value` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        as_float = float(value)
    except OverflowError:
        return None
    return as_float if math.isfinite(as_float) else None


def whole(value: Any) -> int | None:
    """`value` if it is a count, else None."""
    found = number(value)
    return int(found) if found is not None and 0 <= found < 2**63 else None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None
