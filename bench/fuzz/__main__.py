"""Many inputs through one reader.

    python -m bench.fuzz TARGET [--random] [--seconds 60] [--inputs N] [--corpus DIR]

With atheris (`pip install atheris`) inputs are found by coverage of the readers' own code; without it, or with `--random`,
seeds and what was kept earlier are changed at random. Exit status 1 where an input failed; it is kept in
DIR/TARGET.failures.
"""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import Any

from bench.measure import REPOSITORY
from shards.common.command_line import Parser, run_command

SEEDS = REPOSITORY / "tests" / "fuzz_seeds"


def main(argv: list[str]) -> int:
    instrumented: Any = contextlib.nullcontext()
    by_coverage = "--random" not in argv and importlib.util.find_spec("atheris") is not None
    if by_coverage:
        import atheris

        instrumented = atheris.instrument_imports(include=["pipeline", "shards"])
    with instrumented:
        from bench.fuzz import loop
        from bench.fuzz.targets import TARGETS
    parser = Parser(description=__doc__)
    parser.add_argument("target", metavar="TARGET", choices=TARGETS, help=", ".join(TARGETS))
    parser.add_argument("--inputs", type=int, default=10**12, metavar="N", help="stop after so many")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="stop after so long (60)")
    parser.add_argument("--corpus", type=Path, default=REPOSITORY / "bench" / "fuzz-work", metavar="DIR")
    parser.add_argument("--random", action="store_true", help="don't use atheris, though it is there")
    parser.add_argument("--seed", type=int, default=0, help="of the random changes (0)")
    given = parser.parse_args(argv)
    target = TARGETS[given.target]
    run = loop.Run(given.target, target, given.corpus, num_inputs=given.inputs, seconds=given.seconds)
    if by_coverage:
        loop.run_atheris(run, target, SEEDS / given.target)
    loop.run_random(run, target, SEEDS / given.target, given.seed)
    return 1 if run.num_failures else 0


if __name__ == "__main__":
    run_command(main)
