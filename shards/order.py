"""The order of blocks: in an epoch, and in a run of many epochs over one set or a mixture.

The order of an epoch is a keyed bijection of 0 … N−1, a pure function of (number of blocks, seed, epoch, position). Nothing
is stored, so a billion blocks cost what a thousand do. It is an unbalanced Feistel network on the smallest power of two
2**b >= N: the halves have b // 2 and b - b // 2 bits, and each round adds to one half (exclusive or) a mixed function of
the other half and of a round key. Results of N and above are sent through again until they fall below N ("cycle walking",
Black & Rogaway 2002); since 2**b < 2 N, that is less than twice on average. The mixing function is the finalizer of
SplitMix64 (Steele, Lea & Flood 2014) and the round keys are its outputs.

Position p of a run is one block, counted over all epochs, ranks and accumulation steps, and `RunOrder.blocks` a pure
function of it: resuming at any position, on any number of processes, is a matter of one integer.

A mixture deals positions out to its sets by whole-number weights, exactly. Its sets are the leaves of a binary tree. A node
passes the n-th position that comes to it to its left child where round(n × left weight / own weight) grows, else to its
right one. So each split adds at most half a block to the distance from what is due, and a set of weight s is never farther
from its share than 1/2 × (1 + the sum of s / w over the nodes above it but the root, of weights w). That is at most one
block for up to four sets, whatever their shares, and below two for any number: where the heaviest set of a node has half
its weight or more it stands alone, else both children have at most two thirds, so the sum is below 1 + 2/3 + 4/9 + … = 3.
The best of many trees is taken (`DealingTree.max_deviation`). From five sets on, more than a block does happen, though
seldom: 109/104 with weights 57, 37, 5, 4, 1; in 16,000 random mixtures of 3 to 16 sets the most was 1.053. After as many
positions as the weights' sum, each set has had exactly its weight. With weights 2, 1, 1: A B A C A B A C …

The k-th position that a set gets is position k of the set's own order, whose epochs follow one another: each of its blocks
exactly once before any comes again. A later stage has other weights; each set goes on where it is.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError
from shards.layout import SHUFFLES, Shuffle

DEFAULT_SEED = 2333
NUM_ROUNDS = 6
MAX_BLOCKS = 2**62
WINDOW_BLOCKS = 4096  # a power of two; 8 MiB of blocks of 512 tokens
_WINDOW_BITS = WINDOW_BLOCKS.bit_length() - 1
# The constants of SplitMix64.
_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK_64 = 2**64 - 1
MAX_TOTAL_WEIGHT = 2**46  # so that the sums for a chunk stay below 2**63
_SEEDS = 2**63 - 1
_CHUNK = 1 << 16  # positions at a time: what is kept of many is their order alone
_CACHED = 1 << 13  # of which so many go through the network at once: four arrays of 64 KiB stay in the cache

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]


def check_seed(seed: int) -> None:
    """Raise `InputError` unless `seed` may have this value."""
    if not 0 <= seed <= _MASK_64:
        raise InputError(f"seed: expected 0 to 2**64 - 1, found {seed}")


def epoch_order(num_blocks: int, seed: int, epoch: int, positions: npt.ArrayLike) -> Int64s:
    """The block numbers at `positions` of the epoch's order, same shape as `positions`.

    For each (num_blocks, seed, epoch), the positions 0 … num_blocks−1 give each block number exactly once.
    Raises `ValueError` for positions outside that range.

    >>> sorted(epoch_order(5, seed=2333, epoch=0, positions=range(5)).tolist())
    [0, 1, 2, 3, 4]
    """
    places = _checked(num_blocks, epoch, positions)
    order, keys = places.astype(np.uint64).reshape(-1), round_keys(seed, epoch)
    num_bits = (num_blocks - 1).bit_length()
    for start in range(0, len(order), _CHUNK):
        values = order[start : start + _CHUNK]
        _feistel(values, num_bits, keys)
        outside = np.flatnonzero(values >= num_blocks)
        while outside.size:
            walked = values[outside]
            _feistel(walked, num_bits, keys)
            values[outside] = walked
            outside = outside[walked >= num_blocks]
    return order.view(np.int64).reshape(places.shape)


def _checked(num_blocks: int, epoch: int, positions: npt.ArrayLike) -> Int64s:
    """`positions` as an array. Raises `ValueError` for what no order has."""
    if not 0 < num_blocks <= MAX_BLOCKS:
        raise ValueError(f"num_blocks: expected 1 to {MAX_BLOCKS}, found {num_blocks}")
    if epoch < 0:
        raise ValueError(f"epoch: expected at least 0, found {epoch}")
    places = np.asarray(positions, dtype=np.int64)
    if places.size and not (places.min() >= 0 and places.max() < num_blocks):
        raise ValueError(f"positions must lie in 0 … {num_blocks - 1:,}")
    return places


def window_order(num_blocks: int, seed: int, epoch: int, positions: npt.ArrayLike) -> Int64s:
    """As `epoch_order`, but shuffled in windows, for disks and network file systems that are slow at random reads.

    Blocks are taken in windows of 4,096 that lie together; the order of the windows is shuffled, and the blocks within
    each. Where windows begin is shifted from epoch to epoch, so that other blocks meet. The last, shorter, window comes
    last. Each block exactly once an epoch.
    """
    places = _checked(num_blocks, epoch, positions)
    flat = places.reshape(-1)
    first_of_last = num_blocks // WINDOW_BLOCKS * WINDOW_BLOCKS
    whole = flat < first_of_last
    order = np.empty_like(flat)
    if whole.any():
        windows, within = np.divmod(flat[whole], WINDOW_BLOCKS)
        windows, values = epoch_order(num_blocks // WINDOW_BLOCKS, seed, epoch, windows), within.view(np.uint64)
        _feistel(values, _WINDOW_BITS, [_mix_array(windows, key) for key in round_keys(seed ^ _GOLDEN, epoch)])
        order[whole] = windows * WINDOW_BLOCKS + within
    if not whole.all():
        own = flat[~whole] - first_of_last
        order[~whole] = first_of_last + epoch_order(num_blocks - first_of_last, seed ^ _GOLDEN, epoch, own)
    shift = round_keys(seed, epoch)[0] % num_blocks
    return ((order + shift) % num_blocks).reshape(places.shape)


def _mix_array(values: Int64s, key: int) -> UInt64s:
    """A round key for each of `values`."""
    mixed = values.astype(np.uint64) * np.uint64(_GOLDEN) ^ np.uint64(key)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(_MIX_1)
    return mixed ^ mixed >> np.uint64(27)


def round_keys(seed: int, epoch: int) -> list[int]:
    """The 64-bit round keys of an epoch: SplitMix64 seeded with the mixed seed and epoch."""
    state = mix_64(mix_64(seed & _MASK_64) + epoch & _MASK_64)
    return [mix_64(state + (number + 1) * _GOLDEN & _MASK_64) for number in range(NUM_ROUNDS)]


def mix_64(value: int) -> int:
    """SplitMix64's finalizer on one 64-bit value: a bijection whose every output bit depends on all input bits."""
    value = (value ^ value >> 30) * _MIX_1 & _MASK_64
    value = (value ^ value >> 27) * _MIX_2 & _MASK_64
    return value ^ value >> 31


