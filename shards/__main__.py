"""`python -m shards COMMAND`: look at shard sets, check, exchange, share, merge and split them."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pkgutil
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.common.command_line import Parser, notice, progress_bar, run_command, say, token_count
from shards.common.errors import InputError, choice
from shards.common.text import plural, printable
from shards.layout import SPLITS, bin_bytes

if TYPE_CHECKING:
    from shards.manifest import Manifest

_URL_HELP = "the set: hf://datasets/USER/NAME[/FOLDER], ms://datasets/USER/NAME[/FOLDER], s3://, oss://, gs://, …"

# Module and function that write each format, and the line with which the format's own reader opens what was written.
_EXPORTS = {
    "datatrove": (
        "exporting:export_datatrove",
        "from datatrove.utils.dataset import DatatroveFolderDataset; {split} = "
        "DatatroveFolderDataset({folder!r}, seq_len={block_tokens} - 1, token_size=4)",
    ),
    "litdata": (
        "exporting:export_litdata",
        "from litdata import StreamingDataset, TokensLoader; {split} = "
        "StreamingDataset({folder!r}, item_loader=TokensLoader(block_size={block_tokens}))",
    ),
    "mds": (
        "exporting:export_mds",
        "from streaming import StreamingDataset; {split} = "
        'StreamingDataset(local={out!r}, split="{split}", batch_size=1)  # {split}[0]["tokens"]',
    ),
    "llm.c": ("exporting:export_llm_c", "{llm_c} '{folder}_*.bin', with a sequence length of {block_tokens}"),
    "parquet": ("arrow:export_parquet", "import pyarrow.parquet as pq; {split} = pq.read_table({folder!r})"),
    "hf": (
        "arrow:export_hf",
        'from datasets import load_from_disk; {hf_split} = load_from_disk({out!r})["{hf_split}"]',
    ),
}
EXPORT_FORMATS, IMPORT_FORMATS = tuple(_EXPORTS), ("megatron", "datatrove")


def main(arguments: list[str]) -> int:
    options = make_parser().parse_args(arguments)
    options.run(options)
    return 0


def make_parser() -> Parser:
    from shards.order import DEFAULT_SEED

    parser = Parser(prog="python -m shards", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(run: Callable[[argparse.Namespace], None], text: str, **more: Any) -> Any:
        """The parser of the command that `run`, by its name, is for."""
        command = commands.add_parser(run.__name__.removeprefix("run_"), help=text, **more)
        command.set_defaults(run=run)
        return command

    info = add(run_info, "what a shard set holds")
    info.add_argument("directory", metavar="DIR", help="the shard set, or several: a:0.7,b:0.3")
    info.add_argument("other", type=Path, nargs="?", metavar="OTHER", help="show what this set differs in")
    text = "of several sets, what a run of N tokens takes (N: one epoch)"
    info.add_argument("--tokens", type=token_count, metavar="N", help=text)
    info.add_argument("--json", action="store_true", help="for programs")

    check = add(run_verify, "check every byte; exit status 2 if anything is wrong")
    check.add_argument("directory", type=Path, metavar="DIR", help="the shard set")
    check.add_argument("--quick", action="store_true", help="look at names, sizes and the small files alone")

    cat = add(run_cat, "show a block or a document as text")
    cat.add_argument("directory", type=Path, metavar="DIR", help="the shard set")
    cat.add_argument("--split", default="train", metavar="NAME", help=f"{' or '.join(SPLITS)} (default train)")
    which = cat.add_mutually_exclusive_group()
    which.add_argument("--block", type=int, default=0, metavar="N", help="block number, from 0 (default 0)")
    which.add_argument("--document", type=int, metavar="N", help="show document N, from 0, instead of a block")
    cat.add_argument("--tokens", action="store_true", help="show ids beside the pieces")

    report = add(run_report, "make a page (HTML) with charts, tables and excerpts of a shard set")
    report.add_argument("directory", type=Path, metavar="DIR", help="the shard set")
    report.add_argument("--out", type=Path, metavar="FILE", help="the page to write (DIR.html, beside the set)")
    text = f"of the excerpts, and of the sample of a large set ({DEFAULT_SEED})"
    report.add_argument("--seed", type=int, default=DEFAULT_SEED, metavar="N", help=text)

    about = """\
