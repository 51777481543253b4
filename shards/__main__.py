"""`python -m shards COMMAND`: look at shard sets, check, exchange, share, merge and split them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from shards.common.command_line import Parser, progress_bar, run_command, say
from shards.common.errors import InputError
from shards.common.text import plural, printable
from shards.layout import SPLITS


def main(arguments: list[str]) -> int:
    options = make_parser().parse_args(arguments)
    status: int = options.run(options)
    return status


def make_parser() -> Parser:
    parser = Parser(prog="python -m shards", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="what a shard set holds")
    info.add_argument("directory", type=Path, metavar="DIR", help="the shard set")
    info.add_argument("other", type=Path, nargs="?", metavar="OTHER", help="show what this set differs in")
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

    from shards.edit import command as edit
    from shards.exchange import command as exchange
    from shards.report import command as report
    from shards.share import command as share

    for module in (report, edit, exchange, share):
        module.add_parsers(commands)
    return parser


def run_info(options: argparse.Namespace) -> int:
    from shards.reader import open_shard_set
    from shards.show import describe, describe_json, differences

    shard_set = open_shard_set(options.directory)
    if options.other is not None:
        say("\n".join(differences(shard_set, open_shard_set(options.other))) or "no difference")
    else:
        say(describe_json(shard_set) if options.json else describe(shard_set))
    return 0


def run_verify(options: argparse.Namespace) -> int:
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
    return 0


def run_cat(options: argparse.Namespace) -> int:
    from shards.reader import open_shard_set
    from shards.show import show_block, show_document

    shard_set = open_shard_set(options.directory)
    if options.document is not None:
        say(show_document(shard_set, options.split, options.document, with_ids=options.tokens))
    else:
        say(show_block(shard_set, options.split, options.block, with_ids=options.tokens))
    return 0


if __name__ == "__main__":
    run_command(main)
