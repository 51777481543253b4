"""The loss curves of several runs as charts: over steps, tokens and training time, with a linear or logarithmic loss."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from shards.report.plot import Bar, Chart, Line, linear_axis, log_axis
from train.compare.runs import Point, Run

_MAX_POINTS = 500
_LOGS_PER_WINDOW = 60  # a curve of n logs is smoothed over n / 60 to either side
_NUM_BANDS = 60
_TIME_UNITS = ((7200, 3600, "hours"), (120, 60, "minutes"), (0, 1, "seconds"))

Measure = Callable[[Point], float | None]  # where a point is on the x axis
Curve = list[tuple[float, float | None]]


def loss_charts(runs: Sequence[Run]) -> Iterator[tuple[str, str, Chart]]:
    """Each axis and scale with its chart; an axis of which nothing is known is left out."""
    seconds = max((point.seconds or 0 for run in runs for point in run.training + run.validation), default=0)
    unit, name = next((unit, name) for least, unit, name in _TIME_UNITS if seconds >= least)
    measures: dict[str, tuple[str, Measure]] = {
        "steps": ("steps", lambda point: point.step),
        "tokens": ("tokens seen", lambda point: point.tokens),
        "time": (f"{name} of training", lambda point: None if point.seconds is None else point.seconds / unit),
    }
    for key, (label, measure) in measures.items():
        for scale in ("linear", "log"):
            if chart := _loss_chart(runs, label, measure, is_log=scale == "log"):
                yield key, scale, chart


def _loss_chart(runs: Sequence[Run], label: str, measure: Measure, *, is_log: bool) -> Chart | None:
    lines, curves = [], []
    for number, run in enumerate(runs):
        losses = [point.loss for point in run.training]
        kept, means = thinned(losses), smoothed(losses)
        raw = _curve(run.training, measure, {place: losses[place] for place in kept})
        training = _curve(run.training, measure, {place: means[place] for place in kept})
        validation = _curve(run.validation, measure, {place: p.loss for place, p in enumerate(run.validation)})
        lines += [
            Line(color=number, style=f"run-{number} faint", points=raw),
            Line(color=number, style=f"run-{number}", points=training),
            Line(color=number, style=f"run-{number} dashed", points=validation, has_dots=True),
        ]
        curves.append((run.name, training, validation))
    shown = [loss for line in lines for _, loss in line.points if loss is not None and (loss > 0 or not is_log)]
    right = max((x for line in lines for x, _ in line.points), default=0)
    if not shown or not right:
        return None
    low, high = min(shown), max(shown)
    margin = (high - low) * 0.04 or 0.5
    edges = [right * number / _NUM_BANDS for number in range(_NUM_BANDS + 1)]
    return Chart(
        title="Loss",
        description=f"of each run, over {label}; the table of results has the numbers",
        x=linear_axis(0, right, label=label),
        y=log_axis(low / 1.02, high * 1.02) if is_log else linear_axis(low - margin, high + margin),
        lines=lines,
        bars=[
            Bar(left=left, right=right, tooltip=_values_at((left + right) / 2, label, curves))
            for left, right in itertools.pairwise(edges)
        ],
        width=480,
        height=270,
    )


def _curve(points: Sequence[Point], measure: Measure, losses: Mapping[int, float | None]) -> Curve:
    return [(x, loss) for place, loss in losses.items() if (x := measure(points[place])) is not None]


def _values_at(x: float, label: str, curves: Sequence[tuple[str, Curve, Curve]]) -> str:
    """The loss of each run near `x`, a run a line."""

    def nearest(curve: Curve) -> str:
        known = [(abs(place - x), loss) for place, loss in curve if loss is not None]
        return f"{min(known)[1]:.4f}" if known and x <= curve[-1][0] * 1.02 else "–"

    lines = [
        f"{name}: training {nearest(training)}, validation {nearest(validation)}"
        for name, training, validation in curves
    ]
    return "\n".join([f"{x:,.4g} {label}", *lines])


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
    """Places to draw: all, or of each of `limit` / 2 parts the lowest, the highest and the first without a loss.

    So a spike and a gap are seen in a curve of a million logs too.
    """
    if len(losses) <= limit:
        return list(range(len(losses)))
    size = -(-len(losses) * 2 // limit)
    places = {0, len(losses) - 1}
    for start in range(0, len(losses), size):
        part = range(start, min(start + size, len(losses)))
        found = [(loss, place) for place in part if (loss := losses[place]) is not None]
        if found:
            places |= {min(found)[1], max(found)[1]}
        if len(found) < len(part):
            places.add(next(place for place in part if losses[place] is None))
    return sorted(places)
