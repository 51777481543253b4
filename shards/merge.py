"""Merging shard sets, without tokenizing and without packing anew.

What a build guarantees holds here too: the result is there whole or not at all, depends on its inputs alone, loses
nothing, and passes `shards.verify`. Every file that is taken over is checked against its digest on the way, so damage to
a set never becomes a sound-looking part of another.

Every unit stays as it is packed: its shards get new numbers (the second set's units follow those of the first), and what
the units left over is put together anew into one last shard. So merging the builds of two corpora gives what one build of
both gives, if no unit of that build holds parts of both:

    A    train-00000  train-00001 | train-00002 (left over in units 0 and 1)
    B    train-00000 | train-00001 (left over in unit 0)
    A+B  train-00000  train-00001  train-00002 (B's unit 0) | train-00003 (left over in units 0, 1 and 2)

Units at the end of a set that left nothing anywhere are unknown, so the numbers behind them may be lower than in a build
of both; the content is the same.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from shards.assemble import UnitPart
from shards.common.errors import InputError
from shards.common.files import atomic_writer, file_digest
from shards.entries import SPLITS, ShardEntry, SplitName, exact_sum, shard_name, shard_number
from shards.manifest import REJECTED_NAME, Manifest, RejectedEntry
from shards.new_set import NewSet, new_directory
from shards.packing import Tail, no_tail
from shards.reader import ShardSet, Split, open_shard_set
from shards.tokenizer_files import tokenizer_of_set
from shards.writer import BIN_SUFFIX, INDEX_SUFFIX

_ALIKE = ("block_tokens", "packing", "tokenizer.sha256", "tokenizer.vocab_size", "tokenizer.eos_id")

Progress = Callable[[int], None]
Note = Callable[[str], None]  # called with a line that a person should read


def merge(
    paths: Sequence[Path],
    out: Path,
    *,
    link: bool = False,
    progress: Progress = lambda _: None,
    note: Note = lambda _: None,
) -> Manifest:
    """Make the set `out` of the sets at `paths`, one behind the other.

    With `link`, the units' shards are hard links to those of the old sets, where the file system can do that. `progress`
    is called with the number of bytes just taken over. Raises `InputError` for sets that don't fit together, and for a
    file that is not what its set's manifest says.
    """
    sets = [open_shard_set(path) for path in paths]
    check_outside(sets, [out])
    for other in sets[1:]:
        _check_alike(sets[0], other)
    manifests = [shard_set.manifest for shard_set in sets]
    rejected = Counter[str]()
    for entry in itertools.chain.from_iterable(manifest.rejected for manifest in manifests):
        rejected[entry.kind] += entry.num_records
    with new_directory(out) as directory:
        new_set = new_set_like(sets[0], directory)
        take = _FileTaker(directory, link=link, progress=progress, note=note)
        for shard_set in sets:
            for parts in _packed_units(shard_set, new_set.num_units, take):
                new_set.add_packed_unit(parts)
        return new_set.finish(
            sources=[source for manifest in manifests for source in manifest.sources],
            settings=_merged_settings(manifests),
            num_records=sum(manifest.num_records for manifest in manifests),
            num_empty=sum(manifest.num_empty for manifest in manifests),
            num_duplicates=sum(manifest.num_duplicates for manifest in manifests),
            rejected=[RejectedEntry(kind=kind, num_records=number) for kind, number in sorted(rejected.items())],
            rejected_digest=_join_rejected(directory, sets),
        )


def _check_alike(first: ShardSet, other: ShardSet) -> None:
    """Raise `InputError` unless blocks of both can lie in one set."""
    differences = []
    for name in _ALIKE:
        expected, found = (functools.reduce(getattr, name.split("."), of.manifest) for of in (first, other))
        if expected != found:
            differences.append(f"{name} (expected {expected}, found {found})")
    if differences:
        raise InputError(
            f"{other.path}: can't be merged with {first.path}, from which it differs in {', '.join(differences)}; "
            "build both with the same --tokenizer, --block-tokens and --packing"
        )


def check_outside(sets: Iterable[ShardSet], outs: Iterable[Path]) -> None:
    """Raise `InputError` if a new set would lie within one of `sets`, where no strange file may be."""
    for shard_set, out in itertools.product(sets, outs):
        if shard_set.path.resolve() in out.resolve().parents:
            raise InputError(f"{out}: lies within the shard set {shard_set.path}; choose another --out")


def new_set_like(model: ShardSet, directory: Path) -> NewSet:
    """A set in the making with the tokenizer, block size and packing of `model`. Raises `InputError`."""
    manifest = model.manifest
    tokenizer = tokenizer_of_set(model.path, manifest)
    return NewSet(directory, block_tokens=manifest.block_tokens, packing=manifest.packing, tokenizer=tokenizer)


def _merged_settings(manifests: Sequence[Manifest]) -> dict[str, Any]:
    settings: dict[str, Any] = {"command": "merge", "parts": [manifest.fingerprint for manifest in manifests]}
    if all(manifest.settings == manifests[0].settings for manifest in manifests):
        settings["settings"] = manifests[0].settings
    return settings | special_tokens(manifests)


def special_tokens(manifests: Iterable[Manifest]) -> dict[str, Any]:
    """The setting of this name if documents may hold EOS, which `shards.verify` must know of."""
    parses = any(manifest.settings.get("special_tokens") == "parse" for manifest in manifests)
    return {"special_tokens": "parse"} if parses else {}


def _packed_units(shard_set: ShardSet, first_unit: int, take: _FileTaker) -> Iterator[dict[SplitName, UnitPart]]:
    """The set's units, counted from `first_unit`; their shards are taken over under these numbers."""
    splits = {name: shard_set[name] for name in SPLITS}
    tails = {name: dict(_read_tails(shard_set, split, take.progress)) for name, split in splits.items()}
    num_units = 0
    for split in splits.values():
        # What was left over lies in a shard that is numbered behind all units.
        behind = shard_number(split.shards[-1].name) if split.tails else 0
        num_units = max([num_units, behind, *(unit + 1 for unit in split.unit_places)])
    for unit in range(num_units):
        parts: dict[SplitName, UnitPart] = {}
        for name, split in splits.items():
            place, tail = split.unit_places.get(unit), tails[name].get(unit, no_tail())
            shard = None if place is None or place.shard is None else split.shards[place.shard]
            # The manifest has the sums of these alone, and so will the new one: they go with the first unit.
            entry = shard_set.manifest.splits[name]
            sums = (entry.num_dropped_tokens, entry.num_text_bytes, entry.num_text_chars) if unit == 0 else (0, 0, 0)
            parts[name] = UnitPart(
                shard=shard and take.shard(shard_set.path, shard, shard_name(name, first_unit + unit)),
                tail=tail,
                num_tokens=(shard.num_tokens if shard else 0) + len(tail.tokens),
                num_dropped_tokens=sums[0],
                num_text_bytes=sums[1],
                num_text_chars=sums[2],
            )
        yield parts


