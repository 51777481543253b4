"""What all exports have in common: which blocks go to which file, read a few at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.common.files import atomic_writer
from shards.layout import bin_bytes
from shards.reader import ShardSet, Split, Tokens

_READ_BYTES = 1 << 23
Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format that a shard set can be exported to."""

    # Writes the splits, none of them empty, into a directory. The last argument is called with the bytes just written.
    export: Callable[[ShardSet, Sequence[Split], Path, Progress], None]
    # The line with which the format's own reader opens what lies in a directory.
    reader: Callable[[ShardSet, Sequence[Split], Path], str]


def cut_files(num_blocks: int, blocks_per_file: int) -> list[range]:
    """The blocks of each file: as few files as hold at most `blocks_per_file` (or one), all of about the same size.

    >>> cut_files(10, 4)
    [range(0, 3), range(3, 6), range(6, 10)]
    """
    num_files = -(-num_blocks // max(1, blocks_per_file))
    bounds = [num_blocks * number // num_files for number in range(num_files + 1)]
    return [range(first, stop) for first, stop in itertools.pairwise(bounds)]


def read_blocks(split: Split, blocks: range, progress: Progress, *, at_once: int | None = None) -> Iterator[Tokens]:
    """The blocks in order, `at_once` at a time, shape `(n, block_tokens)`; by default about 8 MiB."""
    step = at_once or max(1, _READ_BYTES // bin_bytes(1, split.block_tokens))
    for first in range(blocks.start, blocks.stop, step):
        batch = split[first : min(first + step, blocks.stop)]
        yield batch
        progress(batch.nbytes)


def write_blocks(
    path: Path, split: Split, blocks: range, dtype: str, progress: Progress, *, before: bytes, after: bytes = b""
) -> None:
    """Write the file `path`: `before`, the tokens of `blocks` as `dtype`, `after`. The caller flushes the directory."""
    with atomic_writer(path, flush_parent=False) as file:
        file.write(before)
        for batch in read_blocks(split, blocks, progress):
            file.write(batch.astype(dtype, copy=False).data)
        file.write(after)
