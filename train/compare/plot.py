"""The plot of all curves: the numbers that the page carries, and the style and script that draw them in the browser.

The script loads nothing, and puts no text into the page but numbers of its own making: names stand in the page already.
It draws as wide as its place is, so that letters keep their size on a phone.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from train.compare.runs import Point, Run

NUM_COLORS = 8
_MAX_POINTS = 1500
_LOGS_A_WINDOW = 60  # a curve of n logs is smoothed over n / 60 to either side


def plot_data(runs: Sequence[Run]) -> str:
    """For a `<script type="application/json">`: for each run its two curves, as lists of equal lengths.

    Nothing in it can end the element: `<`, `>` and `&` are escaped.
    """
    curves = [{"training": _curve(run.training, smooth=True), "validation": _curve(run.validation)} for run in runs]
    text = json.dumps(curves, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def smoothed(losses: Sequence[float | None]) -> list[float | None]:
    """Means over a window that is symmetric, and narrower towards the ends: no lag, and the ends stay.

    A place without a loss has no mean; nor does it count in those of its neighbours.

    >>> smoothed([9.0, 1.0, None, 5.0])
    [9.0, 1.0, None, 5.0]
    """
    reach = 0 if len(losses) < 10 else max(1, len(losses) // _LOGS_A_WINDOW)
    means: list[float | None] = []
    for place, loss in enumerate(losses):
        side = min(reach, place, len(losses) - 1 - place)
        near = [value for value in losses[place - side : place + side + 1] if value is not None]
        means.append(None if loss is None else statistics.fmean(near))
    return means


def thinned(losses: Sequence[float | None], limit: int = _MAX_POINTS) -> list[int]:
    """Places to draw: all, or of each stretch the lowest, the highest and the first without a loss.

    So a spike and a gap are seen in a curve of a million logs too.
    """
    if len(losses) <= limit:
        return list(range(len(losses)))
    size = -(-len(losses) * 2 // limit)
    places = {0, len(losses) - 1}
    for start in range(0, len(losses), size):
        stretch = range(start, min(start + size, len(losses)))
        found = [(loss, place) for place in stretch if (loss := losses[place]) is not None]
        if found:
            places |= {min(found)[1], max(found)[1]}
        if len(found) < len(stretch):
            places.add(next(place for place in stretch if losses[place] is None))
    return sorted(places)


def _curve(points: Sequence[Point], *, smooth: bool = False) -> dict[str, list[Any]]:
    losses = [point.loss for point in points]
    means = smoothed(losses) if smooth else losses
    places = thinned(losses)
    shown = [points[place] for place in places]
    return {
        "step": [point.step for point in shown],
        "tokens": [point.tokens for point in shown],
        "seconds": [None if point.seconds is None else round(point.seconds, 2) for point in shown],
        "loss": [_short(point.loss) for point in shown],
        "smooth": [_short(means[place]) for place in places],
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


_LIGHT = ("#2f6f9f", "#c2602b", "#3f8a4d", "#8d5aa8", "#b0892a", "#b4446c", "#2b8a8a", "#6b6f76")
_DARK = ("#6fb2e0", "#ee9a63", "#7cc98a", "#c79be0", "#ddba5f", "#ee89ac", "#66c6c4", "#aab1b8")


def _colors(colors: Sequence[str]) -> str:
    return " ".join(f"--c{place}: {color};" for place, color in enumerate(colors))


PLOT_STYLE = (
    f":root {{ {_colors(_LIGHT)} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {_colors(_DARK)} }} }}\n"
    + "\n".join(f".c{place} {{ --run: var(--c{place}); }}" for place in range(NUM_COLORS))
    + """
.controls { display: flex; flex-wrap: wrap; gap: .3rem 1.75rem; margin: 0 0 .75rem; font-size: .9rem; }
.controls fieldset { border: 0; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem .9rem; }
.controls legend { float: left; padding: 0 .9rem 0 0; color: var(--muted); }
.controls label { white-space: nowrap; cursor: pointer; }
.controls input { accent-color: var(--link); margin: 0 .3rem 0 0; vertical-align: -.1em; }
.controls label:has(input:disabled) { color: var(--muted); cursor: default; }
.plot { position: relative; height: clamp(16rem, 52vw, 27rem); touch-action: pan-y; }
.plot:focus-visible { outline: 2px solid var(--link); outline-offset: 3px; border-radius: 3px; }
.plot svg { display: block; position: absolute; inset: 0; width: 100%; height: 100%; overflow: hidden; }
.plot text { fill: var(--muted); font-size: 12px; }
.plot .grid { stroke: var(--grid); }
.plot .base { stroke: var(--muted); stroke-opacity: .6; }
.plot .cursor { stroke: var(--ink); stroke-opacity: .35; }
.plot path { fill: none; stroke: var(--run); stroke-linejoin: round; }
.plot .raw { stroke-opacity: .4; stroke-width: 1; }
.plot .training { stroke-width: 1.8; }
.plot .validation { stroke-width: 1.4; stroke-dasharray: 5 3; }
.plot circle { fill: var(--paper); stroke: var(--run); stroke-width: 1.6; }
.plot .at { fill: var(--run); }
.runs { list-style: none; margin: .9rem 0 0; padding: 0; display: grid; gap: .15rem 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); font-size: .9rem; }
.runs li { min-width: 0; }
.runs button { font: inherit; color: inherit; background: none; border: 0; padding: .2rem .1rem; cursor: pointer;
  text-align: left; width: 100%; display: grid; grid-template-columns: auto 1fr auto; gap: 0 .6rem; align-items: baseline; }
