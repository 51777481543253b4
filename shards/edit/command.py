"""`python -m shards merge|split|subset`: new shard sets of old ones, without tokenizing."""

from __future__ import annotations

import argparse
import re
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.common.command_line import progress_bar, say
from shards.common.errors import InputError
from shards.common.text import plural
from shards.order import DEFAULT_SEED

if TYPE_CHECKING:
    from shards.manifest import Manifest


def add_parsers(commands: Any) -> None:
    """Add the three commands to `commands`, an argparse object of sub-parsers."""
    merge = commands.add_parser(
        "merge",
        help="make one set of several, one after another",
        description="Make one shard set of several with the same tokenizer, block size and packing, one after\n"
        "another. Shards are copied under new numbers. Texts that are in several sets stay there\n"
        "several times, perhaps both in train and in val.",
    )
    merge.add_argument("sets", type=Path, nargs="+", metavar="SET", help="the shard sets, in order")
    merge.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new shard set")
    merge.add_argument("--link", action="store_true", help="make hard links where possible, instead of copies")
    merge.set_defaults(run=run_merge)

    split = commands.add_parser(
        "split",
        help="divide the documents of a set among several, at random",
        description="Divide the documents of a shard set among several, at random: each document goes to exactly\n"
        "one of them. Train stays train, val stays val.",
    )
    split.add_argument("set", type=Path, metavar="SET", help="the shard set")
    how = split.add_mutually_exclusive_group(required=True)
    how.add_argument("--parts", type=int, metavar="N", help="the number of parts, of equal size")
    how.add_argument("--fractions", metavar="F,F,…", help="the parts' shares, such as 0.5,0.3,0.2 or 1/3,2/3")
    split.add_argument("--out", type=Path, required=True, metavar="PREFIX", help="for PREFIX-0, PREFIX-1, …")
    seed_help = f"another seed, other parts (default {DEFAULT_SEED})"
    split.add_argument("--seed", type=int, default=DEFAULT_SEED, metavar="S", help=seed_help)
    split.set_defaults(run=run_split)

    subset = commands.add_parser(
        "subset",
        help="make a smaller set of some of a set's documents",
        description="Make a smaller shard set of some of a set's documents. What is asked for is counted in\n"
        "train; of val the same share is taken, rounded up. Without --seed these are the first\n"
        "documents of each, with it random ones; smaller subsets of a seed lie within larger ones.",
    )
    subset.add_argument("set", type=Path, metavar="SET", help="the shard set")
    subset.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new shard set")
    how = subset.add_mutually_exclusive_group(required=True)
    how.add_argument("--documents", type=int, metavar="N", help="N documents of train")
    how.add_argument("--tokens", type=int, metavar="N", help="documents of train that hold N tokens or a few more")
    how.add_argument("--fraction", metavar="F", help="a share of train's documents, such as 0.1 or 1/3")
    subset.add_argument("--seed", type=int, metavar="S", help="take random documents (default: the first ones)")
    subset.set_defaults(run=run_subset)


def run_merge(options: argparse.Namespace) -> int:
    from shards.edit.sets import merge
    from shards.manifest import read_manifest

    total = sum(manifest.num_bytes for manifest in map(read_manifest, options.sets))
    with progress_bar(total, "copying") as progress:
        manifest = merge(options.sets, options.out, link=options.link, progress=progress.update)
    say(f"{options.out}: {_summary(manifest)}, from {plural(len(options.sets), 'set')}")
    return 0


def run_split(options: argparse.Namespace) -> int:
    from shards.edit.sets import split

    if options.fractions is not None:
        fractions = [parse_fraction("--fractions", text) for text in options.fractions.split(",")]
    elif options.parts >= 1:
        fractions = [Fraction(1, options.parts)] * options.parts
    else:
        raise InputError(f"--parts: expected at least 1, found {options.parts:,}")
    if not options.out.name:
        raise InputError(f"--out: expected the beginning of a name, found {str(options.out)!r}")
    outs = [options.out.with_name(f"{options.out.name}-{number}") for number in range(len(fractions))]
    with progress_bar(None, "packing", unit=" documents") as progress:
        manifests = split(options.set, outs, fractions, seed=options.seed, progress=progress.update)
    for out, manifest in zip(outs, manifests, strict=True):
        say(f"{out}: {_summary(manifest)}")
    return 0


def run_subset(options: argparse.Namespace) -> int:
    from shards.edit.sets import subset

    fraction = None if options.fraction is None else parse_fraction("--fraction", options.fraction)
    asked = {"num_documents": options.documents, "num_tokens": options.tokens, "fraction": fraction}
    with progress_bar(None, "packing", unit=" documents") as progress:
        manifest = subset(options.set, options.out, **asked, seed=options.seed, progress=progress.update)
    say(f"{options.out}: {_summary(manifest)}")
    return 0


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
