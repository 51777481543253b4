"""`python -m shards report`: the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from shards.common.command_line import progress_bar, say
from shards.common.errors import InputError
from shards.order import DEFAULT_SEED, check_seed


def add_parsers(commands: Any) -> None:
    """Add `report` to the sub-commands of `python -m shards`."""
    report = commands.add_parser("report", help="make a page (HTML) with charts, tables and excerpts of a shard set")
    report.add_argument("directory", type=Path, metavar="DIR", help="the shard set")
    report.add_argument("--out", type=Path, metavar="FILE", help="the page to write (DIR.html, beside the set)")
    report.add_argument(
        "--seed",
        type=int,
        default=DEFAULT_SEED,
        metavar="N",
        help=f"of the excerpts, and of the sample of a large set ({DEFAULT_SEED})",
    )
    report.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the page and say what it shows. Raises `InputError`."""
    from shards.common.files import write_atomically
    from shards.reader import open_shard_set
    from shards.report.document import check_out
    from shards.report.page import PROGRAM, make_page
    from shards.report.statistics import compute, summary
    from shards.vocabulary import read_vocabulary

    check_seed(options.seed)
    shard_set = open_shard_set(options.directory)
    out = default_out(options.directory) if options.out is None else options.out
    if out.resolve().is_relative_to(options.directory.resolve()):
        raise InputError(f"--out {out}: lies inside the shard set, where nothing may be added; choose a file beside it")
    check_out(out, PROGRAM, "report")
    with progress_bar(shard_set.manifest.total("num_blocks"), "reading the set", unit=" blocks") as progress:
        statistics = compute(shard_set, seed=options.seed, progress=progress.update)
    write_atomically(out, make_page(shard_set.manifest, statistics, read_vocabulary(shard_set.tokenizer_path)))
    say(str(out), *summary(shard_set.manifest, statistics))
    return 0


def default_out(directory: Path) -> Path:
    """`data/shards/NAME.html` for `data/shards/NAME`."""
    named = directory if directory.name not in ("", "..") else directory.resolve()
    return named.parent / f"{named.name}.html"
