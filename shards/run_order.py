"""The order in which a run visits blocks: one set or a mixture, whole epochs one after another.

Position p of a run is one block, counted over all epochs, ranks and accumulation steps. `RunOrder.blocks` is a pure
function of it, so resuming at any position, on any number of processes, is a matter of one integer.

A mixture deals positions out to its sets in a pattern that repeats every 1,000 positions, with each set's positions
spread evenly in it: so each stretch of 1,000 blocks, wherever it begins, has exactly the shares asked for, and shorter
stretches have nearly them. The k-th position that a set gets is position k of the set's own order, whose epochs follow one
another: each of its blocks exactly once before any comes again. With shares 0.5, 0.25 and 0.25: A B A C A B A C …
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from shards.order import epoch_order, mix_64, window_order

Shuffle = Literal["global", "window", "none"]
SHUFFLES: tuple[Shuffle, ...] = ("global", "window", "none")
PERIOD = 1000
_SEEDS = 2**63 - 1

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RunOrder:
    """Which block stands at each position of a run.

    Blocks are numbered through the sets, one behind the other. `per_mille` are the sets' shares; they sum to 1,000.
    """

    sizes: tuple[int, ...]  # blocks in each set
    seed: int
    shuffle: Shuffle = "global"
    per_mille: tuple[int, ...] = (PERIOD,)

    def __post_init__(self) -> None:
        if len(self.per_mille) != len(self.sizes) or sum(self.per_mille) != PERIOD or min(self.per_mille) < 1:
            raise ValueError(f"per_mille: expected a share of at least 1 for each set, {PERIOD} together")
        if min(self.sizes) < 1:
            raise ValueError("sizes: expected at least one block in each set")
        if self.shuffle not in SHUFFLES:
            raise ValueError(f"shuffle: expected {', '.join(SHUFFLES)}, found {self.shuffle!r}")

    def blocks(self, start: int, stop: int) -> Int64s:
        """The blocks at positions `start` … `stop` − 1, shape `(stop - start,)`.

        With one set of N = 10, positions 8 … 12 are places 8 and 9 of epoch 0 and places 0, 1 and 2 of epoch 1.

        >>> RunOrder((2, 2), seed=0, shuffle="none", per_mille=(500, 500)).blocks(0, 6).tolist()
        [0, 2, 1, 3, 0, 2]
        """
        positions = np.arange(start, stop)
        if len(self.sizes) == 1:
            return self._set_blocks(0, positions)
        sets, ranks = mixture_pattern(self.per_mille)
        cycles, slots = np.divmod(positions, PERIOD)
        chosen, result = sets[slots], np.empty_like(positions)
        first = 0
        for number, size in enumerate(self.sizes):
            own = chosen == number
            result[own] = first + self._set_blocks(number, cycles[own] * self.per_mille[number] + ranks[slots[own]])
            first += size
        return result

    def _set_blocks(self, number: int, positions: Int64s) -> Int64s:
        """The set's blocks at its own ascending `positions`, numbered from 0."""
        size, seed = self.sizes[number], set_seed(self.seed, number)
        if self.shuffle == "none":
            return positions % size
        result = np.empty_like(positions)
        begin = 0
        while begin < len(positions):
            epoch = int(positions[begin]) // size
            end = int(np.searchsorted(positions, (epoch + 1) * size))
            order = epoch_order if self.shuffle == "global" else window_order
            result[begin:end] = order(size, seed, epoch, positions[begin:end] - epoch * size)
            begin = end
        return result


def set_seed(seed: int, number: int) -> int:
    """The seed of a mixture's set `number`: the first has the run's own, so a mixture of one is that set alone."""
    return seed if number == 0 else mix_64(mix_64(seed & _SEEDS) + number) & _SEEDS


def mixture_pattern(per_mille: tuple[int, ...]) -> tuple[Int64s, Int64s]:
    """For each of the 1,000 slots: the set that gets it, and how many slots that set got before.

    The k-th of n slots of a set wants to stand at (k + 1/2) / n of the way; slots are taken in that order.
    """
    sets = np.repeat(np.arange(len(per_mille)), per_mille)
    ranks = np.concatenate([np.arange(count) for count in per_mille])
    wanted = (2 * ranks + 1) / (2 * np.array(per_mille)[sets])
    order = np.lexsort((sets, wanted))
    return sets[order], ranks[order]


def rank_positions(
    step: int, *, rank: int, world_size: int, micro_batch_blocks: int, accumulation_steps: int = 1
) -> Int64s:
    """The positions of the run that process `rank` trains on in `step`, shape `(accumulation_steps, micro_batch_blocks)`.

    As accelerate deals them out: micro-batches one after another in turn to the processes. All ranks together have the
    positions step × global batch … (step + 1) × global batch − 1, for any number of processes.

    >>> [rank_positions(0, rank=r, world_size=2, micro_batch_blocks=2).tolist() for r in (0, 1)]
    [[[0, 1]], [[2, 3]]]
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank: expected 0 to {world_size - 1}, found {rank}")
    first = step * world_size * accumulation_steps * micro_batch_blocks
    micro_batches = np.arange(accumulation_steps) * world_size + rank
    return first + micro_batches[:, np.newaxis] * micro_batch_blocks + np.arange(micro_batch_blocks)
