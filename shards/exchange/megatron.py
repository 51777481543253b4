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
from shards.common.files import check_digest
from shards.exchange.importing import TokenFile, check_rising, file_bytes, map_array, shard_beside
from shards.index import HEADER, MAGIC, VERSION, index_bytes
from shards.layout import BIN_SUFFIX, INDEX_SUFFIX
from shards.packing import Lengths

# The types that can hold ids, by dtype code.
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_FLOATS = {6: "float64", 7: "float32"}
_SEQUENCES_AT_ONCE = 1 << 20


def open_megatron(path: Path) -> TokenFile:
    """A `.bin` with its `.idx`, checked. Raises `InputError` for every pair that can't be one."""
    index_path = path.with_suffix(INDEX_SUFFIX)
    num_bytes = file_bytes(path)
    dtype, num_sequences, num_documents = _read_header(index_path)
    content, tokens = map_array(index_path, "u1"), map_array(path, dtype)
    lengths_end, offsets_end = (HEADER.size + size * num_sequences for size in (4, 12))
    lengths, offsets = content[HEADER.size : lengths_end].view("<i4"), content[lengths_end:offsets_end].view("<i8")
    boundaries = content[offsets_end:].view("<i8")
    for first in range(0, num_sequences, _SEQUENCES_AT_ONCE):
        some = slice(first, first + _SEQUENCES_AT_ONCE)
        _check_sequences(index_path, first, lengths[some].astype(np.int64), offsets[some], tokens.itemsize, num_bytes)
    if boundaries[0] != 0 or boundaries[-1] != num_sequences:
        raise InputError(
            f"{index_path}: expected document boundaries from 0 to {num_sequences:,}, found "
            f"{boundaries[0]:,} to {boundaries[-1]:,}; the index is damaged"
        )
    check_rising(index_path, boundaries, "document boundary")
    _manifest, shard = shard_beside(path.parent, path.name.removesuffix(BIN_SUFFIX)) or (None, None)
    if shard is not None:
        check_digest(index_path, shard.index_digest)

    def document_lengths(first: int, stop: int) -> Lengths:
        sequences = boundaries[first : stop + 1].astype(np.int64)
        before = np.concatenate([[0], np.cumsum(lengths[sequences[0] : sequences[-1]], dtype=np.int64)])
        result: Lengths = np.diff(before[sequences - sequences[0]])
        return result

    def document_tokens(first: int, stop: int) -> npt.NDArray[np.integer]:
        sequences = slice(int(boundaries[first]), int(boundaries[stop]))
        starts = offsets[sequences] // tokens.itemsize
        ends = starts + lengths[sequences]
        if not len(starts):
            return tokens[:0]
        if (starts[1:] == ends[:-1]).all():
            return tokens[starts[0] : ends[-1]]
        bounds = zip(starts.tolist(), ends.tolist(), strict=True)
        return np.concatenate([tokens[start:end] for start, end in bounds])

    return TokenFile(
        path=path, num_documents=num_documents, lengths=document_lengths, tokens=document_tokens, shard=shard
    )


def _check_sequences(
    index_path: Path, first: int, lengths: Lengths, offsets: Lengths, token_bytes: int, num_bytes: int
) -> None:
    """Raise `InputError` for a sequence (`first` is the number of the first) that can't be in a `.bin` of `num_bytes`."""
    # Where a sequence ends may be beyond int64; where it must begin is not.
    beyond = offsets > num_bytes - lengths * token_bytes
    for expected, is_wrong, values in (
        ("a length of at least 0", lengths < 0, lengths),
        ("an offset of at least 0", offsets < 0, offsets),
        (f"an offset that is a multiple of {token_bytes}", offsets % token_bytes != 0, offsets),
        (f"an offset that leaves room for it in the {num_bytes:,} bytes of the .bin", beyond, offsets),
    ):
        if is_wrong.any():
            number = int(np.argmax(is_wrong))
            raise InputError(
                f"{index_path}: sequence {first + number:,}: expected {expected}, found {int(values[number]):,}; "
                "the index is damaged, or the .bin is truncated or another one"
            )


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