Make one shard set of several with the same tokenizer, block size and packing, one after
another. Shards are copied under new numbers. Texts that are in several sets stay there
several times, perhaps both in train and in val."""
    merge = add(run_merge, "make one set of several, one after another", description=about)
    merge.add_argument("sets", type=Path, nargs="+", metavar="SET", help="the shard sets, in order")
    merge.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new shard set")
    merge.add_argument("--link", action="store_true", help="make hard links where possible, instead of copies")

    about = """\
Divide the documents of a shard set among several, at random: each document goes to exactly
one of them. Train stays train, val stays val."""
    split = add(run_split, "divide the documents of a set among several, at random", description=about)
    split.add_argument("set", type=Path, metavar="SET", help="the shard set")
    how = split.add_mutually_exclusive_group(required=True)
    how.add_argument("--parts", type=int, metavar="N", help="the number of parts, of equal size")
    how.add_argument("--fractions", metavar="F,F,…", help="the parts' shares, such as 0.5,0.3,0.2 or 1/3,2/3")
    split.add_argument("--out", type=Path, required=True, metavar="PREFIX", help="for PREFIX-0, PREFIX-1, …")
    text = f"another seed, other parts (default {DEFAULT_SEED})"
    split.add_argument("--seed", type=int, default=DEFAULT_SEED, metavar="S", help=text)

    about = """\
