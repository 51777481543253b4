"""Runs a target on many inputs, by atheris or by random changes, and keeps the corpus and the failures.

In the directory given: `TARGET/` has the inputs that found new code, `TARGET.failures/` those that found a fault, one of
each kind.
"""

from __future__ import annotations

import os
import random
import resource
import sys
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

    def __init__(self, name: str, target: Target, directory: Path, *, num_inputs: int, seconds: float) -> None:
        self.name, self._check = name, target.check
        self.corpus, self.failures = directory / name, directory / f"{name}.failures"
        self.corpus.mkdir(parents=True, exist_ok=True)
        self.failures.mkdir(exist_ok=True)
        target.check(b"warm up, " * 4)
        self._most, self._start, self._seconds = num_inputs, time.monotonic(), seconds
        self._num_known = len(os.listdir(self.corpus))
        self.num_inputs = self.num_failures = 0

    @property
    def is_over(self) -> bool:
        is_late = self.num_inputs % 64 == 0 and time.monotonic() - self._start > self._seconds
        return is_late or self.num_inputs >= self._most

    def one(self, data: bytes) -> None:
        """Check one input. A failure is kept, and the run goes on."""
        self.num_inputs += 1
        begun = time.process_time()
        try:
            self._check(data)
        except Exception as error:
            self._keep(kind_of(error), data, error)
        if (seconds := time.process_time() - begun) > SLOW_SECONDS:
            self._keep("slow", data, TimeoutError(f"took {seconds:.1f} s"))

    def _keep(self, kind: str, data: bytes, error: Exception) -> None:
        self.num_failures += 1
        path = self.failures / kind
        if not path.exists():
            path.write_bytes(data)
            print(f"{self.name}: {path}: {type(error).__name__}: {str(error)[:300]}", flush=True)

    def report(self, how: str) -> None:
        seconds = time.monotonic() - self._start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(
            f"{self.name}: {self.num_inputs:,} inputs in {seconds:.1f} s ({self.num_inputs / seconds:,.0f}/s) by {how}, "
            f"{len(os.listdir(self.corpus)) - self._num_known} with new coverage, {self.num_failures} failures, "
            f"peak {peak} MiB",
            flush=True,
        )


def run_atheris(run: Run, target: Target, seeds: Path) -> None:
    """By coverage. Ends the process: libFuzzer never returns."""
    import atheris

    dictionary = run.corpus.with_suffix(".dict")
    escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.words)
    dictionary.write_text("".join(f'"{word}"\n' for word in escaped))

    def one(data: bytes) -> None:
        if run.is_over:
            run.report("atheris")
            sys.stdout.flush()
            os._exit(1 if run.num_failures else 0)
        run.one(data)

    options = [f"-max_len={LONGEST_INPUT}", f"-dict={dictionary}", "-rss_limit_mb=3000", "-timeout=30", "-verbosity=0"]
    folders = [str(run.corpus), *([str(seeds)] if seeds.is_dir() else [])]
    atheris.Setup([run.name, *options, f"-artifact_prefix={run.failures}/", *folders], one)
    atheris.Fuzz()


def run_random(run: Run, target: Target, seeds: Path, seed: int) -> None:
    """By random changes to the seeds and to what an earlier run by coverage has kept."""
    rng = random.Random(seed)
    paths = [path for folder in (run.corpus, seeds) if folder.is_dir() for path in sorted(folder.iterdir())]
    known = [path.read_bytes() for path in paths] or [b"\0" * 24]
    while not run.is_over:
        run.one(changed(rng.choice(known), known, target.words, rng))
    run.report("random changes")


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
