"""What it costs to feed a trainer: batches of 32 random blocks from a shard set, in one process, in turns.

    python -m bench.loader SET [--rounds 5] [--batches 2000] [--only ours,manifest,cold,growth,peers]

ours      the split's gather in the order of a run, against `memmap[numbers]` over the same tokens in one file
manifest  decoding and checking a manifest of 20,000 shards
cold      from `import shards` to the first batch in a new process, the set's pages out of the page cache
growth    the order's cost as the number of blocks grows, 10^4 to 10^10, against NumPy's permutation, held in memory
peers     each peer's own reader on the same tokens (`make peers` installs them; left out where missing)

Prints Markdown tables for bench/RESULTS.md.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import shards
from bench.measure import PEERS_VENV, every, print_head, print_machine, print_rounds, print_row, ratios, run
from bench.peers import BATCH_BLOCKS, NUM_WARM_BATCHES, PEERS, exported, run_peer
from shards.common.command_line import Parser, run_command
from shards.layout import SPLITS, shard_name
from shards.manifest import decode_manifest, encode_manifest, sum_splits

CHUNK_POSITIONS = 1 << 15  # as the trainer's sampler asks for them


class Bench:
    def __init__(self, path: Path, work: Path, rounds: int, num_batches: int) -> None:
        self.path, self.work, self.rounds, self.num_batches = path, work, rounds, num_batches
        self.set = shards.open(path)
        self.split = self.set["train"]

    def in_turns(self, ways: dict[str, Callable[[], float]], target: str) -> None:
        """A row for each way: its seconds a batch in every round. The first is ours."""
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(self.rounds):
            for name, way in ways.items():
                found[name].append(way())
        own = next(iter(found.values()))
        print_head("way", "µs a batch of 32, every round", "M tokens/s", "ours is faster by", "target")
        for name, values in found.items():
            rate = BATCH_BLOCKS * self.split.block_tokens / statistics.median(values) / 1e6
            faster = f"{statistics.median(ratios(values, own)):.2f} ×"
            rounds = every([1e6 * value for value in values], "{:.1f}")
            print_row(name, rounds, f"{rate:,.0f}", faster, target if values is not own else "")

    def ours(self) -> None:
        bare = timed(bare_gather(self.blocks_in_one_file()), self.num_batches)
        self.in_turns({"ours, gather": timed(self.gather(), self.num_batches), "memmap[numbers]": bare}, "≥ 0.4")

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

    def manifest(self) -> None:
        """With 20,000 copies of the set's first shard."""
        first, numbers = self.set.manifest.shards[0], range(10_000)
        entries = [
            dataclasses.replace(first, name=shard_name(split, number), split=split)
            for split in SPLITS
            for number in numbers
        ]
        splits = sum_splits(entries, self.set.manifest.block_tokens)
        large = dataclasses.replace(self.set.manifest, shards=entries, splits=splits).with_fingerprint()
        encoded, seconds = encode_manifest(large), []
        for _ in range(self.rounds):
            begin = time.perf_counter()
            decode_manifest(encoded, "bench")
            seconds.append(time.perf_counter() - begin)
        print_head("measure", "median", "target", "every round")
        print_rounds(f"a manifest of {len(entries):,} shards, {len(encoded):,} bytes: s", seconds, "{:.2f}", "0.5")

    def cold(self) -> None:
        opened, first = zip(*(cold_start(self.path) for _ in range(self.rounds)), strict=True)
        print_head("measure", "median", "target", "every round")
        print_rounds("cold: import and open, ms", opened, "{:.0f}", "200 with the next")
        print_rounds("cold: then to the first batch, ms", first, "{:.1f}")

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

    def peers(self) -> None:
        """Each peer's reader in a process of its own."""
        if not PEERS_VENV.exists():
            print("peers: left out, not installed: `make peers`", file=sys.stderr)
            return
        ways = {"ours, gather": timed(self.gather(), self.num_batches)}
        for name, peer in PEERS.items():
            if peer.how:
                ways[name] = self.peer_way(name, exported(self.path, peer.form, self.work))
        self.in_turns(ways, "> 1")

    def peer_way(self, name: str, export: Path) -> Callable[[], float]:
        def way() -> float:
            ended = run_peer(self.work, "time", name, self.path, export, max(100, self.num_batches // 10))
            if ended.status:
                raise SystemExit(f"{name}: {ended.errors[-2000:]}")
            return float(ended.last_line()["seconds_a_batch"])

        return way


def timed(batches: Iterator[Any], count: int) -> Callable[[], float]:
    """Seconds a batch of the next `count`; the first ones are not counted."""
    for _ in range(NUM_WARM_BATCHES):
        next(batches)

    def way() -> float:
        begin = time.perf_counter()
        for _ in range(count):
            next(batches)
        return (time.perf_counter() - begin) / count

    return way


def bare_gather(blocks: np.ndarray) -> Iterator[np.ndarray]:
    rng, whole = np.random.default_rng(0), len(blocks) // BATCH_BLOCKS * BATCH_BLOCKS
    while True:
        for numbers in rng.permutation(len(blocks))[:whole].reshape(-1, BATCH_BLOCKS):
            yield blocks[numbers]


COLD = """
import sys, time
begin = time.perf_counter()
import numpy as np
import shards
opened = shards.open(sys.argv[1])
now = time.perf_counter()
start = 10**6 % len(opened["train"])
batch = opened["train"][shards.run_order(opened, seed=0).blocks(start, start + 32)]
print(f"[{1e3 * (now - begin)}, {1e3 * (time.perf_counter() - now)}]")
"""


def cold_start(path: Path) -> tuple[float, float]:
    """Milliseconds to import and open, and then to the first batch, with the set's pages dropped from the page cache."""
    for file in path.glob("*.bin"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    found: tuple[float, float] = run([sys.executable, "-c", COLD, path]).last_line()
    return found


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("set", type=Path, help="a shard set; 500 million tokens or more say something")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=2000, help="in each round")
    parser.add_argument("--only", default="ours,manifest,cold,growth,peers", metavar="NAMES")
    parser.add_argument("--work", type=Path, help="where copies of the set are written (temporary)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        bench = Bench(options.set.resolve(), Path(work).resolve(), options.rounds, options.batches)
        print_machine(f"{bench.split.num_tokens:,} training tokens in {len(bench.split.shards):,} shards")
        for name in options.only.split(","):
            getattr(bench, name)()


if __name__ == "__main__":
    run_command(main)
