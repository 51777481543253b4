"""The page: one HTML file that needs nothing else.

Names, settings and samples are other people's texts: they are escaped, and the page's policy lets no script run but the
one that draws the plot (`shards.report.document`).
"""

from __future__ import annotations

from collections.abc import Sequence

from shards.common.text import plural
from shards.report.document import document, page_start
from shards.report.markup import section, table, terms, text
from shards.report.style import STYLE
from train.compare.plot import NUM_COLORS, PLOT_STYLE, SCRIPT, plot_data
from train.compare.runs import Run
from train.compare.table import NOTHING, best_runs, difference_rows, remarks, result_rows, value_text

PAGE_START = page_start("train.compare")
_MAX_PROMPTS = 50
_MAX_SAMPLE_CHARACTERS = 4000

_STYLE = """
.scroll { overflow-x: auto; margin: 0 0 1rem; }
.scroll table { width: auto; min-width: min(100%, 36rem); }
.scroll th[scope="row"] { position: sticky; left: 0; background: var(--paper); color: var(--muted);
  min-width: 8rem; max-width: 16rem; }
@media (max-width: 40rem) { .scroll th[scope="row"] { max-width: 8.5rem; } }
.scroll th code { overflow-wrap: break-word; }
.scroll .part { padding-left: .9rem; }
.scroll td, .scroll thead th { min-width: 7.5rem; max-width: 18rem; }
.scroll thead th { color: var(--ink); font-weight: 600; }
.samples { display: grid; gap: .75rem; margin: 0 0 1.75rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.samples article { background: var(--panel); border-radius: .5rem; padding: .7rem .9rem .8rem; min-width: 0;
  border-top: 3px solid var(--run); }
.samples h4 { margin: 0 0 .3rem; font-size: .82rem; font-weight: 600; color: var(--muted); }
.samples p { margin: 0; white-space: pre-wrap; line-height: 1.7; unicode-bidi: isolate; }
.samples b { font-weight: 600; }
.remarks { margin: 1rem 0 0; padding-left: 1.1rem; max-width: 44rem; }
"""


def render(runs: Sequence[Run]) -> bytes:
    """The page in UTF-8."""
    notes = "".join(f"<li>{text(remark)}</li>" for remark in remarks(runs))
    body = [
        f'<header><p class="kicker">Training</p><h1>{plural(len(runs), "run")} compared</h1>',
        f'<ul class="remarks">{notes}</ul>' if notes else "",
        "</header>\n<main>",
        section("loss", "Loss", _plot(runs)),
        section("differences", "Differences", _differences(runs)),
        section("results", "Results", _results(runs)),
        _samples(runs),
        section("settings", "Settings that all share", _shared(runs)),
        "</main>",
        "<footer>Made by <code>python -m train.compare</code>.</footer>",
        f'<script type="application/json" id="curves">{plot_data(runs)}</script>',
    ]
    title = ", ".join(run.name for run in runs[:4]) + ("" if len(runs) <= 4 else ", …")
    style = f"{STYLE}{PLOT_STYLE}{_STYLE}"
    return document(PAGE_START, title=f"{title} – runs compared", style=style, body=body, script=SCRIPT)


def _color(number: int) -> str:
    return f"c{number % NUM_COLORS}"


def _plot(runs: Sequence[Run]) -> str:
    controls = (
        '<form class="controls" autocomplete="off">'
        + _choice("axis", "over", (("step", "steps"), ("tokens", "tokens"), ("seconds", "time")))
        + _choice("scale", "scale", (("linear", "linear"), ("log", "log")))
        + '<label><input type="checkbox" id="raw" checked>unsmoothed</label></form>'
    )
    items = "".join(
        f'<li class="{_color(number)}"><button type="button" aria-pressed="true"><span class="swatch"></span>'
        f"<span>{text(run.name)}</span><output></output></button></li>"
        for number, run in enumerate(runs)
    )
    note = (
        "Solid: loss of the training blocks, smoothed. Faint: as it was logged. Dashed with circles: loss of the "
        "validation blocks. Point at the plot, or press ← and → in it, for the values; a name hides its run. "
        "Time is that of training alone, without evaluations and checkpoints."
    )
    return (
        f'{controls}<p class="note" style="margin:0 0 .25rem">nats a token <span id="where" class="muted"></span></p>'
        f'<div class="plot" id="plot" tabindex="0" role="img" aria-label="Loss of each run; the table of results has '
        f'the numbers"></div><noscript><p>The plot needs JavaScript; the tables don’t.</p></noscript>'
        f'<ul class="runs">{items}</ul><p class="note" style="margin-top:.75rem">{note}</p>'
    )


