"""`python -m shards COMMAND`: look at shard sets, check, exchange, share, merge and split them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from shards.common.command_line import Parser, progress_bar, run_command, say
from shards.common.errors import InputError
from shards.common.text import plural, printable
from shards.layout import SPLITS

_URL_HELP = "the set: hf://datasets/USER/NAME[/FOLDER], ms://datasets/USER/NAME[/FOLDER], s3://, oss://, gs://, …"
MAX_TOKENS = 10**15


def main(arguments: list[str]) -> int:
    options = make_parser().parse_args(arguments)
    return int(options.run(options) or 0)


def make_parser() -> Parser:
    from shards.order import DEFAULT_SEED

    parser = Parser(prog="python -m shards", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="what a shard set holds")
    info.add_argument("directory", metavar="DIR", help="the shard set, or several: a:0.7,b:0.3")
    info.add_argument("other", type=Path, nargs="?", metavar="OTHER", help="show what this set differs in")
    tokens_help = "of several sets, what a run of N tokens takes (N: one epoch)"
    info.add_argument("--tokens", type=float, metavar="N", help=tokens_help)
    info.add_argument("--json", action="store_true", help="for programs")
    info.set_defaults(run=run_info)

    check = commands.add_parser("verify", help="check every byte; exit status 2 if anything is wrong")
    check.add_argument("directory", type=Path, metavar="DIR", help="the shard set")
    check.add_argument("--quick", action="store_true", help="look at names, sizes and the small files alone")
    check.set_defaults(run=run_verify)

    cat = commands.add_parser("cat", help="show a block or a document as text")
    cat.add_argument("directory", type=Path, metavar="DIR", help="the shard set")
    cat.add_argument("--split", default="train", metavar="NAME", help=f"{' or '.join(SPLITS)} (default train)")
    cat.add_argument("--block", type=int, default=0, metavar="N", help="block number, from 0 (default 0)")
    cat.add_argument("--document", type=int, metavar="N", help="show document N, from 0, instead of a block")
    cat.add_argument("--tokens", action="store_true", help="show ids beside the pieces")
    cat.set_defaults(run=run_cat)

    report = commands.add_parser("report", help="make a page (HTML) with charts, tables and excerpts of a shard set")
    report.add_argument("directory", type=Path, metavar="DIR", help="the shard set")
    report.add_argument("--out", type=Path, metavar="FILE", help="the page to write (DIR.html, beside the set)")
    seed_help = f"of the excerpts, and of the sample of a large set ({DEFAULT_SEED})"
    report.add_argument("--seed", type=int, default=DEFAULT_SEED, metavar="N", help=seed_help)
    report.set_defaults(run=run_report)

    from shards.edit import command as edit
    from shards.exchange import command as exchange

    edit.add_parsers(commands)
    exchange.add_parsers(commands)

    push_help = "copy a set to a hub or an object store"
    about = "Copy a shard set to a hub or an object store: verified before, its manifest put last."
    push = commands.add_parser("push", help=push_help, description=about)
    push.add_argument("directory", type=Path, metavar="DIR", help="the shard set")
    push.add_argument("url", metavar="URL", help=_URL_HELP)
    push.add_argument("--force", action="store_true", help="replace another set that is there")
    push.set_defaults(run=run_push)

    pull_help = "copy a set from a hub or an object store"
    about = "Copy a shard set from a hub or an object store, each file checked; a broken-off copy goes on."
    pull = commands.add_parser("pull", help=pull_help, description=about)
    pull.add_argument("url", metavar="URL", help=_URL_HELP)
    out_help = "where to (tokenize-once/FINGERPRINT in XDG_CACHE_HOME or ~/.cache)"
    pull.add_argument("--out", type=Path, metavar="DIR", help=out_help)
    pull.set_defaults(run=run_pull)
    return parser


def run_info(options: argparse.Namespace) -> None:
    from shards.mixture import Mixture, is_mixture, open_data
    from shards.reader import open_shard_set
    from shards.show import describe, describe_json, describe_mixture, differences

    if options.tokens is not None and not 1 <= options.tokens <= MAX_TOKENS:
        raise InputError(f"--tokens: expected 1 to {MAX_TOKENS:,}, found {options.tokens:g}")
    if is_mixture(options.directory):
        mixture = open_data(options.directory)
        assert isinstance(mixture, Mixture)
        return say(describe_mixture(mixture, options.tokens))
    shard_set = open_shard_set(options.directory)
    if options.other is not None:
        return say("\n".join(differences(shard_set, open_shard_set(options.other))) or "no difference")
    say(describe_json(shard_set) if options.json else describe(shard_set))


def run_verify(options: argparse.Namespace) -> None:
    from shards.manifest import read_manifest
    from shards.verify import verify

    manifest = read_manifest(options.directory)
    num_bytes = manifest.num_bytes
    with progress_bar(num_bytes, "verifying", show=not options.quick) as progress:
        faults = verify(options.directory, quick=options.quick, progress=progress.update)
    for fault in faults[1:]:
        print(f"error: {printable(fault)}", file=sys.stderr)
    if faults:
        raise InputError(faults[0])
    extent = "names and sizes" if options.quick else f"{num_bytes:,} bytes"
    say(f"{options.directory}: good ({plural(len(manifest.shards), 'shard')}, {extent} verified)")


def run_cat(options: argparse.Namespace) -> None:
    from shards.reader import open_shard_set
    from shards.show import show_block, show_document

    show, number = (show_block, options.block) if options.document is None else (show_document, options.document)
    say(show(open_shard_set(options.directory), options.split, number, with_ids=options.tokens))


def run_report(options: argparse.Namespace) -> None:
    from shards.common.files import write_atomically
    from shards.order import check_seed
    from shards.reader import open_shard_set
    from shards.report.document import check_out
    from shards.report.page import PROGRAM, make_page
    from shards.report.statistics import compute
    from shards.tokenizer_files import read_vocabulary

    check_seed(options.seed)
    shard_set = open_shard_set(options.directory)
    named = options.directory if options.directory.name not in ("", "..") else options.directory.resolve()
    out = options.out or named.parent / f"{named.name}.html"
    if out.resolve().is_relative_to(options.directory.resolve()):
        raise InputError(f"--out {out}: lies inside the shard set, where nothing may be added; choose a file beside it")
    check_out(out, PROGRAM, "report")
    with progress_bar(shard_set.manifest.total("num_blocks"), "reading the set", unit=" blocks") as progress:
        statistics = compute(shard_set, seed=options.seed, progress=progress.update)
    write_atomically(out, make_page(shard_set.manifest, statistics, read_vocabulary(shard_set.tokenizer_path)))
    documents, found = plural(statistics.lengths.num_documents, "document"), statistics.duplicates
    say(str(out), f"  {documents}; {found.num_duplicates:,} of {found.num_compared:,} compared equal an earlier one")


def run_push(options: argparse.Namespace) -> None:
    from shards.share.push import push

    def notice(line: str) -> None:
        print(printable(line), file=sys.stderr, flush=True)

    changed = push(options.directory, options.url, force=options.force, notice=notice)
    print(f"{printable(options.url)}: {'complete' if changed else 'up to date'}")


def run_pull(options: argparse.Namespace) -> None:
    from shards.share.pull import pull

    with progress_bar(None, "copying") as bar:
        path = pull(
            options.url,
            options.out,
            notice=lambda line: bar.write(printable(line), file=sys.stderr),
            progress=bar.update,
            shows_bars=sys.stderr.isatty(),
        )
    print(path)


if __name__ == "__main__":
    run_command(main)
