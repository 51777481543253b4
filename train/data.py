"""Blocks for the Trainer: a Dataset that gathers a batch at once, and the order in which blocks are trained on.

Position p = step × global batch + place in the global batch, counted over the whole run, over all ranks and
accumulation steps; `shards.RunOrder` says which block stands there. That is all the state there is: a run that
continues at step s starts at position s × global batch, without reading what came before, and on any number of
processes, since accelerate deals the batches of one common order out to the ranks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

import shards

CHUNK_POSITIONS = 1 << 15  # a millisecond or two
IGNORED = -100  # a label that doesn't count


class BlockDataset(Dataset[torch.Tensor]):
    """A split's blocks as int32 tensors, half as much to copy as int64; the model widens them on its device.

    A loader worker that is spawned opens the shard sets itself.
    """

    def __init__(self, data: shards.Data, split: str) -> None:
        self._split = data[split]

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, number: int) -> torch.Tensor:
        """Shape `(block_tokens,)`."""
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> torch.Tensor:
        """Shape `(n, block_tokens)`: what the DataLoader asks for instead of n single blocks."""
        return torch.from_numpy(self._split[np.asarray(numbers, dtype=np.int64)].view(np.int32))


def collate_blocks(blocks: Any) -> dict[str, torch.Tensor]:
    """A batch for a causal language model, of what `BlockDataset` gathered; the model itself shifts the labels by one.

    There is no attention mask, as nothing is padding, and the EOS that ends a document is a label like any other:
    that is how a model learns to stop. So is filling: this is for sets that have next to none.
    """
    return {"input_ids": blocks, "labels": blocks}


def has_filling(data: shards.Data) -> bool:
    """Whether many training blocks may end with filling, as `best-fit` makes them; `concat` fills up the last one alone."""
    return any(part.manifest.packing == "best-fit" and part["train"].num_fill_tokens > 0 for part in data.sets)


@dataclasses.dataclass(frozen=True)
class FilledCollator:
    """As `collate_blocks`, but filling, which is no text, is no label: EOS behind EOS, as a document has a token at least.

    A cut document's rest may be nothing but EOS, and if that lies behind another document it is taken for filling too.
    """

    eos_id: int

    def __call__(self, blocks: Any) -> dict[str, torch.Tensor]:
        is_eos = blocks == self.eos_id
        filling = torch.zeros_like(is_eos)
        filling[:, 1:] = is_eos[:, 1:] & is_eos[:, :-1]
        return {"input_ids": blocks, "labels": blocks.masked_fill(filling, IGNORED)}


@dataclasses.dataclass(frozen=True)
class DocumentCollator:
    """As `FilledCollator`, but no document sees another one that shares its block.

    Positions restart at each document, from which the model's attention knows where documents begin; and the first token
    of a document, which nothing foretells, is no label. With the block `a b EOS c`: positions 0 1 2 0, labels a b EOS −100.
    """

    eos_id: int

    def __call__(self, blocks: Any) -> dict[str, torch.Tensor]:
        begins = torch.zeros_like(blocks, dtype=torch.bool)
        begins[:, 1:] = blocks[:, :-1] == self.eos_id
        places = torch.arange(blocks.shape[1]).expand_as(blocks)
        first = torch.where(begins, places, 0).cummax(dim=1).values
        return {"input_ids": blocks, "labels": blocks.masked_fill(begins, IGNORED), "position_ids": places - first}


def text_collator(eos_id: int, *, document_mask: bool) -> FilledCollator | DocumentCollator:
    """What makes batches whose labels are text alone, in evaluation always."""
    return DocumentCollator(eos_id) if document_mask else FilledCollator(eos_id)


def steps_of_epochs(num_train_epochs: float, num_blocks: int, global_batch_blocks: int) -> int:
    """Steps until each block has been trained on `num_train_epochs` times; the last may go a little beyond."""
    return max(1, math.ceil(num_train_epochs * num_blocks / global_batch_blocks))


class PositionSampler(Sampler[int]):
    """Block numbers from a position of the run to its end.

    `first_position` is asked at the start of each iteration, when the Trainer has restored its step. The length is
    that of the whole run, since the Trainer counts its steps from it.
    """

    def __init__(self, *, order: shards.RunOrder, num_positions: int, first_position: Callable[[], int]) -> None:
        self._order, self._num_positions, self._first_position = order, num_positions, first_position

    def __len__(self) -> int:
        return self._num_positions

    def __iter__(self) -> Iterator[int]:
        for start in range(self._first_position(), self._num_positions, CHUNK_POSITIONS):
            yield from self._order.blocks(start, min(start + CHUNK_POSITIONS, self._num_positions)).tolist()
