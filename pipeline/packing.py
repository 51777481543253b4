"""Packing: documents, each closed by EOS, joined and cut into blocks; nothing lost.

One packer serves one split of one unit. Whole blocks go to the unit's shard as they fill up; what is left over
(less than a block) is the unit's tail, which joins the other units' tails in the last shard of the split.

With blocks of 4 tokens and the documents `a b c EOS`, `d e EOS`, `f EOS`:

    shard   a b c EOS | d e EOS f      pieces of 4, 3 and 1 tokens; the last one is cut
    tail    EOS                        one piece of 1 token, which continues the shard's last
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from shards.manifest import ShardEntry, SplitName
from shards.writer import ShardWriter, shard_name

Ids = npt.NDArray[np.uint32]
Lengths = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tail:
    """What is left over in a unit: fewer tokens than a block."""

    tokens: Ids
    piece_tokens: Lengths
    continues: bool  # the first piece continues the last document of the unit's shard


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """How the documents' lengths divide at the end of the last whole block."""

    shard_pieces: Lengths
    num_documents: int  # pieces of the shard that end with EOS
    tail_pieces: Lengths
    continues: bool


def cut_lengths(document_tokens: Lengths, num_shard_tokens: int) -> Cut:
    """Divide documents of `document_tokens` each (EOS included) after `num_shard_tokens`.

    >>> cut_lengths(np.array([4, 3, 2]), 8).shard_pieces.tolist()
    [4, 3, 1]
    """
    ends = np.cumsum(document_tokens)
    num_whole = int(np.searchsorted(ends, num_shard_tokens, side="right"))
    whole_tokens = int(ends[num_whole - 1]) if num_whole else 0
    num_open = num_shard_tokens - whole_tokens
    if not num_open:
        return Cut(
            shard_pieces=document_tokens[:num_whole],
            num_documents=num_whole,
            tail_pieces=document_tokens[num_whole:],
            continues=False,
        )
    tail_pieces = document_tokens[num_whole:].copy()
    tail_pieces[0] -= num_open
    return Cut(
        shard_pieces=np.append(document_tokens[:num_whole], num_open),
        num_documents=num_whole,
        tail_pieces=tail_pieces,
        continues=True,
    )


class Packer:
    """Packs one split of one unit. Memory: a batch, and 8 bytes a document."""

    def __init__(self, directory: Path, number: int, *, split: SplitName, block_tokens: int) -> None:
        self._directory, self._name = directory, shard_name(split, number)
        self._split, self._block_tokens = split, block_tokens
        self._writer: ShardWriter | None = None
        self._rest = np.empty(0, dtype=np.uint32)
        self._lengths: list[Lengths] = []
        self._num_shard_tokens = 0

    def add(self, tokens: Ids, document_tokens: Lengths) -> None:
        """Append documents: all their tokens, EOS included, and the tokens in each."""
        self._lengths.append(document_tokens)
        if len(self._rest):
            missing = self._block_tokens - len(self._rest)
            if len(tokens) < missing:
                self._rest = np.concatenate([self._rest, tokens])
                return
            self._write(np.concatenate([self._rest, tokens[:missing]]))
            tokens = tokens[missing:]
        num_whole = len(tokens) // self._block_tokens * self._block_tokens
        if num_whole:
            self._write(tokens[:num_whole])
        self._rest = tokens[num_whole:].copy()

    def _write(self, tokens: Ids) -> None:
        if self._writer is None:
            self._writer = ShardWriter(self._directory, self._name, split=self._split, block_tokens=self._block_tokens)
        self._writer.write(tokens)
        self._num_shard_tokens += len(tokens)

    def finish(self) -> tuple[ShardEntry | None, Tail]:
        """Complete the shard (there is none if not one block was filled) and return its entry and the tail."""
        lengths = np.concatenate([np.empty(0, dtype=np.int64), *self._lengths])
        cut = cut_lengths(lengths, self._num_shard_tokens)
        entry = None
        if self._writer is not None:
            entry = self._writer.finish(cut.shard_pieces, num_documents=cut.num_documents)
        return entry, Tail(tokens=self._rest, piece_tokens=cut.tail_pieces, continues=cut.continues)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.__exit__(kind, error, traceback)