Make a smaller shard set of some of a set's documents. What is asked for is counted in
train; of val the same share is taken, rounded up. Without --seed these are the first
documents of each, with it random ones; smaller subsets of a seed lie within larger ones."""
    subset = add(run_subset, "make a smaller set of some of a set's documents", description=about)
    subset.add_argument("set", type=Path, metavar="SET", help="the shard set")
    subset.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new shard set")
    how = subset.add_mutually_exclusive_group(required=True)
    how.add_argument("--documents", type=int, metavar="N", help="N documents of train")
    how.add_argument(
        "--tokens", type=token_count, metavar="N", help="documents of train that hold N tokens or a few more"
    )
    how.add_argument("--fraction", metavar="F", help="a share of train's documents, such as 0.1 or 1/3")
    subset.add_argument("--seed", type=int, metavar="S", help="take random documents (default: the first ones)")

    example = "example: python -m shards export data/shards/sample --to hf"
    export = add(run_export, "write a shard set in another format", epilog=example)
    export.add_argument("directory", type=Path, metavar="DIR", help="the shard set")
    export.add_argument("--to", required=True, metavar="FORMAT", help=", ".join(EXPORT_FORMATS))
    export.add_argument("--out", type=Path, metavar="OUT", help="directory to write (default: DIR-FORMAT)")
    export.add_argument("--split", metavar="NAME", help=f"{' or '.join(SPLITS)} alone (default: both)")

    example = "example: python -m shards import 'old/part-*' --from megatron --tokenizer DIR --out data/shards/new"
    take = add(run_import, "make a shard set of documents that are tokenized already", epilog=example)
    text = "files (a Megatron prefix too), directories, or patterns in quotes"
    take.add_argument("sources", nargs="+", metavar="SOURCE", help=text)
    take.add_argument("--from", required=True, dest="imported_from", metavar="FORMAT", help=" or ".join(IMPORT_FORMATS))
    text = "what made the ids: a tokenizer.json, its directory, or another shard set"
    take.add_argument("--tokenizer", type=Path, required=True, metavar="PATH", help=text)
    take.add_argument("--out", type=Path, required=True, metavar="DIR", help="the shard set to write")
    eos_help = "a document with EOS in its middle: is an error, several documents, or stays as it is"
    settings: list[tuple[str, Any, str, str]] = [
        ("--block-tokens", 512, "N", "tokens in a block"),
        ("--packing", "concat", "concat|best-fit", "how documents become blocks"),
        ("--val-fraction", 0.1, "F", "share of documents held out"),
        ("--seed", DEFAULT_SEED, "N", "of the train/val split"),
        ("--eos-inside", "refuse", "refuse|split|keep", eos_help),
    ]
    for option, default, metavar, text in settings:
        take.add_argument(option, type=type(default), default=default, metavar=metavar, help=f"{text} ({default})")

    about = "Copy a shard set to a hub or an object store: verified before, its manifest put last."
    push = add(run_push, "copy a set to a hub or an object store", description=about)
    push.add_argument("directory", type=Path, metavar="DIR", help="the shard set")
    push.add_argument("url", metavar="URL", help=_URL_HELP)
    push.add_argument("--force", action="store_true", help="replace another set that is there")

    about = "Copy a shard set from a hub or an object store, each file checked; a broken-off copy goes on."
    pull = add(run_pull, "copy a set from a hub or an object store", description=about)
    pull.add_argument("url", metavar="URL", help=_URL_HELP)
    text = "where to (tokenize-once/FINGERPRINT in XDG_CACHE_HOME or ~/.cache)"
    pull.add_argument("--out", type=Path, metavar="DIR", help=text)
    return parser


def run_info(options: argparse.Namespace) -> None:
    from shards.mixture import Mixture, is_mixture, open_data
    from shards.reader import open_shard_set
    from shards.show import describe, describe_json, describe_mixture, differences

    if sum(map(bool, (is_mixture(options.directory), options.json, options.other))) > 1:
        raise InputError("several sets, --json and OTHER: expected at most one of these")
    if is_mixture(options.directory):
        mixture = open_data(options.directory)
        assert isinstance(mixture, Mixture)
        return say(describe_mixture(mixture, options.tokens))
    if options.tokens is not None:
        raise InputError(f"--tokens: expected several shard sets, such as a:0.7,b:0.3, found {options.directory}")
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
        notice(f"error: {fault}")
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
    say(str(out), f"  {documents}; of {found.num_compared:,} compared, {plural(found.num_duplicates, 'duplicate')}")


def run_merge(options: argparse.Namespace) -> None:
    from shards.edit import merge
    from shards.manifest import read_manifest

    total = sum(manifest.num_bytes for manifest in map(read_manifest, options.sets))
    with progress_bar(total, "copying") as progress:
        manifest = merge(options.sets, options.out, link=options.link, progress=progress.update)
    say(f"{options.out}: {_summary(manifest)}, from {plural(len(options.sets), 'set')}")


def run_split(options: argparse.Namespace) -> None:
    from shards.edit import MAX_PARTS, split

    if options.fractions is not None:
        fractions = [parse_fraction("--fractions", text) for text in options.fractions.split(",")]
    elif 1 <= options.parts <= MAX_PARTS:
        fractions = [Fraction(1, options.parts)] * options.parts
    else:
        raise InputError(f"--parts: expected 1 to {MAX_PARTS}, found {options.parts:,}")
    if not options.out.name:
        raise InputError(f"--out: expected the beginning of a name, found {str(options.out)!r}")
    outs = [options.out.with_name(f"{options.out.name}-{number}") for number in range(len(fractions))]
    with progress_bar(None, "packing", unit=" documents") as progress:
        manifests = split(options.set, outs, fractions, seed=options.seed, progress=progress.update)
    for out, manifest in zip(outs, manifests, strict=True):
        say(f"{out}: {_summary(manifest)}")


def run_subset(options: argparse.Namespace) -> None:
    from shards.edit import subset

    fraction = None if options.fraction is None else parse_fraction("--fraction", options.fraction)
    asked = {"num_documents": options.documents, "num_tokens": options.tokens, "fraction": fraction}
    with progress_bar(None, "packing", unit=" documents") as progress:
        manifest = subset(options.set, options.out, **asked, seed=options.seed, progress=progress.update)
    say(f"{options.out}: {_summary(manifest)}")


def parse_fraction(option: str, text: str) -> Fraction:
    """`0.1` or `1/3`, exactly. Raises `InputError`.

    >>> parse_fraction("--fraction", "0.1")
    Fraction(1, 10)
    """
    match = re.fullmatch(r"\s*(\d{0,20}\.?\d{1,20}|\d{1,20}/0*[1-9]\d{0,19})\s*", text, re.ASCII)
    if not match:
        raise InputError(f"{option}: expected a number such as 0.5 or 1/3, found {text!r}")
    return Fraction(match[1])


def _summary(manifest: Manifest) -> str:
    counts = [plural(manifest.total(f"num_{noun}s"), noun) for noun in ("document", "token")]
    blocks = ", ".join(f"{name} {split.num_blocks:,}" for name, split in manifest.splits.items())
    return f"{', '.join(counts)}, blocks: {blocks}"


def run_export(options: argparse.Namespace) -> None:
    from shards.exchange.exporting import Export
    from shards.reader import open_shard_set
    from shards.set_writer import new_directories

    name = choice("--to", options.to, EXPORT_FORMATS)
    names = SPLITS if options.split is None else [choice("--split", options.split, SPLITS)]
    export = pkgutil.resolve_name(f"shards.exchange.{_EXPORTS[name][0]}")
    shard_set = open_shard_set(options.directory)
    splits = [shard_set[name] for name in names if len(shard_set[name])]
    if not splits:
        raise InputError(f"{options.directory}: no block in {' and '.join(names)}; nothing to export")
    directory = Path(os.path.abspath(options.directory))
    out = options.out or directory.with_name(f"{directory.name}-{name}")
    num_blocks = sum(map(len, splits))
    num_bytes = bin_bytes(num_blocks, shard_set.block_tokens)
    with new_directories([out]) as (partial,), progress_bar(num_bytes, "exporting") as progress:
        export(Export(shard_set=shard_set, splits=splits, directory=partial, progress=progress.update))
    num_files, written = sum(path.is_file() for path in out.rglob("*")), ", ".join(split.name for split in splits)
    first = splits[0].name
    reader = _EXPORTS[name][1].format(
        split=first,
        hf_split="train" if first == "train" else "validation",
        out=str(out.resolve()),
        folder=str(out.resolve() / first),
        block_tokens=shard_set.block_tokens,
        llm_c="./train_gpt2cu -i" if shard_set.vocab_size <= 1 << 16 else "python train_llama3.py --input_bin",
    )
    blocks = f"{plural(num_blocks, 'block')} of {shard_set.block_tokens} tokens ({written})"
    say(f"{out}: {blocks}, {plural(num_files, 'file')}", f"read it with: {reader}")


def run_import(options: argparse.Namespace) -> None:
    from shards.exchange.importing import ImportSettings, import_files
    from shards.exchange.token_files import open_files
    from shards.manifest import EMPTY

    names = [field.name for field in dataclasses.fields(ImportSettings)]
    settings = ImportSettings(**{name: getattr(options, name) for name in names})
    files = open_files(options.sources, settings.imported_from)
    total = 2 * sum(file.tokens.nbytes for file in files)
    with progress_bar(total, "importing") as progress:
        manifest = import_files(
            files, options.out, tokenizer=options.tokenizer, settings=settings, progress=progress.update
        )
    left_out = plural(manifest.left_out.get(EMPTY, 0), "empty document")
    say(f"{options.out}: {_summary(manifest)}; {left_out} left out")


def run_push(options: argparse.Namespace) -> None:
    from shards.share.push import push

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
