"""What it costs to feed a trainer: batches of 32 random blocks of a shard set, and their order, in one process, in turns.

    python -m bench.loader SET [--rounds 5] [--batches 2000]

First the split's gather in the order of a run, against `memmap[numbers]` over the same tokens in one file; then the order's
cost as the number of blocks grows, 10^4 to 10^10, against NumPy's permutation, held in memory.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator

import numpy as np

import shards
from bench.measure import print_head, print_machine, print_rounds, print_row, ratios
from shards.common.command_line import Parser, run_command

BATCH_BLOCKS, NUM_WARM_BATCHES = 32, 20
CHUNK_POSITIONS = 1 << 15  # as the trainer's sampler asks for them


def gather(shard_set: shards.ShardSet) -> Iterator[np.ndarray]:
    """As the trainer does it: the order in chunks, a gather for each batch."""
    order, split = shards.run_order(shard_set, seed=0), shard_set["train"]
    for start in itertools.count(0, CHUNK_POSITIONS):
        for numbers in order.blocks(start, start + CHUNK_POSITIONS).reshape(-1, BATCH_BLOCKS):
            yield split[numbers]


def bare_gather(split: shards.Split) -> Iterator[np.ndarray]:
    """From a plain memory map of all blocks in one file: what a bare reader would have."""
    with tempfile.TemporaryFile() as file:
        for number in range(len(split.shards)):
            file.write(split.shard_blocks(number).data)
        blocks = np.memmap(file, "<u4", "r").reshape(-1, split.block_tokens)
    rng, whole = np.random.default_rng(0), len(blocks) // BATCH_BLOCKS * BATCH_BLOCKS
    while True:
        for numbers in rng.permutation(len(blocks))[:whole].reshape(-1, BATCH_BLOCKS):
            yield blocks[numbers]


def print_gathers(shard_set: shards.ShardSet, rounds: int, num_batches: int) -> None:
    ways = {"ours, gather": gather(shard_set), "memmap[numbers]": bare_gather(shard_set["train"])}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, batches in ways.items():
            count, begin = num_batches if number else NUM_WARM_BATCHES, time.perf_counter()
            for _ in range(count):
                next(batches)
            found[name] += [1e6 * (time.perf_counter() - begin) / count] if number else []
    print_head("µs a batch of 32 blocks", "median", "target", "every round")
    for name, values in found.items():
        print_rounds(name, values, "{:.1f}")
    print_rounds("memmap[numbers] / ours", ratios(*reversed(found.values())), "{:.2f}", "≥ 0.4")


def print_growth() -> None:
    permutation = "NumPy's permutation: M positions/s"
    print_head("blocks", "M positions/s", "µs to the first 32", permutation, "s to the first")
    for exponent in range(4, 11):
        size, count = 10**exponent, 4_000_000
        order, begin = shards.RunOrder((size,), 0), time.perf_counter()
        order.blocks(size // 2, size // 2 + BATCH_BLOCKS)
        first, begin = time.perf_counter() - begin, time.perf_counter()
        for start in range(0, count, CHUNK_POSITIONS):
            order.blocks(start * 7919 % size, start * 7919 % size + CHUNK_POSITIONS)
        rate, cells = count / (time.perf_counter() - begin) / 1e6, ("–", "–")
        if exponent <= 8:
            begin = time.perf_counter()
            np.random.default_rng(0).permutation(size)
            seconds = time.perf_counter() - begin
            cells = (f"{size / seconds / 1e6:.1f}", f"{seconds:.4f}")
        print_row(f"10^{exponent}", f"{rate:.1f}", f"{1e6 * first:.0f}", *cells)


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("set", help="a shard set; 500 million tokens or more say something")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=2000, help="in each round")
    options = parser.parse_args(argv)
    shard_set = shards.open(options.set)
    print_machine(f"{shard_set['train'].num_tokens:,} training tokens in {len(shard_set['train'].shards):,} shards")
    print_gathers(shard_set, options.rounds, options.batches)
    print_growth()


if __name__ == "__main__":
    run_command(main)
