"""The page: one HTML file that needs nothing else. Names, settings and samples are escaped by its template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shards.report import document
from train.compare.curves import loss_charts
from train.compare.runs import Run
from train.compare.table import best_runs, difference_rows, remarks, result_rows, value_text

PROGRAM = "train.compare"


def check_out(out: Path) -> None:
    """Raise `InputError` unless the page may be written to `out`."""
    document.check_out(out, PROGRAM, "comparison")


def render(runs: Sequence[Run]) -> bytes:
    """The page in UTF-8."""
    differing = difference_rows(runs)
    settings = {key: value for run in runs for key, value in run.settings.items()}
    shared = sorted(settings.keys() - {key for key, _ in differing})
    return document.render(
        "compare.html.j2",
        package="train.compare",
        program=PROGRAM,
        title=", ".join(run.name for run in runs[:4]) + ("" if len(runs) <= 4 else ", …"),
        runs=runs,
        remarks=remarks(runs),
        charts=list(loss_charts(runs)),
        differences=differing,
        results=result_rows(runs),
        best_runs=best_runs(runs),
        prompts=list(dict.fromkeys(prompt for run in runs for prompt in run.samples)),
        shared=[(key, value_text(settings[key])) for key in shared],
    )
