"""`python -m bench.fuzz TARGET`: many inputs through one reader. Goes on where it stopped, by its corpus directory."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
SEEDS = REPOSITORY / "tests" / "fuzz_seeds"


def main() -> int:
    instrumented: Any = contextlib.nullcontext()
    by_coverage = "--random" not in sys.argv and importlib.util.find_spec("atheris") is not None
    if by_coverage:
        import atheris

        instrumented = atheris.instrument_imports(include=["pipeline", "shards"])
    with instrumented:
        from bench.fuzz import loop
        from bench.fuzz.targets import TARGETS
    listing = "\n".join(f"  {name:12} {target.title}" for name, target in TARGETS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench.fuzz",
        description=__doc__,
        epilog=f"targets:\n{listing}\n\nExit status 1 where an input failed; it is kept in DIR/TARGET.failures.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="TARGET", choices=TARGETS)
    parser.add_argument("--inputs", type=int, default=10**12, metavar="N", help="stop after so many")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="stop after so long (60)")
    parser.add_argument("--corpus", type=Path, default=REPOSITORY / "bench" / "fuzz-work", metavar="DIR")
    parser.add_argument("--random", action="store_true", help="don't use atheris, though it is there")
    parser.add_argument("--seed", type=int, default=0, help="of the random changes (0)")
    given = parser.parse_args()
    target = TARGETS[given.target]
    run = loop.Run(given.target, target, given.corpus, num_inputs=given.inputs, seconds=given.seconds)
    if by_coverage:
        loop.run_atheris(run, target, SEEDS / given.target)
    loop.run_random(run, target, SEEDS / given.target, given.seed)
    return 1 if run.num_failures else 0


if __name__ == "__main__":
    sys.exit(main())
