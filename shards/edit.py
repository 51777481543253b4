"""New shard sets of old ones, without tokenizing: merge, split and subset.

What a build guarantees holds here too: the result is there whole or not at all, depends on its inputs alone, loses
nothing, and passes `shards.verify`. Every file is checked against its digest before anything is taken from it, so damage
to a set never becomes a sound-looking part of another.

Merging renames files and packs nothing anew. Units get consecutive new numbers, the first set's first, with the shards of
both splits under one number:

    A    train-00000  val-00000  train-00002        (unit 1 had no document)
    B    train-00000  val-00003
    A+B  train-00000  val-00000  train-00001  train-00002  val-00003

In parts, documents stay whole and keep their split (train or val), their order and the number of their shard, in which they
are packed anew. So a part that takes everything has the shards of the old set, byte for byte.

Which documents a part takes is a range of ranks. A document's rank is its number in its split or, with a seed, that number
sent through the keyed bijection of `shards.order`: so parts have exactly the sizes asked for, a smaller part lies within a
larger one of the same seed, and no list of documents is kept. Shares are rounded up: of 10 documents, 1/3 takes the ranks
0 … 3, and the shares 1/3, 1/3, 1/3 are the ranks 0 … 3, 4 … 6 and 7 … 9.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from shards.common.errors import InputError
from shards.common.files import atomic_writer, check_digest
from shards.common.text import in_utf8
from shards.index import Int64s
from shards.layout import (
    BIN_SUFFIX,
    INDEX_SUFFIX,
    LEFT_OUT_NAME,
    REJECTED_NAME,
    SPLITS,
    SplitName,
    shard_name,
    shard_number,
)
from shards.manifest import Manifest, ShardEntry, SourceEntry
from shards.order import DEFAULT_SEED, check_seed, epoch_order
from shards.reader import ShardSet, Split, check_alike, open_shard_set
from shards.set_writer import DocumentBatch, NewSet, complete_set, new_directories
from shards.tokenizer_files import tokenizer_of_set

_ALIKE = ("block_tokens", "packing", *(f"tokenizer.{name}" for name in ("sha256", "vocab_size", "eos_id", "begin_id")))
MAX_PARTS = 500  # each has an open lock
_BATCH_TOKENS = 1 << 20

Progress = Callable[[int], None]


def merge(paths: Sequence[Path], out: Path, *, link: bool = False, progress: Progress = lambda _: None) -> Manifest:
    """Make the set `out` of the sets at `paths`, one after another.

    With `link`, shards are hard links to those of the old sets, where the file system can do that. `progress` is called
    with the number of bytes just taken over. Raises `InputError` for sets that don't fit together, and for a file that
    isn't what its set's manifest says.
    """
    if not paths:
        raise InputError("paths: expected at least one shard set, found none")
    sets = [open_shard_set(path) for path in paths]
    check_alike(sets, _ALIKE, "merged")
    manifests = [shard_set.manifest for shard_set in sets]
    first = manifests[0]
    settings: dict[str, Any] = {"command": "merge", "parts": [manifest.fingerprint for manifest in manifests]}
    if all(manifest.settings == first.settings for manifest in manifests):
        settings["settings"] = first.settings
    with new_directories([out]) as (directory,):
        shards: list[ShardEntry] = []
        units = [(own.path, unit) for own in sets for unit in _by_number(own.manifest.shards).values()]
        for number, (path, unit) in enumerate(units):
            for shard in unit:
                name = shard_name(shard.split, number)
                for suffix, digest in ((BIN_SUFFIX, shard.digest), (INDEX_SUFFIX, shard.index_digest)):
                    source, target = path / (shard.name + suffix), directory / (name + suffix)
                    _take_file(source, target, digest, link=link, progress=progress)
                shards.append(dataclasses.replace(shard, name=name))
        for name in (REJECTED_NAME, LEFT_OUT_NAME):
            parts = [(own.path, file.digest) for own in sets for file in own.manifest.other_files if file.name == name]
            if parts:
                with atomic_writer(directory / name) as joined:
                    for path, digest in parts:
                        check_digest(path / name, digest, write=joined.write)
        return complete_set(
            directory,
            shards,
            block_tokens=first.block_tokens,
            packing=first.packing,
            tokenizer=tokenizer_of_set(sets[0].path, first),
            settings=settings | _special_tokens(manifests),
            sources=[source for manifest in manifests for source in manifest.sources],
            num_records=sum(manifest.num_records for manifest in manifests),
            left_out=sum((Counter(manifest.left_out) for manifest in manifests), Counter[str]()),
            rejected=sum((Counter(manifest.rejected) for manifest in manifests), Counter[str]()),
            unread=[entry for manifest in manifests for entry in manifest.unread],
        )


def _by_number(shards: Iterable[ShardEntry]) -> dict[int, list[ShardEntry]]:
    """The shards of each unit, one or two, in the order of the units' numbers."""
    units: dict[int, list[ShardEntry]] = {}
    for shard in shards:
        units.setdefault(shard_number(shard.name), []).append(shard)
    return dict(sorted(units.items()))


