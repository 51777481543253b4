"""Many inputs through one reader: seeds, changed at random.

    python -m bench.fuzz TARGET [--seconds 60] [--inputs N] [--seed 0] [--failures DIR]

Exit status 1 where an input failed; it is kept in DIR.
"""

from __future__ import annotations

from pathlib import Path

from bench.fuzz.loop import Run
from bench.fuzz.targets import TARGETS
from bench.measure import REPOSITORY
from shards.common.command_line import Parser, run_command

SEEDS = REPOSITORY / "tests" / "fuzz_seeds"


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("target", metavar="TARGET", choices=TARGETS, help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="stop after so long (60)")
    parser.add_argument("--inputs", type=int, default=10**12, metavar="N", help="stop after so many")
    parser.add_argument("--seed", type=int, default=0, help="of the random changes (0)")
    parser.add_argument("--failures", type=Path, default=REPOSITORY / "bench" / "fuzz-work", metavar="DIR")
    given = parser.parse_args(argv)
    run = Run(given.target, TARGETS[given.target], given.failures / given.target)
    run.random(SEEDS / given.target, given.seed, num_inputs=given.inputs, seconds=given.seconds)
    return 1 if run.num_failures else 0


if __name__ == "__main__":
    run_command(main)
