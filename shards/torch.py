"""A shard set in torch, for anyone's training loop: a Dataset, a sampler that can stop anywhere, and collators.

    data = shards.open_data("data/shards/wiki")
    sampler = RunSampler(shards.run_order(data, seed=42), stop=100_000, rank=0, world_size=1, micro_batch_blocks=32)
    loader = DataLoader(BlockDataset(data, "train"), batch_size=32, sampler=sampler, collate_fn=collate_blocks)

A position is one block of the run, counted over all epochs, ranks and accumulation steps; the order of blocks is a pure
function of it (`shards.RunOrder`). So a position is all the state there is: whoever continues at step s, on any number of
processes, starts at position s × global batch and reads nothing of what came before. `docs/examples/own_loop.py` is a loop
with all of it; this project's own trainer uses the same classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

import shards

IGNORED = -100  # a label that doesn't count
_CHUNK_POSITIONS = 1 << 16  # some milliseconds

Batch = dict[str, torch.Tensor]
Collator = Callable[[Any], Batch]


class BlockDataset(Dataset[torch.Tensor]):
    """The blocks of a split as tensors of ids, int64 unless another `dtype` is asked for (int32 is half as much to copy).

    A loader worker that is spawned opens the shard set itself.
    """

    def __init__(self, data: shards.Data, split: str, dtype: torch.dtype = torch.int64) -> None:
        self._split, self._dtype = data[split], dtype

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, number: int) -> torch.Tensor:
        """Shape `(block_tokens,)`."""
        return self.__getitems__([range(len(self))[number]])[0]

    def __getitems__(self, numbers: Sequence[int]) -> torch.Tensor:
        """Shape `(n, block_tokens)`: what the DataLoader asks for instead of n single blocks."""
        wanted = np.asarray(numbers, dtype=np.int64)
        is_plain = wanted.max(initial=0) < len(self)
        blocks = self._split[wanted] if is_plain else self._split.offset_blocks(wanted)
        return torch.from_numpy(blocks.view(np.int32)).to(self._dtype)


class RunSampler(Sampler[int]):
    """The block numbers that process `rank` gets of positions `start` … `stop` − 1, for batches of `micro_batch_blocks`.

    From where an iteration starts, micro-batches go in turn to the ranks (`shards.rank_positions`). Each iteration starts
    at the position that was last set. `state_dict`, the same on every rank, has the position after the last micro-batches
    that were handed out whole; torchdata's StatefulDataLoader keeps it. Another DataLoader with workers asks ahead of what
    is trained on, so there the caller sets `{"position": steps × global batch}` instead. Where accelerate deals batches
    out, leave `rank` and `world_size` alone.
    """

    def __init__(
        self,
        order: shards.RunOrder,
        *,
        stop: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        micro_batch_blocks: int = 1,
    ) -> None:
        self._order, self._stop, self._position = order, stop, start
        self._rank, self._world_size, self._micro_batch_blocks = rank, world_size, micro_batch_blocks

    def __len__(self) -> int:
        """Of the whole run, wherever it starts: Trainer counts its steps from this."""
        rounds, blocks = divmod(self._stop, self._world_size * self._micro_batch_blocks)
        of_last = min(max(0, blocks - self._rank * self._micro_batch_blocks), self._micro_batch_blocks)
        return rounds * self._micro_batch_blocks + of_last

    def __iter__(self) -> Iterator[int]:
        size, begin = self._micro_batch_blocks, self._position
        for start in range(begin, self._stop, _CHUNK_POSITIONS):
            stop = min(start + _CHUNK_POSITIONS, self._stop)
            places = np.arange(start - begin, stop - begin)  # counted from the first position of this iteration
            own = places // size % self._world_size == self._rank
            numbers = self._order.blocks(start, stop)[own]
            for place, number in zip(places[own].tolist(), numbers.tolist(), strict=True):
                if place % size == size - 1:
                    self._position = begin + (place // size // self._world_size + 1) * self._world_size * size
                yield number

    def state_dict(self) -> dict[str, int]:
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._position = state["position"]


def has_padding(data: shards.Data) -> bool:
    """Whether many training blocks may end with padding, as `best-fit` makes them; `concat` pads a shard's last alone."""
    return any(part.manifest.packing == "best-fit" and part["train"].num_padding_tokens > 0 for part in data.sets)


def collate_blocks(blocks: Any) -> Batch:
    """A batch for a causal language model, of what `BlockDataset` gathered; the model itself shifts the labels by one.

    There is no attention mask, and the EOS that ends a document is a label like any other: that is how a model learns to
    stop. So is padding, and a begin token: this is for sets that have next to none.
    """
    return {"input_ids": blocks, "labels": blocks}


@dataclasses.dataclass(frozen=True)
class PaddingCollator:
    """As `collate_blocks`, but padding is no label: EOS after EOS, as every document has at least one token. Nor is a begin
    token after EOS: nothing in the document before it predicts it.

    The remainder of a cut document may be nothing but EOS; where it follows another document it is taken for padding.
    """

    eos_id: int
    begin_id: int | None = None  # of the set

    def __call__(self, blocks: Any) -> Batch:
        is_eos = blocks == self.eos_id
        unpredicted = is_eos if self.begin_id is None else is_eos | (blocks == self.begin_id)
        is_ignored = torch.zeros_like(is_eos)
        is_ignored[:, 1:] = unpredicted[:, 1:] & is_eos[:, :-1]
        return {"input_ids": blocks, "labels": blocks.masked_fill(is_ignored, IGNORED)}


@dataclasses.dataclass(frozen=True)
class DocumentCollator:
    """As `PaddingCollator`, with intra-document masking: documents in one block are masked from each other.

    Positions restart at each document, from which attention knows where documents begin; the first token of a document,
    which nothing predicts, is no label. With the block `a b EOS c`: positions 0 1 2 0, labels a b EOS −100. With
    `cu_seqlens` also what kernels for packed sequences take of the batch's tokens in one row: where each document begins,
    and the end, here `0 3 4`, int32; and `max_seqlen`, the tokens of the longest.
    """

    eos_id: int
    cu_seqlens: bool = False

    def __call__(self, blocks: Any) -> Batch:
        begins = torch.zeros_like(blocks, dtype=torch.bool)
        begins[:, 1:] = blocks[:, :-1] == self.eos_id
        places = torch.arange(blocks.shape[1]).expand_as(blocks)
        first = torch.where(begins, places, 0).cummax(dim=1).values
        batch = {"input_ids": blocks, "labels": blocks.masked_fill(begins, IGNORED), "position_ids": places - first}
        if self.cu_seqlens:
            starts = torch.nonzero(batch["position_ids"].reshape(-1) == 0).reshape(-1)
            ends = torch.cat([starts, starts.new_tensor([blocks.numel()])])
            batch |= {"cu_seqlens": ends.to(torch.int32), "max_seqlen": ends.diff().max()}
        return batch


def text_collator(data: shards.Data, *, document_mask: bool) -> PaddingCollator | DocumentCollator:
    """What makes batches whose labels are text alone, in evaluation always."""
    return DocumentCollator(data.eos_id) if document_mask else PaddingCollator(data.eos_id, data.begin_id)