def _special_tokens(manifests: Iterable[Manifest]) -> dict[str, Any]:
    """The setting of this name if documents may hold EOS, which `shards.verify` must know of."""
    parses = any(manifest.settings.get("special_tokens") == "parse" for manifest in manifests)
    return {"special_tokens": "parse"} if parses else {}


def _take_file(source: Path, target: Path, digest: str, *, link: bool, progress: Progress) -> None:
    """Make `target` a hard link to or a copy of `source`. Raises `InputError` unless its BLAKE3 is `digest`."""
    if link:
        with contextlib.suppress(OSError):
            os.link(source, target)
    if target.exists():
        check_digest(source, digest, progress=progress)
        return
    with atomic_writer(target, flush_parent=False) as file:
        # What is hashed is what is written, even if someone changes the source in between.
        check_digest(source, digest, write=file.write, progress=progress)


@dataclasses.dataclass(frozen=True, kw_only=True)
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
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) != 1:
        raise InputError(f"subset: expected exactly one of {', '.join(asked)}, found {' and '.join(given) or 'none'}")
    ((name, value),) = given.items()
    shard_set = open_shard_set(path)
    train = shard_set["train"]
    if not train.num_documents:
        raise InputError(f"{path}: train is empty, and a subset is counted by the documents of train")
    most = {"num_documents": train.num_documents, "num_tokens": train.num_tokens, "fraction": 1}[name]
    if not 0 < value <= most:
        raise InputError(f"{name}: expected more than 0 and at most {most:,}, what train of {path} has; found {value}")
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
    if len(fractions) > MAX_PARTS:
        raise InputError(f"fractions: expected at most {MAX_PARTS} parts, found {len(fractions):,}")
    if len(outs) != len(fractions):
        raise InputError(f"outs: expected one for each of the {len(fractions):,} fractions, found {len(outs):,}")
    shard_set = open_shard_set(path)
    shown = [str(fraction) for fraction in fractions]
    bounds = itertools.pairwise(itertools.accumulate(fractions, initial=Fraction(0)))
    parts = [
        Part(
            out=out,
            ranks=_share(shard_set, begin, end),
            settings={"command": "split", "fractions": shown, "part": number, "seed": seed},
        )
        for number, (out, (begin, end)) in enumerate(zip(outs, bounds, strict=True))
    ]
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
                f"{part.out}: would be empty, as {shard_set.path} has too few documents; make larger parts"
            )
    tokenizer = tokenizer_of_set(shard_set.path, manifest)
    more = {"set": manifest.fingerprint, "settings": manifest.settings, **_special_tokens([manifest])}
    with new_directories([part.out for part in parts]) as directories:
        new_sets = [
            NewSet(directory, block_tokens=manifest.block_tokens, packing=manifest.packing, tokenizer=tokenizer)
            for directory in directories
        ]
        ranks = {name: _shard_ranks(shard_set[name], seed) for name in SPLITS}
        checked: set[str] = set()
        for unit_number, unit in _by_number(manifest.shards).items():
            members = [(shard_set[shard.split], *next(ranks[shard.split])) for shard in unit]
            for part, new_set in zip(parts, new_sets, strict=True):
                new_set.add_unit(unit_number, _batches(part, members, checked, progress))
        return [
            new_set.finish(sources=[_source(shard_set, part)], settings=part.settings | more)
            for part, new_set in zip(parts, new_sets, strict=True)
        ]


def _batches(
    part: Part, members: Sequence[tuple[Split, int, Int64s]], checked: set[str], progress: Progress
) -> Iterator[DocumentBatch]:
    """The part's documents in shards of one unit, batch by batch. A shard that isn't `checked` yet is checked."""
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
        lengths = split.shard_index(number).document_lengths[mask]
        for own in np.split(lengths, np.flatnonzero(np.diff(np.cumsum(lengths) // _BATCH_TOKENS)) + 1):
            yield split.name, np.concatenate([*itertools.islice(documents, len(own))]), own
            progress(len(own))


def _source(shard_set: ShardSet, part: Part) -> SourceEntry:
    return SourceEntry(
        path=in_utf8(os.path.basename(os.path.abspath(shard_set.path))),
        format="shard-set",
        num_bytes=shard_set.manifest.num_bytes,
        digest=shard_set.manifest.fingerprint,
        num_ranges=1,
        num_records=sum(map(len, part.ranks.values())),
    )
