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
from train.evaluate import best_evaluation, by_set, last_session
from train.run_directory import (
    METRICS_NAME,
    MODEL_NAME,
    RECORD_NAME,
    SAMPLES_NAME,
    flatten,
    is_locked,
    part_of,
    read_lines,
    read_record,
)

_IGNORED_SETTINGS = {"output_dir", "tracking.name"}  # they differ always
_SESSION_KEYS = ("device", "processes", "precision", "python", "packages")

# A log of a run: `step`, `tokens` trained on and `seconds` of training until then (over all sessions), `loss` in nats a
# token (None: it was not finite), `num_blocks` that were evaluated.
Point = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of one run. None stands for what its files don't say (yet)."""

    path: Path
    name: str  # distinguishes it from the others of the comparison
    settings: dict[str, Any]  # dotted names
    defaults: dict[str, Any]  # of the settings that were not given
    summary: dict[str, Any]  # single values, such as `steps`: see `_summary`
    training: list[Point]
    validation: list[Point]
    samples: dict[str, str]  # what the model wrote last, by prompt


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
    record = read_record(path)
    settings, planned = (part_of(record, path, key) for key in ("settings", "training_arguments"))
    if session := last_session(record):
        settings["session"] = {key: session[key] for key in _SESSION_KEYS if key in session}
    logs = list(map(_numbers, read_lines(path / METRICS_NAME)))
    samples = read_lines(path / SAMPLES_NAME)
    samples = [one for one in samples if isinstance(one.get("prompt"), str) and isinstance(one.get("text"), str)]
    last_sampled = max((sample["step"] for sample in samples), default=0)
    return Run(
        path=path,
        name=name,
        settings={key: value for key, value in flatten(settings).items() if key not in _IGNORED_SETTINGS},
        defaults={f"training.{key}": None if value == "None" else value for key, value in planned.items()},
        summary=_summary(path, record, logs),
        training=_curve(logs, "loss"),
        validation=_curve(logs, "eval_loss"),
        samples={sample["prompt"]: sample["text"] for sample in samples if sample["step"] == last_sampled},
    )


def _summary(path: Path, record: dict[str, Any], logs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    state, data = printable(str(record.get("state"))), part_of(record, path, "shards")
    if state == "training":  # else `trained` or `finished`
        state += ", running" if is_locked(path) else ", stopped"
    planned, results = (_numbers(part_of(record, path, key)) for key in ("training_arguments", "results"))
    best = best_evaluation(logs) or {}
    rates = [log["tokens_per_second"] for log in logs if log.get("tokens_per_second")]
    tokenizers = (directory / "tokenizer.json" for directory in (path / MODEL_NAME, *numbered_checkpoints(path)))
    tokenizer = next(filter(Path.is_file, tokenizers), None)
    return {
        "state": state,
        "steps": results.get("steps", _newest(logs, "step")),
        "planned_steps": planned.get("max_steps"),
        "tokens": results.get("tokens", _newest(logs, "tokens")),
        "seconds": _newest([log for log in logs if "loss" in log], "seconds"),  # of training
        "tokens_per_second": statistics.median(rates) if rates else None,
        "last_training_loss": _newest(logs, "loss"),
        "last_validation_loss": _newest(logs, "eval_loss"),
        "best_validation_loss": best.get("eval_loss"),
        "best_validation_step": best.get("step"),
        "bits_per_byte": results.get("eval_bits_per_byte"),  # on the validation blocks
        "validation_sets": by_set(next((log for log in reversed(logs) if "eval_loss" in log), {})),
        "evaluated": data.get("evaluated", data.get("fingerprint")),  # fingerprints of the sets that are evaluated
        "fingerprint": data.get("fingerprint"),  # of the shard set
        "vocab_size": data.get("vocab_size"),
        "tokenizer_digest": file_digest(tokenizer) if tokenizer else None,  # of the tokenizer.json beside the model
    }


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Those of `values` that are numbers, or null: a loss that was not finite; so is what only damage makes so large."""
    numbers = {key: value for key, value in values.items() if isinstance(value, int | float | None)}
    return {key: value if abs(value or 0) < 1e300 else None for key, value in numbers.items()}


def _newest(logs: Sequence[dict[str, Any]], key: str) -> Any:
    return next((log[key] for log in reversed(logs) if log.get(key) is not None), None)


def _curve(logs: Sequence[dict[str, Any]], key: str) -> list[Point]:
    names = {"step": "step", "tokens": "tokens", "seconds": "seconds", "loss": key, "num_blocks": "eval_samples"}
    return [{name: log.get(own) for name, own in names.items()} for log in logs if key in log]


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """For each setting in which the runs differ, the value in each (None: none), ordered by name.

    What only some runs were given has in the others the value that transformers chose.
    """
    keys = sorted({key for run in runs for key in run.settings}, key=lambda key: (key.startswith("session."), key))
    rows = {key: [run.settings.get(key, run.defaults.get(key)) for run in runs] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values[1:])}


def comparability(runs: Sequence[Run]) -> list[str]:
    """A line if the losses of `runs` are of different tokens or texts; empty if they can be compared."""
    tokenizers, vocabularies, sets = (
        {str(value) for run in runs if (value := run.summary[name]) is not None}
        for name in ("tokenizer_digest", "vocab_size", "evaluated")
    )
    if len(tokenizers) > 1 or len(vocabularies) > 1:
        have_bits = all(run.summary["bits_per_byte"] is not None for run in runs)
        instead = "bits per byte" if have_bits else "the bits per byte of `python -m train.evaluate RUN`"
        return [f"different tokenizers: losses and perplexities per token are not comparable; compare {instead}"]
    if len(sets) > 1:
        unknown = ", and perhaps with different tokenizers" * any(not run.summary["tokenizer_digest"] for run in runs)
        return [
            f"different shard sets{unknown}: losses per token are of different texts and not comparable; "
            "`python -m train.evaluate RUN --shards DIR` measures each on the same set"
        ]
    return []
