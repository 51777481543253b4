"""Charts as inline SVG, from numbers. Colors come from the page's style by class; no chart has a script or a link.

Each is as wide as its place and keeps its shape; the letters are large enough on a phone. It has a title and a
description for those who don't see it, and each column says its numbers when pointed at.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence

from shards.report.markup import compact

_WIDTH, _HEIGHT = 360, 216
_LEFT, _RIGHT, _TOP, _BOTTOM = 36, 14, 14, 34
_PLOT_WIDTH, _PLOT_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a histogram. `left` and `right` are places on the axis, from 0 to 1."""

    left: float
    right: float
    parts: tuple[tuple[str, int], ...]  # class and value, from the bottom up
    label: str  # what it says when pointed at

    @property
    def height(self) -> int:
        return sum(value for _kind, value in self.parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tick:
    """A place on an axis, from 0 to 1, and what stands there."""

    place: float
    label: str


def histogram(
    identifier: str,
    *,
    title: str,
    description: str,
    columns: Sequence[Column],
    ticks: Sequence[Tick],
    axis: str,
    mark: Tick | None = None,
    legend: Sequence[tuple[str, str]] = (),
) -> str:
    """Columns over an axis that says `axis`; `mark` is a line across the plot, with a label. As a figure."""
    steps = nice_steps(max((column.height for column in columns), default=0))
    lines = [_level(value / steps[-1], compact(value)) for value in steps]
    for column in columns:
        left, right = _x(column.left), _x(column.right)
        gap = min(1.5, (right - left) / 8)
        top, bars = 0, []
        for kind, value in column.parts:
            low, top = _y(top / steps[-1]), top + value
            if value:  # even the smallest value is to be seen
                height = max(0.75, low - _y(top / steps[-1]))
                bars.append(_rectangle(kind, left + gap / 2, low - height, right - left - gap, height))
        hit = _rectangle("hit", left, _TOP, right - left, _PLOT_HEIGHT)
        lines.append(f"<g><title>{html.escape(column.label)}</title>{hit}{''.join(bars)}</g>")
    lines += [_x_tick(tick) for tick in ticks]
    if mark is not None:
        lines.append(_mark(mark))
    return _figure(identifier, title, description, axis, lines, legend)


def nice_steps(largest: int) -> list[int]:
    """Three to six round numbers from 0 to one that is at least `largest`.

    >>> nice_steps(7), nice_steps(1234), nice_steps(0)
    ([0, 2, 4, 6, 8], [0, 500, 1000, 1500], [0, 1])
    """
    if largest < 2:
        return [0, 1]
    power = 10 ** int(math.log10(largest))
    candidates = [size for factor in (0.2, 0.5, 1) if (size := int(power * factor)) >= 1]
    step = next((size for size in candidates if largest <= 5 * size), 2 * power)
    return [number * step for number in range(-(-largest // step) + 1)]


def log_ticks(low: float, high: float) -> list[Tick]:
    """Round numbers on a logarithmic axis from `low` to `high`: powers of ten, on a short axis their 2- and 5-fold too.

    >>> [tick.label for tick in log_ticks(30, 1500)], [tick.label for tick in log_ticks(1, 10**5)]
    (['50', '100', '200', '500', '1k'], ['1', '10', '100', '1k', '10k', '100k'])
    """
    begin, length = math.log10(low), math.log10(high / low)
    factors = (1, 2, 5) if length < 2.5 else (1,)
    exponents = range(math.floor(begin), math.floor(begin + length) + 2)
    places = [
        ((math.log10(factor * 10.0**exponent) - begin) / length, factor, exponent)
        for exponent in exponents
        for factor in factors
    ]
    return [
        Tick(place=place, label=compact(factor * 10.0**exponent))
        for place, factor, exponent in places
        if -1e-9 <= place <= 1 + 1e-9
    ]


def zipf_plot(
    identifier: str,
    *,
    title: str,
    description: str,
    points: Sequence[tuple[int, int]],
    axis: str,
    noun: str,
    legend: Sequence[tuple[str, str]],
) -> str:
    """Counts over ranks, both on logarithmic axes, with the line of a count that falls as 1 over the rank. As a figure."""
    if not points:
        return _figure(identifier, title, description, axis, [_level(0, "1")], legend)
    x_decades = max(1, math.ceil(math.log10(points[-1][0])))
    y_decades = max(1, math.ceil(math.log10(points[0][1])))
    lines = [_level(decade / y_decades, compact(10**decade)) for decade in range(y_decades + 1)]
    lines += [_x_tick(tick) for tick in log_ticks(1, 10**x_decades)]
    # From the first point down to a count of 1, or to the end of the axis.
    first = math.log10(points[0][1])
    reach = min(first, x_decades)
    corners = ((0.0, first), (reach, first - reach))
    (x1, y1), (x2, y2) = ((_x(x / x_decades), _y(y / y_decades)) for x, y in corners)
    lines.append(f'<line class="guide" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    places = [(_x(math.log10(rank) / x_decades), _y(math.log10(count) / y_decades)) for rank, count in points]
    lines.append(f'<polyline class="curve" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
    for (rank, count), (x, y) in zip(points, places, strict=True):
        label = html.escape(f"rank {rank:,}: {count:,} {noun}")
        lines.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.2"><title>{label}</title></circle>')
    return _figure(identifier, title, description, axis, lines, legend)


def bar(part: float, whole: float, kind: str = "main") -> str:
    """A small horizontal bar for a cell of a table whose numbers stand beside it."""
    length = 100 * part / whole if whole else 0
    length = max(length, 0.7) if part else 0
    return (
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="8"/><rect class="{kind}" width="{length:.1f}" height="8"/></svg>'
    )


def _figure(
    identifier: str, title: str, description: str, axis: str, lines: Sequence[str], legend: Sequence[tuple[str, str]]
) -> str:
    """The chart with its title above it and a legend of (class, HTML)."""
    names = f"{identifier}-svg-title {identifier}-svg-text"
    keys = "".join(f'<li><span class="key {kind}" aria-hidden="true"></span>{name}</li>' for kind, name in legend)
    above = f'<ul class="legend">{keys}</ul>' if keys else ""
    return (
        f"<figure><h3>{title}</h3>{above}"
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{names}">'
        f'<title id="{identifier}-svg-title">{html.escape(title)}</title>'
        f'<desc id="{identifier}-svg-text">{html.escape(description)}</desc>\n'
        + "\n".join(lines)
        + f'\n<text class="axis" x="{_LEFT + _PLOT_WIDTH / 2:.1f}" y="{_HEIGHT - 4}" text-anchor="middle">'
        f"{html.escape(axis)}</text></svg></figure>"
    )


def _level(place: float, label: str) -> str:
    """A line across the plot and its label at the left."""
    y = _y(place)
    kind = "base" if place == 0 else "grid"
    return (
        f'<line class="{kind}" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{html.escape(label)}</text>'
    )


def _x_tick(tick: Tick) -> str:
    x, y = _x(tick.place), _TOP + _PLOT_HEIGHT
    return (
        f'<line class="base" x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{y + 3}"/>'
        f'<text x="{x:.1f}" y="{y + 14}" text-anchor="middle">{html.escape(tick.label)}</text>'
    )


def _mark(mark: Tick) -> str:
    x = _x(mark.place)
    anchor, shift = ("end", -4) if mark.place > 0.5 else ("start", 4)
    return (
        f'<line class="mark" x1="{x:.1f}" y1="{_TOP - 10}" x2="{x:.1f}" y2="{_TOP + _PLOT_HEIGHT}"/>'
        f'<text class="mark" x="{x + shift:.1f}" y="{_TOP - 4}" text-anchor="{anchor}">{html.escape(mark.label)}</text>'
    )


def _rectangle(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _x(place: float) -> float:
    return _LEFT + place * _PLOT_WIDTH


def _y(place: float) -> float:
    return _TOP + (1 - place) * _PLOT_HEIGHT
