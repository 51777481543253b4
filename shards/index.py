r"""The index of a shard: where the documents lie in its `.bin`.

Byte for byte the Megatron-Core index (megatron/core/datasets/indexed_dataset.py), little-endian, unaligned:

    offset            type         field
    0                 9 bytes      magic  b"MMIDIDX\x00\x00"
    9                 u64          version = 1
    17                u8           dtype code = 4 (int32: the same bits as uint32 for every id below 2**31)
    18                u64          S = number of sequences (document pieces in this shard)
    26                u64          D + 1
    34                i32[S]       tokens in each piece, all at least 1
    34 + 4 S          i64[S]       byte offset of each piece in the `.bin`
    34 + 12 S         i64[D + 1]   document boundaries as piece numbers: starts at 0, ends at S, no duplicates

The file's size is exactly 34 + 12 S + 8 (D + 1). Here each document is one piece, so D = S and the boundaries
are 0, 1, …, S, and the pieces lie one behind the other from byte 0: the lengths alone say everything.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.errors import InputError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPE_CODE_INT32 = 4
TOKEN_BYTES = 4
HEADER = struct.Struct("<9sQBQQ")

assert HEADER.size == 34


def index_bytes(num_pieces: int) -> int:
    """Size in bytes of the index of a shard with `num_pieces` pieces."""
    return HEADER.size + 12 * num_pieces + 8 * (num_pieces + 1)


def encode_index(piece_tokens: npt.NDArray[np.integer]) -> bytes:
    """The index for pieces of `piece_tokens` tokens each (shape `(S,)`), lying one behind the other.

    >>> len(encode_index(np.array([3, 5])))
    82
    """
    num_pieces = len(piece_tokens)
    lengths = np.asarray(piece_tokens, dtype=np.int64)
    offsets = np.zeros(num_pieces, dtype="<i8")
    np.cumsum(lengths[:-1] * TOKEN_BYTES, out=offsets[1:])
    return b"".join(
        (
            HEADER.pack(MAGIC, VERSION, DTYPE_CODE_INT32, num_pieces, num_pieces + 1),
            lengths.astype("<i4").tobytes(),
            offsets.tobytes(),
            np.arange(num_pieces + 1, dtype="<i8").tobytes(),
        )
    )


def read_index(path: Path, *, num_pieces: int, num_tokens: int) -> npt.NDArray[np.int64]:
    """The tokens in each piece, shape `(num_pieces,)`, read from the index file `path`.

    `num_pieces` and `num_tokens` are what the manifest says. Raises `InputError` for every index that
    `encode_index` would not have written for these pieces.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't read the index: {error.strerror}") from None
    check_index_header(path, content[: HEADER.size], num_bytes=len(content), num_pieces=num_pieces)
    lengths = np.frombuffer(content, "<i4", num_pieces, HEADER.size).astype(np.int64)
    if num_pieces and lengths.min() < 1:
        number = int(np.argmax(lengths < 1))
        raise InputError(f"{path}: piece {number:,} has {lengths[number]:,} tokens, expected at least 1")
    if int(lengths.sum()) != num_tokens:
        raise InputError(f"{path}: the pieces hold {int(lengths.sum()):,} tokens, expected {num_tokens:,}")
    if encode_index(lengths) != content:
        raise InputError(f"{path}: offsets or document boundaries don't follow from the piece lengths")
    return lengths


def check_index_header(path: Path, header: bytes, *, num_bytes: int, num_pieces: int) -> None:
    """Raise `InputError` unless an index of `num_bytes` that begins with `header` can hold `num_pieces`."""
    if num_bytes != index_bytes(num_pieces):
        raise InputError(
            f"{path}: an index of {num_pieces:,} pieces has {index_bytes(num_pieces):,} bytes, "
            f"the file has {num_bytes:,}"
        )
    magic, version, dtype_code, found_pieces, found_boundaries = HEADER.unpack(header)
    expected = (MAGIC, VERSION, DTYPE_CODE_INT32, num_pieces, num_pieces + 1)
    found = (magic, version, dtype_code, found_pieces, found_boundaries)
    names = ("magic", "version", "dtype code", "number of pieces", "number of boundaries")
    for name, want, got in zip(names, expected, found, strict=True):
        if want != got:
            raise InputError(f"{path}: index header: expected {name} {want!r}, found {got!r}")
