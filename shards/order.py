"""The order of blocks in an epoch: a keyed bijection of 0 … N−1, computed position by position.

A pure function of (number of blocks, seed, epoch, position). Nothing is stored, so a billion blocks cost what a
thousand do, and resuming at any position costs nothing.

The bijection is an unbalanced Feistel network on the smallest power of two 2**b >= N: the two halves have
b // 2 and b - b // 2 bits, each round adds to one half (exclusive or) a mixed function of the other half and of
a round key. It permutes 0 … 2**b − 1. Results of N and above are sent through again until they fall below N
("cycle walking", Black & Rogaway 2002), which is a bijection of 0 … N−1. Since 2**b < 2 N, a position is
sent through less than twice on average.

The mixing function is the finalizer of SplitMix64 (Steele, Lea & Flood 2014) and the round keys are its outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError

DEFAULT_SEED = 2333
NUM_ROUNDS = 6
MAX_BLOCKS = 2**62
_GOLDEN = 0x9E3779B97F4A7C15
_MASK_64 = 2**64 - 1
_CHUNK = 1 << 15  # positions at a time: their intermediate arrays stay in the processor's cache


def check_seed(seed: int) -> None:
    """Raise `InputError` unless `--seed` may have this value."""
    if not 0 <= seed <= _MASK_64:
        raise InputError(f"--seed: expected 0 to 2**64 - 1, found {seed}")


def epoch_order(num_blocks: int, seed: int, epoch: int, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The block numbers at `positions` of the epoch's order, same shape as `positions`.

    For each (num_blocks, seed, epoch), the positions 0 … num_blocks−1 give each block number exactly once.
    Raises `ValueError` for positions outside that range.

    >>> sorted(epoch_order(5, seed=2333, epoch=0, positions=range(5)).tolist())
    [0, 1, 2, 3, 4]
    """
    if not 0 < num_blocks <= MAX_BLOCKS:
        raise ValueError(f"num_blocks: expected 1 to {MAX_BLOCKS}, found {num_blocks}")
    if epoch < 0:
        raise ValueError(f"epoch: expected at least 0, found {epoch}")
    places = np.asarray(positions, dtype=np.int64)
    if places.size and not (places.min() >= 0 and places.max() < num_blocks):
        raise ValueError(f"positions must lie in 0 … {num_blocks - 1:,}")
    flat = places.reshape(-1)
    keys = round_keys(seed, epoch)
    order = np.empty(flat.shape, dtype=np.int64)
    for start in range(0, len(flat), _CHUNK):
        order[start : start + _CHUNK] = _permute(num_blocks, keys, flat[start : start + _CHUNK])
    return order.reshape(places.shape)


WINDOW_BLOCKS = 4096  # a power of two; 8 MiB of blocks of 512 tokens
_WINDOW_BITS = WINDOW_BLOCKS.bit_length() - 1


def window_order(num_blocks: int, seed: int, epoch: int, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """As `epoch_order`, but shuffled in stretches, for disks and network file systems that hate random reads.

    Blocks are taken in windows of 4,096 that lie together; the order of the windows is shuffled, and the blocks within
    each. Where windows begin is shifted from epoch to epoch, so that other blocks meet. The last, shorter, window comes
    last. Each block exactly once an epoch.
    """
    places = np.asarray(positions, dtype=np.int64)
    if places.size and not (places.min() >= 0 and places.max() < num_blocks):
        raise ValueError(f"positions must lie in 0 … {num_blocks - 1:,}")
    flat = places.reshape(-1)
    num_windows = num_blocks // WINDOW_BLOCKS
    whole = flat < num_windows * WINDOW_BLOCKS
    order = np.empty_like(flat)
    if whole.any():
        windows, within = np.divmod(flat[whole], WINDOW_BLOCKS)
        windows = epoch_order(num_windows, seed, epoch, windows)
        keys = [_mix_array(windows, key) for key in round_keys(seed ^ _GOLDEN, epoch)]
        order[whole] = windows * WINDOW_BLOCKS + _feistel(within.astype(np.uint64), _WINDOW_BITS, keys).astype(np.int64)
    if not whole.all():
        first = num_windows * WINDOW_BLOCKS
        order[~whole] = first + epoch_order(num_blocks - first, seed ^ _GOLDEN, epoch, flat[~whole] - first)
    shift = round_keys(seed, epoch)[0] % num_blocks
    return ((order + shift) % num_blocks).reshape(places.shape)


def _mix_array(values: npt.NDArray[np.int64], key: int) -> npt.NDArray[np.uint64]:
    """A round key for each of `values`."""
    mixed = values.astype(np.uint64) * np.uint64(_GOLDEN) ^ np.uint64(key)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ mixed >> np.uint64(27)


def round_keys(seed: int, epoch: int) -> list[int]:
    """The 64-bit round keys of an epoch: SplitMix64 seeded with the mixed seed and epoch."""
    state = mix_64(mix_64(seed & _MASK_64) + epoch & _MASK_64)
    return [mix_64(state + (number + 1) * _GOLDEN & _MASK_64) for number in range(NUM_ROUNDS)]


def mix_64(value: int) -> int:
    """SplitMix64's finalizer on one 64-bit value: a bijection whose every output bit depends on all input bits."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK_64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK_64
    return value ^ value >> 31


def _permute(num_blocks: int, keys: list[int], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    num_bits = (num_blocks - 1).bit_length()
    result = _feistel(positions.astype(np.uint64), num_bits, keys)
    outside = np.flatnonzero(result >= num_blocks)
    while outside.size:
        walked = _feistel(result[outside], num_bits, keys)
        result[outside] = walked
        outside = outside[walked >= num_blocks]
    return result.astype(np.int64)


def _feistel(
    values: npt.NDArray[np.uint64], num_bits: int, keys: Sequence[int | npt.NDArray[np.uint64]]
) -> npt.NDArray[np.uint64]:
    """The network on values of `num_bits` bits; a key is one number, or one for each value.

    Example with 5 bits: 0b10110 is left 0b10 and right 0b110."""
    right_bits = np.uint64(num_bits - num_bits // 2)
    left_mask, right_mask = np.uint64(2 ** (num_bits // 2) - 1), np.uint64(2 ** int(right_bits) - 1)
    left, right = values >> right_bits, values & right_mask
    for number, key in enumerate(keys):
        if number % 2 == 0:
            left ^= _mix(right, key) & left_mask
        else:
            right ^= _mix(left, key) & right_mask
    return left << right_bits | right


def _mix(half: npt.NDArray[np.uint64], key: int | npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Two multiply-and-shift steps of SplitMix64's finalizer over `half` and the round key."""
    value = half ^ (key if isinstance(key, np.ndarray) else np.uint64(key))
    value *= np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(32)
    value *= np.uint64(0x94D049BB133111EB)
    value >>= np.uint64(32)
    return value
