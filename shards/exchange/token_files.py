"""Documents that are tokenized already, in files of other programs: read a batch at a time, in order.

A file's documents are numbered from 0. Files that are shards of a shard set (its manifest lies beside them) may hold
documents that are cut between two files; `arrange` puts the parts behind each other as the set's own reader does.
"""

from __future__ import annotations

import abc
import functools
import glob
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError
from shards.entries import ShardEntry, unit_places
from shards.manifest import MANIFEST_NAME, Manifest, read_manifest

Lengths = npt.NDArray[np.int64]

_BATCH_TOKENS = 1 << 20
_BATCH_DOCUMENTS = 1 << 13
_CHECK_ITEMS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class SetShard:
    """What the manifest beside a file says of it."""

    directory: Path
    manifest: Manifest
    entry: ShardEntry


class TokenFile(abc.ABC):
    """A file of tokens, with what says where the documents in it lie."""

    def __init__(self, path: Path, *, num_bytes: int, num_documents: int, shard: SetShard | None) -> None:
        self.path, self.num_bytes, self.num_documents, self.shard = path, num_bytes, num_documents, shard

    @abc.abstractmethod
    def lengths(self, first: int, behind: int) -> Lengths:
        """Tokens in each of the documents `first` … `behind - 1`; there is at least one."""

    @abc.abstractmethod
    def tokens(self, first: int, behind: int) -> npt.NDArray[np.integer]:
        """The tokens of the documents `first` … `behind - 1`, one behind the other."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Some documents of a file."""

    file: TokenFile
    first: int
    behind: int
    continues: bool = False  # the first of them is the rest of the last document of the run before


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some documents of a file; the first may have begun in another one."""

    file: TokenFile
    first: int
    tokens: npt.NDArray[np.integer]
    lengths: Lengths


def file_bytes(path: Path) -> int:
    """Size of the file `path`, links followed. Raises `InputError` if there is none."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; each file of tokens needs its index beside it") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: expected a file, found something else")
    return status.st_size


def map_array(path: Path, dtype: str) -> npt.NDArray[np.integer]:
    """The file's content as an array, mapped; what is too short for a whole number is left out."""
    num_items = file_bytes(path) // np.dtype(dtype).itemsize
    if not num_items:  # nothing can't be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=(num_items,))


def check_rising(path: Path, values: npt.NDArray[np.integer], name: str, least: str = "") -> None:
    """Raise `InputError` for the first of `values` that is below the one before it: `name` and its place, `least` X."""
    for first in range(0, len(values), _CHECK_ITEMS):
        some = values[first : first + _CHECK_ITEMS + 1]
        if (some[1:] < some[:-1]).any():
            place = first + int(np.argmax(some[1:] < some[:-1])) + 1
            raise InputError(
                f"{path}: {name} {place:,}: expected {least}at least {values[place - 1]:,}, found {values[place]:,}; the "
                "index is damaged"
            )


def find_shard(directory: Path, name: str) -> SetShard | None:
    """The shard called `name` of the set whose manifest lies in `directory`, if there is one."""
    path = directory / MANIFEST_NAME
    manifest = _read_own_manifest(directory.absolute(), path.stat().st_mtime_ns) if path.is_file() else None
    if manifest is None:
        return None
    place = manifest.shards.find(name)
    return None if place is None else SetShard(directory=directory, manifest=manifest, entry=manifest.shards[place])


@functools.lru_cache(maxsize=16)
def _read_own_manifest(directory: Path, _changed_ns: int) -> Manifest | None:
    """The manifest of a shard set; nothing for a file of that name that is something else."""
    content = (directory / MANIFEST_NAME).read_bytes()
    return read_manifest(directory) if b'"format_version"' in content and b'"fingerprint"' in content else None


