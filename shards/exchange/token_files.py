"""Other programs' token files, opened and checked: which documents they hold is the same question for both formats.

Megatron-Core: `PREFIX.bin` with `PREFIX.idx`, whose bytes `shards.index` describes. In other programs' files the dtype code
may be 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64 or 8 uint16, a sequence may have no token, and two equal boundaries
are an empty document. A set for several modalities has i8[S] more; it is refused, as floats are. The `.bin` is headerless;
bytes in it that no sequence covers are passed over, as Megatron does (in a shard set they are padding).

datatrove: `NAME.ds` (datatrove/pipeline/tokens/tokenizer.py, `TokenizedFile`) is a headerless array of u16 or u32: u32 for
a vocabulary above 65,536 there, always u32 in a shard set, whose `.bin` is such a file as it is. `NAME.ds.index`:

    offset    type      field
    0         u64[D]    where each document ends, in tokens from the file's beginning; rising; the last is the file's end

All numbers are little-endian. Files are mapped: however large an index is, it takes no memory.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError, choice
from shards.common.files import check_digest
from shards.index import HEADER, MAGIC, VERSION, index_bytes
from shards.layout import BIN_SUFFIX, INDEX_SUFFIX, MANIFEST_NAME
from shards.manifest import ShardEntry, read_manifest
from shards.packing import Lengths

TOKENS_SUFFIX, ENDS_SUFFIX = ".ds", ".ds.index"
_BATCH_TOKENS = 1 << 20
_BATCH_DOCUMENTS = 1 << 13
# The types that can hold ids, by Megatron's dtype code.
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_SEQUENCES_AT_ONCE = 1 << 20

Integers = npt.NDArray[np.integer[Any]]
# Some documents of the file at a path, from a number on: all their tokens, and the tokens in each.
Batch = tuple[Path, int, Integers, Lengths]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenFile:
    """A file of tokens, checked, and where the documents in it lie. They are numbered from 0."""

    path: Path
    num_documents: int
    tokens: Integers
    # Of the documents `first` … `stop - 1`: where their sequences begin in `tokens`, the tokens in each, and which of them
    # make a document, as in a shard's index.
    sequences: Callable[[int, int], tuple[Lengths, Lengths, Lengths]]
    shard: ShardEntry | None  # of the manifest beside the file, if it is a shard set's

    def batches(self) -> Iterator[Batch]:
        """All documents in order, whole ones, about a million tokens at a time."""
        first = 0
        while first < self.num_documents:
            starts, sizes, boundaries = self.sequences(first, min(first + _BATCH_DOCUMENTS, self.num_documents))
            ends = np.concatenate([[0], np.cumsum(sizes)])[boundaries]
            count = max(1, int(np.searchsorted(ends, _BATCH_TOKENS, side="right")) - 1)
            starts, sizes = starts[: boundaries[count]], sizes[: boundaries[count]]
            yield self.path, first, self._joined(starts, sizes), np.diff(ends[: count + 1])
            first += count

    def _joined(self, starts: Lengths, sizes: Lengths) -> Integers:
        stops = starts + sizes
        if len(starts) and (starts[1:] == stops[:-1]).all():
            return self.tokens[starts[0] : stops[-1]]
        bounds = zip(starts.tolist(), stops.tolist(), strict=True)
        return np.concatenate([self.tokens[:0], *(self.tokens[start:stop] for start, stop in bounds)])


def open_files(sources: Sequence[str], source_format: str) -> list[TokenFile]:
    """The token files that `sources` name: each a file (or its index, or without suffix), a directory, or a pattern.

    Sorted within each source, and each file once. Raises `InputError` for a source without a file, and for every file that
    can't be one of the format.
    """
    open_file, suffix, index_suffix, beside = _FORMATS[choice("--from", source_format, tuple(_FORMATS))]
    paths: dict[Path, Path] = {}
    for source in sources:
        stem, below = glob.escape(source.removesuffix(index_suffix)), f"{glob.escape(source)}/**/*{suffix}"
        for patterns in ((stem, stem + suffix), (below,), (source, source + suffix)):
            names = {name for pattern in patterns for name in glob.glob(pattern, recursive=True)}
            if found := sorted(Path(name) for name in names if name.endswith(suffix)):
                break
        else:
            raise InputError(f"{source}: no *{suffix} there; expected a file, a directory of such files, or a pattern")
        for path in found:
            paths.setdefault(path.resolve(), path)
    shards_of = functools.cache(_own_shards)
    return [
        open_file(path, shards_of(path.parent / beside).get(path.name.removesuffix(suffix))) for path in paths.values()
    ]


def _own_shards(directory: Path) -> dict[str, ShardEntry]:
    """The shards, by name, of the set whose manifest lies in `directory`; none where a file of that name is another's."""
    path = directory / MANIFEST_NAME
    content = path.read_bytes() if path.is_file() else b""
    is_ours = b'"format_version"' in content and b'"fingerprint"' in content
    return {shard.name: shard for shard in read_manifest(directory).shards} if is_ours else {}


