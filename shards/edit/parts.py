"""Parts of a shard set: split and subset, without tokenizing.

What a build guarantees holds here too: the result is there whole or not at all, depends on its inputs alone, loses
nothing, and passes `shards.verify`. A shard is checked against its digest before documents are taken from it.

Documents stay whole and keep their split (train or val), their order and the number of their shard, in which they are
packed anew. So a part that takes everything has the shards of the old set, byte for byte.

Which documents a part takes is a range of ranks. A document's rank is its number in its split or, with a seed, that number
sent through the keyed bijection of `shards.order`: so parts have exactly the sizes asked for, a smaller part lies within a
larger one of the same seed, and no list of documents is kept. Shares are rounded up: of 10 documents, 1/3 takes the ranks
0 … 3, and the shares 1/3, 1/3, 1/3 are the ranks 0 … 3, 4 … 6 and 7 … 9.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError
from shards.common.files import check_digest
from shards.edit.merge import Progress, by_number, special_tokens
from shards.layout import BIN_SUFFIX, INDEX_SUFFIX, SPLITS, SplitName
from shards.manifest import Manifest, SourceEntry
from shards.order import DEFAULT_SEED, check_seed, epoch_order
from shards.reader import ShardSet, Split, open_shard_set
from shards.set_writer import DocumentBatch, NewSet, new_directories
from shards.tokenizer_files import tokenizer_of_set

_MAX_PARTS = 500  # each has an open lock

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A new set of documents of an old one: the ranks that it takes of each split, and what its settings record."""

    out: Path
    ranks: dict[SplitName, range]
    settings: dict[str, Any]


