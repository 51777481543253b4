"""datatrove's token files: export without a copy, and import.

    OUT/manifest.json                    a link: says whose shards these are, for an import
    OUT/train/train-00000.ds             a link to the set's train-00000.bin
    OUT/train/train-00000.ds.index       where documents end
    OUT/val/val-00000.ds …

A `.ds` (datatrove/pipeline/tokens/tokenizer.py, `TokenizedFile`) is a headerless array of u16 or u32, little-endian: u32
for a vocabulary above 65,536 there, always u32 in a shard set, whose `.bin` is therefore such a file as it is. A
`.ds.index`:

    offset    type      field
    0         u64[D]    where each document ends, in tokens from the file's beginning; rising; the last is the file's end

`DatatroveFolderDataset(OUT/train, seq_len=S, token_size=4)` (datatrove/utils/dataset.py) cuts each file into windows of
S + 1 tokens, one after another and none overlapping; what remains at a file's end it leaves out. With S = block_tokens - 1
a window is a block, exactly, and nothing remains; it sorts the files by name, so window n is block n. (With
S = block_tokens the windows drift by a token each.) Links are hard links where the file system has them, so that they stay
whole if the set is moved, symbolic ones elsewhere.

The index of an export lists the end of each sequence, and of padding between or after sequences, so that its last number
is the file's end as in datatrove's own files.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from shards.common.errors import InputError
from shards.common.files import flush_directory, write_atomically
from shards.exchange.blocks import Export
from shards.exchange.importing import TokenFile, check_rising, file_bytes, map_array, shard_beside
from shards.layout import BIN_SUFFIX, MANIFEST_NAME, bin_bytes
from shards.packing import Lengths
from shards.reader import check_shard_sizes

TOKENS_SUFFIX = ".ds"
ENDS_SUFFIX = ".ds.index"


def export_datatrove(export: Export) -> None:
    path = export.shard_set.path
    for split in export.splits:
        folder = export.directory / split.name
        folder.mkdir()
        for number, shard in enumerate(split.shards):
            check_shard_sizes(path, shard, split.block_tokens)
            _link(path / (shard.name + BIN_SUFFIX), folder / (shard.name + TOKENS_SUFFIX))
            index, num_tokens = split.shard_index(number), shard.num_blocks * split.block_tokens
            ends = np.unique(np.concatenate([index.starts, index.ends, [num_tokens]]))
            write_atomically(folder / (shard.name + ENDS_SUFFIX), ends[ends > 0].astype("<u8").tobytes())
            export.progress(bin_bytes(shard.num_blocks, split.block_tokens))
        flush_directory(folder)
    _link(path / MANIFEST_NAME, export.directory / MANIFEST_NAME)


def _link(source: Path, target: Path) -> None:
    """Make `target` another name of the file `source`, or a symbolic link to it where that can't be."""
    try:
        os.link(source, target)
    except OSError:
        os.symlink(source.resolve(), target)


def open_datatrove(path: Path) -> TokenFile:
    """A `.ds` with its `.ds.index`, checked. Raises `InputError` for every pair that can't be one."""
    ends_path = path.with_name(path.name + ".index")
    if path.with_name(path.name + ".loss").exists():
        raise InputError(
            f"{path}: has a loss mask ({path.name}.loss), which a shard set can't hold; move it elsewhere to import "
            "the tokens without it"
        )
    if file_bytes(ends_path) % 8:
        raise InputError(
            f"{ends_path}: expected a multiple of 8 bytes, found {file_bytes(ends_path):,}; the file is truncated"
        )
    ends = map_array(ends_path, "<u8")
    num_tokens = int(ends[-1]) if len(ends) else 0
    # Only the file's size shows what a token is.
    dtype = {num_tokens * 2: "<u2", num_tokens * 4: "<u4"}.get(file_bytes(path))
    if dtype is None:
        raise InputError(
            f"{path}: expected 2 or 4 bytes for each of the {num_tokens:,} tokens that its index ends with, found "
            f"{file_bytes(path):,} bytes; one of the two is truncated, or of another file"
        )
    tokens = map_array(path, dtype)
    check_rising(ends_path, ends, "document", "an end of ")
    manifest, shard = shard_beside(path.parent.parent, path.name.removesuffix(TOKENS_SUFFIX)) or (None, None)
    if manifest is not None and manifest.packing == "best-fit":
        raise InputError(
            f"{path}: exported from a set packed best-fit, whose documents may be two sequences; import the set's "
            "own shards, as megatron"
        )

    def bounds(first: int, stop: int) -> Lengths:
        """Where document `first` begins, and where each one before `stop` ends."""
        some = ends[max(0, first - 1) : stop].astype(np.int64)
        return some if first else np.concatenate([[0], some])

    return TokenFile(
        path=path,
        num_documents=len(ends),
        lengths=lambda first, stop: np.diff(bounds(first, stop)),
        tokens=lambda first, stop: tokens[slice(*bounds(first, stop)[[0, -1]])],
        shard=shard,
    )
