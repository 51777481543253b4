"""Charts: bars and lines over two axes, with a legend. The template `chart.html.j2` draws them as inline SVG.

Colors come from the page's style sheet by class (`c0` to `c7`), so a chart is light or dark as its page is. A chart has
no script and no link; its bars show their numbers in a tooltip.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from shards.common.text import compact

NUM_COLORS = 8

Parts = Sequence[tuple[int, float]]  # color and value, from the bottom up
Legend = Sequence[tuple[str, str]]  # class and text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """The values from `low` to `high`, its label, and where its ticks are: (value, label)."""

    label: str = ""
    low: float
    high: float
    is_log: bool = False
    ticks: Sequence[tuple[float, str]] = ()

    def place(self, value: float) -> float:
        """0 for `low`, 1 for `high`."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """Stacked values over `left` to `right` on the x axis; without `parts`, a band that only has a tooltip."""

    left: float
    right: float
    parts: Parts = ()
    tooltip: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """Points joined by a line that is interrupted where a value is None."""

    color: int = 0
    style: str = ""  # classes of the style sheet: faint, dashed, guide
    points: Sequence[tuple[float, float | None]]
    has_dots: bool = False


def linear_axis(low: float, high: float, *, label: str = "") -> Axis:
    """Ticks at multiples of 1, 2 or 5 times a power of ten.

    >>> [label for _, label in linear_axis(1.5, 9).ticks], linear_axis(0, 3).high
    (['2', '4', '6', '8'], 3)
    """
    step = _step(high - low)
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ticks = [(number * step, compact(round(number * step, 9))) for number in numbers]
    return Axis(label=label, low=low, high=high, ticks=ticks)


def count_axis(bars: Iterable[Bar]) -> Axis:
    """From 0 to a whole tick that no bar exceeds.

    >>> [label for _, label in count_axis([Bar(left=0, right=1, parts=[(0, 1200), (1, 34)], tooltip="")]).ticks]
    ['0', '500', '1k', '1.5k']
    """
    largest = max((sum(value for _, value in bar.parts) for bar in bars), default=0) or 1
    step = max(1, _step(largest))
    return linear_axis(0, math.ceil(largest / step) * step)


def _step(span: float) -> float:
    """The smallest round number of which five span it."""
    power = 10.0 ** math.floor(math.log10(span / 5))
    return next(factor * power for factor in (1, 2, 5, 10) if span <= 5 * factor * power * (1 + 1e-9))


def log_axis(low: float, high: float, *, label: str = "") -> Axis:
    """Ticks at powers of ten, on a shorter axis at their 2- and 5-fold too, on a very short one as on a linear axis.

    >>> [label for _, label in log_axis(30, 1500).ticks], [label for _, label in log_axis(1, 10**5).ticks]
    (['50', '100', '200', '500', '1k'], ['1', '10', '100', '1k', '10k', '100k'])
    """
    if high < 5 * low:
        return dataclasses.replace(linear_axis(low, max(high, low * 1.01), label=label), is_log=True)
    factors = (1,) if high > 300 * low else (1, 2, 5)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [factor * 10.0**exponent for exponent in exponents for factor in factors]
    ticks = [(value, compact(value)) for value in values if low <= value * (1 + 1e-9) <= high * (1 + 2e-9)]
    return Axis(label=label, low=low, high=high, is_log=True, ticks=ticks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """What is drawn, and where on a drawing of `width` by `height` units whose origin is at the top left."""

    title: str
    description: str  # for those who can't see it
    x: Axis
    y: Axis
    bars: Sequence[Bar] = ()
    lines: Sequence[Line] = ()
    mark: tuple[float, str] | None = None  # a labelled vertical line at a value of x
    legend: Legend = ()
    width: int = 360
    height: int = 216
    left: int = 40
    top: int = 14

    @property
    def right(self) -> int:
        return self.width - 14

    @property
    def bottom(self) -> int:
        return self.height - 34

    def place_x(self, value: float) -> float:
        return round(self.left + self.x.place(value) * (self.right - self.left), 1)

    def place_y(self, value: float) -> float:
        return round(self.bottom - self.y.place(value) * (self.bottom - self.top), 1)

    def rectangles(self, bar: Bar) -> Iterator[tuple[int, float, float, float, float]]:
        """Color, x, y, width and height of each part of a bar; even the smallest value can be seen."""
        left, right = self.place_x(bar.left), self.place_x(bar.right)
        gap = min(1.5, (right - left) / 8)
        edges = itertools.pairwise(itertools.accumulate((value for _, value in bar.parts), initial=0.0))
        for (color, value), (low, high) in zip(bar.parts, edges, strict=True):
            height = max(0.75, self.place_y(low) - self.place_y(high))
            if value:
                yield color, left + gap / 2, self.place_y(low) - height, right - left - gap, height

    def points(self, line: Line) -> list[tuple[float, float] | None]:
        """The places of a line's points, None where it is interrupted: a logarithmic axis has no 0."""
        return [
            None if y is None or (self.y.is_log and y <= 0) else (self.place_x(x), self.place_y(y))
            for x, y in line.points
        ]

    def path(self, line: Line) -> str:
        joined = itertools.pairwise([None, *self.points(line)])
        return "".join(f"{'L' if before else 'M'}{point[0]},{point[1]}" for before, point in joined if point)
