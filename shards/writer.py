"""Writing shards: a `.bin` as tokens arrive, then its `.idx`; each appears under its name only when whole."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from shards.common.files import TEMPORARY_SUFFIX, atomic_writer, named_when_full
from shards.index import Index, encode_index
from shards.layout import BIN_SUFFIX, INDEX_SUFFIX, SplitName, shard_name
from shards.manifest import ShardEntry


class ShardWriter:
    """Writes one shard, unless there is nothing to write. A context manager: without `finish`, nothing is left.

    Only `finish` makes the shard appear, the index after the `.bin`. The directory itself is flushed by the caller, who
    knows when its last file is in place (`shards.common.files.flush_directory`).
    """

    def __init__(self, directory: Path, split: SplitName, number: int, *, block_tokens: int) -> None:
        self.split, self.block_tokens = split, block_tokens
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
        with named_when_full(self._path):
            while content:
                content = content[self._file.write(content) :]
        self.num_tokens += len(tokens)

    def finish(self, index: Index, *, num_text_bytes: int, num_text_chars: int) -> ShardEntry | None:
        """Flush and rename the `.bin`, write its index and return its entry for the manifest; None for no shard.

        Tokens that lie in no sequence of the index are padding.
        """
        if self._file is None:
            return None
        num_tokens = int(index.lengths.sum())
        assert self.num_tokens % self.block_tokens == 0 and 0 < num_tokens <= self.num_tokens
        with named_when_full(self._path):
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
            num_documents=len(index.boundaries) - 1,
            num_sequences=len(index.lengths),
            num_tokens=num_tokens,
            num_text_bytes=num_text_bytes,
            num_text_chars=num_text_chars,
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