def _feistel(values: UInt64s, num_bits: int, keys: Sequence[int | UInt64s]) -> None:
    """Send values of `num_bits` bits through the network, in place; a key is one number, or one for each value.

    Example with 5 bits: 0b10110 is left 0b10 and right 0b110. A round's function is two multiply-and-shift steps of
    SplitMix64's finalizer over the other half and the round key.
    """
    right_bits = np.uint64(num_bits - num_bits // 2)
    left_mask, right_mask = np.uint64(2 ** (num_bits // 2) - 1), np.uint64(2 ** int(right_bits) - 1)
    mix_1, mix_2, high = np.uint64(_MIX_1), np.uint64(_MIX_2), np.uint64(32)
    for start in range(0, len(values), _CACHED):
        part = values[start : start + _CACHED]
        left, right, mixed, shifted = part >> right_bits, part & right_mask, np.empty_like(part), np.empty_like(part)
        for number, key in enumerate(keys):
            half, other, mask = (left, right, left_mask) if number % 2 == 0 else (right, left, right_mask)
            own_key = key[start : start + _CACHED] if isinstance(key, np.ndarray) else np.uint64(key)
            np.bitwise_xor(other, own_key, out=mixed)
            mixed *= mix_1
            mixed ^= np.right_shift(mixed, high, out=shifted)
            mixed *= mix_2
            mixed >>= high
            mixed &= mask
            half ^= mixed
        left <<= right_bits
        np.bitwise_or(left, right, out=part)


@dataclass(frozen=True)
class Stage:
    """From position `start` of a run on its sets have these weights; a set of weight 0 isn't in this stage."""

    start: int
    weights: tuple[int, ...]


@dataclass(frozen=True)
class RunOrder:
    """Which block stands at each position of a run.

    Blocks are numbered through the sets, one set after another. `weights` are in proportion to the sets' shares until the
    first of the `later` stages begins. Raises `ValueError` for what makes no sense.

    With the shuffle `offset` the order is that of `global`, and each epoch of a set cuts its blocks anew: what stands at a
    position is a block's number and so many times the number of all blocks as epochs are over, which `Split.offset_blocks`
    and `shards.torch.BlockDataset` take.
    """

    sizes: tuple[int, ...]  # blocks in each set
    seed: int
    shuffle: Shuffle = "global"
    weights: tuple[int, ...] = (1,)
    later: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        for weights in (stage.weights for stage in self.stages):
            if len(weights) != len(self.sizes) or min(weights) < 0 or not 0 < sum(weights) <= MAX_TOTAL_WEIGHT:
                raise ValueError(f"weights: expected one for each set, at least 0, 1 to {MAX_TOTAL_WEIGHT} together")
        if any(before.start > after.start for before, after in itertools.pairwise(self.stages)):
            raise ValueError("later: expected stages by their starts")
        if min(self.sizes) < 1:
            raise ValueError("sizes: expected at least one block in each set")
        if self.shuffle not in SHUFFLES:
            raise ValueError(f"shuffle: expected {', '.join(SHUFFLES)}, found {self.shuffle!r}")

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage(0, self.weights), *self.later)

    def blocks(self, start: int, stop: int) -> Int64s:
        """The blocks at positions `start` … `stop` − 1, shape `(stop - start,)`.

        With one set of N = 10, positions 8 … 12 are places 8 and 9 of epoch 0 and places 0, 1 and 2 of epoch 1.

        >>> RunOrder((2, 2), seed=0, shuffle="none", weights=(1, 1)).blocks(0, 6).tolist()
        [0, 2, 1, 3, 0, 2]
        """
        first_blocks = [0, *itertools.accumulate(self.sizes)]
        result = np.empty(max(0, stop - start), dtype=np.int64)
        for stage, end in self._ends(stop):
            tree, before = dealing_tree(stage.weights), self.counts(stage.start) if end > start else []
            for first in range(max(start, stage.start), end, _CHUNK):
                slots = np.arange(first - start, min(first + _CHUNK, end) - start)
                for number, own_first, own in tree.deal(first - stage.start, slots):
                    result[own] = first_blocks[number] + self._set_blocks(number, before[number] + own_first, len(own))
        return result

    def counts(self, position: int) -> list[int]:
        """How many of the positions before `position` each set gets."""
        counts = [0] * len(self.sizes)
        for stage, end in self._ends(position):
            for number, first, _slots in dealing_tree(stage.weights).deal(end - stage.start, np.arange(0)):
                counts[number] += first
        return counts

    def _ends(self, stop: int) -> Iterator[tuple[Stage, int]]:
        """The stages that begin before `stop`, and the position after each."""
        for stage, after in itertools.zip_longest(self.stages, self.later):
            if stage.start < stop:
                yield stage, min(after.start, stop) if after else stop

    def _set_blocks(self, number: int, start: int, count: int) -> Int64s:
        """The set's blocks at its own positions `start` … `start + count - 1`, numbered from 0."""
        size, seed = self.sizes[number], set_seed(self.seed, number)
        places = np.arange(start, start + count)
        if self.shuffle == "none":
            return places % size
        order = window_order if self.shuffle == "window" else epoch_order
        for epoch in range(start // size, -(-(start + count) // size)):
            own = places[max(0, epoch * size - start) : (epoch + 1) * size - start]
            own -= epoch * size
            own[:] = order(size, seed, epoch, own)
            if self.shuffle == "offset":
                own += epoch * sum(self.sizes)
        return places


def set_seed(seed: int, number: int) -> int:
    """The seed of a mixture's set `number`: the first has the run's own, so a mixture of one is that set alone."""
    return seed if number == 0 else mix_64(mix_64(seed & _SEEDS) + number) & _SEEDS


@dataclass(frozen=True)
class DealingTree:
    """A node of the tree that deals positions out: a set, or two children."""

    weight: int
    number: int = -1  # of the set
    children: tuple[DealingTree, ...] = ()

    def deal(self, first: int, slots: Int64s) -> Iterator[tuple[int, int, Int64s]]:
        """Deal `slots` out, the first of which is this node's position `first`.

        Yields for each set its number, its own position at its first slot, and its slots. Exact for any `first`: only
        numbers below weight × (slots + 2) are computed in 64 bits.
        """
        if not self.children:
            yield self.number, first, slots
            return
        left, right = self.children
        before, remainder = divmod(first * left.weight + self.weight // 2, self.weight)
        num_left = (len(slots) * left.weight + remainder) // self.weight
        # The left child's next number n stands where (slot + 1) × left weight + remainder reaches (n + 1) × weight.
        of_left = (np.arange(1, num_left + 1) * self.weight - (remainder + 1)) // left.weight
        of_right = (np.arange(len(slots) - num_left) * self.weight + remainder) // right.weight
        yield from left.deal(before, slots[of_left])
        yield from right.deal(first - before, slots[of_right])

    def max_deviation(self, above: float | None = None) -> float:
        """How far, in blocks, a set can be from its share; `above`: the sum of 1 / w over nodes above this one."""
        if not self.children:
            return 0.0 if above is None else (1 + self.weight * above) / 2
        inner = 0.0 if above is None else above + 1 / self.weight
        return max(child.max_deviation(inner) for child in self.children)


@functools.lru_cache(maxsize=64)
def dealing_tree(weights: tuple[int, ...]) -> DealingTree:
    """The best of some trees for sets of these weights, in time that grows with the cube of their number."""
    numbers = sorted((number for number, weight in enumerate(weights) if weight), key=lambda n: (-weights[n], n))
    leaves = [DealingTree(weights[number], number) for number in numbers]
    return min((_tree_within(leaves, quarters / 4) for quarters in range(1, 9)), key=DealingTree.max_deviation)


def _tree_within(leaves: Sequence[DealingTree], allowed: float) -> DealingTree:
    """The tree over `leaves`, in their order, where weight × the sum of 1 / w above stays farthest within `allowed`."""
    num_leaves = len(leaves)
    nodes = {(place, place + 1): leaf for place, leaf in enumerate(leaves)}  # over the leaves from … to
    rooms = np.zeros((num_leaves, num_leaves + 1))
    for place, leaf in enumerate(leaves):
        rooms[place, place + 1] = allowed / leaf.weight
    for count in range(2, num_leaves + 1):
        for start, stop in zip(range(num_leaves), range(count, num_leaves + 1), strict=False):
            splits = np.minimum(rooms[start, start + 1 : stop], rooms[start + 1 : stop, stop])
            middle = start + 1 + int(splits.argmax())
            left, right = nodes[start, middle], nodes[middle, stop]
            nodes[start, stop] = node = DealingTree(left.weight + right.weight, children=(left, right))
            rooms[start, stop] = splits.max() - 1 / node.weight
    return nodes[0, num_leaves]


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
