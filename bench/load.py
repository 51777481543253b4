"""Builds under load: many workers, many files, huge and empty records.

    python -m bench.load WORK [--only NAME ...] [--scale 1.0]

Each case makes its corpus, runs `python -m pipeline build` and checks what came of it itself: a set must pass `verify`
and hold the documents that were written, in their order; all else must be one line on stderr and exit status 2. `--scale
0.01` makes all corpora so much smaller, to try the program. Prints a Markdown table; exit status 1 if a case went wrong.
Needs 8 GB of disk and, for the record of 1 GB, 16 GB of memory.
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from bench.corpus import articles, json_line, numbered, write_array, write_lines
from bench.measure import Ended, ours, print_head, print_machine, print_row, refusal, run
from shards.common.command_line import Parser, run_command
from shards.reader import open_shard_set
from shards.tokenizer_files import read_vocabulary
from shards.verify import verify

LIMIT_SECONDS = 1800
_TOKENS_AT_A_TIME = 1 << 20
ARTICLES = [unicodedata.normalize("NFC", text) for text in articles()]  # as the tokenizer does it
TEN = [f"第{number}篇" for number in range(10)]


class Wrong(Exception):
    """A case that ended as it must not."""


class Build(NamedTuple):
    """A build, and the documents that must come of it, or else words of its refusal."""

    what: str
    source: Path
    documents: Iterable[str] = ()
    options: tuple[object, ...] = ()
    refusal: str = ""
    anew: bool = True


# ---- the cases: `size` makes numbers smaller for a trial; a case goes on when its build has been made ----


def workers(work: Path, size: float) -> Iterator[Build]:
    """64 processes on few cores."""
    texts, digests = list(numbered(ARTICLES, int(180_000 * size))), []
    source = write_lines(work / "corpus.jsonl", texts)
    num_bytes = source.stat().st_size
    for number in (2, 64):
        options = ("--workers", number, "--unit-bytes", num_bytes // 75)
        yield Build(f"{num_bytes / 1e6:.0f} MB of JSON Lines, {number} workers", source, texts, options)
        files = sorted(path for path in (work / "set").rglob("*") if path.is_file())
        digests.append([blake3().update_mmap(path).digest() for path in files])
    if digests[0] != digests[1]:
        raise Wrong("other bytes with 64 workers than with 2")


def tiny_files(work: Path, size: float) -> Iterator[Build]:
    """100,000 files of a hundred characters."""
    source, pool = work / "files", [text[:100].strip() for text in ARTICLES]
    texts = [f"{number} {pool[number % len(pool)]}" for number in range(int(100_000 * size))]
    for number, text in enumerate(texts):
        path = source / f"{number // 1000:03}" / f"{number:06}.{'txt' if number % 2 else 'jsonl'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if number % 2 else json_line(text))
    what = f"{len(texts):,} files, half of them JSON Lines, half .txt"
    yield Build(what, source, texts)
    yield Build(f"{what}, the second time", source, texts, anew=False)
    with (source / "000" / "000000.jsonl").open("ab") as file:
        file.write(json_line("more"))
    yield Build(f"{what}, one of them longer since", source, refusal="the sources have changed", anew=False)


def long_record(work: Path, size: float) -> Iterator[Build]:
    """A record of 1 GB between two small ones."""
    num_bytes, whole = int(1_000_000_000 * size), "\n".join(ARTICLES)
    texts = ["before", whole * (num_bytes // len(whole.encode()) or 1), "after"]
    source = write_lines(work / "corpus.jsonl", texts)
    what = f"a record of {source.stat().st_size / 1e6:,.0f} MB"
    enough, quarter = (("--max-record-bytes", source.stat().st_size * share // 4) for share in (5, 1))
    yield Build(f"{what}, JSON Lines", source, texts, enough)
    yield Build(f"{what}, a quarter of it allowed", source, (), quarter, refusal="larger than max_record_bytes")
    yield Build(f"{what}, the same, skipped", source, texts[::2], (*quarter, "--on-bad-record", "skip"))
    yield Build(f"{what}, JSON array", write_array(work / "corpus.json", map(json_line, texts)), texts, enough)


def _millions(work: Path, line: bytes, size: float, documents: list[str]) -> Path:
    """Ten million lines, with a document after every millionth."""
    source = work / "corpus.jsonl"
    with source.open("wb") as file:
        for number in range(10):
            file.write(line * int(1_000_000 * size) + b"".join(map(json_line, documents[number : number + 1])))
    return source


def empty_records(work: Path, size: float) -> Iterator[Build]:
    """Ten million records without a text, as lines and as an array."""
    line, what = b'{"text": ""}\n', f'{10 * int(1_000_000 * size):,} records `{{"text": ""}}`'
    source = _millions(work, line, size, TEN)
    yield Build(f"{what}, JSON Lines", source, TEN)
    with source.open("rb") as lines:
        array = write_array(work / "corpus.json", lines)
    yield Build(f"{what}, JSON array", array, TEN)
    yield Build("the same, and no text at all", _millions(work, line, size, []), refusal="nothing to build")


def records_without_field(work: Path, size: float) -> Iterator[Build]:
    """Ten million records that are rejected, each of which is put on record."""
    source, number = _millions(work, b"{}\n", size, TEN), 10 * int(1_000_000 * size)
    yield Build(f"{number:,} records `{{}}`", source, refusal="no field 'text'")
    yield Build(f"{number:,} records `{{}}`, skipped, in rejected.jsonl", source, TEN, ("--on-bad-record", "skip"))
    with (work / "set" / "rejected.jsonl").open("rb") as lines:
        if (num_lines := sum(1 for _ in lines)) != number:
            raise Wrong(f"expected {number:,} lines in rejected.jsonl, found {num_lines:,}")


def short_records(work: Path, size: float) -> Iterator[Build]:
    """Ten million documents of one or two characters."""
    texts = [f"文{place % 10}" if place % 2 else "字" for place in range(20)] * int(500_000 * size)
    source = write_lines(work / "corpus.jsonl", texts)
    yield Build(f"{len(texts):,} documents of 1 or 2 characters", source, texts)


ALL = (workers, tiny_files, long_record, empty_records, records_without_field, short_records)
CASES = {case.__name__.replace("_", "-"): case for case in ALL}


# ---- building, and checking what came of it ----


def make(build: Build, out: Path) -> Ended:
    if build.anew:
        for path in (out, out.with_name("set.partial")):
            shutil.rmtree(path, ignore_errors=True)
    options = ("--val-fraction", 0, "--workers", 2, *build.options)
    command = ours("pipeline", "build", build.source, "--out", out, *options)
    return run(command, watch_memory=True, may_fail=True, limit_seconds=LIMIT_SECONDS)


def check(build: Build, ended: Ended, out: Path) -> str:
    """Raises `Wrong` unless the set is there, whole, with these documents, or the refusal is."""
    if build.refusal:
        line = refusal(ended.status, ended.errors)
        if line is None or build.refusal not in line:
            raise Wrong(f"expected {build.refusal!r} in one line, status {ended.status}: {ended.errors[-2000:]}")
        return line.removeprefix("error: ")
    if ended.status:
        raise Wrong(f"status {ended.status}: {ended.errors[-2000:]}")
    if faults := verify(out):
        raise Wrong(f"verify: {faults[0]}")
    expected, found = _digest([text.encode()] for text in build.documents), _digest(set_documents(out))
    if found != expected:
        raise Wrong(f"other documents: expected {expected[0]:,}, found {found[0]:,}, or they differ")
    return f"{found[0]:,} documents, all right"


def _digest(documents: Iterable[Iterable[bytes]]) -> tuple[int, bytes]:
    """The number of documents, each of which comes in parts, and a digest of them all."""
    number, digest = 0, blake3()
    for parts in documents:
        number += 1
        for part in parts:
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


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("work", type=Path, help="directory for all of it")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--scale", type=float, default=1.0, help="sizes of the corpora (1.0)")
    options = parser.parse_args(argv)
    print_machine()
    print_head("what", "outcome", "wall s", "CPU s", "peak MiB: PSS of all", "RSS of the largest process")
    num_wrong = 0
    for name in options.only or CASES:
        work = options.work.resolve() / name
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            for build in CASES[name](work, options.scale):
                ended = make(build, work / "set")
                seconds = (f"{value:.1f}" for value in (ended.wall_seconds, ended.cpu_seconds))
                memory = (f"{value / 2**20:,.0f}" for value in (ended.total_bytes, ended.largest_bytes))
                print_row(build.what, check(build, ended, work / "set"), *seconds, *memory)
        except Wrong as fault:
            num_wrong += 1
            print_row(name, f"WRONG: {fault}", "", "", "", "")
        shutil.rmtree(work)
    return int(num_wrong > 0)


if __name__ == "__main__":
    run_command(main)
