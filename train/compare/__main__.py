"""`python -m train.compare RUN …`: what differs between runs and what came of each, as a table, a page or JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.common.command_line import Parser, run_command, say
from shards.common.files import write_atomically
from train.compare.page import check_out, render
from train.compare.runs import Run, comparability, differences, find_runs, read_runs
from train.compare.table import as_lines, remarks


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m train.compare",
        description="What differs between runs, and what came of each: a table, and a page with the curves.",
        epilog="Losses are in nats a token, times are of training alone.\n\n"
        "example: python -m train.compare runs/lr1e-3 runs/wide --out compare.html",
    )
    runs = "a run's directory, also of one that goes on; or a directory with several, for all of them"
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help=runs)
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="write a page with curves and samples (none)")
    parser.add_argument("--json", action="store_true", help="for programs, with all points of the curves")
    return parser


def main(argv: list[str]) -> None:
    """Print the comparison. Raises `InputError`."""
    options = build_parser().parse_args(argv)
    directories = find_runs(options.runs)
    if options.out is not None:
        check_out(options.out)
    runs = read_runs(directories)
    if options.out is not None:
        write_atomically(options.out, render(runs))
    page = ["", f"page  {options.out}"] if options.out is not None else []
    say(*([json.dumps(as_json(runs), indent=1)] if options.json else [*as_lines(runs), *page]))


def as_json(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that the table and the page show."""
    records = []
    for run in runs:
        record = {**dataclasses.asdict(run), "path": str(run.path), **run.summary}
        record["samples"] = [{"prompt": prompt, "text": text} for prompt, text in run.samples.items()]
        records.append({key: value for key, value in record.items() if key not in ("summary", "defaults")})
    names = [run.name for run in runs]
    return {
        "runs": records,
        "differences": {key: dict(zip(names, values, strict=True)) for key, values in differences(runs).items()},
        "comparable": not comparability(runs),
        "remarks": remarks(runs),
    }


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
