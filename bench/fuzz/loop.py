"""Runs a target on many inputs, which are seeds with random changes, and keeps those that fail, one of each kind."""

from __future__ import annotations

import random
import resource
import time
import traceback
from pathlib import Path

from bench.fuzz.targets import Target

SLOW_SECONDS = 2.0  # of the CPU: a busy machine is no fault
LONGEST_INPUT = 320


def kind_of(error: BaseException) -> str:
    """The same for failures that are probably the same: the exception's type, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).stem}_{frame.lineno}" for frame in frames if "fuzz" not in frame.filename]
    return "-".join([type(error).__name__, *(places or [f"fuzz_{frame.lineno}" for frame in frames])[-2:]])


class Run:
    """One run of a target: counts inputs and keeps those that fail."""

    def __init__(self, name: str, target: Target, failures: Path) -> None:
        self.name, self._target, self._failures = name, target, failures
        failures.mkdir(parents=True, exist_ok=True)
        target.check(b"warm up, " * 4)
        self.num_inputs = self.num_failures = 0

    def one(self, data: bytes) -> None:
        """Check one input. A failure is kept, and the run goes on."""
        self.num_inputs += 1
        begun = time.process_time()
        try:
            self._target.check(data)
        except Exception as error:
            self._keep(kind_of(error), data, error)
        if (seconds := time.process_time() - begun) > SLOW_SECONDS:
            self._keep("slow", data, TimeoutError(f"took {seconds:.1f} s"))

    def _keep(self, kind: str, data: bytes, error: Exception) -> None:
        self.num_failures += 1
        path = self._failures / kind
        if not path.exists():
            path.write_bytes(data)
            print(f"{self.name}: {path}: {type(error).__name__}: {str(error)[:300]}", flush=True)

    def random(self, seeds: Path, seed: int, *, num_inputs: int, seconds: float) -> None:
        """By random changes to the seeds."""
        rng, begin = random.Random(seed), time.monotonic()
        known = [path.read_bytes() for path in sorted(seeds.glob("*"))] or [b"\0" * 24]
        while self.num_inputs < num_inputs and (self.num_inputs % 64 or time.monotonic() - begin < seconds):
            self.one(changed(rng.choice(known), known, self._target.words, rng))
        taken, peak = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        rate = f"{self.num_inputs:,} inputs in {taken:.1f} s ({self.num_inputs / taken:,.0f}/s)"
        print(f"{self.name}: {rate}, {self.num_failures} failures, peak {peak} MiB", flush=True)


def changed(data: bytes, known: list[bytes], words: tuple[bytes, ...], rng: random.Random) -> bytes:
    """`data` with a few bytes or words changed, put in, taken out or doubled, or spliced with another input."""
    for _ in range(rng.choice((1, 1, 2, 3, 5, 8))):
        place = rng.randrange(len(data) + 1)
        length = rng.choice((1, 1, 2, 4, 16))
        before, piece, after = data[:place], data[place : place + length], data[place + length :]
        word, other = rng.choice(words), rng.choice(known)
        ways = (
            before + rng.randbytes(len(piece)) + after,
            before + bytes(byte ^ 1 << rng.randrange(8) for byte in piece[:1]) + data[place + 1 :],
            before + word + data[place:],
            before + word + data[place + len(word) :],
            before + after,
            before + piece * 2 + after,
            before + other[rng.randrange(len(other) + 1) :],
        )
        data = rng.choice(ways)
    return data[:LONGEST_INPUT]
