"""`python -m shards report`: the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.common.command_line import ProgressLine, percent_done, say
from shards.common.errors import InputError
from shards.common.text import plural
from shards.order import DEFAULT_SEED, check_seed

if TYPE_CHECKING:
    from shards.manifest import Manifest
    from shards.report.statistics import Statistics


def add_parser(commands: Any) -> None:
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
    from shards.report.page import render
    from shards.report.statistics import compute, num_steps
    from shards.vocabulary import Vocabulary

    check_seed(options.seed)
    shard_set = open_shard_set(options.directory)
    out = default_out(options.directory) if options.out is None else options.out
    check_out(out, options.directory)
    with ProgressLine(percent_done("reading the set", num_steps(shard_set.manifest))) as progress:
        statistics = compute(shard_set, seed=options.seed, progress=progress.advance)
    write_atomically(out, render(shard_set.manifest, statistics, Vocabulary(shard_set.tokenizer_path)))
    say(str(out), summary(shard_set.manifest, statistics))
    return 0


def default_out(directory: Path) -> Path:
    """`data/shards/NAME.html` for `data/shards/NAME`."""
    named = directory if directory.name not in ("", "..") else directory.resolve()
    return named.parent / f"{named.name}.html"


def check_out(out: Path, directory: Path) -> None:
    """Raise `InputError` unless the page may be written to `out`."""
    from shards.report.document import check_page
    from shards.report.page import PAGE_START

    if out.resolve().is_relative_to(directory.resolve()):
        raise InputError(f"--out {out}: lies inside the shard set, where nothing may be added; choose a file beside it")
    refusal = f"--out {out}: exists and is no report; choose another file, or move it elsewhere"
    check_page(out, PAGE_START, refusal=refusal)


def summary(manifest: Manifest, statistics: Statistics) -> str:
    """The main numbers, a line each."""
    from shards.report.markup import percent
    from shards.report.sections import tutorial_loss

    lengths, use, found = statistics.lengths, statistics.tokens, statistics.duplicates
    lost, total = tutorial_loss(manifest, statistics)
    sample = ""
    if use.num_counted_blocks < use.num_blocks:
        size = manifest.block_tokens
        sample = f" in a sample of {use.num_counted_blocks * size:,} of {use.num_blocks * size:,} tokens"
    compared = "" if found.num_compared == found.num_documents else " compared"
    verb = "dropped" if manifest.packing == "tutorial" else "would drop"
    short = percent(lengths.num_short_documents, lengths.num_documents)
    median = plural(lengths.median, "token")
    rows = {
        "documents": f"{lengths.num_documents:,}, half with at most {median}; {short} fill no block",
        "tutorial": f"{verb} {lost:,} of {total:,} tokens ({percent(lost, total)})",
        "vocabulary": f"{use.num_used_entries:,} of {use.num_entries:,} entries occur{sample}",
        "duplicates": f"{found.num_duplicates:,} of {found.num_compared:,} documents{compared}",
    }
    return "\n".join(f"  {name:11} {row}" for name, row in rows.items())