def subset(
    path: Path,
    out: Path,
    *,
    num_documents: int | None = None,
    num_tokens: int | None = None,
    fraction: Fraction | None = None,
    seed: int | None = None,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Make the set `out` of some documents of the set at `path`. Raises `InputError`.

    Exactly one of these says what is taken of train: `num_documents`; so many documents that they hold `num_tokens` (EOS
    included) or a little more; a `fraction` of the documents. Of val the same share is taken. Without `seed` these are the
    first documents in the corpus's order, with it pseudo-random ones. `progress` is called with the number of documents
    just packed.
    """
    if seed is not None:
        check_seed(seed)
    asked = {"num_documents": num_documents, "num_tokens": num_tokens, "fraction": fraction}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) != 1:
        raise InputError(f"subset: expected exactly one of {', '.join(asked)}, found {' and '.join(given) or 'none'}")
    name = given[0]
    shard_set = open_shard_set(path)
    train = shard_set["train"]
    if not train.num_documents:
        raise InputError(f"{path}: train is empty, and a subset is counted by the documents of train")
    value, most = asked[name], {"num_documents": train.num_documents, "num_tokens": train.num_tokens}.get(name, 1)
    if value is None or not 0 < value <= most:
        least = "more than 0" if name == "fraction" else "at least 1"
        raise InputError(f"{name}: expected {least} and at most {most:,}, what train of {path} has; found {value}")
    if num_tokens is not None:
        num_documents = _num_documents_with(train, num_tokens, seed)
    if fraction is None:
        fraction = Fraction(num_documents or 0, train.num_documents)
    settings = {"command": "subset", name: str(value) if name == "fraction" else value, "seed": seed}
    part = Part(out=out, ranks=_share(shard_set, Fraction(0), fraction), settings=settings)
    return _write_parts(shard_set, [part], seed, progress)[0]


def split(
    path: Path,
    outs: Sequence[Path],
    fractions: Sequence[Fraction],
    *,
    seed: int = DEFAULT_SEED,
    progress: Progress = lambda _: None,
) -> list[Manifest]:
    """Divide the documents of the set at `path` among the sets `outs`, a share of `fractions` to each. Raises `InputError`.

    Which document goes where is pseudo-random; each is in exactly one of the new sets. `progress` is called with the number
    of documents just packed.
    """
    check_seed(seed)
    if not fractions or min(fractions) <= 0 or sum(fractions) != 1:
        found = ", ".join(map(str, fractions))
        raise InputError(f"fractions: expected shares above 0 whose sum is 1, found {found} (sum {sum(fractions)})")
    if not len(outs) == len(fractions) <= _MAX_PARTS:
        raise InputError(
            f"outs: expected one for each of the {len(fractions):,} fractions, and at most {_MAX_PARTS}; "
            f"found {len(outs):,}"
        )
    shard_set = open_shard_set(path)
    shown = [str(fraction) for fraction in fractions]
    ends = list(itertools.accumulate(fractions))
    parts = []
    for number, (out, fraction, end) in enumerate(zip(outs, fractions, ends, strict=True)):
        settings = {"command": "split", "fractions": shown, "part": number, "seed": seed}
        parts.append(Part(out=out, ranks=_share(shard_set, end - fraction, end), settings=settings))
    return _write_parts(shard_set, parts, seed, progress)


def _share(shard_set: ShardSet, begin: Fraction, end: Fraction) -> dict[SplitName, range]:
    """The ranks from `begin` to `end`, as shares of all, rounded up: what has any share of few documents has one."""
    sizes = {name: shard_set[name].num_documents for name in SPLITS}
    return {name: range(math.ceil(begin * size), math.ceil(end * size)) for name, size in sizes.items()}


def _shard_ranks(split: Split, seed: int | None) -> Iterator[tuple[int, Int64s]]:
    """For each shard of the split, its number in the split and the ranks of its documents."""
    first = 0
    for number, shard in enumerate(split.shards):
        documents = np.arange(first, first + shard.num_documents)
        first += shard.num_documents
        if seed is not None:
            documents = epoch_order(split.num_documents, seed, SPLITS.index(split.name), documents)
        yield number, documents


def _num_documents_with(split: Split, num_tokens: int, seed: int | None) -> int:
    """How many documents, by their ranks, it takes to hold `num_tokens`. Memory: 16 bytes a document."""
    lengths = np.zeros(split.num_documents, dtype=np.int64)
    for number, ranks in _shard_ranks(split, seed):
        lengths[ranks] = split.shard_index(number).document_lengths
    return int(np.searchsorted(np.cumsum(lengths), num_tokens)) + 1


def _write_parts(shard_set: ShardSet, parts: Sequence[Part], seed: int | None, progress: Progress) -> list[Manifest]:
    """Write all of `parts`, unit by unit. The new sets appear together, when all of them are whole."""
    manifest = shard_set.manifest
    for part in parts:
        if not any(part.ranks.values()):
            raise InputError(
                f"{part.out}: would be empty, since {shard_set.path} has too few documents; make fewer or larger parts"
            )
    tokenizer = tokenizer_of_set(shard_set.path, manifest)
    with new_directories([part.out for part in parts]) as directories:
        new_sets = [
            NewSet(directory, block_tokens=manifest.block_tokens, packing=manifest.packing, tokenizer=tokenizer)
            for directory in directories
        ]
        ranks = {name: _shard_ranks(shard_set[name], seed) for name in SPLITS}
        checked: set[str] = set()
        for unit_number, unit in by_number(manifest.shards).items():
            members = [(shard_set[shard.split], *next(ranks[shard.split])) for shard in unit]
            for part, new_set in zip(parts, new_sets, strict=True):
                new_set.add_unit(unit_number, _batches(part, members, checked, progress))
        return [_finish(new_set, shard_set, part) for part, new_set in zip(parts, new_sets, strict=True)]


def _batches(
    part: Part, members: Sequence[tuple[Split, int, Int64s]], checked: set[str], progress: Progress
) -> Iterator[DocumentBatch]:
    """The part's documents in shards of one unit, a shard at a time. A shard that isn't `checked` yet is checked."""
    for split, number, ranks in members:
        chosen, shard = part.ranks[split.name], split.shards[number]
        mask = (ranks >= chosen.start) & (ranks < chosen.stop)
        if not mask.any():
            continue
        if shard.name not in checked:
            check_digest(split.directory / (shard.name + BIN_SUFFIX), shard.digest)
            check_digest(split.directory / (shard.name + INDEX_SUFFIX), shard.index_digest)
            checked.add(shard.name)
        documents = itertools.compress(split.shard_documents(number), mask.tolist())
        yield split.name, np.concatenate([*documents]), split.shard_index(number).document_lengths[mask]
        progress(int(mask.sum()))


def _finish(new_set: NewSet, shard_set: ShardSet, part: Part) -> Manifest:
    manifest = shard_set.manifest
    source = SourceEntry(
        path=os.path.basename(os.path.abspath(shard_set.path)),
        format="shard-set",
        num_bytes=manifest.num_bytes,
        digest=manifest.fingerprint,
        num_ranges=1,
        num_records=sum(map(len, part.ranks.values())),
    )
    settings = {"set": manifest.fingerprint, "settings": manifest.settings, **special_tokens([manifest])}
    return new_set.finish(sources=[source], settings=part.settings | settings)
