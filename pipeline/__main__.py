"""`python -m pipeline fetch|build|tokenizer`: from a corpus to a shard set, once."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path
from typing import Any

from pipeline.settings import DEFAULT_CHECK_EVERY, DEFAULT_MAX_RECORD_BYTES, DEFAULT_UNIT_BYTES, BuildSettings
from shards.common.command_line import Parser, byte_count, run_command
from shards.common.errors import InputError, choice
from shards.common.text import printable
from shards.order import DEFAULT_SEED


def main(arguments: list[str]) -> int:
    options = make_parser().parse_args(arguments)
    status: int = options.run(options)
    return status


def make_parser() -> Parser:
    parser = Parser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_fetch(commands)
    add_build(commands)
    add_tokenizer(commands)
    return parser


SOURCE_HELP = (
    "a file (JSON array, JSON Lines, Parquet, Arrow, .txt; also .gz, .zst, .bz2, .xz), a directory, a pattern, "
    "or hf:NAME[:SPLIT]"
)


FETCH_EPILOG = """\
example: python -m pipeline fetch wikipedia-zh

From a mirror: HF_ENDPOINT=https://hf-mirror.com python -m pipeline fetch wikipedia-zh

What was interrupted goes on with the same command; what is complete is up to date."""


def add_fetch(commands: Any) -> None:
    fetch = commands.add_parser("fetch", help="fetch a published corpus from a hub", epilog=FETCH_EPILOG)
    fetch.add_argument("name", metavar="NAME", help="wikipedia-zh: Chinese Wikipedia of August 2024, 1.99 GB")
    fetch.add_argument("--out", type=Path, metavar="PATH", help="where to put it (data/, under its own name)")
    fetch.add_argument(
        "--from",
        dest="origin",
        default="hf",
        metavar="hf|ms|auto",
        help="hf: Hugging Face, or the mirror HF_ENDPOINT; ms: another, older dump from ModelScope; auto: hf, and "
        "ms if that can't be reached (hf)",
    )
    fetch.add_argument("--force", action="store_true", help="fetch anew what is there already")
    fetch.add_argument("--quiet", action="store_true", help="no progress")
    fetch.set_defaults(run=run_fetch)


def add_build(commands: Any) -> None:
    build = commands.add_parser(
        "build",
        help="build a shard set from a corpus",
        epilog="example: python -m pipeline build wikipedia.json --out data/shards/wikipedia-zh",
    )
    build.add_argument("sources", nargs="+", metavar="SOURCE", help=SOURCE_HELP)
    build.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="the shard set to make: a directory, s3://BUCKET/NAME, or hf://datasets/USER/NAME/FOLDER",
    )

    text = build.add_argument_group("what the documents are")
    text.add_argument(
        "--text-field", default="text", metavar="NAME", help="field with the text, or a path such as page.body (text)"
    )
    text.add_argument(
        "--template", default="", metavar="TEXT", help=r"text made of several fields, e.g. '{title}\n{text}'"
    )
    text.add_argument(
        "--document-separator",
        default="",
        metavar="LINE",
        help="the line between documents in .txt files (a file is one document)",
    )
    text.add_argument("--dedup", default="off", metavar="off|exact", help="drop documents that occurred before (off)")
    text.add_argument(
        "--on-bad-record", default="fail", metavar="fail|skip", help="what a record that can't be read does (fail)"
    )
    text.add_argument(
        "--max-record-bytes",
        type=byte_count,
        default=DEFAULT_MAX_RECORD_BYTES,
        metavar="BYTES",
        help=f"a larger record is a bad one ({DEFAULT_MAX_RECORD_BYTES >> 20}MiB)",
    )

    tokens = build.add_argument_group("tokenizing and packing")
    tokens.add_argument(
        "--tokenizer",
        default="qwen2",
        metavar="NAME",
        help="qwen2, a directory with a tokenizer.json, or hf:ORG/NAME, ms:ORG/NAME of a hub, then @REVISION (qwen2)",
    )
    tokens.add_argument("--block-tokens", type=int, default=512, metavar="N", help="block size in tokens (512)")
    tokens.add_argument(
        "--packing",
        default="concat",
        metavar="concat|best-fit|tutorial",
        help="concat loses nothing; best-fit cuts no document that fits a block; tutorial drops tails (concat)",
    )
    tokens.add_argument(
        "--special-tokens",
        default="text",
        metavar="text|parse",
        help="what <|endoftext|> and the like in a text are: ordinary text, or special tokens (text)",
    )
    tokens.add_argument("--val-fraction", type=float, default=0.1, metavar="F", help="share of texts held out (0.1)")
    tokens.add_argument(
        "--seed", type=int, default=DEFAULT_SEED, metavar="N", help=f"of the train/val split ({DEFAULT_SEED})"
    )
    tokens.add_argument(
        "--check-tokenizer",
        default=str(DEFAULT_CHECK_EVERY),
        metavar="all|N|off",
        help=f"encode one document in N by the reference tokenizer too ({DEFAULT_CHECK_EVERY})",
    )
    tokens.add_argument(
        "--encoder", default="auto", metavar="auto|fastokens|tokenizers", help="fastokens where it is exact (auto)"
    )

    run = build.add_argument_group("running")
    run.add_argument(
        "--workers", type=int, metavar="N", help="tokenizer worker processes (one a core; of the cluster, with ray)"
    )
    run.add_argument(
        "--engine", default="local", metavar="local|ray", help="processes of this machine, or of a Ray cluster (local)"
    )
    run.add_argument("--ray-address", metavar="ADDRESS", help="the cluster: auto, HOST:PORT or ray://HOST:PORT")
    run.add_argument(
        "--unit-bytes",
        type=byte_count,
        default=DEFAULT_UNIT_BYTES,
        metavar="BYTES",
        help=f"bytes of source in a unit of work; changes the shards' sizes ({DEFAULT_UNIT_BYTES >> 20}MiB)",
    )
    run.add_argument("--force", action="store_true", help="build anew what is there already")
    run.add_argument("--quiet", action="store_true", help="no progress and no summary")
    build.set_defaults(run=run_build)


def add_tokenizer(commands: Any) -> None:
    tokenizer = commands.add_parser(
        "tokenizer",
        help="train a byte-level BPE on a corpus",
        epilog="example: python -m pipeline tokenizer corpus.json --vocab-size 4096 --out data/tokenizers/mine",
    )
    tokenizer.add_argument("sources", nargs="+", metavar="SOURCE", help=SOURCE_HELP)
    tokenizer.add_argument("--vocab-size", type=int, required=True, metavar="N", help="entries, the EOS token included")
    tokenizer.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory for tokenizer.json")
    tokenizer.add_argument("--text-field", default="text", metavar="NAME", help="field with the text (text)")
    tokenizer.add_argument("--force", action="store_true", help="replace a tokenizer that is there already")
    tokenizer.set_defaults(run=run_tokenizer)


def run_fetch(options: argparse.Namespace) -> int:
    from pipeline.fetch import fetch
    from pipeline.fetch_progress import DownloadProgress
    from shards.common.text import size_text
    from shards.hub.download import Progress

    origin: Any = choice("--from", options.origin, ("hf", "ms", "auto"))
    progress = Progress() if options.quiet else DownloadProgress()
    fetched = fetch(options.name, options.out, origin=origin, force=options.force, progress=progress)
    facts = [f"up to date, {size_text(fetched.num_bytes)}" if fetched.was_there else size_text(fetched.num_bytes)]
    facts += [fact for fact in (fetched.digest, fetched.note) if fact]
    print(f"{printable(str(fetched.path))}: {', '.join(facts)}")
    if not options.quiet and not fetched.was_there:
        print(f"next: make shards CORPUS={shlex.quote(printable(str(fetched.path)))}")
    return 0


def run_build(options: argparse.Namespace) -> int:
    from pipeline.build import Reporter, build
    from pipeline.progress import BarReporter, summary

    fields = [field.name for field in dataclasses.fields(BuildSettings)]
    settings = BuildSettings(**{name: getattr(options, name) for name in fields})
    engine: Any = choice("--engine", options.engine, ("local", "ray"))
    result = build(
        options.sources,
        options.out,
        tokenizer_name=options.tokenizer,
        settings=settings,
        num_workers=options.workers,
        engine=engine,
        ray_address=options.ray_address,
        check_every=check_every(options.check_tokenizer),
        encoder=choice("--encoder", options.encoder, ("auto", "fastokens", "tokenizers")),
        force=options.force,
        reporter=Reporter() if options.quiet else BarReporter(),
    )
    if result.up_to_date:
        print(f"{options.out}: up to date (fingerprint {result.manifest.fingerprint[:16]})")
    elif not options.quiet:
        print(summary(result))
    return 0


def check_every(value: str) -> int:
    """`all` is every document, `off` none, N one in so many."""
    named = {"all": 1, "off": 0}
    if value in named:
        return named[value]
    if not value.isascii() or not value.isdigit() or not int(value):
        raise InputError(f"--check-tokenizer: expected all, off or a number of at least 1, found {value!r}")
    return int(value)


def run_tokenizer(options: argparse.Namespace) -> int:
    from pipeline.bpe import train_tokenizer

    path = options.out / "tokenizer.json"
    if path.exists() and not options.force:
        raise InputError(f"{path}: exists already; choose another --out, or replace it with --force")
    num_entries = train_tokenizer(
        options.sources, options.out, vocab_size=options.vocab_size, text_field=options.text_field
    )
    print(f"{path}: {num_entries:,} entries")
    return 0


if __name__ == "__main__":
    run_command(main)
