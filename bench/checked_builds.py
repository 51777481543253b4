"""Builds whose costs are watched and whose outcome is checked: the right documents, or a refusal in one line."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from bench.builds import REPOSITORY, MemoryWatch
from shards.reader import open_shard_set
from shards.tokenizer_files import read_vocabulary
from shards.verify import verify

LIMIT_SECONDS = 1800
_TOKENS_AT_A_TIME = 1 << 20


class Wrong(Exception):
    """A case that ended as it must not."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a build ended, and what it cost. Memory is of all processes together (PSS), and the most that one had (RSS)."""

    status: int
    errors: str
    wall_seconds: float
    cpu_seconds: float
    total_bytes: int
    largest_bytes: int

    def refused(self, *parts: str) -> str:
        """The one line of a refusal, which names all `parts`. Raises `Wrong` if it is anything else."""
        lines = [line for line in self.errors.splitlines() if line.startswith("error: ")]
        if self.status != 2 or len(lines) != 1 or "Traceback" in self.errors:
            raise Wrong(f"expected one line and status 2, found status {self.status}: {self.errors[-2000:]}")
        for part in parts:
            if part not in lines[0]:
                raise Wrong(f"expected {part!r} in the line: {lines[0]}")
        return lines[0].removeprefix("error: ")


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where a case works, and how large its corpus is."""

    work: Path
    scale: float

    @property
    def out(self) -> Path:
        return self.work / "set"

    def number(self, full: int) -> int:
        return max(1, int(full * self.scale))

    def start(self, sources: Sequence[Path], *options: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pipeline", "build", *map(str, sources), "--out", str(self.out)]
        options = ("--val-fraction", 0, *options)
        with (self.work / "errors").open("wb") as errors:
            return subprocess.Popen(
                [*command, *map(str, options)], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=errors
            )

    def finish(self, process: subprocess.Popen[bytes]) -> Ended:
        """Wait for a build. Raises `Wrong`, and kills it, if it hangs."""
        begin, watch = time.monotonic(), MemoryWatch(process.pid)
        timer = threading.Timer(LIMIT_SECONDS, process.kill)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - begin
        timer.cancel()
        watch.stop()
        if wall > LIMIT_SECONDS:
            raise Wrong(f"still running after {LIMIT_SECONDS:,} s")
        errors = (self.work / "errors").read_text(errors="replace")
        cpu = usage.ru_utime + usage.ru_stime
        return Ended(process.returncode, errors, wall, cpu, watch.peak_bytes, watch.largest_bytes)

    def build(self, sources: Sequence[Path], *options: object) -> Ended:
        return self.finish(self.start(sources, *options))

    def check(self, ended: Ended, documents: Iterable[bytes]) -> str:
        """Raises `Wrong` unless the set is there, whole, with these documents."""
        if ended.status:
            raise Wrong(f"status {ended.status}: {ended.errors[-2000:]}")
        if faults := verify(self.out):
            raise Wrong(f"verify: {faults[0]}")
        num_expected, expected = _digest(documents)
        num_found, found = _digest(set_documents(self.out))
        if (num_found, found) != (num_expected, expected):
            raise Wrong(f"other documents: expected {num_expected:,}, found {num_found:,}, or they differ")
        return f"{num_found:,} documents, all right"

    def remove_set(self) -> None:
        for path in (self.out, self.out.with_name("set.partial")):
            shutil.rmtree(path, ignore_errors=True)


def _digest(documents: Iterable[bytes | Iterator[bytes]]) -> tuple[int, bytes]:
    """The number of documents, and a digest of them all; each is bytes, or comes in parts."""
    number, digest = 0, blake3()
    for document in documents:
        number += 1
        for part in (document,) if isinstance(document, bytes) else document:
            digest.update(part)
        digest.update(b"\0")
    return number, digest.digest()


def set_documents(directory: Path) -> Iterator[Iterator[bytes]]:
    """The documents of a set's split `train` in UTF-8, each in parts."""
    shard_set = open_shard_set(directory)
    vocabulary = read_vocabulary(shard_set.tokenizer_path)
    pieces = [vocabulary.piece(token) for token in range(shard_set.vocab_size)]
    for document in shard_set["train"].documents():
        starts = range(0, len(document), _TOKENS_AT_A_TIME)
        yield (b"".join(map(pieces.__getitem__, document[s : s + _TOKENS_AT_A_TIME].tolist())) for s in starts)