def open_megatron(path: Path, shard: ShardEntry | None = None) -> TokenFile:
    """A `.bin` with its `.idx`, checked; maybe a `shard` of a set. Raises `InputError` for every pair that can't be one."""
    index_path, num_bytes = path.with_suffix(INDEX_SUFFIX), file_bytes(path)
    dtype, num_sequences, num_documents = _read_header(index_path)
    content, tokens = _map_array(index_path, "u1"), _map_array(path, dtype)
    lengths_end, offsets_end = (HEADER.size + size * num_sequences for size in (4, 12))
    lengths, offsets = content[HEADER.size : lengths_end].view("<i4"), content[lengths_end:offsets_end].view("<i8")
    boundaries, item_bytes = content[offsets_end:].view("<i8"), tokens.itemsize
    for first in range(0, num_sequences, _SEQUENCES_AT_ONCE):
        some = slice(first, first + _SEQUENCES_AT_ONCE)
        sizes, begins = lengths[some].astype(np.int64), offsets[some]
        # Where a sequence ends may be beyond int64; where it must begin is not.
        wrong = (sizes < 0) | (begins < 0) | (begins % item_bytes != 0) | (begins > num_bytes - sizes * item_bytes)
        if wrong.any():
            number = int(np.argmax(wrong))
            raise InputError(
                f"{index_path}: sequence {first + number:,}: expected tokens of {item_bytes} bytes within the "
                f"{num_bytes:,} of the .bin, found {sizes[number]:,} from byte {begins[number]:,} on; one is damaged"
            )
    if boundaries[0] != 0 or boundaries[-1] != num_sequences or not _rises(boundaries):
        raise InputError(
            f"{index_path}: expected document boundaries that rise from 0 to {num_sequences:,}; it is damaged"
        )
    if shard is not None:
        check_digest(index_path, shard.index_digest)

    def sequences(first: int, stop: int) -> tuple[Lengths, Lengths, Lengths]:
        bounds = boundaries[first : stop + 1].astype(np.int64)
        some = slice(bounds[0], bounds[-1])
        return offsets[some] // item_bytes, lengths[some].astype(np.int64), bounds - bounds[0]

    return TokenFile(path=path, num_documents=num_documents, tokens=tokens, sequences=sequences, shard=shard)


def _read_header(path: Path) -> tuple[str, int, int]:
    """The tokens' type, the number of sequences and that of documents."""
    num_bytes = file_bytes(path)
    with open(path, "rb") as file:
        content = file.read(HEADER.size)
    if not (content.startswith(MAGIC) and len(content) == HEADER.size):
        found = content[: len(MAGIC)]
        raise InputError(f"{path}: expected an index of Megatron-Core, which begins with {MAGIC!r}, found {found!r}")
    _magic, version, code, num_sequences, num_boundaries = HEADER.unpack(content)
    if version != VERSION or code not in _DTYPES:
        raise InputError(
            f"{path}: expected version {VERSION} and a dtype of ids, code {', '.join(map(str, _DTYPES))}; found version "
            f"{version:,}, code {code}"
        )
    expected_bytes = index_bytes(num_sequences, num_boundaries - 1)
    if num_bytes != expected_bytes or not num_boundaries:
        raise InputError(
            f"{path}: an index of {num_sequences:,} sequences and {num_boundaries:,} document boundaries has "
            f"{expected_bytes:,} bytes, the file has {num_bytes:,}; it is damaged, or for more modalities than text"
        )
    return _DTYPES[code], num_sequences, num_boundaries - 1


def open_datatrove(path: Path, shard: ShardEntry | None = None) -> TokenFile:
    """A `.ds` with its `.ds.index`, checked; maybe of a `shard`. Raises `InputError` for every pair that can't be one."""
    ends_path = path.with_name(path.name + ".index")
    if path.with_name(path.name + ".loss").exists():
        raise InputError(f"{path}: has a loss mask, which a shard set can't hold; move {path.name}.loss elsewhere")
    ends = _map_array(ends_path, "<u8")
    num_tokens = int(ends[-1]) if len(ends) else 0
    # Only the file's size shows what a token is.
    dtype = {num_tokens * 2: "<u2", num_tokens * 4: "<u4"}.get(file_bytes(path))
    if dtype is None or file_bytes(ends_path) % 8:
        raise InputError(
            f"{path}: expected 2 or 4 bytes for each of the {num_tokens:,} tokens that its index of "
            f"{file_bytes(ends_path):,} bytes ends with, found {file_bytes(path):,}; one of the two is truncated, or of "
            "another file"
        )
    if not _rises(ends):
        raise InputError(f"{ends_path}: expected ends of documents that rise; it is damaged")
    if shard is not None and shard.num_sequences > shard.num_documents:
        raise InputError(f"{path}: packed best-fit, so documents lie in two places; import the set's own shards")

    def sequences(first: int, stop: int) -> tuple[Lengths, Lengths, Lengths]:
        some = ends[max(0, first - 1) : stop].astype(np.int64)
        bounds = some if first else np.concatenate([[0], some])
        return bounds[:-1], np.diff(bounds), np.arange(len(bounds))

    tokens = _map_array(path, dtype)
    return TokenFile(path=path, num_documents=len(ends), tokens=tokens, sequences=sequences, shard=shard)


# The last is where the manifest is if the file is of a shard set, from the file's directory.
_FORMATS: dict[str, tuple[Callable[[Path, ShardEntry | None], TokenFile], str, str, str]] = {
    "megatron": (open_megatron, BIN_SUFFIX, INDEX_SUFFIX, "."),
    "datatrove": (open_datatrove, TOKENS_SUFFIX, ENDS_SUFFIX, ".."),
}


def file_bytes(path: Path) -> int:
    """Size of the file `path`, links followed. Raises `InputError` if there is none."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; each file of tokens needs its index beside it")
    return path.stat().st_size


def _map_array(path: Path, dtype: str) -> Integers:
    """The file's content as an array, mapped; what is too short for a whole number is left out."""
    num_items = file_bytes(path) // np.dtype(dtype).itemsize
    if not num_items:  # an empty file can't be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=(num_items,))


def _rises(values: Integers) -> bool:
    return not (values[1:] < values[:-1]).any()
