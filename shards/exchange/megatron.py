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
Megatron does (in a shard set packed best-fit they are filling).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError
from shards.exchange.token_files import Lengths, TokenFile, check_rising, file_bytes, find_shard, map_array
from shards.index import HEADER, MAGIC, VERSION, index_bytes
from shards.writer import BIN_SUFFIX, INDEX_SUFFIX

# The types that can hold ids, by dtype code.
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_FLOATS = {6: "float64", 7: "float32"}
_CHECK_ITEMS = 1 << 20


class IndexedFile(TokenFile):
    """A `.bin` with its `.idx`, checked. Raises `InputError` for every pair that can't be one."""

    def __init__(self, path: Path) -> None:
        index_path = path.with_suffix(INDEX_SUFFIX)
        num_bytes = file_bytes(path)
        dtype, num_sequences, num_boundaries = _read_header(index_path)
        content = map_array(index_path, "u1")
        behind = [HEADER.size, *(HEADER.size + size * num_sequences for size in (4, 12))]
        self._lengths = content[behind[0] : behind[1]].view("<i4")
        self._offsets = content[behind[1] : behind[2]].view("<i8")
        self._boundaries = content[behind[2] :].view("<i8")
        self._tokens = map_array(path, dtype)
        self._token_bytes = np.dtype(dtype).itemsize
        self._check_sequences(index_path, num_bytes)
        self._check_boundaries(index_path)
        shard = find_shard(path.parent, path.name.removesuffix(BIN_SUFFIX))
        super().__init__(path, num_bytes=num_bytes, num_documents=num_boundaries - 1, shard=shard)
        if shard is not None and self.num_documents != shard.entry.num_index_documents:
            raise InputError(
                f"{index_path}: expected {shard.entry.num_index_documents:,} documents as in the manifest beside it, "
                f"found {self.num_documents:,}; the shard set is damaged, see `python -m shards verify`"
            )

    def _check_sequences(self, index_path: Path, num_bytes: int) -> None:
        for first in range(0, len(self._lengths), _CHECK_ITEMS):
            lengths = self._lengths[first : first + _CHECK_ITEMS].astype(np.int64)
            offsets = self._offsets[first : first + _CHECK_ITEMS]
            sizes = lengths * self._token_bytes
            faults = (
                ("a length of at least 0", lengths < 0, lengths),
                ("an offset of at least 0", offsets < 0, offsets),
                (f"an offset that is a multiple of {self._token_bytes}", offsets % self._token_bytes != 0, offsets),
                # Where a sequence ends may be beyond int64; where it must begin is not.
                (
                    f"an offset that leaves room for it in the {num_bytes:,} bytes of the .bin",
                    offsets > num_bytes - sizes,
                    offsets,
                ),
            )
            for expected, is_wrong, values in faults:
                if is_wrong.any():
                    place = int(np.argmax(is_wrong))
                    raise InputError(
                        f"{index_path}: sequence {first + place:,}: expected {expected}, found {int(values[place]):,}; "
                        "the index is damaged, or the .bin is truncated or another one"
                    )

    def _check_boundaries(self, index_path: Path) -> None:
        boundaries, num_sequences = self._boundaries, len(self._lengths)
        if boundaries[0] != 0 or boundaries[-1] != num_sequences:
            raise InputError(
                f"{index_path}: expected document boundaries from 0 to {num_sequences:,}, found {boundaries[0]:,} to "
                f"{boundaries[-1]:,}; the index is damaged"
            )
        check_rising(index_path, boundaries, "document boundary")

    def lengths(self, first: int, behind: int) -> Lengths:
        sequences = self._boundaries[first : behind + 1].astype(np.int64)
        sizes = self._lengths[sequences[0] : sequences[-1]].astype(np.int64)
        before: Lengths = np.concatenate([[0], np.cumsum(sizes)])
        result: Lengths = np.diff(before[sequences - sequences[0]])
        return result

    def tokens(self, first: int, behind: int) -> npt.NDArray[np.integer]:
        sequences = slice(int(self._boundaries[first]), int(self._boundaries[behind]))
        sizes = self._lengths[sequences].astype(np.int64)
        starts = self._offsets[sequences] // self._token_bytes
        if not len(starts):
            return self._tokens[:0]
        ends = starts + sizes
        if (starts[1:] == ends[:-1]).all():
            return self._tokens[starts[0] : ends[-1]]
        pieces = zip(starts.tolist(), ends.tolist(), strict=True)
        return np.concatenate([self._tokens[start:end] for start, end in pieces])


def _read_header(path: Path) -> tuple[str, int, int]:
    """The tokens' type, the number of sequences and that of document boundaries."""
    num_bytes = file_bytes(path)
    with open(path, "rb") as file:
        content = file.read(HEADER.size)
    if not content.startswith(MAGIC):
        raise InputError(
            f"{path}: expected an index of Megatron-Core, which begins with {MAGIC!r}, found {content[:9]!r}"
        )
    if len(content) < HEADER.size:
        raise InputError(
            f"{path}: expected a header of {HEADER.size} bytes, found {len(content)}; the file is truncated"
        )
    _magic, version, code, num_sequences, num_boundaries = HEADER.unpack(content)
    if version != VERSION:
        raise InputError(f"{path}: expected version {VERSION}, found {version:,}")
    if code not in _DTYPES:
        names = ", ".join(f"{known} ({np.dtype(dtype).name})" for known, dtype in _DTYPES.items())
        found = f"{code} ({_FLOATS[code]})" if code in _FLOATS else f"{code}"
        raise InputError(f"{path}: dtype code: expected one of ids, {names}; found {found}")
    expected_bytes = index_bytes(num_sequences, num_boundaries - 1)
    if num_bytes == expected_bytes + num_sequences and num_sequences:
        raise InputError(
            f"{path}: an index of several modalities (a mode for each sequence); only text can be imported"
        )
    if num_bytes != expected_bytes or not num_boundaries:
        raise InputError(
            f"{path}: an index of {num_sequences:,} sequences and {num_boundaries:,} document boundaries has "
            f"{expected_bytes:,} bytes, the file has {num_bytes:,}; it is truncated or damaged"
        )
    return _DTYPES[code], num_sequences, num_boundaries
