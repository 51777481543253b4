r"""Import from Megatron-Core: `PREFIX.bin` with `PREFIX.idx`.

The index (megatron/core/datasets/indexed_dataset.py, `_IndexWriter`), little-endian, unaligned:

    offset            type         field
    0                 9 bytes      magic  b"MMIDIDX\x00\x00"
    9                 u64          version = 1
    17                u8           dtype code (below)
    18                u64          S = number of sequences
    26                u64          number of document boundaries: D + 1 for D documents
    34                i32[S]       tokens in each sequence; 0 is allowed
    34 + 4 S          i64[S]       byte offset of each sequence in the `.bin`
    34 + 12 S         i64[D + 1]   document boundaries as sequence numbers: from 0 to S, never falling; two equal ones are
                                   an empty document

Codes: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 6 float64, 7 float32, 8 uint16. A set for several modalities has i8[S]
more; it is refused, as floats are. The `.bin` is headerless; bytes in it that no sequence covers are passed over, as
Megatron does (in a shard set they are padding).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError
from shards.edit.merge import check_digest
from shards.exchange.token_files import Lengths, TokenFile, check_rising, file_bytes, map_array, shard_beside
from shards.index import HEADER, MAGIC, VERSION, index_bytes
from shards.layout import BIN_SUFFIX, INDEX_SUFFIX

# The types that can hold ids, by dtype code.
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_FLOATS = {6: "float64", 7: "float32"}
_CHECK_ITEMS = 1 << 20


class IndexedFile(TokenFile):
    """A `.bin` with its `.idx`, checked. Raises `InputError` for every pair that can't be one."""

    def __init__(self, path: Path) -> None:
        index_path = path.with_suffix(INDEX_SUFFIX)
        num_bytes = file_bytes(path)
        dtype, num_sequences, num_documents = _read_header(index_path)
        content = map_array(index_path, "u1")
        lengths_end, offsets_end = (HEADER.size + size * num_sequences for size in (4, 12))
        self._lengths = content[HEADER.size : lengths_end].view("<i4")
        self._offsets = content[lengths_end:offsets_end].view("<i8")
        self._boundaries = content[offsets_end:].view("<i8")
        self._tokens = map_array(path, dtype)
        self._token_bytes = np.dtype(dtype).itemsize
        self._check_sequences(index_path, num_bytes)
        if self._boundaries[0] != 0 or self._boundaries[-1] != num_sequences:
            raise InputError(
                f"{index_path}: expected document boundaries from 0 to {num_sequences:,}, found "
                f"{self._boundaries[0]:,} to {self._boundaries[-1]:,}; the index is damaged"
            )
        check_rising(index_path, self._boundaries, "document boundary")
        _manifest, shard = shard_beside(path.parent, path.name.removesuffix(BIN_SUFFIX)) or (None, None)
        if shard is not None:
            check_digest(index_path, shard.index_digest)
        super().__init__(path, num_documents=num_documents, shard=shard)

    def _check_sequences(self, index_path: Path, num_bytes: int) -> None:
        for first in range(0, len(self._lengths), _CHECK_ITEMS):
            lengths = self._lengths[first : first + _CHECK_ITEMS].astype(np.int64)
            offsets = self._offsets[first : first + _CHECK_ITEMS]
            # Where a sequence ends may be beyond int64; where it must begin is not.
            beyond = offsets > num_bytes - lengths * self._token_bytes
            for expected, is_wrong, values in (
                ("a length of at least 0", lengths < 0, lengths),
                ("an offset of at least 0", offsets < 0, offsets),
                (f"an offset that is a multiple of {self._token_bytes}", offsets % self._token_bytes != 0, offsets),
                (f"an offset that leaves room for it in the {num_bytes:,} bytes of the .bin", beyond, offsets),
            ):
                if is_wrong.any():
                    number = int(np.argmax(is_wrong))
                    raise InputError(
                        f"{index_path}: sequence {first + number:,}: expected {expected}, found {int(values[number]):,}; "
                        "the index is damaged, or the .bin is truncated or another one"
                    )

    def lengths(self, first: int, stop: int) -> Lengths:
        sequences = self._boundaries[first : stop + 1].astype(np.int64)
        sizes = self._lengths[sequences[0] : sequences[-1]].astype(np.int64)
        before: Lengths = np.concatenate([[0], np.cumsum(sizes)])
        result: Lengths = np.diff(before[sequences - sequences[0]])
        return result

    def tokens(self, first: int, stop: int) -> npt.NDArray[np.integer]:
        sequences = slice(int(self._boundaries[first]), int(self._boundaries[stop]))
        starts = self._offsets[sequences] // self._token_bytes
        ends = starts + self._lengths[sequences]
        if not len(starts):
            return self._tokens[:0]
        if (starts[1:] == ends[:-1]).all():
            return self._tokens[starts[0] : ends[-1]]
        bounds = zip(starts.tolist(), ends.tolist(), strict=True)
        return np.concatenate([self._tokens[start:end] for start, end in bounds])


def _read_header(path: Path) -> tuple[str, int, int]:
    """The tokens' type, the number of sequences and that of documents."""
    num_bytes = file_bytes(path)
    with open(path, "rb") as file:
        content = file.read(HEADER.size)
    if not (content.startswith(MAGIC) and len(content) == HEADER.size):
        raise InputError(
            f"{path}: expected an index of Megatron-Core, {HEADER.size} bytes or more that begin with {MAGIC!r}, found "
            f"{content[: len(MAGIC)]!r} in {num_bytes:,} bytes"
        )
    _magic, version, code, num_sequences, num_boundaries = HEADER.unpack(content)
    if version != VERSION:
        raise InputError(f"{path}: expected version {VERSION}, found {version:,}")
    if code not in _DTYPES:
        names = ", ".join(f"{known} ({np.dtype(dtype).name})" for known, dtype in _DTYPES.items())
        found = f"{code} ({_FLOATS[code]})" if code in _FLOATS else f"{code}"
        raise InputError(f"{path}: dtype code: expected one of ids, {names}; found {found}")
    expected_bytes = index_bytes(num_sequences, num_boundaries - 1)
    if num_bytes != expected_bytes or not num_boundaries:
        several = num_bytes == expected_bytes + num_sequences
        reason = (
            "it is for several modalities, and only text can be imported" if several else "it is truncated or damaged"
        )
        raise InputError(
            f"{path}: an index of {num_sequences:,} sequences and {num_boundaries:,} document boundaries has "
            f"{expected_bytes:,} bytes, the file has {num_bytes:,}; {reason}"
        )
    return _DTYPES[code], num_sequences, num_boundaries - 1
