"""What all exports have in common: which blocks go to which file, read a few at a time."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from shards.common.files import atomic_writer
from shards.layout import bin_bytes
from shards.reader import ShardSet, Split, Tokens

_READ_BYTES = 1 << 23


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """What is written to which directory: `splits`, none of them empty. Each format is a function of this."""

    shard_set: ShardSet
    splits: Sequence[Split]
    directory: Path
    progress: Callable[[int], None]  # is called with the bytes of blocks just written

    def read(self, split: Split, blocks: range, *, at_once: int | None = None) -> Iterator[Tokens]:
        """The blocks in order, `at_once` at a time, shape `(n, block_tokens)`; by default about 8 MiB."""
        step = at_once or max(1, _READ_BYTES // bin_bytes(1, split.block_tokens))
        for first in range(blocks.start, blocks.stop, step):
            batch = split[first : min(first + step, blocks.stop)]
            yield batch
            self.progress(batch.nbytes)

    def write(self, path: Path, split: Split, blocks: range, dtype: str, *, before: bytes, after: bytes = b"") -> None:
        """Write the file `path`: `before`, the tokens of `blocks` as `dtype`, `after`. The caller flushes the directory."""
        with atomic_writer(path, flush_parent=False) as file:
            file.write(before)
            for batch in self.read(split, blocks):
                file.write(batch.astype(dtype, copy=False).data)
            file.write(after)


def cut_files(num_blocks: int, blocks_per_file: int) -> list[range]:
    """The blocks of each file: as few files as hold at most `blocks_per_file` (or one), all of about the same size.

    >>> cut_files(10, 4)
    [range(0, 3), range(3, 6), range(6, 10)]
    """
    num_files = -(-num_blocks // max(1, blocks_per_file))
    bounds = [num_blocks * number // num_files for number in range(num_files + 1)]
    return [range(first, stop) for first, stop in itertools.pairwise(bounds)]
