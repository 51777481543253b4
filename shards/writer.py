"""Writing shards: a `.bin` as tokens arrive, then its `.idx`; each appears under its name only when whole."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from shards.entries import ShardEntry, SplitName, exact_sum
from shards.files import TEMPORARY_SUFFIX, atomic_writer
from shards.index import TOKEN_BYTES, Index, encode_index, index_bytes
from shards.manifest import Manifest

BIN_SUFFIX = ".bin"
INDEX_SUFFIX = ".idx"


class ShardWriter:
    """Writes one shard. Use as a context manager: without `finish`, nothing is left behind.

    Only `finish` makes the shard appear, the index after the `.bin`. The directory itself is flushed by the
    caller, who knows when its last file is in place (`shards.files.flush_directory`).
    """

    def __init__(self, directory: Path, name: str, *, split: SplitName, block_tokens: int) -> None:
        self._path = directory / (name + BIN_SUFFIX)
        self._temporary = self._path.with_name(self._path.name + TEMPORARY_SUFFIX)
        self._name, self._split, self._block_tokens = name, split, block_tokens
        self._digest = blake3()
        self._num_tokens = 0
        self._file = open(self._temporary, "wb", buffering=0)  # noqa: SIM115 (closed by __exit__)

    def write(self, tokens: npt.NDArray[np.uint32]) -> None:
        """Append tokens, shape `(n,)` for any n. The whole must be a whole number of blocks at the end."""
        content = np.ascontiguousarray(tokens, dtype="<u4").view(np.uint8).data
        self._digest.update(content)
        while content:
            content = content[self._file.write(content) :]
        self._num_tokens += len(tokens)

    def finish(self, index: Index, *, num_documents: int) -> ShardEntry:
        """Flush and rename the `.bin`, write its index and return its entry for the manifest.

        `num_documents` of the index's documents end here (the last may go on in another shard). Tokens that lie in
        no piece of the index are filling.
        """
        num_tokens = int(index.lengths.sum())
        assert self._num_tokens % self._block_tokens == 0 and self._num_tokens > 0
        assert num_tokens <= self._num_tokens
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self._path)
        content = encode_index(index)
        with atomic_writer(self._path.with_suffix(INDEX_SUFFIX), flush_parent=False) as file:
            file.write(content)
        return ShardEntry(
            name=self._name,
            split=self._split,
            num_blocks=self._num_tokens // self._block_tokens,
            num_tokens=num_tokens,
            num_pieces=len(index.lengths),
            num_index_documents=len(index.boundaries) - 1,
            num_documents=num_documents,
            digest=self._digest.hexdigest(),
            index_digest=blake3(content).hexdigest(),
        )

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
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