def find_files(sources: Sequence[str], *, suffix: str, index_suffix: str, recursive: bool) -> list[Path]:
    """The token files that `sources` name: each a file (or its index, or without suffix), a directory, or a pattern.

    Sorted within each source, and each file once. Raises `InputError` for a source without a file.
    """
    paths: dict[Path, Path] = {}
    for source in sources:
        stem = source.removesuffix(index_suffix)
        found = [path for path in (Path(stem), Path(stem + suffix)) if path.name.endswith(suffix) and path.is_file()]
        if not found and Path(source).is_dir():
            found = sorted(Path(source).glob(f"{'**/' if recursive else ''}*{suffix}"))
        elif not found:
            names = {*glob.glob(source, recursive=True), *glob.glob(source + suffix, recursive=True)}
            found = sorted(Path(name) for name in names if name.endswith(suffix))
        if not found:
            raise InputError(f"{source}: no *{suffix} there; expected a file, a directory of such files, or a pattern")
        for path in found:
            paths.setdefault(path.resolve(), path)
    return list(paths.values())


def arrange(files: Sequence[TokenFile]) -> list[Run]:
    """All documents of the files, in order. Raises `InputError` if one has its end in a file that isn't among them."""
    runs: list[Run] = []
    done = set()
    for file in files:
        shard = file.shard
        if shard is None or not shard.manifest.tails.of_split(shard.entry.split):
            runs.append(Run(file=file, first=0, behind=file.num_documents))
            continue
        key = (shard.directory, shard.entry.split)
        if key not in done:
            done.add(key)
            members = [other for other in files if other.shard is not None and _key(other.shard) == key]
            runs += _arrange_split(shard, members)
    return runs


def _key(shard: SetShard) -> tuple[Path, str]:
    return shard.directory, shard.entry.split


def _arrange_split(shard: SetShard, members: Sequence[TokenFile]) -> list[Run]:
    """The documents of a whole split: each unit's shard, then its tail in the last one."""
    manifest, split = shard.manifest, shard.entry.split
    by_name = {member.shard.entry.name: member for member in members if member.shard is not None}
    shards, tails = manifest.shards.of_split(split), manifest.tails.of_split(split)
    names = [shards.name(place) for place in range(len(shards))]
    missing = [name for name in names if name not in by_name]
    if missing:
        raise InputError(
            f"{shard.directory}: {missing[0]} is not among the sources, and documents are cut between the shards of "
            f"{split}; name all {len(names):,} of them"
        )
    files = [by_name[name] for name in names]
    runs: list[Run] = []
    for place in unit_places(shards, tails).values():
        if place.shard is not None:
            file = files[place.shard]
            runs.append(Run(file=file, first=0, behind=file.num_documents))
        if place.tail is not None:
            tail, first = tails[place.tail], place.first_piece
            runs.append(Run(file=files[-1], first=first, behind=first + tail.num_pieces, continues=tail.continues))
    return runs


def read_batches(runs: Sequence[Run], advance: Callable[[int], None] = lambda _: None) -> Iterator[Batch]:
    """The documents of `runs`, whole ones, about a million tokens at a time. `advance` is told the bytes read."""
    open_tokens: npt.NDArray[np.integer] | None = None
    for number, run in enumerate(runs):
        goes_on = number + 1 < len(runs) and runs[number + 1].continues
        for batch in _batches_of(run):
            advance(batch.tokens.nbytes)
            if run.continues and batch.first == run.first:
                assert open_tokens is not None
                lengths = batch.lengths.copy()
                lengths[0] += len(open_tokens)
                tokens = np.concatenate([open_tokens, batch.tokens])
                batch = Batch(file=batch.file, first=batch.first, tokens=tokens, lengths=lengths)
            if goes_on and batch.first + len(batch.lengths) == run.behind:
                open_tokens = batch.tokens[len(batch.tokens) - batch.lengths[-1] :]
                rest = batch.tokens[: len(batch.tokens) - batch.lengths[-1]]
                batch = Batch(file=batch.file, first=batch.first, tokens=rest, lengths=batch.lengths[:-1])
            if len(batch.lengths):
                yield batch


def _batches_of(run: Run) -> Iterator[Batch]:
    first = run.first
    while first < run.behind:
        lengths = run.file.lengths(first, min(first + _BATCH_DOCUMENTS, run.behind))
        num_documents = max(1, int(np.searchsorted(np.cumsum(lengths), _BATCH_TOKENS, side="right")))
        behind = first + num_documents
        tokens = run.file.tokens(first, behind)
        yield Batch(file=run.file, first=first, tokens=tokens, lengths=lengths[:num_documents])
        first = behind
