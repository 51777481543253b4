"""The page's style sheet: light and dark by the reader's own setting, one column on a phone, two on a desk."""

STYLE = """
:root { color-scheme: light dark;
  --paper: #fdfdfc; --panel: #f5f6f5; --ink: #1d2226; --muted: #5d676f; --line: #e0e3e4; --grid: #e9ebec;
  --main: #3b7397; --loss: #c6703b; --track: #e8ebec; --odd: #e3edf3; --even: #f5e9dc; --link: #2b6289; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #15181a; --panel: #1c2023; --ink: #e3e6e8; --muted: #9aa5ac; --line: #2d3337; --grid: #262b2f;
  --main: #6ba6cc; --loss: #dc935f; --track: #272d31; --odd: #20343f; --even: #3a2e22; --link: #86bbdc; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55; overflow-wrap: anywhere;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei",
    "Noto Sans CJK SC", sans-serif; font-size: 1rem; font-variant-numeric: tabular-nums; }
main, header, footer { max-width: 66rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.75rem; }
.kicker { margin: 0; color: var(--muted); font-size: .8rem; letter-spacing: .08em; text-transform: uppercase; }
h1 { margin: .2rem 0 .5rem; font-size: clamp(1.5rem, 1.1rem + 2vw, 2.2rem); line-height: 1.2; font-weight: 650;
  letter-spacing: -.015em; }
h2 { margin: 0 0 .75rem; font-size: 1.3rem; font-weight: 650; letter-spacing: -.01em; }
h3 { margin: 0 0 .5rem; font-size: 1rem; font-weight: 600; }
p { margin: 0 0 1rem; max-width: 44rem; }
a { color: var(--link); text-underline-offset: .15em; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .875em; }
.muted, figcaption, .note { color: var(--muted); }
.note, figcaption { font-size: .875rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; margin: 1.25rem 0 0; padding: 0; list-style: none;
  font-size: .9rem; }
section { margin-top: 2.5rem; padding-top: 1.75rem; border-top: 1px solid var(--line); }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 1px;
  margin: 1.5rem 0 0; background: var(--line); border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }
.tiles div { padding: .8rem 1rem; background: var(--paper); display: flex; flex-direction: column-reverse;
  justify-content: flex-end; }
.tiles dt { color: var(--muted); font-size: .82rem; line-height: 1.35; }
.tiles dd { margin: 0; font-size: 1.4rem; font-weight: 600; letter-spacing: -.01em; line-height: 1.3; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 2rem 2.5rem;
  align-items: start; }
.pair > * { min-width: 0; }
.pair + .note { margin-top: 1rem; }
figure { margin: 0; max-width: 31rem; }
.chart { display: block; width: 100%; height: auto; }
.chart text { fill: var(--muted); font-size: 9.5px; font-family: inherit; }
.chart .grid { stroke: var(--grid); }
.chart .base { stroke: var(--muted); stroke-opacity: .6; }
.chart .mark { stroke: var(--ink); stroke-dasharray: 3 2.5; stroke-opacity: .75; }
.chart text.mark { fill: var(--ink); stroke: none; }
.chart .guide { stroke: var(--muted); stroke-dasharray: 2 3; }
.chart .curve { fill: none; stroke: var(--main); stroke-width: 1.5; stroke-linejoin: round; }
.chart .dot { fill: var(--main); }
.chart .hit { fill: transparent; }
.chart g:hover .hit { fill: var(--ink); fill-opacity: .06; }
rect.main { fill: var(--main); }
rect.loss { fill: var(--loss); }
rect.track { fill: var(--track); }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: 0 0 .4rem; padding: 0; list-style: none;
  color: var(--muted); font-size: .85rem; }
.key { display: inline-block; width: .7em; height: .7em; margin-right: .4em; border-radius: 2px; }
.key.main { background: var(--main); }
.key.loss { background: var(--loss); }
.key.guide { height: 0; width: 1.1em; border-top: 2px dotted var(--muted); vertical-align: .25em; border-radius: 0; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { padding: .32rem .75rem .32rem 0; border-bottom: 1px solid var(--line); text-align: left; font-weight: 400;
  vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--muted); font-size: .82rem; vertical-align: bottom; }
.number { text-align: right; white-space: nowrap; }
.bar { display: block; width: 100%; min-width: 2.5rem; height: .5rem; margin-top: .48rem; border-radius: 2px; }
table.narrow { max-width: 34rem; }
table.scripts { max-width: 44rem; }
table.bars td:last-child, table.bars th:last-child { width: 34%; }
table.tokens td:last-child, table.tokens th:last-child { width: 24%; }
.terms { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 9rem), 1fr)); gap: .6rem 1.5rem;
  margin: 1.25rem 0; }
.terms dt { color: var(--muted); font-size: .82rem; }
.terms dd { margin: 0; font-weight: 600; }
.wide { grid-template-columns: 1fr; gap: .3rem; margin: .75rem 0 1.5rem; font-size: .9rem; }
.wide div { display: grid; grid-template-columns: minmax(6rem, 13rem) 1fr; gap: 0 1rem; }
.wide dd { font-weight: 400; }
details { margin-top: 1rem; }
summary { cursor: pointer; color: var(--link); font-size: .9rem; }
details table { margin-top: .5rem; }
.excerpt { margin: 0 0 1.5rem; padding: .9rem 1rem 1rem; background: var(--panel); border-radius: .5rem; }
.excerpt h3 { margin-bottom: .6rem; }
.excerpt h3 span { color: var(--muted); font-weight: 400; }
.segment { margin: 0; padding-left: .7rem; border-left: 3px solid var(--main); max-width: none; line-height: 1.75; }
.segment + .segment, .segment + .filling, .filling + .segment { margin-top: .55rem; }
.segment.open-above { border-left-style: dotted; }
.filling { margin: 0; padding-left: .7rem; border-left: 3px solid var(--loss); color: var(--muted); }
.place { display: block; color: var(--muted); font-size: .78rem; line-height: 1.5; }
.run span { background: var(--odd); border-radius: 2px; padding: .1em 0; white-space: pre-wrap; unicode-bidi: isolate;
  box-decoration-break: clone; -webkit-box-decoration-break: clone; }
.run span:nth-child(even) { background: var(--even); }
.piece { font-family: inherit; background: var(--odd); border-radius: 2px; padding: .05em .25em; white-space: pre-wrap;
  unicode-bidi: isolate; }
.run i, .piece i { font-style: normal; color: var(--muted); font-size: .85em; }
footer { margin: 3rem auto 2rem; color: var(--muted); font-size: .85rem; }
@media (max-width: 40rem) { .chart text { font-size: 12px; } header { padding-top: 1.75rem; }
  .tiles { grid-template-columns: 1fr 1fr; } .tiles dd { font-size: 1.2rem; } .wide div { grid-template-columns: 1fr; }
  th, td { padding-right: .5rem; } }
@media print { section { break-inside: avoid; } nav { display: none; } }
"""
