"""Packing: how the documents of one split of one unit become the blocks of a shard. Nothing is lost.

`concat` joins documents, each closed by EOS, and cuts blocks; the last block is padded with EOS. With blocks of 4 tokens
and the documents `a b c EOS`, `d e EOS`, `f EOS`, where `_` is padding:

    a b c EOS | d e EOS f | EOS _ _ _

`best-fit` cuts no document that fits a block. Longer documents give their full blocks at once, and a remainder. Remainders
and short documents are collected in windows and put into blocks by best-fit decreasing (Johnson 1974; for language models
Ding et al. 2024, "Fewer Truncations Improve Language Modeling"): the longest first, each into the fullest block that still
has room. What stays free is padded. With documents of 3, 6 and 1 tokens, of which the second gives a full block and a
remainder of 2:

    d e f g | a b c i | h EOS _ _
"""

from __future__ import annotations

import abc
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError
from shards.index import Index, contiguous_index
from shards.manifest import Packing, ShardEntry
from shards.writer import ShardWriter

WINDOW_TOKENS = 1 << 24

Ids = npt.NDArray[np.uint32]
Lengths = npt.NDArray[np.int64]


class Packer(abc.ABC):
    """Packs one split of one unit into its shard."""

    def __init__(self, writer: ShardWriter, eos_id: int) -> None:
        self._writer, self._block_tokens, self._eos_id = writer, writer.block_tokens, eos_id
        self._num_text_bytes = self._num_text_chars = 0

    def add(self, tokens: Ids, document_tokens: Lengths, *, num_text_bytes: int, num_text_chars: int) -> None:
        """Append documents: their tokens, EOS included, how many each has, and their text's size. Raises `InputError`."""
        if (longest := document_tokens.max(initial=0)) >= 2**31:
            raise InputError(f"a document of {longest:,} tokens, EOS included; an index takes fewer than 2**31")
        self._num_text_bytes += num_text_bytes
        self._num_text_chars += num_text_chars
        self._add(tokens, document_tokens)

    def finish(self) -> ShardEntry | None:
        """Complete the shard; None if there was no document."""
        return self._writer.finish(
            self._index(), num_text_bytes=self._num_text_bytes, num_text_chars=self._num_text_chars
        )

    @abc.abstractmethod
    def _add(self, tokens: Ids, document_tokens: Lengths) -> None: ...

    @abc.abstractmethod
    def _index(self) -> Index:
        """Write what isn't written yet, padded to whole blocks; where the documents lie."""


class ConcatPacker(Packer):
    """Joins documents and cuts blocks. Memory: 8 bytes a document."""

    def __init__(self, writer: ShardWriter, eos_id: int) -> None:
        super().__init__(writer, eos_id)
        self._lengths: list[Lengths] = []

    def _add(self, tokens: Ids, document_tokens: Lengths) -> None:
        self._writer.write(tokens)
        self._lengths.append(document_tokens)

    def _index(self) -> Index:
        if num_padding := -self._writer.num_tokens % self._block_tokens:
            self._writer.write(np.full(num_padding, self._eos_id, dtype=np.uint32))
        return contiguous_index(np.concatenate([np.empty(0, dtype=np.int64), *self._lengths]))


class BestFitPacker(Packer):
    """Cuts no document that fits a block. Memory: a window of tokens, and some 40 bytes a document."""

    def __init__(self, writer: ShardWriter, eos_id: int) -> None:
        super().__init__(writer, eos_id)
        self._lengths: list[int] = []  # of all sequences, in the corpus's order
        self._starts: list[int] = []  # -1 while the sequence waits for its block
        self._boundaries = [0]
        self._waiting: list[tuple[int, Ids]] = []  # sequences by number, with their tokens
        self._num_waiting_tokens = 0

    def _add(self, tokens: Ids, document_tokens: Lengths) -> None:
        begin = 0
        for length in document_tokens.tolist():
            full = length // self._block_tokens * self._block_tokens
            if full:
                self._add_sequence(full, self._writer.num_tokens)
                self._writer.write(tokens[begin : begin + full])
            if length > full:
                remainder = tokens[begin + full : begin + length].copy()  # else all of `tokens` would wait with it
                self._waiting.append((self._add_sequence(length - full, -1), remainder))
                self._num_waiting_tokens += len(remainder)
            self._boundaries.append(len(self._lengths))
            begin += length
            if self._num_waiting_tokens >= WINDOW_TOKENS:
                self._pack_window()

    def _add_sequence(self, length: int, start: int) -> int:
        self._lengths.append(length)
        self._starts.append(start)
        return len(self._lengths) - 1

    def _pack_window(self) -> None:
        blocks = best_fit_decreasing([len(tokens) for _sequence, tokens in self._waiting], self._block_tokens)
        content = np.full((len(blocks), self._block_tokens), self._eos_id, dtype=np.uint32)
        for row, (block, members) in enumerate(zip(content, blocks, strict=True)):
            start = 0
            for member in members:
                sequence, tokens = self._waiting[member]
                block[start : start + len(tokens)] = tokens
                self._starts[sequence] = self._writer.num_tokens + row * self._block_tokens + start
                start += len(tokens)
        if len(blocks):
            self._writer.write(content.reshape(-1))
        self._waiting, self._num_waiting_tokens = [], 0

    def _index(self) -> Index:
        self._pack_window()
        return Index(np.array(self._lengths), np.array(self._starts), np.array(self._boundaries))


PACKERS: dict[Packing, Callable[[ShardWriter, int], Packer]] = {"concat": ConcatPacker, "best-fit": BestFitPacker}


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """Numbers of the sequences that share each block, so that none holds more than `capacity` tokens.

    >>> best_fit_decreasing([3, 2, 1], 4)
    [[0, 2], [1]]
    """
    blocks: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # blocks by the room that they have left
    rooms = 0  # bit r is set if some block has r tokens of room left
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        length = lengths[number]
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            block = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
            blocks[block].append(number)
        else:
            room, block = capacity, len(blocks)
            blocks.append([number])
        if left := room - length:
            with_room[left].append(block)
            rooms |= 1 << left
    return blocks
