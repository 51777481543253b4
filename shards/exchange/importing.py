"""Ids that another program has made become a shard set: checked, closed by EOS, split, packed.

Each document ends with one EOS, put there where it is missing; more than one at a document's end are one. A document of
nothing but EOS is empty and left out. The split is decided by a keyed hash of a document's ids, so equal documents are in
the same split, whatever file or type they come in. The result depends on the files, in their order, and the settings alone.
Memory: a batch of about a million tokens, what the packing needs, and the packing's few bytes a document.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import itertools
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from shards.common.errors import InputError, choice
from shards.common.files import check_digest, file_digest
from shards.layout import MANIFEST_NAME
from shards.manifest import EMPTY, Manifest, Packing, ShardEntry, SourceEntry, read_manifest
from shards.order import DEFAULT_SEED, check_seed
from shards.packing import Ids, Lengths
from shards.set_writer import DocumentBatch, NewSet, new_directory
from shards.tokenizer_files import load_tokenizer

EosInside = Literal["refuse", "keep", "split"]
UNIT_TOKENS = 1 << 24
_MAX_DOCUMENT_TOKENS = 2**31 - 1  # a sequence's length is an int32 in the index
_BATCH_TOKENS = 1 << 20
_BATCH_DOCUMENTS = 1 << 13


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenFile:
    """A file of tokens, checked, and where the documents in it lie. They are numbered from 0."""

    path: Path
    num_documents: int
    lengths: Callable[[int, int], Lengths]  # tokens in each of the documents `first` … `stop - 1`, at least one
    tokens: Callable[[int, int], npt.NDArray[np.integer]]  # of those documents, one after another
    shard: ShardEntry | None  # of the manifest beside the file, if it is a shard set's

    def batches(self) -> Iterator[Batch]:
        """All documents, whole ones, about a million tokens at a time."""
        first = 0
        while first < self.num_documents:
            lengths = self.lengths(first, min(first + _BATCH_DOCUMENTS, self.num_documents))
            count = max(1, int(np.searchsorted(np.cumsum(lengths), _BATCH_TOKENS, side="right")))
            yield Batch(file=self, first=first, tokens=self.tokens(first, first + count), lengths=lengths[:count])
            first += count


@dataclasses.dataclass(frozen=True, kw_only=True)
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
    falls = values[1:] < values[:-1]
    if falls.any():
        number = int(np.argmax(falls)) + 1
        raise InputError(
            f"{path}: {name} {number:,}: expected {least}at least {values[number - 1]:,}, found {values[number]:,}; "
            "the index is damaged"
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """What, together with the files, decides every byte of the set. Validated once, recorded in the manifest."""

    source_format: str
    block_tokens: int = 512
    packing: Packing = "concat"
    val_fraction: float = 0.1
    seed: int = DEFAULT_SEED
    eos_inside: EosInside = "refuse"

    def __post_init__(self) -> None:
        if not 2 <= self.block_tokens <= 2**20:
            raise InputError(f"block_tokens: expected 2 to 1,048,576 tokens, found {self.block_tokens:,}")
        if not 0 <= self.val_fraction < 1:
            raise InputError(f"val_fraction: expected 0 or more and less than 1, found {self.val_fraction}")
        check_seed(self.seed)
        choice("packing", self.packing, typing.get_args(Packing))
        choice("eos_inside", self.eos_inside, typing.get_args(EosInside))


def import_files(
    files: Sequence[TokenFile],
    out: Path,
    *,
    tokenizer: Path,
    settings: ImportSettings,
    progress: Callable[[int], None] = lambda _: None,
) -> Manifest:
    """Make the shard set `out` of all documents in `files`. `progress` is called with the bytes just read of the files.

    Raises `InputError` if `out` exists, or a file can't be what it should be; then nothing is left.
    """
    own = load_tokenizer(tokenizer)
    with new_directory(out) as directory:
        # First, so that documents are taken only from files that are what a manifest beside them says.
        digests = [_checked_digest(file, progress) for file in files]
        new_set = NewSet(directory, block_tokens=settings.block_tokens, packing=settings.packing, tokenizer=own)
        importer = Importer(settings, eos_id=own.entry.eos_id, vocab_size=own.entry.vocab_size)
        batches = itertools.chain.from_iterable(file.batches() for file in files)
        for number, batch in enumerate(batches):
            new_set.add_unit(number, importer.unit(batch, batches, progress))
        sources = [
            SourceEntry(
                path=file.path.name,
                format=settings.source_format,
                num_bytes=file_bytes(file.path),
                digest=digest,
                num_ranges=1,
                num_records=importer.num_records[file.path],
            )
            for file, digest in zip(files, digests, strict=True)
        ]
        recorded = dataclasses.asdict(settings)
        recorded["imported_from"] = recorded.pop("source_format")
        recorded["special_tokens"] = "parse" if settings.eos_inside == "keep" else "text"
        return new_set.finish(sources=sources, settings=recorded, left_out=importer.left_out)


class Importer:
    """Turns batches as they come from a file into batches as a set takes them, and counts."""

    def __init__(self, settings: ImportSettings, *, eos_id: int, vocab_size: int) -> None:
        self._settings, self._eos_id, self._vocab_size = settings, eos_id, vocab_size
        self._key = settings.seed.to_bytes(32, "little")
        self._threshold = int(settings.val_fraction * 2.0**64)
        self.left_out = Counter[str]()
        self.num_records = Counter[Path]()  # documents in each file, empty ones too

    def unit(self, first: Batch, others: Iterator[Batch], progress: Callable[[int], None]) -> Iterator[DocumentBatch]:
        """The documents of `first`, and of as many batches more as make a unit."""
        num_tokens = 0
        for batch in itertools.chain([first], others):
            yield from self.documents(batch)
            progress(batch.tokens.nbytes)
            num_tokens += len(batch.tokens)
            if num_tokens >= UNIT_TOKENS:
                return

    def documents(self, batch: Batch) -> Iterator[DocumentBatch]:
        """The documents of a batch, closed, for each split. Raises `InputError` for ids that can't be the tokenizer's."""
        self._check_ids(batch)
        tokens = np.ascontiguousarray(batch.tokens, dtype="<u4")
        starts, sizes, refused = find_bodies(tokens, batch.lengths, self._eos_id, self._settings.eos_inside)
        if refused is not None:
            raise InputError(
                f"{batch.file.path}: document {batch.first + refused:,}: EOS ({self._eos_id}) in its middle; choose "
                "eos_inside split (each EOS ends a document) or keep (as it is)"
            )
        if len(sizes) and sizes.max() >= _MAX_DOCUMENT_TOKENS:
            raise InputError(f"{batch.file.path}: a document of {sizes.max():,} tokens; expected fewer than 2**31 - 1")
        self.num_records[batch.file.path] += len(sizes)
        self.left_out += Counter({EMPTY: int((sizes == 0).sum())})
        starts, sizes = starts[sizes > 0], sizes[sizes > 0]
        is_val = self._is_val(tokens, starts, sizes)
        if not is_val.all():
            yield "train", *closed(tokens, starts[~is_val], sizes[~is_val], self._eos_id)
        if is_val.any():
            yield "val", *closed(tokens, starts[is_val], sizes[is_val], self._eos_id)

    def _check_ids(self, batch: Batch) -> None:
        tokens = batch.tokens
        if len(tokens) and not (tokens.min() >= 0 and tokens.max() < self._vocab_size):
            position = int(np.argmax((tokens >= self._vocab_size) | (tokens < 0)))
            ends = np.cumsum(batch.lengths)
            number = int(np.searchsorted(ends, position, side="right"))
            raise InputError(
                f"{batch.file.path}: document {batch.first + number:,}, token "
                f"{position - int(ends[number] - batch.lengths[number]):,}: expected an id from 0 to "
                f"{self._vocab_size - 1:,}, found {int(tokens[position]):,}; is this the tokenizer that made the ids?"
            )

    def _is_val(self, tokens: Ids, starts: Lengths, sizes: Lengths) -> npt.NDArray[np.bool_]:
        """Which documents are held out: those whose hash, 64 bits of BLAKE3 keyed by the seed, is below the threshold."""
        content = tokens.view(np.uint8).data
        bounds = zip((starts * 4).tolist(), ((starts + sizes) * 4).tolist(), strict=True)
        hashes = b"".join(blake3(content[start:stop], key=self._key).digest(length=8) for start, stop in bounds)
        return np.frombuffer(hashes, "<u8") < np.uint64(self._threshold)


def find_bodies(
    tokens: Ids, lengths: Lengths, eos_id: int, eos_inside: EosInside
) -> tuple[Lengths, Lengths, int | None]:
    """Where documents of `lengths` begin in `tokens`, and their sizes without the EOS at their ends; 0 if empty.

    With `keep` one EOS is taken off at most, so that a document that ends with two keeps one inside; with `split` each EOS
    ends a document. The third value is the number of the first document with EOS in its middle, where that is refused.

    >>> find_bodies(np.array([5, 9, 9, 6, 9], dtype=np.uint32), np.array([3, 1, 1]), 9, "refuse")[1].tolist()
    [1, 1, 0]
    """
    is_eos = tokens == eos_id
    ends = np.cumsum(lengths)
    if eos_inside == "split":
        # Documents of no token stay, at the same ends.
        ends = np.sort(np.concatenate([ends, np.setdiff1d(np.flatnonzero(is_eos) + 1, ends)]))
        lengths = np.diff(ends, prepend=0)
    starts = ends - lengths
    if eos_inside == "keep":
        closing = np.append(is_eos, False)[ends - 1] & (lengths > 0)
        return starts, lengths - closing, None
    # The end of each document's last token that isn't EOS; there is a sentinel before the first token.
    others = np.concatenate([[-1], np.flatnonzero(~is_eos)])
    sizes = np.maximum(others[np.searchsorted(others, ends) - 1] + 1 - starts, 0)
    num_eos_before = np.concatenate([[0], np.cumsum(is_eos)])
    has_inside = num_eos_before[starts + sizes] > num_eos_before[starts]
    return starts, sizes, int(np.argmax(has_inside)) if has_inside.any() else None


def closed(tokens: Ids, starts: Lengths, sizes: Lengths, eos_id: int) -> tuple[Ids, Lengths]:
    """Documents with EOS after each: all their tokens, and the tokens in each.

    >>> closed(np.array([5, 6, 7], dtype=np.uint32), np.array([0, 2]), np.array([1, 1]), 9)[0].tolist()
    [5, 9, 7, 9]
    """
    lengths = sizes + 1
    ends = np.cumsum(lengths)
    # Where each token of the result comes from: a document's tokens count up from its start.
    origins = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
    origins[ends - 1] = 0
    result = tokens[origins]
    result[ends - 1] = eos_id
    return result, lengths


def _checked_digest(file: TokenFile, progress: Callable[[int], None]) -> str:
    """BLAKE3 of the tokens' file. Raises `InputError` if a manifest beside it knows it otherwise."""
    if file.shard is None:
        return file_digest(file.path, progress=progress)
    check_digest(file.path, file.shard.digest, progress=progress)
    return file.shard.digest
