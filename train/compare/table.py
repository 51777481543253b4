"""The comparison as rows, for a terminal of any width: properties are rows, runs are columns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shards.common.text import duration, printable
from train.compare.runs import Run, comparability, differences
from train.evaluate import perplexity

NOTHING = "–"
_MAX_CELL_CHARACTERS = 200
_LABEL_COLUMNS, _RUN_COLUMNS = 34, 18
_COLUMNS_OF_NO_TERMINAL = 120

Rows = list[tuple[str, list[str]]]

_LOSS, _COUNT = "{:.4f}".format, "{:,.0f}".format
_SUMMARY: list[tuple[str, str, Callable[[Any], str]]] = [
    ("state", "state", str),
    ("steps", "steps", _COUNT),
    ("  planned", "planned_steps", _COUNT),
    ("tokens seen", "tokens", _COUNT),
    ("training time", "seconds", duration),
    ("tokens/s", "tokens_per_second", _COUNT),
    ("training loss", "last_training_loss", _LOSS),
    ("validation loss", "last_validation_loss", _LOSS),
    ("  perplexity", "last_validation_loss", lambda loss: f"{perplexity(loss):,.2f}"),
    ("best validation loss", "best_validation_loss", _LOSS),
    ("  perplexity", "best_validation_loss", lambda loss: f"{perplexity(loss):,.2f}"),
    ("  at step", "best_validation_step", _COUNT),
    ("bits per byte", "bits_per_byte", _LOSS),
    ("shard set", "fingerprint", lambda fingerprint: printable(str(fingerprint))[:12]),
]


def summary_rows(runs: Sequence[Run]) -> Rows:
    """What came of each run, a property a row; last what each of several validation sets has."""
    sets = dict.fromkeys(key for run in runs for key in run.summary["validation_sets"])
    rows = [(label, [_text(run.summary[key], text) for run in runs]) for label, key, text in _SUMMARY]
    of_sets = ((key, [run.summary["validation_sets"].get(key) for run in runs]) for key in sets)
    return rows + [(key.replace("_", " "), [_text(value, _LOSS) for value in values]) for key, values in of_sets]


def _text(value: Any, text: Callable[[Any], str]) -> str:
    return NOTHING if value is None else text(value)


def difference_rows(runs: Sequence[Run]) -> Rows:
    """The settings that are not the same in all runs."""
    return [(key, [value_text(value) for value in values]) for key, values in differences(runs).items()]


def value_text(value: Any) -> str:
    """A setting on one line, without anything that a terminal would obey."""
    if value is None:
        return NOTHING
    shown = printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return shown if len(shown) <= _MAX_CELL_CHARACTERS else shown[: _MAX_CELL_CHARACTERS - 1] + "…"


def best_run(runs: Sequence[Run]) -> Run | None:
    """The first with the lowest validation loss, where there are several to compare."""
    found = [run for run in runs if run.summary["best_validation_loss"] is not None]
    is_fair = len(found) > 1 and not comparability(runs)
    return min(found, key=lambda run: run.summary["best_validation_loss"]) if is_fair else None


def remarks(runs: Sequence[Run]) -> list[str]:
    """Whether losses can be compared, which run is best, and where losses are non-finite."""
    lines = comparability(runs)
    if best := best_run(runs):
        loss, step = best.summary["best_validation_loss"], best.summary["best_validation_step"]
        lines.append(f"lowest validation loss: {best.name}, {loss:.4f} at step {step:,}")
    for run in runs:
        for what, curve in (("training", run.training), ("validation", run.validation)):
            if bad := [point["step"] for point in curve if point["loss"] is None]:
                count = f"{len(bad):,} of {len(curve):,} {what} losses"
                lines.append(f"{run.name}: {count} are non-finite, first at step {bad[0]:,}")
    return lines


def as_lines(runs: Sequence[Run], columns: int | None = None) -> list[str]:
    """The comparison for a terminal of `columns` columns (None: of the terminal that there is).

    A table, or several with some of the runs each; then the remarks.
    """
    columns = columns or shutil.get_terminal_size((_COLUMNS_OF_NO_TERMINAL, 24)).columns
    most = max(1, (columns - min(_LABEL_COLUMNS, columns // 3)) // _RUN_COLUMNS)
    console = Console(width=columns, color_system=None, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        for first in range(0, len(runs), most):
            shown = slice(first, first + most)
            table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
            table.add_column(max_width=_LABEL_COLUMNS, overflow="fold")
            for run in runs[shown]:
                table.add_column(Text(run.name), overflow="fold")
            for rows in (difference_rows(runs), summary_rows(runs)):
                for label, values in rows:
                    table.add_row(Text(label), *map(Text, values[shown]))
                table.add_section()
            console.print(table)
        for remark in remarks(runs):
            console.print(Text(remark))
    return [line.rstrip() for line in capture.get().splitlines()]
