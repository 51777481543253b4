"""`python -m shards export` and `python -m shards import`: options, progress, what is said at the end."""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.common.command_line import progress_bar, say
from shards.common.errors import InputError, choice
from shards.common.text import plural
from shards.layout import SPLITS, bin_bytes
from shards.order import DEFAULT_SEED

if TYPE_CHECKING:
    from shards.exchange.blocks import Format

# The module of each format, and its name there.
_FORMATS = {
    "datatrove": ("datatrove", "FORMAT"),
    "litdata": ("headed", "LITDATA"),
    "mds": ("headed", "MDS"),
    "llm.c": ("headed", "LLM_C"),
    "parquet": ("arrow", "PARQUET"),
    "hf": ("arrow", "HF"),
}
EXPORT_FORMATS = tuple(_FORMATS)
IMPORT_FORMATS = ("megatron", "datatrove")


def add_parsers(commands: Any) -> None:
    """Add `export` and `import` to the subparsers of a command line."""
    export = commands.add_parser(
        "export",
        help="write a shard set in another format",
        epilog="example: python -m shards export data/shards/sample --to hf",
    )
    export.add_argument("directory", type=Path, metavar="DIR", help="the shard set")
    export.add_argument("--to", required=True, metavar="FORMAT", help=", ".join(EXPORT_FORMATS))
    export.add_argument("--out", type=Path, metavar="OUT", help="directory to write (default: DIR-FORMAT)")
    export.add_argument("--split", metavar="NAME", help=f"{' or '.join(SPLITS)} alone (default: both)")
    export.set_defaults(run=run_export)

    take = commands.add_parser(
        "import",
        help="make a shard set of documents that are tokenized already",
        epilog="example: python -m shards import 'old/part-*' --from megatron --tokenizer DIR --out data/shards/new",
    )
    take.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="files (a Megatron prefix too), directories, or patterns in quotes"
    )
    take.add_argument("--from", required=True, dest="source_format", metavar="FORMAT", help=" or ".join(IMPORT_FORMATS))
    tokenizer_help = "what made the ids: a tokenizer.json, its directory, or another shard set"
    take.add_argument("--tokenizer", type=Path, required=True, metavar="PATH", help=tokenizer_help)
    take.add_argument("--out", type=Path, required=True, metavar="DIR", help="the shard set to write")
    take.add_argument("--block-tokens", type=int, default=512, metavar="N", help="tokens in a block (512)")
    take.add_argument(
        "--packing", default="concat", metavar="concat|best-fit", help="how documents become blocks (concat)"
    )
    take.add_argument("--val-fraction", type=float, default=0.1, metavar="F", help="share of documents held out (0.1)")
    seed_help = f"of the train/val split ({DEFAULT_SEED})"
    take.add_argument("--seed", type=int, default=DEFAULT_SEED, metavar="N", help=seed_help)
    eos_help = "a document with EOS in its middle: is an error, several documents, or stays as it is (refuse)"
    take.add_argument("--eos-inside", default="refuse", metavar="refuse|split|keep", help=eos_help)
    take.set_defaults(run=run_import)


def run_export(options: argparse.Namespace) -> int:
    from shards.reader import open_shard_set
    from shards.set_writer import new_directory

    name = choice("--to", options.to, EXPORT_FORMATS)
    names = SPLITS if options.split is None else [choice("--split", options.split, SPLITS)]
    form = _load_format(name)
    shard_set = open_shard_set(options.directory)
    splits = [shard_set[name] for name in names if len(shard_set[name])]
    if not splits:
        raise InputError(f"{options.directory}: no block in {' and '.join(names)}; nothing to export")
    directory = Path(os.path.abspath(options.directory))
    out = options.out or directory.with_name(f"{directory.name}-{name}")
    num_blocks = sum(map(len, splits))
    num_bytes = bin_bytes(num_blocks, shard_set.block_tokens)
    with new_directory(out) as partial, progress_bar(num_bytes, "exporting") as progress:
        form.export(shard_set, splits, partial, progress.update)
    num_files, written = sum(path.is_file() for path in out.rglob("*")), ", ".join(split.name for split in splits)
    say(
        f"{out}: {plural(num_blocks, 'block')} of {shard_set.block_tokens} tokens ({written}), "
        f"{plural(num_files, 'file')}",
        f"read it with: {form.reader(shard_set, splits, out.resolve())}",
    )
    return 0


def _load_format(name: str) -> Format:
    module, attribute = _FORMATS[name]
    try:
        form: Format = getattr(importlib.import_module(f"shards.exchange.{module}"), attribute)
    except ModuleNotFoundError as error:
        raise InputError(f"--to {name}: needs the package {error.name}; install it with pip") from None
    return form


def run_import(options: argparse.Namespace) -> int:
    from shards.exchange.datatrove import EndsFile
    from shards.exchange.importing import ImportSettings, import_files
    from shards.exchange.megatron import IndexedFile
    from shards.exchange.token_files import TokenFile, find_files

    names = ("source_format", "block_tokens", "packing", "val_fraction", "seed", "eos_inside")
    settings = ImportSettings(**{name: getattr(options, name) for name in names})
    files: list[TokenFile]
    if choice("--from", options.source_format, IMPORT_FORMATS) == "megatron":
        paths = find_files(options.sources, suffix=".bin", index_suffix=".idx", recursive=False)
        files = [IndexedFile(path) for path in paths]
    else:
        paths = find_files(options.sources, suffix=".ds", index_suffix=".index", recursive=True)
        files = [EndsFile(path) for path in paths]
    tokenizer, total = options.tokenizer, 2 * sum(file.num_bytes for file in files)
    with progress_bar(total, "importing") as progress:
        manifest = import_files(files, options.out, tokenizer=tokenizer, settings=settings, progress=progress.update)
    train, val = (manifest.splits[name] for name in SPLITS)
    say(
        f"{options.out}: {plural(manifest.total('num_documents'), 'document')}, "
        f"{plural(manifest.total('num_tokens'), 'token')}, {train.num_blocks:,} + {val.num_blocks:,} blocks of "
        f"{manifest.block_tokens} (train + val); {plural(manifest.num_empty, 'empty document')} left out"
    )
    return 0