.runs button[aria-pressed="false"] { opacity: .45; text-decoration: line-through; }
.runs button:focus-visible { outline: 2px solid var(--link); border-radius: 3px; }
.runs output { color: var(--muted); white-space: nowrap; }
.swatch { display: inline-block; width: 1.1em; height: .28em; border-radius: 2px; background: var(--run);
  vertical-align: .22em; }
"""
)

SCRIPT = r"""
"use strict";
(() => {
  const curves = JSON.parse(document.getElementById("curves").textContent);
  const place = document.getElementById("plot"), where = document.getElementById("where");
  const buttons = [...document.querySelectorAll(".runs button")];
  const svgName = "http://www.w3.org/2000/svg";
  const shown = curves.map(() => true);
  let cursor = null, view = null;
  const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;
  const short = (value) => {
    for (const [size, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]])
      if (Math.abs(value) >= size) return +(value / size).toPrecision(4) + unit;
    return String(+value.toPrecision(4));
  };
  const time = (seconds) => {
    if (seconds < 60) return +seconds.toFixed(1) + " s";
    const all = Math.round(seconds), minutes = Math.floor(all / 60);
    if (minutes < 60) return minutes + " min" + (all % 60 ? " " + (all % 60) + " s" : "");
    return Math.floor(minutes / 60) + " h" + (minutes % 60 ? " " + (minutes % 60) + " min" : "");
  };
  const nice = (span, wanted, bases) => {
    const raw = span / wanted, power = 10 ** Math.floor(Math.log10(raw));
    return (bases || [1, 2, 5, 10].map((base) => base * power)).find((size) => size >= raw * 0.999) || 10 * power;
  };
  const linear = (low, high, wanted, bases) => {
    const size = nice(high - low || 1, wanted, bases), ticks = [];
    for (let n = Math.ceil(low / size - 1e-9); n * size <= high + size * 1e-9; n++) ticks.push(+(n * size).toPrecision(12));
    return ticks;
  };
  const logarithmic = (low, high) => {
    const ticks = [], factors = high / low > 300 ? [1] : high / low > 8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high) + 1; e++)
      for (const factor of factors) {
        const tick = factor * 10 ** e;
        if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(+tick.toPrecision(6));
      }
    return ticks;
  };
  const add = (parent, name, attributes, text) => {
    const element = document.createElementNS(svgName, name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };
  const usable = (x, y, log) => x !== null && y !== null && (!log || y > 0);

  function draw() {
    const axis = chosen("axis"), log = chosen("scale") === "log", raw = document.getElementById("raw").checked;
    const width = place.clientWidth, height = place.clientHeight;
    let right = 0, low = Infinity, high = -Infinity;
    curves.forEach((run, number) => {
      if (!shown[number]) return;
      for (const [curve, keys] of [[run.training, raw ? ["loss", "smooth"] : ["smooth"]], [run.validation, ["loss"]]])
        for (const key of keys)
          curve[key].forEach((loss, at) => {
            if (!usable(curve[axis][at], loss, log)) return;
            right = Math.max(right, curve[axis][at]);
            low = Math.min(low, loss);
            high = Math.max(high, loss);
          });
    });
    place.replaceChildren();
    const svg = add(place, "svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    if (low > high) {
      add(svg, "text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "nothing to draw");
      view = null;
      return;
    }
    const pad = log ? (high / low) ** 0.04 : (high - low) * 0.04 || 0.5;
    if (log) { low /= Math.max(pad, 1.01); high *= Math.max(pad, 1.01); } else { low -= pad; high += pad; }
    right = right || 1;
    const yTicks = log ? logarithmic(low, high) : linear(low, high, Math.max(3, height / 60));
    const letters = Math.max(...yTicks.map((tick) => short(tick).length), 2);
    const margin = { left: 12 + 7 * letters, right: 14, top: 8, bottom: 40 };
    const inner = { width: width - margin.left - margin.right, height: height - margin.top - margin.bottom };
    const toX = (x) => margin.left + (x / right) * inner.width;
    const part = (y) => (log ? Math.log(y / low) / Math.log(high / low) : (y - low) / (high - low));
    const toY = (y) => margin.top + (1 - part(y)) * inner.height;
    for (const tick of yTicks) {
      add(svg, "line", { class: "grid", x1: margin.left, x2: width - margin.right, y1: toY(tick), y2: toY(tick) });
      add(svg, "text", { x: margin.left - 6, y: toY(tick) + 4, "text-anchor": "end" }, short(tick));
    }
    const floor = margin.top + inner.height;
    add(svg, "line", { class: "base", x1: margin.left, x2: width - margin.right, y1: floor, y2: floor });
    const minute = 60, hour = 3600;
    const units = [1, 2, 5, 10, 15, 30, minute, 2 * minute, 5 * minute, 10 * minute, 15 * minute, 30 * minute, hour,
      2 * hour, 4 * hour, 6 * hour, 12 * hour, 24 * hour, 48 * hour, 120 * hour];
    const timed = axis === "seconds", label = timed ? time : short;
    for (const tick of linear(0, right, Math.max(2, inner.width / (timed ? 110 : 80)), timed && right > 5 && units)) {
      add(svg, "line", { class: "base", x1: toX(tick), x2: toX(tick), y1: floor, y2: floor + 4 });
      const anchor = toX(tick) > width - 40 ? "end" : "middle";
      add(svg, "text", { x: anchor === "end" ? width - 2 : toX(tick), y: floor + 17, "text-anchor": anchor }, label(tick));
    }
    const names = { step: "steps", tokens: "tokens seen", seconds: "training time" };
    add(svg, "text", { x: margin.left + inner.width / 2, y: height - 4, "text-anchor": "middle" }, names[axis]);
    const line = (curve, key) => {
      let text = "", pen = false;
      curve[key].forEach((loss, at) => {
        const good = usable(curve[axis][at], loss, log);
        if (good) text += (pen ? "L" : "M") + toX(curve[axis][at]).toFixed(1) + "," + toY(loss).toFixed(1);
        pen = good;
      });
      return text;
    };
    const groups = curves.map((run, number) => (shown[number] ? add(svg, "g", { class: "c" + (number % COLORS) }) : null));
    curves.forEach((run, number) => groups[number] && raw &&
      add(groups[number], "path", { class: "raw", d: line(run.training, "loss") }));
    curves.forEach((run, number) => {
      if (!groups[number]) return;
      add(groups[number], "path", { class: "training", d: line(run.training, "smooth") });
      add(groups[number], "path", { class: "validation", d: line(run.validation, "loss") });
      const dots = run.validation.loss.length <= 60 || run.validation.loss.length * 6 < inner.width ? 3 : 0;
      run.validation.loss.forEach((loss, at) => {
        if (dots && usable(run.validation[axis][at], loss, log))
          add(groups[number], "circle", { cx: toX(run.validation[axis][at]), cy: toY(loss), r: dots });
      });
    });
    view = { axis, log, right, margin, inner, toX, toY, label, over: add(svg, "g", {}) };
    point();
  }

  function nearest(curve, x, key) {
    let best = null;
    curve[view.axis].forEach((at, number) => {
      if (!usable(at, curve[key][number], view.log)) return;
      if (best === null || Math.abs(at - x) < Math.abs(curve[view.axis][best] - x)) best = number;
    });
    return best;
  }

  function point() {
    if (view) view.over.replaceChildren();
    where.textContent = "";
    buttons.forEach((button) => { button.querySelector("output").textContent = ""; });
    if (!view || cursor === null) return;
    const x = cursor * view.right, { margin, inner } = view;
    const line = { x1: view.toX(x), x2: view.toX(x), y1: margin.top, y2: margin.top + inner.height };
    add(view.over, "line", { class: "cursor", ...line });
    const said = { step: "step " + Math.round(x), tokens: view.label(x) + " tokens", seconds: view.label(x) };
    where.textContent = "at " + said[view.axis];
    curves.forEach((run, number) => {
      if (!shown[number]) return;
      const words = [];
      for (const [curve, key, name] of [[run.training, "smooth", "train"], [run.validation, "loss", "val"]]) {
        const at = nearest(curve, x, key), ends = curve[view.axis];
        if (at === null || x > Math.max(...ends) * 1.02) continue;
        words.push(name + " " + curve[key][at].toFixed(4));
        const group = add(view.over, "g", { class: "c" + (number % COLORS) });
        add(group, "circle", { class: "at", cx: view.toX(ends[at]), cy: view.toY(curve[key][at]), r: 3.5 });
      }
      buttons[number].querySelector("output").textContent = words.join(" · ");
    });
  }

  place.addEventListener("pointermove", (event) => {
    if (!view) return;
    const at = event.clientX - place.getBoundingClientRect().left - view.margin.left;
    cursor = Math.min(1, Math.max(0, at / view.inner.width));
    point();
  });
  place.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") { cursor = null; point(); }
  });
  place.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
    if (!move) return;
    cursor = Math.min(1, Math.max(0, (cursor === null ? 0 : cursor) + move));
    point();
    event.preventDefault();
  });
  buttons.forEach((button, number) => button.addEventListener("click", () => {
    shown[number] = !shown[number];
    button.setAttribute("aria-pressed", shown[number]);
    draw();
  }));
  document.querySelectorAll(".controls input").forEach((input) => input.addEventListener("change", draw));
  for (const axis of ["step", "tokens", "seconds"])
    if (!curves.some((run) => [run.training, run.validation].some((curve) => curve[axis].some((x) => x !== null))))
      document.querySelector(`input[name=axis][value=${axis}]`).disabled = true;
  new ResizeObserver(draw).observe(place);
})();
""".replace("COLORS", str(NUM_COLORS))
