"""What the order of an epoch costs, against NumPy's permutation, which is held in memory.

    python bench/order.py [--rounds N] [--largest-permutation N]

The order of N blocks is asked for as a training does, in stretches of consecutive positions from the middle of the epoch;
its first position alone is what a run that is resumed waits for. For the permutation that is making all of it. CPU seconds
of one core, since machines are shared; the best of the rounds counts. Prints a Markdown table for bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from shards import epoch_order  # noqa: E402

SIZES = [10**exponent for exponent in range(4, 11)]
STRETCH = 1 << 16
NUM_STRETCHES = 16
SEED = 2333


def best_seconds(work: Callable[[], object], rounds: int) -> float:
    """The fewest CPU seconds of `rounds` runs."""
    seconds = []
    for _ in range(rounds):
        begin = time.process_time()
        work()
        seconds.append(time.process_time() - begin)
    return min(seconds)


def ours(num_blocks: int, rounds: int) -> tuple[float, float]:
    """Positions a second, and the seconds until the first position is known."""
    stretch = min(STRETCH, num_blocks)
    positions = np.arange(num_blocks // 2 - stretch // 2, num_blocks // 2 - stretch // 2 + stretch)

    def work() -> None:
        for epoch in range(NUM_STRETCHES):
            epoch_order(num_blocks, SEED, epoch, positions)

    first = best_seconds(lambda: epoch_order(num_blocks, SEED, 0, [num_blocks // 2]), rounds * 100)
    return NUM_STRETCHES * stretch / best_seconds(work, rounds), first


def numpys(num_blocks: int, rounds: int) -> float:
    """The seconds that the permutation takes; its positions are then there at once."""
    return best_seconds(lambda: np.random.default_rng(SEED).permutation(num_blocks), rounds)


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of each measure (default 5)")
    parser.add_argument(
        "--largest-permutation", type=int, default=10**8, metavar="N", help="larger ones are left out (default 10**8)"
    )
    options = parser.parse_args()
    print("| blocks | positions a second | first position | NumPy: positions a second | first position | memory |")
    print("|---|---|---|---|---|---|")
    for num_blocks in SIZES:
        rate, first = ours(num_blocks, options.rounds)
        cells = [f"{num_blocks:,}", f"{rate / 1e6:.1f} M", f"{first * 1e6:,.0f} µs"]
        # 8 bytes a block, and as much again to be safe.
        if num_blocks <= options.largest_permutation and num_blocks * 16 < memory_bytes():
            seconds = numpys(num_blocks, options.rounds if num_blocks < 10**8 else 1)
            cells += [
                f"{num_blocks / seconds / 1e6:.1f} M",
                f"{seconds * 1e6:,.0f} µs",
                f"{num_blocks * 8 / 1e6:,.2f} MB",
            ]
        else:
            cells += ["–", "–", f"{num_blocks * 8 / 1e6:,.0f} MB"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
