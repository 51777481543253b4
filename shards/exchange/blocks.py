"""What all exports have in common: which blocks go to which file, read a few at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.common.errors import InputError
from shards.common.files import atomic_writer
from shards.reader import ShardSet, Split, Tokens
from shards.writer import BIN_SUFFIX, bin_bytes

_READ_BYTES = 1 << 23


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format that a shard set can be exported to."""

    # Writes the splits, none of them empty, into a directory. The last argument is told the bytes of blocks just written.
    export: Callable[[ShardSet, Sequence[Split], Path, Callable[[int], None]], None]
    # The line with which the format's own reader opens what lies in a directory.
    reader: Callable[[ShardSet, Sequence[Split], Path], str]


def cut_files(num_blocks: int, blocks_per_file: int) -> list[range]:
    """The blocks of each file: as few files as hold at most `blocks_per_file`, all of about the same size.

    `num_blocks` is at least 1.

    >>> cut_files(10, 4)
    [range(0, 3), range(3, 6), range(6, 10)]
    """
    num_files = -(-num_blocks // max(1, blocks_per_file))
    bounds = [num_blocks * number // num_files for number in range(num_files + 1)]
    return [range(first, behind) for first, behind in itertools.pairwise(bounds)]


def files_of(split: Split, *, max_bytes: int) -> list[range]:
    """`cut_files` with at most `max_bytes` of blocks in a file, and at least one block."""
    return cut_files(len(split), max_bytes // bin_bytes(1, split.block_tokens))


def write_blocks(
    path: Path,
    head: bytes,
    split: Split,
    blocks: range,
    dtype: str,
    advance: Callable[[int], None],
    *,
    tail: bytes = b"",
) -> None:
    """Write the file `path`: `head`, the tokens of `blocks` as `dtype`, `tail`. The directory is flushed by the caller."""
    with atomic_writer(path, flush_parent=False) as file:
        file.write(head)
        for batch in read_blocks(split, blocks, advance):
            file.write(batch.astype(dtype, copy=False).data)
        file.write(tail)


def encode_head(num_items: int, item_bytes: int, config: bytes = b"") -> bytes:
    """What stands before the first item in a chunk of litdata, and with a `config` in a shard of MosaicML Streaming.

    u32 all: the number of items, where each begins, and the file's end; then `config`.

    >>> np.frombuffer(encode_head(2, 256), "<u4").tolist()
    [2, 16, 272, 528]
    """
    begin = 8 + 4 * num_items + len(config)
    offsets = range(begin, begin + num_items * item_bytes + 1, item_bytes)
    return np.array([num_items, *offsets], dtype="<u4").tobytes() + config


def read_blocks(
    split: Split, blocks: range, advance: Callable[[int], None], *, blocks_per_read: int | None = None
) -> Iterator[Tokens]:
    """The blocks in order, some at a time, shape `(n, block_tokens)`; by default about 8 MiB.

    Read, not mapped: a process that maps all of a large set seems to need as much memory. Raises `InputError` if a file is
    shorter than it was.
    """
    step = blocks_per_read or max(1, _READ_BYTES // bin_bytes(1, split.block_tokens))
    for first in range(blocks.start, blocks.stop, step):
        batch = _read(split, first, min(first + step, blocks.stop))
        yield batch
        advance(batch.nbytes)


def _read(split: Split, first: int, behind: int) -> Tokens:
    parts: list[Tokens] = []
    for number in split.shards_between(first, behind):
        begin = split.first_block(number)
        low, high = max(first, begin), min(behind, split.first_block(number + 1))
        path = split.directory / (split.shards.name(number) + BIN_SUFFIX)
        count, offset = (high - low) * split.block_tokens, bin_bytes(low - begin, split.block_tokens)
        try:
            part = np.fromfile(path, "<u4", count=count, offset=offset)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; the set is incomplete, build it again") from None
        if len(part) != count:
            raise InputError(f"{path}: the file has changed since the set was opened")
        parts.append(part)
    tokens = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return tokens.reshape(-1, split.block_tokens)
