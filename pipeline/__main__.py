"""`python -m pipeline fetch|build|tokenizer`: from a corpus to a shard set, once."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from shards.common.command_line import Parser, byte_count, notice, progress_bar, run_command
from shards.common.errors import InputError
from shards.common.text import printable, size_text

SOURCE_HELP = (
    "a file (JSON in any layout, Parquet, Arrow, .csv, .tsv, .txt; also .gz, .zst, .bz2, .xz), a directory, a pattern, "
    "a URL, or hf:NAME[:SPLIT]"
)

TOKENIZER_SETTINGS = ("text_field", "template", "document_separator", "encoding", "on_bad_record", "max_record_bytes")

FETCH_EPILOG = """\
example: python -m pipeline fetch wikipedia-zh

From a mirror: HF_ENDPOINT=https://hf-mirror.com python -m pipeline fetch wikipedia-zh

An interrupted fetch continues with the same command; a complete one is up to date."""


def main(arguments: list[str]) -> int:
    options = make_parser().parse_args(arguments)
    options.run(options)
    return 0


def make_parser() -> Parser:
    parser = Parser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    fetch = commands.add_parser("fetch", help="fetch a published corpus from a hub", epilog=FETCH_EPILOG)
    fetch.add_argument("name", metavar="NAME", help="wikipedia-zh: Chinese Wikipedia of August 2024, 1.99 GB")
    fetch.add_argument("--out", type=Path, metavar="PATH", help="where to put it (data/, under its own name)")
    text = "hf: Hugging Face, or the mirror HF_ENDPOINT; ms: another, older dump from ModelScope; auto: hf, and ms if that "
    add_choice(fetch, "--from", ("hf", "ms", "auto"), text + "can't be reached")
    fetch.add_argument("--force", action="store_true", help="fetch anew what is there already")
    fetch.add_argument("--quiet", action="store_true", help="no progress")
    fetch.set_defaults(run=run_fetch)
    add_build(commands)
    tokenizer = commands.add_parser(
        "tokenizer",
        help="train a byte-level BPE on a corpus",
        epilog="example: python -m pipeline tokenizer corpus.json --vocab-size 4096 --out data/tokenizers/mine",
    )
    tokenizer.add_argument("sources", nargs="+", metavar="SOURCE", help=SOURCE_HELP)
    tokenizer.add_argument("--vocab-size", type=int, required=True, metavar="N", help="entries, the EOS token included")
    tokenizer.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory for tokenizer.json")
    every = "learn from one document in N: 20 MB of text are enough, and take 2 GB of memory (1)"
    tokenizer.add_argument("--every", type=int, default=1, metavar="N", help=every)
    add_settings(tokenizer, TOKENIZER_SETTINGS)
    tokenizer.add_argument("--force", action="store_true", help="replace a tokenizer that is there already")
    tokenizer.set_defaults(run=run_tokenizer)
    return parser


def add_build(commands: Any) -> None:
    from pipeline.settings import DEFAULT_CHECK_EVERY

    build = commands.add_parser(
        "build",
        help="build a shard set from a corpus",
        epilog="example: python -m pipeline build wikipedia.json --out data/shards/wikipedia-zh",
    )
    build.add_argument("sources", nargs="+", metavar="SOURCE", help=SOURCE_HELP)
    build.add_argument(
        "--out", required=True, metavar="DIR", help="the shard set to make: a directory, or s3://BUCKET/NAME"
    )
    groups = add_settings(build)
    groups["tokenizing and packing"].add_argument(
        "--tokenizer",
        default="qwen2",
        metavar="NAME",
        help="qwen2, a directory with a tokenizer.json, or hf:ORG/NAME, ms:ORG/NAME of a hub, then @REVISION (qwen2)",
    )
    run = groups["running"]
    run.add_argument(
        "--check-tokenizer",
        type=check_every,
        default=DEFAULT_CHECK_EVERY,
        metavar="all|N|off",
        help=f"encode one Nth of the text by the reference tokenizer too ({DEFAULT_CHECK_EVERY})",
    )
    text = "native: compiled here, for tokenizers like Qwen2's; auto: that or fastokens, where they are exact"
    add_choice(run, "--encoder", ("auto", "native", "fastokens", "tokenizers"), text)
    run.add_argument(
        "--workers", type=int, metavar="N", help="tokenizer worker processes (one a core; of the cluster, with ray)"
    )
    add_choice(run, "--engine", ("local", "ray"), "processes of this machine, or of a Ray cluster")
    run.add_argument("--ray-address", metavar="ADDRESS", help="the cluster: auto, HOST:PORT or ray://HOST:PORT")
    run.add_argument("--force", action="store_true", help="build anew what is there already")
    run.add_argument("--quiet", action="store_true", help="no progress and no summary")
    build.set_defaults(run=run_build)


def add_choice(command: Any, option: str, choices: tuple[str, ...], text: str) -> None:
    """An option whose default is the first of its choices."""
    default, text = choices[0], f"{text} ({choices[0]})"
    command.add_argument(option, default=default, choices=choices, metavar="|".join(choices), help=text)


def add_settings(command: Any, names: Collection[str] = ()) -> dict[str, Any]:
    """Options for the fields `names` of `BuildSettings` (all), in groups, which are returned by their names."""
    from pipeline.settings import BuildSettings

    groups: dict[str, Any] = {}
    types = typing.get_type_hints(BuildSettings)
    for field in dataclasses.fields(BuildSettings):
        if names and field.name not in names:
            continue
        name, kind = field.metadata["group"], types[field.name]
        group = groups[name] = groups.get(name) or command.add_argument_group(name)
        option, text = f"--{field.name.replace('_', '-')}", field.metadata["help"].replace("%", "%%")
        if kind is bool:
            group.add_argument(option, action="store_true", help=text)
            continue
        metavar, default = field.metadata["metavar"], typing.cast(Any, field.default)
        if default:
            text += f" ({default >> 20}MiB)" if metavar == "BYTES" else f" ({default})"
        if typing.get_origin(kind) is Literal:
            kind, metavar = str, "|".join(typing.get_args(kind))
        kind = byte_count if metavar == "BYTES" else kind
        group.add_argument(option, type=kind, default=default, metavar=metavar, help=text)
    return groups


def check_every(value: str) -> int:
    """`all` is every document, `off` none, N one Nth of the text."""
    number = {"all": 1, "off": 0}.get(value, int(value) if value.isascii() and value.isdigit() else 0)
    if not number and value != "off":
        raise argparse.ArgumentTypeError(f"expected all, off or a number of at least 1, found {value!r}")
    return number


def settings_of(options: argparse.Namespace) -> Any:
    from pipeline.settings import BuildSettings

    names = {field.name for field in dataclasses.fields(BuildSettings)}
    return BuildSettings(**{name: value for name, value in vars(options).items() if name in names})


def run_fetch(options: argparse.Namespace) -> None:
    from pipeline.fetch import fetch

    fetched = fetch(
        options.name,
        options.out,
        origin=getattr(options, "from"),
        force=options.force,
        notice=(lambda _line: None) if options.quiet else notice,
        shows_bars=sys.stderr.isatty() and not options.quiet,
    )
    facts = [f"up to date, {size_text(fetched.num_bytes)}" if fetched.was_there else size_text(fetched.num_bytes)]
    facts += [f"sha256 {fetched.sha256}"] if fetched.sha256 else []
    print(f"{printable(str(fetched.path))}: {', '.join(facts)}")
    if not options.quiet and not fetched.was_there:
        print(f"next: make shards CORPUS={shlex.quote(printable(str(fetched.path)))}")


def run_build(options: argparse.Namespace) -> None:
    from pipeline.build import Reporter, build
    from pipeline.progress import BarReporter, summary

    if options.ray_address and options.engine != "ray":
        raise InputError(f"--ray-address: expected --engine ray beside it, found {options.engine}")
    result = build(
        options.sources,
        options.out,
        tokenizer_name=options.tokenizer,
        settings=settings_of(options),
        num_workers=options.workers,
        engine=options.engine,
        ray_address=options.ray_address,
        check_every=options.check_tokenizer,
        encoder=options.encoder,
        force=options.force,
        reporter=Reporter() if options.quiet else BarReporter(),
    )
    if result.up_to_date:
        print(f"{options.out}: up to date (fingerprint {result.manifest.fingerprint[:16]})")
    elif not options.quiet:
        for name, text in summary(result).items():
            print(f"{name:12}  {printable(text)}")  # not wrapped: paths and commands are copied from it


def run_tokenizer(options: argparse.Namespace) -> None:
    from pipeline.train_tokenizer import train_tokenizer

    path = options.out / "tokenizer.json"
    if path.exists() and not options.force:
        raise InputError(f"{path}: exists already; choose another --out, or replace it with --force")
    settings, size = settings_of(options), options.vocab_size
    with progress_bar(None, "learning") as bar:
        num_entries = train_tokenizer(
            options.sources,
            options.out,
            vocab_size=size,
            every=options.every,
            settings=settings,
            notice=notice,
            progress=bar.update,
        )
    few = f"; the corpus has no more pairs to merge, {size:,} were asked for"
    print(f"{path}: {num_entries:,} entries{few if num_entries < size else ''}")


if __name__ == "__main__":
    run_command(main)
