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

The file's size is exactly 34 + 12 S + 8 (D + 1). Pieces come in the corpus's order and never overlap. With the packings
`concat` and `tutorial` each document is one piece, and the pieces lie one behind the other from byte 0. With `best-fit` a
long document is two pieces (its full blocks, and the rest wherever there was room), and the tokens between the pieces are
filling.
"""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPE_CODE_INT32 = 4
TOKEN_BYTES = 4
HEADER = struct.Struct("<9sQBQQ")

Int64s = npt.NDArray[np.int64]

assert HEADER.size == 34


@dataclasses.dataclass(frozen=True)
class Index:
    """Where the pieces lie, in tokens, and which of them make a document."""

    lengths: Int64s  # shape (S,): tokens in each piece
    starts: Int64s  # shape (S,): the piece's first token in the shard
    boundaries: Int64s  # shape (D + 1,): document d is the pieces boundaries[d] … boundaries[d + 1] - 1

    @property
    def ends(self) -> Int64s:
        return self.starts + self.lengths


def contiguous_index(lengths: npt.NDArray[np.integer]) -> Index:
    """The index of documents of one piece each that lie one behind the other.

    >>> contiguous_index(np.array([3, 5])).starts.tolist()
    [0, 3]
    """
    tokens: Int64s = np.asarray(lengths, dtype=np.int64)
    return Index(tokens, np.cumsum(tokens) - tokens, np.arange(len(tokens) + 1))


def index_bytes(num_pieces: int, num_documents: int) -> int:
    """Size in bytes of an index."""
    return HEADER.size + 12 * num_pieces + 8 * (num_documents + 1)


def encode_index(index: Index) -> bytes:
    """The bytes of an index file.

    >>> len(encode_index(contiguous_index(np.array([3, 5]))))
    82
    """
    num_pieces = len(index.lengths)
    return b"".join(
        (
            HEADER.pack(MAGIC, VERSION, DTYPE_CODE_INT32, num_pieces, len(index.boundaries)),
            index.lengths.astype("<i4").tobytes(),
            (index.starts * TOKEN_BYTES).astype("<i8").tobytes(),
            index.boundaries.astype("<i8").tobytes(),
        )
    )


def read_index(path: Path, *, num_pieces: int, num_documents: int, num_tokens: int, room_tokens: int) -> Index:
    """The index in the file `path`.

    The numbers are what the manifest says: pieces, documents, tokens in the pieces, and tokens in the `.bin`, filling
    included. Raises `InputError` for every index that can't be that of such a shard.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't read the index: {error.strerror}") from None
    header = content[: HEADER.size]
    check_index_header(path, header, num_bytes=len(content), num_pieces=num_pieces, num_documents=num_documents)
    lengths = np.frombuffer(content, "<i4", num_pieces, HEADER.size).astype(np.int64)
    offsets = np.frombuffer(content, "<i8", num_pieces, HEADER.size + 4 * num_pieces)
    boundaries = np.frombuffer(content, "<i8", num_documents + 1, HEADER.size + 12 * num_pieces)
    index = Index(lengths, offsets // TOKEN_BYTES, boundaries.astype(np.int64))
    if num_pieces and lengths.min() < 1:
        number = int(np.argmax(lengths < 1))
        raise InputError(f"{path}: piece {number:,} has {lengths[number]:,} tokens, expected at least 1")
    if int(lengths.sum()) != num_tokens:
        raise InputError(f"{path}: the pieces hold {int(lengths.sum()):,} tokens, expected {num_tokens:,}")
    if boundaries[0] != 0 or boundaries[-1] != num_pieces or (boundaries[1:] <= boundaries[:-1]).any():
        raise InputError(f"{path}: expected document boundaries that rise from 0 to {num_pieces:,}")
    if num_pieces and (offsets % TOKEN_BYTES).any():
        raise InputError(f"{path}: a piece's byte offset is no multiple of {TOKEN_BYTES}")
    order = np.argsort(index.starts, kind="stable")
    starts, ends = index.starts[order], index.ends[order]
    if num_pieces and (starts[0] < 0 or ends[-1] > room_tokens or (starts[1:] < ends[:-1]).any()):
        raise InputError(f"{path}: pieces overlap, or lie outside the {room_tokens:,} tokens of the shard")
    return index


def check_index_header(path: Path | str, header: bytes, *, num_bytes: int, num_pieces: int, num_documents: int) -> None:
    """Raise `InputError` unless an index of `num_bytes` that begins with `header` can be that of such a shard."""
    expected_bytes = index_bytes(num_pieces, num_documents)
    if num_bytes != expected_bytes:
        raise InputError(
            f"{path}: an index of {num_pieces:,} pieces and {num_documents:,} documents has {expected_bytes:,} bytes, "
            f"the file has {num_bytes:,}"
        )
    expected = (MAGIC, VERSION, DTYPE_CODE_INT32, num_pieces, num_documents + 1)
    names = ("magic", "version", "dtype code", "number of pieces", "number of boundaries")
    for name, want, got in zip(names, expected, HEADER.unpack(header), strict=True):
        if want != got:
            raise InputError(f"{path}: index header: expected {name} {want!r}, found {got!r}")


def gaps(index: Index, room_tokens: int) -> Int64s:
    """The tokens of a shard of `room_tokens` that lie in no piece, ascending.

    >>> gaps(Index(np.array([2, 1]), np.array([3, 0]), np.array([0, 1, 2])), 6).tolist()
    [1, 2, 5]
    """
    order = np.argsort(index.starts, kind="stable")
    begins = np.concatenate([[0], index.ends[order]])
    ends = np.concatenate([index.starts[order], [room_tokens]])
    sizes = ends - begins
    # Each gap counts up from its beginning: repeat the beginnings, add 0, 1, … within each.
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    result: Int64s = np.repeat(begins, sizes) + within
    return result
