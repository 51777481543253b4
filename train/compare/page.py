"""The page: one HTML file that needs nothing else. Names, settings and samples are escaped by its template.

It has the loss curves of all runs, over steps, tokens and training time, with a linear or logarithmic loss.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from shards.report import document
from shards.report.plot import Bar, Chart, Line, linear_axis, log_axis
from train.compare.runs import Point, Run
from train.compare.table import best_runs, difference_rows, remarks, result_rows, value_text

PROGRAM = "train.compare"
_MAX_POINTS = 500
_LOGS_PER_WINDOW = 60  # a curve of n logs is smoothed over n / 60 to either side
_NUM_BANDS = 60
_TIME_UNITS = ((7200, 3600, "hours"), (120, 60, "minutes"), (0, 1, "seconds"))

Measure = Callable[[Point], float | None]  # where a point is on the x axis


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


def loss_charts(runs: Sequence[Run]) -> Iterator[tuple[str, str, Chart]]:
    """Each axis and scale with its chart; an axis of which nothing is known is left out."""
    seconds = max((point.seconds or 0 for run in runs for point in run.training + run.validation), default=0)
    unit, name = next((unit, name) for least, unit, name in _TIME_UNITS if seconds >= least)
    measures: tuple[tuple[str, str, Measure], ...] = (
        ("steps", "steps", lambda point: point.step),
        ("tokens", "tokens seen", lambda point: point.tokens),
        ("time", f"{name} of training", lambda point: None if point.seconds is None else point.seconds / unit),
    )
    for (key, label, measure), scale in itertools.product(measures, ("linear", "log")):
        if chart := _loss_chart(runs, label, measure, is_log=scale == "log"):
            yield key, scale, chart


def _loss_chart(runs: Sequence[Run], label: str, measure: Measure, *, is_log: bool) -> Chart | None:
    lines = []
    for number, run in enumerate(runs):
        raw, validation = _curve(run.training, measure), _curve(run.validation, measure)
        losses = [loss for _, loss in raw]
        kept, means = thinned(losses), smoothed(losses)
        lines += [
            Line(color=number, style=f"run-{number} faint", points=[raw[place] for place in kept]),
            Line(color=number, style=f"run-{number}", points=[(raw[place][0], means[place]) for place in kept]),
            Line(color=number, style=f"run-{number} dashed", points=validation, has_dots=True),
        ]
    shown = [loss for line in lines for _, loss in line.points if loss is not None and (loss > 0 or not is_log)]
    right = max((x for line in lines for x, _ in line.points), default=0)
    if not shown or not right:
        return None
    low, high = min(shown), max(shown)
    margin = (high - low) * 0.04 or 0.5
    bars = []
    for band in range(_NUM_BANDS):
        left, middle, end = (right * (band + part) / _NUM_BANDS for part in (0, 0.5, 1))
        values = [
            f"{run.name}: training {_loss_near(middle, lines[3 * number + 1])}, "
            f"validation {_loss_near(middle, lines[3 * number + 2])}"
            for number, run in enumerate(runs)
        ]
        bars.append(Bar(left=left, right=end, tooltip="\n".join([f"{middle:,.4g} {label}", *values])))
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


def _curve(points: Sequence[Point], measure: Measure) -> list[tuple[float, float | None]]:
    return [(x, point.loss) for point in points if (x := measure(point)) is not None]


def _loss_near(x: float, line: Line) -> str:
    known = [(abs(place - x), loss) for place, loss in line.points if loss is not None]
    return f"{min(known)[1]:.4f}" if known and x <= line.points[-1][0] * 1.02 else "–"


def smoothed(losses: Sequence[float | None]) -> list[float | None]:
    """Means over a window that is symmetric, and narrower towards the ends: no lag, and the ends stay.

    A place without a loss has no mean; nor does it count in those of its neighbors.

    >>> smoothed([9.0, 1.0, None, 5.0])
    [9.0, 1.0, None, 5.0]
    """
    reach = 0 if len(losses) < 10 else max(1, len(losses) // _LOGS_PER_WINDOW)
    means: list[float | None] = []
    for place, loss in enumerate(losses):
        side = min(reach, place, len(losses) - 1 - place)
        near = [value for value in losses[place - side : place + side + 1] if value is not None]
        means.append(None if loss is None else statistics.fmean(near))
    return means


def thinned(losses: Sequence[float | None], limit: int = _MAX_POINTS) -> list[int]:
    """Places to draw: of each of at most `limit` / 2 parts the lowest and the highest loss, so that spikes are seen.

    A place without a loss counts as the highest: a gap is seen too.

    >>> thinned([5.0, 4.0, 9.0, 3.0, None, 2.0], 4)
    [1, 2, 4, 5]
    """
    size = max(1, -(-len(losses) * 2 // limit))
    key = [math.inf if loss is None else loss for loss in losses]
    parts = (range(start, min(start + size, len(losses))) for start in range(0, len(losses), size))
    return sorted(
        {place for part in parts for place in (min(part, key=key.__getitem__), max(part, key=key.__getitem__))}
    )
