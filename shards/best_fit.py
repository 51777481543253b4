"""The packing `best-fit`: no document that fits a block is ever cut.

Longer documents give their full blocks at once, and a rest. Rests and short documents are collected in windows and put
into blocks by best-fit decreasing (Johnson 1974; for language models Ding et al. 2024, "Fewer Truncations Improve Language
Modeling"): the longest first, each into the fullest block that still has room. What stays free is filled with EOS.

With blocks of 4 tokens, documents of 3, 6 and 1 tokens: the second gives a full block and a rest of 2; then
`3 + 1` share a block and the rest of 2 has one for itself, with 2 EOS behind it.
"""

from __future__ import annotations

import numpy as np

from shards.index import Index
from shards.packing import Ids, Lengths, Packed, Packer, no_tail
from shards.writer import ShardWriter

WINDOW_TOKENS = 1 << 24


class BestFitPacker(Packer):
    """Memory: a window of tokens, and some 40 bytes a document."""

    def __init__(self, writer: ShardWriter, eos_id: int) -> None:
        super().__init__(writer, eos_id)
        self._lengths: list[int] = []  # of all pieces, in the corpus's order
        self._starts: list[int] = []  # -1 while the piece waits for its block
        self._boundaries = [0]
        self._waiting: list[tuple[int, Ids]] = []  # pieces by number, with their tokens
        self._num_waiting_tokens = 0

    def add(self, tokens: Ids, document_tokens: Lengths) -> None:
        begin = 0
        for length in document_tokens.tolist():
            full = length // self._block_tokens * self._block_tokens
            if full:
                self._add_piece(full, self._writer.num_tokens)
                self._writer.write(tokens[begin : begin + full])
            if length > full:
                rest = tokens[begin + full : begin + length]
                self._waiting.append((self._add_piece(length - full, -1), rest))
                self._num_waiting_tokens += len(rest)
            self._boundaries.append(len(self._lengths))
            begin += length
            if self._num_waiting_tokens >= WINDOW_TOKENS:
                self._pack_window()

    def _add_piece(self, length: int, start: int) -> int:
        self._lengths.append(length)
        self._starts.append(start)
        return len(self._lengths) - 1

    def _pack_window(self) -> None:
        blocks = best_fit_decreasing([len(tokens) for _piece, tokens in self._waiting], self._block_tokens)
        content = np.full((len(blocks), self._block_tokens), self._eos_id, dtype=np.uint32)
        for row, (block, members) in enumerate(zip(content, blocks, strict=True)):
            place = 0
            for member in members:
                piece, tokens = self._waiting[member]
                block[place : place + len(tokens)] = tokens
                self._starts[piece] = self._writer.num_tokens + row * self._block_tokens + place
                place += len(tokens)
        if len(blocks):
            self._writer.write(content.reshape(-1))
        self._waiting, self._num_waiting_tokens = [], 0

    def finish(self) -> Packed:
        self._pack_window()
        index = Index(np.array(self._lengths), np.array(self._starts), np.array(self._boundaries))
        return Packed(shard=self._writer.finish(index), tail=no_tail())


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """Numbers of the pieces that share each block, so that none is fuller than `capacity`.

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
        left = room - length
        if left:
            with_room[left].append(block)
            rooms |= 1 << left
    return blocks
