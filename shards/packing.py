"""Packing: how the documents of one split of one unit become blocks.

`concat`, here: documents, each closed by EOS, joined and cut into blocks; nothing lost. Whole blocks go to the unit's
shard as they fill up; what is left over (less than a block) is the unit's tail, which joins the other units' tails in the
last shard of the split. With blocks of 4 tokens and the documents `a b c EOS`, `d e EOS`, `f EOS`:

    shard   a b c EOS | d e EOS f      documents of 4, 3 and 1 tokens; the last one is cut
    tail    EOS                        one piece of 1 token, which continues the shard's last

`best-fit` (`shards.best_fit`) cuts no document that fits a block. `tutorial`, here too, keeps what the original script
keeps: of each document its whole blocks, without EOS.
"""

from __future__ import annotations

import abc
import dataclasses

import numpy as np
import numpy.typing as npt

from shards.entries import ShardEntry
from shards.index import contiguous_index
from shards.writer import ShardWriter

Ids = npt.NDArray[np.uint32]
Lengths = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tail:
    """What is left over in a unit: fewer tokens than a block."""

    tokens: Ids
    piece_tokens: Lengths
    continues: bool  # the first piece continues the last document of the unit's shard


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packed:
    """What became of a unit's documents."""

    shard: ShardEntry | None  # none if not one block was filled
    tail: Tail
    num_dropped_tokens: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """How the documents' lengths divide at the end of the last whole block."""

    shard_pieces: Lengths
    tail_pieces: Lengths
    continues: bool  # the first piece of the tail continues the last one of the shard


def no_tail() -> Tail:
    return Tail(tokens=np.empty(0, dtype=np.uint32), piece_tokens=np.empty(0, dtype=np.int64), continues=False)


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
        return Cut(shard_pieces=document_tokens[:num_whole], tail_pieces=document_tokens[num_whole:], continues=False)
    tail_pieces = document_tokens[num_whole:].copy()
    tail_pieces[0] -= num_open
    shard_pieces = np.append(document_tokens[:num_whole], num_open)
    return Cut(shard_pieces=shard_pieces, tail_pieces=tail_pieces, continues=True)


class Packer(abc.ABC):
    """Packs one split of one unit into its shard."""

    def __init__(self, writer: ShardWriter, eos_id: int) -> None:
        self._writer, self._block_tokens, self._eos_id = writer, writer.block_tokens, eos_id

    @abc.abstractmethod
    def add(self, tokens: Ids, document_tokens: Lengths) -> None:
        """Append documents: all their tokens (EOS included, but for `tutorial`), and the tokens in each."""

    @abc.abstractmethod
    def finish(self) -> Packed:
        """Complete the shard."""


class ConcatPacker(Packer):
    """Joins documents and cuts blocks. Memory: a batch, and 8 bytes a document."""

    def __init__(self, writer: ShardWriter, eos_id: int) -> None:
        super().__init__(writer, eos_id)
        self._rest = np.empty(0, dtype=np.uint32)
        self._lengths: list[Lengths] = []

    def add(self, tokens: Ids, document_tokens: Lengths) -> None:
        self._lengths.append(document_tokens)
        if len(self._rest):
            missing = self._block_tokens - len(self._rest)
            if len(tokens) < missing:
                self._rest = np.concatenate([self._rest, tokens])
                return
            self._writer.write(np.concatenate([self._rest, tokens[:missing]]))
            tokens = tokens[missing:]
        num_whole = len(tokens) // self._block_tokens * self._block_tokens
        if num_whole:
            self._writer.write(tokens[:num_whole])
        self._rest = tokens[num_whole:].copy()

    def finish(self) -> Packed:
        lengths = np.concatenate([np.empty(0, dtype=np.int64), *self._lengths])
        cut = cut_lengths(lengths, self._writer.num_tokens)
        shard = self._writer.finish(contiguous_index(cut.shard_pieces), is_open=cut.continues)
        tail = Tail(tokens=self._rest, piece_tokens=cut.tail_pieces, continues=cut.continues)
        return Packed(shard=shard, tail=tail)


class TutorialPacker(Packer):
    """Of each document the whole blocks, and nothing of it if it is shorter than one: as the original script does."""

    def __init__(self, writer: ShardWriter, eos_id: int) -> None:
        super().__init__(writer, eos_id)
        self._lengths: list[Lengths] = []
        self._num_dropped = 0

    def add(self, tokens: Ids, document_tokens: Lengths) -> None:
        kept = document_tokens // self._block_tokens * self._block_tokens
        starts = np.cumsum(document_tokens) - document_tokens
        parts = [
            tokens[start : start + length]
            for start, length in zip(starts.tolist(), kept.tolist(), strict=True)
            if length
        ]
        if parts:
            self._writer.write(np.concatenate(parts))
        self._lengths.append(kept[kept > 0])
        self._num_dropped += int((document_tokens - kept).sum())

    def finish(self) -> Packed:
        lengths = np.concatenate([np.empty(0, dtype=np.int64), *self._lengths])
        shard = self._writer.finish(contiguous_index(lengths))
        return Packed(shard=shard, tail=no_tail(), num_dropped_tokens=self._num_dropped)
