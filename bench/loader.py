"""What it costs to feed a trainer: batches of 32 random blocks from a shard set, in one process, in turns.

    python -m bench.loader SET [--rounds 5] [--batches 2000] [--only ours growth]

ours    the split's gather in the order of a run, against `memmap[numbers]` over the same tokens in one file
growth  the order's cost as the number of blocks grows, 10^4 to 10^10, against NumPy's permutation, held in memory
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import shards
from bench.measure import print_head, print_machine, print_rounds, print_row, ratios
from shards.common.command_line import Parser, run_command

BATCH_BLOCKS, NUM_WARM_BATCHES = 32, 20
MEASURES = ("ours", "growth")
CHUNK_POSITIONS = 1 << 15  # as the trainer's sampler asks for them


class Bench:
    def __init__(self, path: Path, work: Path, rounds: int, num_batches: int) -> None:
        self.path, self.work, self.rounds, self.num_batches = path, work, rounds, num_batches
        self.set = shards.open(path)
        self.split = self.set["train"]

    def ours(self) -> None:
        ways = {"ours, gather": self.gather(), "memmap[numbers]": bare_gather(self.blocks_in_one_file())}
        found: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(self.rounds + 1):
            for name, batches in ways.items():
                seconds = timed(batches, self.num_batches if number else NUM_WARM_BATCHES)
                found[name] += [1e6 * seconds] if number else []
        print_head("µs a batch of 32 blocks", "median", "target", "every round")
        for name, values in found.items():
            print_rounds(name, values, "{:.1f}")
        print_rounds("memmap[numbers] / ours", ratios(*reversed(found.values())), "{:.2f}", "≥ 0.4")

    def gather(self) -> Iterator[np.ndarray]:
        """As the trainer does it: the order in chunks, a gather for each batch."""
        order = shards.run_order(self.set, seed=0)
        for start in range(0, 1 << 62, CHUNK_POSITIONS):
            for numbers in order.blocks(start, start + CHUNK_POSITIONS).reshape(-1, BATCH_BLOCKS):
                yield self.split[numbers]

    def blocks_in_one_file(self) -> np.ndarray:
        """As a plain memory map: what a bare reader would have."""
        path = self.work / "one.bin"
        with path.open("wb") as file:
            for number in range(len(self.split.shards)):
                file.write(self.split.shard_blocks(number).data)
        return np.memmap(path, "<u4", "r").reshape(-1, self.split.block_tokens)

    def growth(self) -> None:
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


def timed(batches: Iterator[Any], count: int) -> float:
    """Seconds a batch of the next `count`."""
    begin = time.perf_counter()
    for _ in range(count):
        next(batches)
    return (time.perf_counter() - begin) / count


def bare_gather(blocks: np.ndarray) -> Iterator[np.ndarray]:
    rng, whole = np.random.default_rng(0), len(blocks) // BATCH_BLOCKS * BATCH_BLOCKS
    while True:
        for numbers in rng.permutation(len(blocks))[:whole].reshape(-1, BATCH_BLOCKS):
            yield blocks[numbers]


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("set", type=Path, help="a shard set; 500 million tokens or more say something")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=2000, help="in each round")
    parser.add_argument("--only", nargs="+", default=MEASURES, choices=MEASURES)
    parser.add_argument("--work", type=Path, help="where copies of the set are written (temporary)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        bench = Bench(options.set.resolve(), Path(work).resolve(), options.rounds, options.batches)
        print_machine(f"{bench.split.num_tokens:,} training tokens in {len(bench.split.shards):,} shards")
        for name in options.only:
            getattr(bench, name)()


if __name__ == "__main__":
    run_command(main)
