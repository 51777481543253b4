"""The comparison as rows, and rows as a table for a terminal of any width, Chinese characters counted as two columns.

Properties are rows and runs are columns. Runs that don't fit beside each other follow in another table below; a cell
that is too long goes on in the next line.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Sequence
from typing import Any

from shards.common.text import printable
from train.compare.runs import Point, Run, differences

NOTHING = "–"
_GAP = "  "
_MAX_CELL_COLUMNS = (28, 22, 17)  # the first with which all runs fit beside each other, else the last
_MAX_LABEL_COLUMNS = 34
_MAX_CELL_CHARACTERS = 200
_FINGERPRINT_CHARACTERS = 12


def result_rows(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """What came of each run, a property a row."""
    rows = [
        ("state", [run.state for run in runs]),
        ("steps", [_steps(run) for run in runs]),
        ("tokens seen", [_count(run.tokens) for run in runs]),
        ("training time", [duration(run.seconds) for run in runs]),
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
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    shown = printable(shown)
    return shown if len(shown) <= _MAX_CELL_CHARACTERS else shown[: _MAX_CELL_CHARACTERS - 1] + "…"


def duration(seconds: float | None) -> str:
    """
    >>> [duration(seconds) for seconds in (0.25, 45, 754, 11100, None)]
    ['0.2 s', '45 s', '12 min 34 s', '3 h 5 min', '–']
    """
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


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


# ---- the terminal ----


def terminal_table(names: Sequence[str], groups: Sequence[Sequence[tuple[str, list[str]]]], columns: int) -> list[str]:
    """Lines of at most `columns` columns (if there are at least 30): a table, or several with some of the runs each.

    `groups` are rows that a blank line parts.
    """
    rows = [row for group in groups for row in group]
    label_width = min(max((display_width(label) for label, _ in rows), default=0), _MAX_LABEL_COLUMNS)
    label_width = min(label_width, max(10, columns // 3))
    room = max(8, columns - label_width - len(_GAP))
    cells = [[name, *(values[place] for _, values in rows)] for place, name in enumerate(names)]
    wanted = [max(map(display_width, column)) for column in cells]
    for limit in _MAX_CELL_COLUMNS:
        widths = [min(width, limit, room) for width in wanted]
        if label_width + sum(len(_GAP) + width for width in widths) <= columns:
            break
    lines: list[str] = []
    first = 0
    while first < len(names):
        last, used = first, label_width
        while last < len(names) and (last == first or used + len(_GAP) + widths[last] <= columns):
            used += len(_GAP) + widths[last]
            last += 1
        shown, shown_widths = slice(first, last), [label_width, *widths[first:last]]
        lines += [""] if lines else []
        lines += _line("", names[shown], shown_widths)
        lines.append(_GAP.join("─" * width for width in shown_widths))
        for number, group in enumerate(groups):
            lines += [""] if number and group else []
            for label, values in group:
                lines += _line(label, values[shown], shown_widths)
        first = last
    return lines


def _line(label: str, values: Sequence[str], widths: Sequence[int]) -> list[str]:
    """A row, on as many lines as its longest cell needs."""
    wrapped = [wrap(text, width) for text, width in zip([label, *values], widths, strict=True)]
    height = max(map(len, wrapped))
    lines = []
    for place in range(height):
        parts = [cell[place] if place < len(cell) else "" for cell in wrapped]
        padded = [part + " " * (width - display_width(part)) for part, width in zip(parts, widths, strict=True)]
        lines.append(_GAP.join(padded).rstrip())
    return lines


def wrap(text: str, width: int) -> list[str]:
    """`text` in pieces of at most `width` columns, cut behind a space, comma, slash or dot where there is one.

    >>> wrap("learning_rate=1e-3,optim=muon", 20), wrap("人工智能", 5)
    (['learning_rate=1e-3,', 'optim=muon'], ['人工', '智能'])
    """
    pieces = []
    while display_width(text) > width:
        used, end = 0, 0
        while end < len(text) and used + character_width(text[end]) <= width:
            used += character_width(text[end])
            end += 1
        end = max(end, 1)
        cut = end
        for signs in (" ,/", "=_"):
            seam = max(text.rfind(sign, 0, end) for sign in signs) + 1
            if seam > end // 3:
                cut = seam
                break
        pieces.append(text[:cut].rstrip())
        text = text[cut:].lstrip()
    return [*pieces, text] if text or not pieces else pieces


def display_width(text: str) -> int:
    """
    >>> display_width("loss"), display_width("损失"), display_width("e\\u0301")
    (4, 4, 1)
    """
    return sum(map(character_width, text))


def character_width(character: str) -> int:
    """Columns that a terminal gives to `character`."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