def _choice(name: str, title: str, options: Sequence[tuple[str, str]]) -> str:
    buttons = "".join(
        f'<label><input type="radio" name="{name}" value="{value}"{" checked" if not number else ""}>{word}</label>'
        for number, (value, word) in enumerate(options)
    )
    return f"<fieldset><legend>{title}</legend>{buttons}</fieldset>"


def _run_table(runs: Sequence[Run], rows: Sequence[tuple[str, Sequence[str]]], kind: str) -> str:
    """`rows` are HTML, a run a column."""
    names = [
        f'<span class="{_color(number)}"><span class="swatch"></span> {text(run.name)}</span>'
        for number, run in enumerate(runs)
    ]
    body = [[label, *values] for label, values in rows]
    return f'<div class="scroll" tabindex="0">{table(["", *names], body, kind=kind)}</div>'


def _differences(runs: Sequence[Run]) -> str:
    rows = difference_rows(runs)
    if not rows:
        return "<p>None: the runs have the same settings.</p>" if len(runs) > 1 else "<p>There is only one run.</p>"
    named = [(f"<code>{_breakable(text(key))}</code>", [text(value) for value in values]) for key, values in rows]
    return _run_table(runs, named, "differences")


def _breakable(name: str) -> str:
    """A dotted name, escaped already, that a narrow screen may break behind a dot or an underscore."""
    return name.replace(".", ".<wbr>").replace("_", "_<wbr>")


def _results(runs: Sequence[Run]) -> str:
    best = best_runs(runs)
    rows = []
    for label, values in result_rows(runs):
        cells = [text(value) for value in values]
        if label == "best validation loss":
            cells = [f"<strong>{c}</strong>" if run in best else c for c, run in zip(cells, runs, strict=True)]
        name = text(label.strip())
        rows.append((f'<span class="part">{name}</span>' if label.startswith(" ") else name, cells))
    return _run_table(runs, rows, "results")


def _samples(runs: Sequence[Run]) -> str:
    prompts = list(dict.fromkeys(prompt for run in runs for prompt in run.samples))
    if not prompts:
        return ""
    parts = []
    for prompt in prompts[:_MAX_PROMPTS]:
        articles = []
        for number, run in enumerate(runs):
            written = run.samples.get(prompt)
            said = '<span class="muted">' + NOTHING + "</span>"
            if written is not None:
                said = f"<b>{_lines(prompt)}</b>{_lines(written)}"
            articles.append(f'<article class="{_color(number)}"><h4>{text(run.name)}</h4><p>{said}</p></article>')
        parts.append(f'<h3>{text(prompt[:80])}</h3><div class="samples">{"".join(articles)}</div>')
    left = len(prompts) - _MAX_PROMPTS
    more = (
        f'<p class="note">And {plural(left, "more prompt")}; <code>samples.jsonl</code> has them.</p>'
        if left > 0
        else ""
    )
    return section("samples", "Samples", "<p>What each model wrote last.</p>", *parts, more)


def _lines(value: str) -> str:
    """Escaped, line feeds kept, cut off where it is too long for a page."""
    shown = value[:_MAX_SAMPLE_CHARACTERS] + ("…" if len(value) > _MAX_SAMPLE_CHARACTERS else "")
    return "\n".join(text(line) for line in shown.split("\n"))


def _shared(runs: Sequence[Run]) -> str:
    differing = {key for key, _ in difference_rows(runs)}
    shared = {key: value for run in runs for key, value in run.settings.items() if key not in differing}
    pairs = [
        (f"<code>{text(key)}</code>", f"<code>{text(value_text(value))}</code>")
        for key, value in sorted(shared.items())
    ]
    return f"<details><summary>{plural(len(pairs), 'setting')}</summary>{terms(pairs, kind='terms wide')}</details>"
