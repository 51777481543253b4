"""The comparison as rows, for a terminal of any width: properties are rows, runs are columns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shards.common.text import duration, printable
from train.compare.runs import Run, comparability, differences

NOTHING = "–"
_MAX_CELL_CHARACTERS = 200
_LABEL_COLUMNS, _RUN_COLUMNS = 34, 18
_COLUMNS_OF_NO_TERMINAL = 120

Rows = list[tuple[str, list[str]]]


def result_rows(runs: Sequence[Run]) -> Rows:
    """What came of each run, a property a row."""
    sets = list(dict.fromkeys(key for run in runs for key in run.validation_sets))
    return [
        (rows[0][0], [text for _, text in rows]) for rows in zip(*(_results(run, sets) for run in runs), strict=True)
    ]


def _results(run: Run, sets: Sequence[str]) -> list[tuple[str, str]]:
    last, best = run.last_validation, run.best_validation
    last_loss, last_perplexity = (last.loss, last.perplexity) if last else (None, None)
    best_loss, best_perplexity, best_step = (best.loss, best.perplexity, best.step) if best else (None, None, None)
    is_done = run.planned_steps in (None, run.steps)
    return [
        ("state", run.state),
        ("steps", _number(run.steps) if is_done else f"{run.steps or 0:,} of {run.planned_steps:,}"),
        ("tokens seen", _number(run.tokens)),
        ("training time", NOTHING if run.seconds is None else duration(run.seconds)),
        ("tokens/s", _number(run.tokens_per_second)),
        ("training loss", _number(run.last_training_loss, ".4f")),
        ("validation loss", _number(last_loss, ".4f")),
        ("  perplexity", _number(last_perplexity, ",.2f")),
        *((f"  {key.replace('_', ' ')}", _number(run.validation_sets.get(key), ".4f")) for key in sets),
        ("best validation loss", _number(best_loss, ".4f")),
        ("  perplexity", _number(best_perplexity, ",.2f")),
        ("  at step", _number(best_step)),
        ("bits per byte", _number(run.bits_per_byte, ".4f")),
        ("shard set", (run.fingerprint or NOTHING)[:12]),
    ]


def difference_rows(runs: Sequence[Run]) -> Rows:
    """The settings that are not the same in all runs."""
    return [(key, [value_text(value) for value in values]) for key, values in differences(runs).items()]


def value_text(value: Any) -> str:
    """A setting on one line, without anything that a terminal would obey."""
    if value is None:
        return NOTHING
    shown = printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return shown if len(shown) <= _MAX_CELL_CHARACTERS else shown[: _MAX_CELL_CHARACTERS - 1] + "…"


def _number(value: float | None, form: str = ",.0f") -> str:
    return NOTHING if value is None else format(value, form)


def best_runs(runs: Sequence[Run]) -> list[Run]:
    """Those with the lowest validation loss, where there are several to compare."""
    found = [(point.loss, run) for run in runs if (point := run.best_validation) and point.loss is not None]
    if len(found) < 2 or comparability(runs):
        return []
    lowest = min(loss for loss, _ in found)
    return [run for loss, run in found if loss == lowest]


def remarks(runs: Sequence[Run]) -> list[str]:
    """Whether losses can be compared, which run is best, and where losses are non-finite."""
    lines = comparability(runs)
    for best in best_runs(runs)[:1]:
        if point := best.best_validation:
            lines.append(f"lowest validation loss: {best.name}, {point.loss:.4f} at step {point.step:,}")
    for run in runs:
        for what, curve in (("training", run.training), ("validation", run.validation)):
            if bad := [point.step for point in curve if point.loss is None]:
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
            for rows in (difference_rows(runs), result_rows(runs)):
                for label, values in rows:
                    table.add_row(Text(label), *map(Text, values[shown]))
                table.add_section()
            console.print(table)
        for remark in remarks(runs):
            console.print(Text(remark))
    return [line.rstrip() for line in capture.get().splitlines()]