def _read_tails(shard_set: ShardSet, split: Split, progress: Progress) -> Iterator[tuple[int, Tail]]:
    """What each unit left over, from the last shard of the split."""
    if not split.tails:
        return
    last = split.shards[-1]
    check_shard(shard_set.path, last, progress)
    num_pieces = exact_sum(split.tails.column("num_pieces"))
    if num_pieces != last.num_pieces:
        raise InputError(
            f"{shard_set.manifest_path}: {last.name}: the tails list {num_pieces:,} pieces, the shard has "
            f"{last.num_pieces:,}; build the set again"
        )
    pieces = split.shard_documents(len(split.shards) - 1)
    for unit, place in split.unit_places.items():
        if place.tail is not None:
            tail = split.tails[place.tail]
            own = list(itertools.islice(pieces, tail.num_pieces))
            lengths = np.array([len(piece) for piece in own], dtype=np.int64)
            yield unit, Tail(tokens=np.concatenate(own), piece_tokens=lengths, continues=tail.continues)


class _FileTaker:
    """Takes shards of finished sets over into a new one, and sees that they are what their manifest says."""

    def __init__(self, directory: Path, *, link: bool, progress: Progress, note: Note) -> None:
        self._directory, self._link, self._note = directory, link, note
        self.progress = progress

    def shard(self, directory: Path, shard: ShardEntry, name: str) -> ShardEntry:
        """Take the shard in `directory` over under `name`; its new entry."""
        for suffix, digest in ((BIN_SUFFIX, shard.digest), (INDEX_SUFFIX, shard.index_digest)):
            source, target = directory / (shard.name + suffix), self._directory / (name + suffix)
            if self._link and self._linked(source, target):
                check_digest(source, digest, progress=self.progress)
                continue
            with atomic_writer(target, flush_parent=False) as file:
                # What is hashed is what is written, even if someone changes the source in between.
                check_digest(source, digest, write=file.write, progress=self.progress)
        return dataclasses.replace(shard, name=name)

    def _linked(self, source: Path, target: Path) -> bool:
        try:
            os.link(source, target)
        except OSError as error:
            self._link = False
            self._note(f"{source}: can't make a hard link of it ({error.strerror}); files are copied instead")
        return self._link


def check_digest(
    path: Path,
    digest: str,
    *,
    write: Callable[[memoryview], object] = lambda _: None,
    progress: Progress = lambda _: None,
) -> None:
    """Hand the content of `path` to `write`. Raises `InputError` unless its BLAKE3 is `digest`."""
    try:
        found = file_digest(path, write=write, progress=progress)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; build the set again") from None
    if found != digest:
        raise InputError(f"{path}: expected digest {digest}, found {found}; the file was changed, build the set again")


def check_shard(directory: Path, shard: ShardEntry, progress: Progress = lambda _: None) -> None:
    """Raise `InputError` unless both files of `shard` have the digests that its entry says."""
    check_digest(directory / (shard.name + BIN_SUFFIX), shard.digest, progress=progress)
    check_digest(directory / (shard.name + INDEX_SUFFIX), shard.index_digest, progress=progress)


def _join_rejected(directory: Path, sets: Iterable[ShardSet]) -> str:
    """Write `rejected.jsonl` from those of `sets`, if any has one; its digest."""
    having = [shard_set for shard_set in sets if shard_set.manifest.rejected]
    if not having:
        return ""
    digest = blake3()
    with atomic_writer(directory / REJECTED_NAME) as file:

        def write(content: memoryview) -> None:
            file.write(content)
            digest.update(content)

        for shard_set in having:
            check_digest(shard_set.path / REJECTED_NAME, shard_set.manifest.rejected_digest, write=write)
    return digest.hexdigest()
