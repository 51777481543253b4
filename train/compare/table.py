"""The comparison as rows, and rows as tables for a terminal of any width: properties are rows, runs are columns."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shards.common.text import duration, printable
from train.compare.runs import Point, Run, differences

NOTHING = "–"
_MAX_CELL_CHARACTERS = 200
_FINGERPRINT_CHARACTERS = 12
_LABEL_COLUMNS, _RUN_COLUMNS = 34, 18


def result_rows(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """What came of each run, a property a row."""
    rows = [
        ("state", [run.state for run in runs]),
        ("steps", [_steps(run) for run in runs]),
        ("tokens seen", [_count(run.tokens) for run in runs]),
        ("training time", [NOTHING if run.seconds is None else duration(run.seconds) for run in runs]),
        ("tokens/s", [_count(run.tokens_per_second) for run in runs]),
        ("training loss", [_loss(run.last_training_loss) for run in runs]),
        ("validation loss", [_loss(point.loss if (point := run.last_validation) else None) for run in runs]),
        ("  perplexity", [_perplexity(run.last_validation) for run in runs]),
        ("best validation loss", [_loss(point.loss if (point := run.best_validation) else None) for run in runs]),
        ("  perplexity", [_perplexity(run.best_validation) for run in runs]),
        ("  at step", [_count(point.step if (point := run.best_validation) else None) for run in runs]),
    ]
    if any(run.bits_per_byte is not None for run in runs):
        rows.append(("bits per byte", [_loss(run.bits_per_byte) for run in runs]))
    rows.append(("shard set", [(run.fingerprint or NOTHING)[:_FINGERPRINT_CHARACTERS] for run in runs]))
    return rows


def difference_rows(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The settings that are not the same in all runs."""
    return [(key, [value_text(value) for value in values]) for key, values in differences(runs).items()]


def remarks(runs: Sequence[Run]) -> list[str]:
    """Whether losses can be compared, which run is best, and what the files of each run lack."""
    lines = comparability(runs)
    for best in best_runs(runs)[:1]:
        if point := best.best_validation:
            lines.append(f"lowest validation loss: {best.name}, {point.loss:.4f} at step {point.step:,}")
    return [*lines, *(f"{run.name}: {notice}" for run in runs for notice in run.notices)]


def best_runs(runs: Sequence[Run]) -> list[Run]:
    """Those with the lowest validation loss, where there are several to compare."""
    found = [(point.loss, run) for run in runs if (point := run.best_validation) and point.loss is not None]
    if len(found) < 2 or comparability(runs):
        return []
    lowest = min(loss for loss, _ in found)
    return [run for loss, run in found if loss == lowest]


def comparability(runs: Sequence[Run]) -> list[str]:
    """A line if the losses of `runs` are of different tokens or texts; empty if they can be compared."""
    tokenizers = {run.tokenizer_digest for run in runs} - {None}
    vocabularies = {run.vocab_size for run in runs} - {None}
    fingerprints = {run.fingerprint for run in runs} - {None}
    if len(tokenizers) > 1 or len(vocabularies) > 1:
        have_bits = all(run.bits_per_byte is not None for run in runs)
        instead = (
            "compare bits per byte" if have_bits else "`python -m train.evaluate RUN` gives bits per byte, which are"
        )
        return [f"different tokenizers: losses and perplexities per token are not comparable; {instead}"]
    if len(fingerprints) > 1:
        unknown = "" if all(run.tokenizer_digest for run in runs) else ", and perhaps with different tokenizers"
        return [
            f"different shard sets{unknown}: losses per token are of different texts and not comparable; "
            "`python -m train.evaluate RUN --shards DIR` measures each on the same set"
        ]
    return []


# ---- values as text ----


def value_text(value: Any) -> str:
    """A setting on one line, without anything that a terminal would obey."""
    if value is None:
        return NOTHING
    shown = printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
    return shown if len(shown) <= _MAX_CELL_CHARACTERS else shown[: _MAX_CELL_CHARACTERS - 1] + "…"


def _steps(run: Run) -> str:
    if run.steps is None:
        return NOTHING if run.planned_steps is None else f"0 of {run.planned_steps:,}"
    unfinished = run.planned_steps is not None and run.steps != run.planned_steps
    return f"{run.steps:,} of {run.planned_steps:,}" if unfinished else f"{run.steps:,}"


def _count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def _loss(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def _perplexity(point: Point | None) -> str:
    if point is None or point.loss is None:
        return NOTHING
    value = math.exp(min(point.loss, 700.0))
    return f"{value:,.2f}" if value < 1e9 else f"{value:.2e}"


def terminal_tables(runs: Sequence[Run], columns: int) -> list[str]:
    """Lines of at most `columns` columns: a table, or several with some of the runs each."""
    groups = [difference_rows(runs), result_rows(runs)]
    most = max(1, (columns - min(_LABEL_COLUMNS, columns // 3)) // _RUN_COLUMNS)
    out = Console(file=io.StringIO(), width=columns, color_system=None, highlight=False, markup=False, emoji=False)
    for first in range(0, len(runs), most):
        shown = slice(first, first + most)
        table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(max_width=_LABEL_COLUMNS, overflow="fold")
        for run in runs[shown]:
            table.add_column(Text(run.name), overflow="fold")
        for group in groups:
            for number, (label, values) in enumerate(group, start=1):
                table.add_row(Text(label), *map(Text, values[shown]), end_section=number == len(group))
        out.print(table)
    file = out.file
    assert isinstance(file, io.StringIO)
    return [line.rstrip() for line in file.getvalue().splitlines()]
