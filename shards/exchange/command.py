"""`python -m shards export` and `python -m shards import`: options, progress, what is said at the end."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pkgutil
from pathlib import Path
from typing import Any

from shards.common.command_line import progress_bar, say
from shards.common.errors import InputError, choice
from shards.common.text import plural
from shards.layout import SPLITS, bin_bytes
from shards.manifest import EMPTY
from shards.order import DEFAULT_SEED

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
    take.add_argument("--from", required=True, dest="imported_from", metavar="FORMAT", help=" or ".join(IMPORT_FORMATS))
    tokenizer_help = "what made the ids: a tokenizer.json, its directory, or another shard set"
    take.add_argument("--tokenizer", type=Path, required=True, metavar="PATH", help=tokenizer_help)
    take.add_argument("--out", type=Path, required=True, metavar="DIR", help="the shard set to write")
    eos_help = "a document with EOS in its middle: is an error, several documents, or stays as it is"
    options: list[tuple[str, Any, str, str]] = [
        ("--block-tokens", 512, "N", "tokens in a block"),
        ("--packing", "concat", "concat|best-fit", "how documents become blocks"),
        ("--val-fraction", 0.1, "F", "share of documents held out"),
        ("--seed", DEFAULT_SEED, "N", "of the train/val split"),
        ("--eos-inside", "refuse", "refuse|split|keep", eos_help),
    ]
    for option, default, metavar, text in options:
        take.add_argument(option, type=type(default), default=default, metavar=metavar, help=f"{text} ({default})")
    take.set_defaults(run=run_import)


def run_export(options: argparse.Namespace) -> int:
    from shards.exchange.exporting import Export
    from shards.reader import open_shard_set
    from shards.set_writer import new_directory

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
    with new_directory(out) as partial, progress_bar(num_bytes, "exporting") as progress:
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
    say(
        f"{out}: {plural(num_blocks, 'block')} of {shard_set.block_tokens} tokens ({written}), "
        f"{plural(num_files, 'file')}",
        f"read it with: {reader}",
    )
    return 0


def run_import(options: argparse.Namespace) -> int:
    from shards.exchange.importing import ImportSettings, import_files
    from shards.exchange.token_files import open_files

    names = [field.name for field in dataclasses.fields(ImportSettings)]
    settings = ImportSettings(**{name: getattr(options, name) for name in names})
    files = open_files(options.sources, settings.imported_from)
    total = 2 * sum(file.tokens.nbytes for file in files)
    with progress_bar(total, "importing") as progress:
        manifest = import_files(
            files, options.out, tokenizer=options.tokenizer, settings=settings, progress=progress.update
        )
    train, val = (manifest.splits[name] for name in SPLITS)
    say(
        f"{options.out}: {plural(manifest.total('num_documents'), 'document')}, "
        f"{plural(manifest.total('num_tokens'), 'token')}, {train.num_blocks:,} + {val.num_blocks:,} blocks of "
        f"{manifest.block_tokens} (train + val); {plural(manifest.left_out.get(EMPTY, 0), 'empty document')} left out"
    )
    return 0
