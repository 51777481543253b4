"""`python -m pipeline build|tokenizer`: from a corpus to a shard set, once."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pipeline.settings import DEFAULT_UNIT_BYTES, BuildSettings
from shards.command_line import Parser, run_command
from shards.errors import InputError


def main(arguments: list[str]) -> int:
    options = make_parser().parse_args(arguments)
    status: int = options.run(options)
    return status


def make_parser() -> Parser:
    parser = Parser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    build = commands.add_parser(
        "build",
        help="build a shard set from a corpus",
        epilog="example: python -m pipeline build wikipedia.json --out data/shards/wikipedia-zh",
    )
    build.add_argument("sources", nargs="+", metavar="SOURCE", help="JSON Lines, or a JSON array of records")
    build.add_argument("--out", type=Path, required=True, metavar="DIR", help="the shard set to make")
    build.add_argument(
        "--tokenizer",
        default="qwen2",
        metavar="NAME",
        help="qwen2, a directory with a tokenizer.json, or such a file (default qwen2)",
    )
    build.add_argument("--text-field", default="text", metavar="NAME", help="field with the text (default text)")
    build.add_argument("--block-tokens", type=int, default=512, metavar="N", help="block size in tokens (default 512)")
    build.add_argument(
        "--val-fraction", type=float, default=0.1, metavar="F", help="share of documents held out (default 0.1)"
    )
    build.add_argument("--seed", type=int, default=2333, metavar="N", help="of the train/val split (default 2333)")
    build.add_argument(
        "--unit-bytes",
        type=int,
        default=DEFAULT_UNIT_BYTES,
        metavar="N",
        help=f"bytes of a source in one unit of work (default {DEFAULT_UNIT_BYTES:,})",
    )
    build.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="tokenizer worker processes (default: one a core)",
    )
    build.add_argument("--force", action="store_true", help="build anew what is there already")
    build.add_argument("--quiet", action="store_true", help="no progress and no summary")
    build.set_defaults(run=run_build)

    tokenizer = commands.add_parser(
        "tokenizer",
        help="train a byte-level BPE on a corpus",
        epilog="example: python -m pipeline tokenizer corpus.json --vocab-size 4096 --out data/tokenizers/mine",
    )
    tokenizer.add_argument("sources", nargs="+", metavar="SOURCE", help="JSON Lines, or a JSON array of records")
    tokenizer.add_argument(
        "--vocab-size", type=int, required=True, metavar="N", help="entries, special tokens included"
    )
    tokenizer.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory for tokenizer.json")
    tokenizer.add_argument("--text-field", default="text", metavar="NAME", help="field with the text (default text)")
    tokenizer.add_argument("--force", action="store_true", help="replace a tokenizer that is there already")
    tokenizer.set_defaults(run=run_tokenizer)
    return parser


def run_build(options: argparse.Namespace) -> int:
    from pipeline.build import Reporter, build
    from pipeline.progress import BarReporter, summary

    settings = BuildSettings(
        text_field=options.text_field,
        block_tokens=options.block_tokens,
        val_fraction=options.val_fraction,
        seed=options.seed,
        unit_bytes=options.unit_bytes,
    )
    result = build(
        options.sources,
        options.out,
        tokenizer_name=options.tokenizer,
        settings=settings,
        num_workers=options.workers,
        force=options.force,
        reporter=Reporter() if options.quiet else BarReporter(),
    )
    if result.up_to_date:
        print(f"{options.out}: up to date (fingerprint {result.manifest.fingerprint[:16]})")
    elif not options.quiet:
        print(summary(result))
    return 0


def run_tokenizer(options: argparse.Namespace) -> int:
    from pipeline.bpe import train_tokenizer

    path = options.out / "tokenizer.json"
    if path.exists() and not options.force:
        raise InputError(f"{path}: exists already; choose another --out, or replace it with --force")
    num_entries = train_tokenizer(
        options.sources, options.out, vocab_size=options.vocab_size, text_field=options.text_field
    )
    print(f"{path}: {num_entries:,} entries", file=sys.stdout)
    return 0


if __name__ == "__main__":
    run_command(main)
