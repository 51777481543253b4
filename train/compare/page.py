"""The page: one HTML file that needs nothing else. Names, settings and samples are escaped by its template.

It has the loss curves of all runs, over steps, tokens and training time, with a linear or logarithmic loss.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from shards.report import document
from shards.report.plot import Bar, Chart, Line, linear_axis, log_axis
from train.compare.runs import Point, Run
from train.compare.table import best_run, difference_rows, remarks, summary_rows, value_text

PROGRAM = "train.compare"
_MAX_PARTS = 100  # of a curve
_NUM_BANDS = 60  # of a chart, with a tooltip each
_TIME_UNITS = ((7200, 3600, "hours"), (120, 60, "minutes"), (0, 1, "seconds"))

Curve = list[tuple[float, float | None]]  # x and loss


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
        results=summary_rows(runs),
        best_run=best_run(runs),
        prompts=list(dict.fromkeys(prompt for run in runs for prompt in run.samples)),
        shared=[(key, value_text(settings[key])) for key in shared],
    )


def loss_charts(runs: Sequence[Run]) -> Iterator[tuple[str, str, Chart]]:
    """Each axis and scale with its chart; an axis of which nothing is known is left out."""
    seconds = max((point["seconds"] or 0 for run in runs for point in run.training + run.validation), default=0)
    unit, name = next((unit, name) for least, unit, name in _TIME_UNITS if seconds >= least)
    axes = (
        ("steps", "step", "steps", 1),
        ("tokens", "tokens", "tokens seen", 1),
        ("time", "seconds", f"{name} of training", unit),
    )
    for (axis, key, label, size), scale in itertools.product(axes, ("linear", "log")):
        curves = [[_curve(points, key, size) for points in (run.training, run.validation)] for run in runs]
        if chart := _loss_chart([run.name for run in runs], curves, label, is_log=scale == "log"):
            yield axis, scale, chart


def _curve(points: Sequence[Point], key: str, unit: float) -> Curve:
    return [(point[key] / unit, point["loss"]) for point in points if point[key] is not None]


def _loss_chart(names: Sequence[str], curves: Sequence[Sequence[Curve]], label: str, *, is_log: bool) -> Chart | None:
    """Of each run `curves` has that of training and that of validation."""
    lines = []
    for number, (training, validation) in enumerate(curves):
        for style, points in zip(("faint", ""), thinned(training), strict=True):
            lines.append(Line(color=number, style=f"run-{number} {style}", points=points))
        lines.append(Line(color=number, style=f"run-{number} dashed", points=validation, has_dots=True))
    shown = [loss for line in lines for _, loss in line.points if loss is not None and (loss > 0 or not is_log)]
    right = max((x for line in lines for x, _ in line.points), default=0)
    if not shown or not right:
        return None
    low, high = min(shown), max(shown)
    margin = (high - low) * 0.04 or 0.5
    bars = []
    for band in range(_NUM_BANDS):
        left, middle, end = (right * (band + part) / _NUM_BANDS for part in (0, 0.5, 1))
        near = (
            f"{name}: training {_loss_near(middle, training)}, validation {_loss_near(middle, validation)}"
            for name, training, validation in zip(names, lines[1::3], lines[2::3], strict=True)
        )
        bars.append(Bar(left=left, right=end, tooltip="\n".join([f"{middle:,.4g} {label}", *near])))
    return Chart(
        title="Loss",
        description=f"of each run, over {label}; the table of results has the numbers",
        x=linear_axis(0, right, label=label),
        y=log_axis(low / 1.02, high * 1.02) if is_log else linear_axis(low - margin, high + margin),
        lines=lines,
        bars=bars,
        width=480,
        height=270,
    )


def _loss_near(x: float, line: Line) -> str:
    known = [(abs(place - x), loss) for place, loss in line.points if loss is not None]
    return f"{min(known)[1]:.4f}" if known and x <= line.points[-1][0] * 1.02 else "–"


def thinned(curve: Curve) -> tuple[Curve, Curve]:
    """Of each of at most `_MAX_PARTS` parts of a curve the lowest and the highest point, and the mean in its middle.

    So spikes are seen, and the trend is. A point without a loss counts as the highest, and a part without any has no mean.

    >>> thinned([(1, 5.0), (2, None)])
    ([(1, 5.0), (2, None)], [(1, 5.0), (2, None)])
    """
    size = -(-len(curve) // _MAX_PARTS) or 1
    extremes, means = list[tuple[float, float | None]](), list[tuple[float, float | None]]()
    for part in (curve[start : start + size] for start in range(0, len(curve), size)):
        by_loss = sorted(part, key=lambda point: math.inf if point[1] is None else point[1])
        extremes += sorted({by_loss[0], by_loss[-1]}, key=lambda point: point[0])
        losses = [loss for _, loss in part if loss is not None]
        means.append((part[len(part) // 2][0], statistics.fmean(losses) if losses else None))
    return extremes, means
