"""`python -m train.compare RUN …`: what differs between runs and what came of each, as a table, a page or JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.common.command_line import Parser, run_command, say
from shards.common.files import write_atomically
from train.compare.page import check_out, render
from train.compare.runs import Run, differences, find_runs, read_runs
from train.compare.table import comparability, remarks, terminal_tables

EPILOG = """\
A directory that is no run but holds some stands for all of them. Losses are in nats a token, times
are of training alone. For example:

  python -m train.compare runs/lr1e-3 runs/wide --out compare.html
"""
_COLUMNS_OF_NO_TERMINAL = 120


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m train.compare",
        description="What differs between runs, and what came of each: a table, and a page with the curves.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="a run's directory, also of a run that goes on"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="write a page with curves and samples (none)")
    parser.add_argument("--json", action="store_true", help="for programs, with all points of the curves")
    return parser


def main(argv: list[str]) -> None:
    """Print the comparison. Raises `InputError`."""
    options: argparse.Namespace = build_parser().parse_args(argv)
    directories = find_runs(options.runs)
    if options.out is not None:
        check_out(options.out)
    runs = read_runs(directories)
    if options.out is not None:
        write_atomically(options.out, render(runs))
    lines = [json.dumps(as_json(runs), indent=1)] if options.json else as_lines(runs)
    if options.out is not None and not options.json:
        lines += ["", f"page  {options.out}"]
    say(*lines)


def as_lines(runs: Sequence[Run], columns: int | None = None) -> list[str]:
    """The comparison for a terminal of `columns` columns (None: of the terminal that there is)."""
    width = columns or shutil.get_terminal_size((_COLUMNS_OF_NO_TERMINAL, 24)).columns
    below = [piece for remark in remarks(runs) for piece in textwrap.wrap(remark, max(width, 20))]
    return [*terminal_tables(runs, width), *below]


def as_json(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that the table and the page show."""
    records = []
    for run in runs:
        record = dataclasses.asdict(run) | {"path": str(run.path), "last_training_loss": run.last_training_loss}
        record["samples"] = [{"prompt": prompt, "text": text} for prompt, text in run.samples.items()]
        for key, point in (("last_validation", run.last_validation), ("best_validation", run.best_validation)):
            record[key] = dataclasses.asdict(point) if point else None
        del record["defaults"]
        records.append(record)
    return {
        "runs": records,
        "differences": {
            key: dict(zip([run.name for run in runs], values, strict=True)) for key, values in differences(runs).items()
        },
        "comparable": not comparability(runs),
        "remarks": remarks(runs),
    }


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
