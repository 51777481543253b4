"""`python -m shards report`: the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from shards.common.command_line import ProgressLine, percent_done, say
from shards.common.errors import InputError
from shards.common.files import write_atomically
from shards.common.text import percent, plural
from shards.manifest import Manifest
from shards.order import DEFAULT_SEED, check_seed
from shards.reader import open_shard_set
from shards.report.statistics import Statistics, compute
from shards.vocabulary import read_vocabulary


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
    from shards.report.document import check_out
    from shards.report.page import PROGRAM, make_page

    check_seed(options.seed)
    shard_set = open_shard_set(options.directory)
    out = default_out(options.directory) if options.out is None else options.out
    if out.resolve().is_relative_to(options.directory.resolve()):
        raise InputError(f"--out {out}: lies inside the shard set, where nothing may be added; choose a file beside it")
    check_out(out, PROGRAM, "report")
    with ProgressLine(percent_done("reading the set", shard_set.manifest.total("num_blocks"))) as progress:
        statistics = compute(shard_set, seed=options.seed, progress=progress.advance)
    write_atomically(out, make_page(shard_set.manifest, statistics, read_vocabulary(shard_set.tokenizer_path)))
    say(str(out), *summary(shard_set.manifest, statistics))
    return 0


def default_out(directory: Path) -> Path:
    """`data/shards/NAME.html` for `data/shards/NAME`."""
    named = directory if directory.name not in ("", "..") else directory.resolve()
    return named.parent / f"{named.name}.html"


def summary(manifest: Manifest, statistics: Statistics) -> list[str]:
    """The main numbers, a line each."""
    lengths, use, found = statistics.documents.lengths, statistics.tokens, statistics.duplicates
    short = percent(lengths.between(0, manifest.block_tokens - 1).num_documents, lengths.num_documents)
    lost, total = lengths.num_lost_tokens, lengths.num_tokens
    is_sample = use.num_counted_blocks < manifest.total("num_blocks")
    rows = {
        "documents": f"{lengths.num_documents:,}, median {plural(lengths.quantile(50), 'token')}; "
        f"{short} are shorter than a block",
        "tutorial": f"would drop {lost:,} of {total:,} tokens ({percent(lost, total)})",
        "vocabulary": f"{len(use.ranking):,} of {manifest.tokenizer.vocab_size - 1:,} entries occur"
        + (f" in a sample of {plural(use.num_counted_blocks, 'block')}" if is_sample else ""),
        "duplicates": f"{found.num_duplicates:,} of {plural(found.num_compared, 'document')} compared",
    }
    return [f"  {name:11} {row}" for name, row in rows.items()]
