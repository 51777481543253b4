r"""The index of a shard: where the documents lie in its `.bin`.

Byte for byte the Megatron-Core index (megatron/core/datasets/indexed_dataset.py), little-endian, unaligned:

    offset            type         field
    0                 9 bytes      magic  b"MMIDIDX\x00\x00"
    9                 u64          version = 1
    17                u8           dtype code = 4 (int32: the same bits as uint32 for every id below 2**31)
    18                u64          S = number of sequences in this shard
    26                u64          D + 1
    34                i32[S]       tokens in each sequence, all at least 1
    34 + 4 S          i64[S]       byte offset of each sequence in the `.bin`
    34 + 12 S         i64[D + 1]   document boundaries as sequence numbers: starts at 0, ends at S, no duplicates

The file's size is exactly 34 + 12 S + 8 (D + 1). Sequences come in the corpus's order and never overlap. With the packing
`concat` each document is one sequence and S = D. With `best-fit` a document longer than a block is two sequences: its full
blocks, and the remainder wherever there was room. Tokens that lie in no sequence are padding.
"""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError, refuse
from shards.layout import TOKEN_BYTES

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPE_CODE_INT32 = 4
HEADER = struct.Struct("<9sQBQQ")

Int64s = npt.NDArray[np.int64]

assert HEADER.size == 34


@dataclasses.dataclass(frozen=True)
class Index:
    """Where the sequences lie, in tokens, and which of them make a document."""

    lengths: Int64s  # shape (S,): tokens in each sequence
    starts: Int64s  # shape (S,): the sequence's first token in the shard
    boundaries: Int64s  # shape (D + 1,): document d is the sequences boundaries[d] … boundaries[d + 1] - 1

    @property
    def ends(self) -> Int64s:
        """Shape (S,): the first token after each sequence."""
        return self.starts + self.lengths

    @property
    def document_lengths(self) -> Int64s:
        """Shape (D,): tokens in each document, its EOS included."""
        lengths: Int64s = np.add.reduceat(self.lengths, self.boundaries[:-1]) if len(self.lengths) else self.lengths
        return lengths


def contiguous_index(lengths: npt.NDArray[np.integer]) -> Index:
    """The index of documents of one sequence each that follow one another from token 0.

    >>> contiguous_index(np.array([3, 5])).starts.tolist()
    [0, 3]
    """
    tokens: Int64s = np.asarray(lengths, dtype=np.int64)
    return Index(tokens, np.cumsum(tokens) - tokens, np.arange(len(tokens) + 1))


def index_bytes(num_sequences: int, num_documents: int) -> int:
    """Size in bytes of an index."""
    return HEADER.size + 12 * num_sequences + 8 * (num_documents + 1)


def encode_index(index: Index) -> bytes:
    """The bytes of an index file.

    >>> len(encode_index(contiguous_index(np.array([3, 5]))))
    82
    """
    return b"".join(
        (
            HEADER.pack(MAGIC, VERSION, DTYPE_CODE_INT32, len(index.lengths), len(index.boundaries)),
            index.lengths.astype("<i4").tobytes(),
            (index.starts * TOKEN_BYTES).astype("<i8").tobytes(),
            index.boundaries.astype("<i8").tobytes(),
        )
    )


def read_index(path: Path, *, num_sequences: int, num_documents: int, num_tokens: int, room_tokens: int) -> Index:
    """The index in the file `path`.

    The numbers are what the manifest says: sequences, documents, tokens in the sequences, and tokens in the `.bin`, padding
    included. Raises `InputError` for every index that can't be that of such a shard.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the set is incomplete, build it again") from None
    header = HEADER.pack(MAGIC, VERSION, DTYPE_CODE_INT32, num_sequences, num_documents + 1)
    num_bytes = index_bytes(num_sequences, num_documents)
    if len(content) != num_bytes or not content.startswith(header):
        expected = f"the index of {num_sequences:,} sequences and {num_documents:,} documents, {num_bytes:,} bytes"
        raise InputError(f"{path}: expected {expected}, found another; build the set again")
    lengths = np.frombuffer(content, "<i4", num_sequences, HEADER.size).astype(np.int64)
    offsets = np.frombuffer(content, "<i8", num_sequences, HEADER.size + 4 * num_sequences)
    boundaries = np.frombuffer(content, "<i8", num_documents + 1, HEADER.size + 12 * num_sequences)
    index = Index(lengths, offsets // TOKEN_BYTES, boundaries.astype(np.int64))
    order = np.argsort(index.starts, kind="stable")
    starts, ends = index.starts[order], index.ends[order]
    faults = {
        "a sequence without tokens": (lengths < 1).any(),
        f"sequences of {lengths.sum():,} tokens, expected {num_tokens:,}": lengths.sum() != num_tokens,
        f"document boundaries don't rise from 0 to {num_sequences:,}": (
            boundaries[0] != 0 or boundaries[-1] != num_sequences or (boundaries[1:] <= boundaries[:-1]).any()
        ),
        f"a sequence's byte offset is not a multiple of {TOKEN_BYTES}": (offsets % TOKEN_BYTES).any(),
        f"sequences overlap, or lie outside the {room_tokens:,} tokens of the shard": (
            (starts < 0).any() or (ends > room_tokens).any() or (starts[1:] < ends[:-1]).any()
        ),
    }
    refuse(path, faults)
    return index


def padding_positions(index: Index, room_tokens: int) -> Int64s:
    """The tokens of a shard of `room_tokens` that lie in no sequence, ascending.

    >>> padding_positions(Index(np.array([2, 1]), np.array([3, 0]), np.array([0, 1, 2])), 6).tolist()
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
