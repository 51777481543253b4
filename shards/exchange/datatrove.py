"""datatrove's token files: export without a copy, and import.

    OUT/manifest.json                    a link: says which documents are cut between files, for an import
    OUT/train/train-00000.ds             a link to the set's train-00000.bin
    OUT/train/train-00000.ds.index       where documents end
    OUT/val/val-00000.ds …

A `.ds` (datatrove/pipeline/tokens/tokenizer.py, `TokenizedFile`) is a headerless array of u16 or u32, little-endian: u32
for a vocabulary above 65,536 there, always u32 in a shard set, whose `.bin` is therefore such a file as it is. A
`.ds.index`:

    offset    type      field
    0         u64[D]    where each document ends, in tokens from the file's beginning; rising; the last is the file's end

`DatatroveFolderDataset(OUT/train, seq_len=S, token_size=4)` (datatrove/utils/dataset.py) cuts each file into windows of
S + 1 tokens, one behind the other and none overlapping; what is left at a file's end it leaves out. With
S = block_tokens - 1 a window is a block, exactly, and nothing is left; it sorts the files by name, so window n is block n.
(With S = block_tokens the windows drift by a token each.) A file of links is written once: hard links where the file system
has them, so that they stay whole if the set is moved, symbolic ones elsewhere.

The index of an export lists the end of each piece of a document, and of filling between or behind pieces, so that its last
number is the file's end as in datatrove's own files.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError
from shards.common.files import flush_directory, write_atomically
from shards.exchange.blocks import Format
from shards.exchange.token_files import Lengths, SetShard, TokenFile, check_rising, file_bytes, find_shard, map_array
from shards.index import Index
from shards.manifest import MANIFEST_NAME
from shards.reader import ShardSet, Split, check_shard_files, read_shard_index
from shards.tables import TABLE_NAMES
from shards.writer import BIN_SUFFIX

TOKENS_SUFFIX = ".ds"
ENDS_SUFFIX = ".ds.index"
_NO_HARD_LINKS = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def export(shard_set: ShardSet, splits: Sequence[Split], directory: Path, advance: Callable[[int], None]) -> None:
    for split in splits:
        folder = directory / split.name
        folder.mkdir()
        for shard in split.shards:
            check_shard_files(shard_set.path, shard, split.block_tokens)
            link(shard_set.path / (shard.name + BIN_SUFFIX), folder / (shard.name + TOKENS_SUFFIX))
            index = read_shard_index(shard_set.path, shard, split.block_tokens)
            ends = encode_ends(index, shard.num_blocks * split.block_tokens)
            write_atomically(folder / (shard.name + ENDS_SUFFIX), ends)
            advance(shard.num_blocks * split.block_tokens * 4)
        flush_directory(folder)
    for name in (MANIFEST_NAME, *(TABLE_NAMES.values() if shard_set.manifest.has_tables else ())):
        link(shard_set.path / name, directory / name)


def link(source: Path, target: Path) -> None:
    """Make `target` another name of the file `source`, or a symbolic link to it where that can't be."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        os.symlink(source.resolve(), target)


def encode_ends(index: Index, room_tokens: int) -> bytes:
    """The bytes of a `.ds.index` for a shard of `room_tokens`.

    >>> from shards.index import contiguous_index
    >>> np.frombuffer(encode_ends(contiguous_index(np.array([3, 2])), 8), "<u8").tolist()
    [3, 5, 8]
    """
    ends = np.unique(np.concatenate([index.starts, index.ends, [room_tokens]]))
    return ends[ends > 0].astype("<u8").tobytes()


def reader(shard_set: ShardSet, splits: Sequence[Split], out: Path) -> str:
    name = splits[0].name
    return (
        "from datatrove.utils.dataset import DatatroveFolderDataset; "
        f"{name} = DatatroveFolderDataset({str(out / name)!r}, seq_len={shard_set.block_tokens - 1}, token_size=4)"
    )


FORMAT = Format(export=export, reader=reader)


class EndsFile(TokenFile):
    """A `.ds` with its `.ds.index`, checked. Raises `InputError` for every pair that can't be one."""

    def __init__(self, path: Path) -> None:
        num_bytes, ends_path = file_bytes(path), path.with_name(path.name + ".index")
        if path.with_name(path.name + ".loss").exists():
            raise InputError(
                f"{path}: has a loss mask ({path.name}.loss), which a shard set can't hold; move it elsewhere to import "
                "the tokens without it"
            )
        ends_bytes = file_bytes(ends_path)
        if ends_bytes % 8:
            raise InputError(
                f"{ends_path}: expected a multiple of 8 bytes, found {ends_bytes:,}; the file is truncated"
            )
        self._ends = map_array(ends_path, "<u8")
        shard = find_shard(path.parent.parent, path.name.removesuffix(TOKENS_SUFFIX))
        self._tokens = map_array(path, self._dtype(path, num_bytes))
        check_rising(ends_path, self._ends, "document", "an end of ")
        super().__init__(path, num_bytes=num_bytes, num_documents=len(self._ends), shard=shard)
        if shard is not None:
            _check_shard(path, shard, self.num_documents)

    def _dtype(self, path: Path, num_bytes: int) -> str:
        """What a token is: nothing but the file's size tells."""
        num_tokens = int(self._ends[-1]) if len(self._ends) else 0
        for dtype, token_bytes in (("<u2", 2), ("<u4", 4)):
            if num_bytes == num_tokens * token_bytes:
                return dtype
        raise InputError(
            f"{path}: expected 2 or 4 bytes for each of the {num_tokens:,} tokens that its index ends with, found "
            f"{num_bytes:,} bytes; one of the two is truncated, or of another file"
        )

    def lengths(self, first: int, behind: int) -> Lengths:
        return np.diff(self._bounds(first, behind))

    def tokens(self, first: int, behind: int) -> npt.NDArray[np.integer]:
        bounds = self._bounds(first, behind)
        return self._tokens[bounds[0] : bounds[-1]]

    def _bounds(self, first: int, behind: int) -> Lengths:
        """Where document `first` begins, and where each one before `behind` ends."""
        ends = self._ends[max(0, first - 1) : behind].astype(np.int64)
        return ends if first else np.concatenate([[0], ends])


def _check_shard(path: Path, shard: SetShard, num_ends: int) -> None:
    """Raise `InputError` unless the index can be that of an exported shard whose documents can be put together again."""
    entry = shard.entry
    if shard.manifest.packing == "best-fit":
        raise InputError(
            f"{path}: exported from a set packed best-fit, whose documents may lie in two places; import the set's own "
            "shards, with --from megatron"
        )
    has_filling = entry.num_tokens < entry.num_blocks * shard.manifest.block_tokens
    if num_ends != entry.num_pieces + has_filling:
        raise InputError(
            f"{path}.index: expected {entry.num_pieces + has_filling:,} ends as in the "
            f"manifest beside it, found {num_ends:,}; export the set again"
        )
