"""Writing shards: a `.bin` as tokens arrive, then its `.idx`; each appears under its name only when whole."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from shards.common.files import TEMPORARY_SUFFIX, atomic_writer
from shards.entries import ShardEntry, SplitName, exact_sum, shard_name
from shards.index import TOKEN_BYTES, Index, encode_index, index_bytes
from shards.manifest import Manifest

BIN_SUFFIX = ".bin"
INDEX_SUFFIX = ".idx"


class ShardWriter:
    """Writes one shard, unless there is nothing to write. A context manager: without `finish`, nothing is left behind.

    Only `finish` makes the shard appear, the index after the `.bin`. The directory itself is flushed by the
    caller, who knows when its last file is in place (`shards.common.files.flush_directory`).
    """

    def __init__(self, directory: Path, split: SplitName, number: int, *, block_tokens: int) -> None:
        self.directory, self.split, self.block_tokens = directory, split, block_tokens
        self.num_tokens = 0  # written so far
        self._name = shard_name(split, number)
        self._path = directory / (self._name + BIN_SUFFIX)
        self._temporary = self._path.with_name(self._path.name + TEMPORARY_SUFFIX)
        self._digest = blake3()
        self._file: io.FileIO | None = None

    def write(self, tokens: npt.NDArray[np.uint32]) -> None:
        """Append tokens, shape `(n,)` for any n. The whole must be a whole number of blocks at the end."""
        if self._file is None:
            self._file = open(self._temporary, "wb", buffering=0)  # noqa: SIM115 (closed by __exit__)
        content = np.ascontiguousarray(tokens, dtype="<u4").view(np.uint8).data
        self._digest.update(content)
        while content:
            content = content[self._file.write(content) :]
        self.num_tokens += len(tokens)

    def finish(self, index: Index, *, is_open: bool = False) -> ShardEntry | None:
        """Flush and rename the `.bin`, write its index and return its entry for the manifest; None for no shard.

        With `is_open` the last of the index's documents goes on in another shard. Tokens that lie in no piece of the index
        are filling.
        """
        if self._file is None:
            return None
        num_tokens, num_documents = int(index.lengths.sum()), len(index.boundaries) - 1
        assert self.num_tokens % self.block_tokens == 0 and self.num_tokens > 0
        assert num_tokens <= self.num_tokens
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self._path)
        content = encode_index(index)
        with atomic_writer(self._path.with_suffix(INDEX_SUFFIX), flush_parent=False) as file:
            file.write(content)
        return ShardEntry(
            name=self._name,
            split=self.split,
            num_blocks=self.num_tokens // self.block_tokens,
            num_tokens=num_tokens,
            num_pieces=len(index.lengths),
            num_index_documents=num_documents,
            num_documents=num_documents - is_open,
            digest=self._digest.hexdigest(),
            index_digest=blake3(content).hexdigest(),
        )

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._file is not None:
            self._file.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)


def bin_bytes(num_blocks: int, block_tokens: int) -> int:
    """Size in bytes of a `.bin`."""
    return num_blocks * block_tokens * TOKEN_BYTES


def set_bytes(manifest: Manifest, *, with_indexes: bool = False) -> int:
    """Size in bytes of all `.bin` of a set, or of its indexes too."""
    shards = manifest.shards
    size = bin_bytes(exact_sum(shards.column("num_blocks")), manifest.block_tokens)
    if with_indexes:
        num_pieces, num_documents = (exact_sum(shards.column(name)) for name in ("num_pieces", "num_index_documents"))
        size += index_bytes(num_pieces, num_documents) + (len(shards) - 1) * index_bytes(0, 0)
    return size
