"""Merging shard sets: renaming files, without tokenizing and without packing anew.

What a build guarantees holds here too: the result is there whole or not at all, depends on its inputs alone, loses
nothing, and passes `shards.verify`. Every file that is taken over is checked against its digest on the way, so damage to
a set never becomes a sound-looking part of another.

Units get consecutive new numbers, the first set's first, with the shards of both splits under one number:

    A    train-00000  val-00000  train-00002        (unit 1 had no document)
    B    train-00000  val-00003
    A+B  train-00000  val-00000  train-00001  train-00002  val-00003
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from shards.common.errors import InputError
from shards.common.files import atomic_writer, check_digest
from shards.layout import BIN_SUFFIX, INDEX_SUFFIX, LEFT_OUT_NAME, REJECTED_NAME, shard_name, shard_number
from shards.manifest import Manifest, ShardEntry
from shards.reader import ShardSet, open_shard_set
from shards.set_writer import complete_set, new_directory
from shards.tokenizer_files import tokenizer_of_set

_ALIKE = ("block_tokens", "packing", "tokenizer.sha256", "tokenizer.vocab_size", "tokenizer.eos_id")

Progress = Callable[[int], None]


def merge(
    paths: Sequence[Path],
    out: Path,
    *,
    link: bool = False,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Make the set `out` of the sets at `paths`, one after another.

    With `link`, shards are hard links to those of the old sets, where the file system can do that. `progress` is called
    with the number of bytes just taken over. Raises `InputError` for sets that don't fit together, and for a file that
    isn't what its set's manifest says.
    """
    if not paths:
        raise InputError("paths: expected at least one shard set, found none")
    sets = [open_shard_set(path) for path in paths]
    for other in sets[1:]:
        _check_alike(sets[0], other)
    manifests = [shard_set.manifest for shard_set in sets]
    left_out, rejected = Counter[str](), Counter[str]()
    for manifest in manifests:
        left_out.update(manifest.left_out)
        rejected.update(manifest.rejected)
    with new_directory(out) as directory:
        shards: list[ShardEntry] = []
        units = [(shard_set.path, unit) for shard_set in sets for unit in by_number(shard_set.manifest.shards).values()]
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
            block_tokens=manifests[0].block_tokens,
            packing=manifests[0].packing,
            tokenizer=tokenizer_of_set(sets[0].path, manifests[0]),
            settings=_merged_settings(manifests),
            sources=[source for manifest in manifests for source in manifest.sources],
            num_records=sum(manifest.num_records for manifest in manifests),
            left_out=left_out,
            rejected=rejected,
            unread=[entry for manifest in manifests for entry in manifest.unread],
        )


def _check_alike(first: ShardSet, other: ShardSet) -> None:
    """Raise `InputError` unless blocks of both can lie in one set."""
    values = [(name, *(operator.attrgetter(name)(of.manifest) for of in (first, other))) for name in _ALIKE]
    differences = [f"{name} (expected {want}, found {found})" for name, want, found in values if want != found]
    if differences:
        raise InputError(
            f"{other.path}: can't be merged with {first.path}, from which it differs in {', '.join(differences)}; "
            "build both with the same tokenizer, block size and packing"
        )


def by_number(shards: Iterable[ShardEntry]) -> dict[int, list[ShardEntry]]:
    """The shards of each unit, one or two, in the order of the units' numbers."""
    units: dict[int, list[ShardEntry]] = {}
    for shard in shards:
        units.setdefault(shard_number(shard.name), []).append(shard)
    return dict(sorted(units.items()))


def _merged_settings(manifests: Sequence[Manifest]) -> dict[str, Any]:
    settings: dict[str, Any] = {"command": "merge", "parts": [manifest.fingerprint for manifest in manifests]}
    if all(manifest.settings == manifests[0].settings for manifest in manifests):
        settings["settings"] = manifests[0].settings
    return settings | special_tokens(manifests)


def special_tokens(manifests: Iterable[Manifest]) -> dict[str, Any]:
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
