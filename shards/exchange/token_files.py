"""Documents that are tokenized already, in files of other programs: found, and read a batch at a time, in order.

A file's documents are numbered from 0.
"""

from __future__ import annotations

import abc
import functools
import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError
from shards.layout import MANIFEST_NAME
from shards.manifest import Manifest, ShardEntry, read_manifest

Lengths = npt.NDArray[np.int64]

_BATCH_TOKENS = 1 << 20
_BATCH_DOCUMENTS = 1 << 13
_CHECK_ITEMS = 1 << 20


class TokenFile(abc.ABC):
    """A file of tokens, with what says where the documents in it lie."""

    def __init__(self, path: Path, *, num_documents: int, shard: ShardEntry | None) -> None:
        """`shard` is the entry of the manifest beside the file, if it is a shard set's."""
        self.path, self.num_documents, self.shard = path, num_documents, shard
        self.num_bytes = file_bytes(path)

    @abc.abstractmethod
    def lengths(self, first: int, stop: int) -> Lengths:
        """Tokens in each of the documents `first` … `stop - 1`; there is at least one."""

    @abc.abstractmethod
    def tokens(self, first: int, stop: int) -> npt.NDArray[np.integer]:
        """The tokens of the documents `first` … `stop - 1`, one after another."""

    def batches(self) -> Iterator[Batch]:
        """All documents, whole ones, about a million tokens at a time."""
        first = 0
        while first < self.num_documents:
            lengths = self.lengths(first, min(first + _BATCH_DOCUMENTS, self.num_documents))
            count = max(1, int(np.searchsorted(np.cumsum(lengths), _BATCH_TOKENS, side="right")))
            yield Batch(file=self, first=first, tokens=self.tokens(first, first + count), lengths=lengths[:count])
            first += count


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some documents of a file, from number `first` on."""

    file: TokenFile
    first: int
    tokens: npt.NDArray[np.integer]
    lengths: Lengths


def file_bytes(path: Path) -> int:
    """Size of the file `path`, links followed. Raises `InputError` if there is none."""
    if not path.is_file():
        kind = "expected a file, found something else" if path.exists() else "no such file"
        raise InputError(f"{path}: {kind}; each file of tokens needs its index beside it")
    return path.stat().st_size


def map_array(path: Path, dtype: str) -> npt.NDArray[np.integer]:
    """The file's content as an array, mapped; what is too short for a whole number is left out."""
    num_items = file_bytes(path) // np.dtype(dtype).itemsize
    if not num_items:  # an empty file can't be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=(num_items,))


def check_rising(path: Path, values: npt.NDArray[np.integer], name: str, least: str = "") -> None:
    """Raise `InputError` for the first of `values` that is below the one before it: `name` and its number, `least` X."""
    for first in range(0, len(values), _CHECK_ITEMS):
        some = values[first : first + _CHECK_ITEMS + 1]
        if (some[1:] < some[:-1]).any():
            number = first + int(np.argmax(some[1:] < some[:-1])) + 1
            raise InputError(
                f"{path}: {name} {number:,}: expected {least}at least {values[number - 1]:,}, found "
                f"{values[number]:,}; the index is damaged"
            )


def shard_beside(directory: Path, name: str) -> tuple[Manifest, ShardEntry] | None:
    """The shard `name` of the set whose manifest lies in `directory`, if there is one."""
    path = directory / MANIFEST_NAME
    manifest = _read_own_manifest(directory.absolute(), path.stat().st_mtime_ns) if path.is_file() else None
    return next(((manifest, shard) for shard in manifest.shards if shard.name == name), None) if manifest else None


@functools.lru_cache(maxsize=16)
def _read_own_manifest(directory: Path, _changed_ns: int) -> Manifest | None:
    """The manifest of a shard set; None for a file of that name that is something else."""
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
        if not found:
            below = f"{glob.escape(source)}/{'**/' if recursive else ''}*{suffix}"
            patterns = [below] if Path(source).is_dir() else [source, source + suffix]
            names = {name for pattern in patterns for name in glob.glob(pattern, recursive=True)}
            found = sorted(Path(name) for name in names if name.endswith(suffix))
        if not found:
            raise InputError(f"{source}: no *{suffix} there; expected a file, a directory of such files, or a pattern")
        for path in found:
            paths.setdefault(path.resolve(), path)
    return list(paths.values())
