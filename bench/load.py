"""Builds under load: many workers, many files, huge and empty records.

    python -m bench.load WORK [--only NAME ...] [--scale 1.0]

Each case makes its corpus, runs `python -m pipeline build` and checks what came of it itself: a set must pass `verify`
and hold the documents that were written, in their order; all else must be one line on stderr and exit status 2. `--scale
0.01` makes all corpora so much smaller, to try the program. Prints a Markdown table; exit status 1 if a case went wrong.
Needs 8 GB of disk and, for the record of 1 GB, 16 GB of memory.
"""

from __future__ import annotations

import itertools
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from blake3 import blake3

from bench.corpus import articles, json_line, numbered, write_array, write_lines
from bench.measure import Ended, ours, print_head, print_machine, print_row, refusal, run
from shards.common.command_line import Parser, run_command
from shards.reader import open_shard_set
from shards.tokenizer_files import read_vocabulary
from shards.verify import verify

LIMIT_SECONDS = 1800
_TOKENS_AT_A_TIME = 1 << 20
Row = tuple[str, str, Ended]  # what was built, how it ended, what it cost


class Wrong(Exception):
    """A case that ended as it must not."""


class Bench:
    """Where a case works, and how large its corpus is."""

    def __init__(self, work: Path, scale: float) -> None:
        self.work, self.scale, self.out = work, scale, work / "set"
        # As the tokenizer normalizes them.
        self.texts = [unicodedata.normalize("NFC", text) for text in articles()]

    def number(self, full: int) -> int:
        return max(1, int(full * self.scale))

    def build(self, source: Path, *options: object, anew: bool = True) -> Ended:
        if anew:
            for path in (self.out, self.out.with_name("set.partial")):
                shutil.rmtree(path, ignore_errors=True)
        workers = () if "--workers" in options else ("--workers", 2)
        command = ours("pipeline", "build", source, "--out", self.out, "--val-fraction", 0, *workers, *options)
        return run(command, watch_memory=True, may_fail=True, limit_seconds=LIMIT_SECONDS)

    def check(self, ended: Ended, documents: Iterable[str]) -> str:
        """Raises `Wrong` unless the set is there, whole, with these documents."""
        if ended.status:
            raise Wrong(f"status {ended.status}: {ended.errors[-2000:]}")
        if faults := verify(self.out):
            raise Wrong(f"verify: {faults[0]}")
        expected = _digest([document.encode()] for document in documents)
        if (found := _digest(set_documents(self.out))) != expected:
            raise Wrong(f"other documents: expected {expected[0]:,}, found {found[0]:,}, or they differ")
        return f"{found[0]:,} documents, all right"


def refused(ended: Ended, *parts: str) -> str:
    """The one line of a refusal, which names all `parts`. Raises `Wrong` if it is anything else."""
    if (line := refusal(ended.status, ended.errors)) is None or not all(part in line for part in parts):
        raise Wrong(f"expected one line with {parts}, found status {ended.status}: {ended.errors[-2000:]}")
    return line.removeprefix("error: ")


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


# ---- the cases ----


def workers(bench: Bench) -> Iterator[Row]:
    """64 processes on few cores."""
    texts = list(numbered(bench.texts, bench.number(180_000)))
    source, digests = write_lines(bench.work / "corpus.jsonl", texts), []
    num_bytes = source.stat().st_size
    for number in (2, 64):
        ended = bench.build(source, "--workers", number, "--unit-bytes", num_bytes // 75)
        files = sorted(path for path in bench.out.rglob("*") if path.is_file())
        digests.append([blake3().update_mmap(path).digest() for path in files])
        yield f"{num_bytes / 1e6:.0f} MB of JSON Lines, {number} workers", bench.check(ended, texts), ended
    if digests[0] != digests[1]:
        raise Wrong("other bytes with 64 workers than with 2")


def tiny_files(bench: Bench) -> Iterator[Row]:
    """100,000 files of a hundred characters."""
    directory, pool = bench.work / "files", [text[:100].strip() for text in bench.texts]
    texts = [f"{number} {pool[number % len(pool)]}" for number in range(bench.number(100_000))]
    for number, text in enumerate(texts):
        path = directory / f"{number // 1000:03}" / f"{number:06}.{'txt' if number % 2 else 'jsonl'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if number % 2 else json_line(text))
    what = f"{len(texts):,} files, half of them JSON Lines, half .txt"
    ended = bench.build(directory)
    yield what, bench.check(ended, texts), ended
    ended = bench.build(directory, anew=False)
    yield f"{what}, the second time", bench.check(ended, texts), ended
    with (directory / "000" / "000000.jsonl").open("ab") as file:
        file.write(json_line("more"))
    ended = bench.build(directory, anew=False)
    yield f"{what}, one of them longer since", refused(ended, "the sources have changed"), ended


def long_record(bench: Bench) -> Iterator[Row]:
    """A record of 1 GB between two small ones."""
    num_bytes, whole = bench.number(1_000_000_000), "\n".join(bench.texts)
    texts = ["before", whole * (num_bytes // len(whole.encode()) or 1), "after"]
    source = write_lines(bench.work / "corpus.jsonl", texts)
    array = write_array(bench.work / "corpus.json", map(json_line, texts))
    what = f"a record of {source.stat().st_size / 1e6:,.0f} MB"
    enough = ("--max-record-bytes", source.stat().st_size + 10_000_000)
    quarter = ("--max-record-bytes", source.stat().st_size // 4)
    ended = bench.build(source, *enough)
    yield f"{what}, JSON Lines", bench.check(ended, texts), ended
    ended = bench.build(source, *quarter)
    yield f"{what}, a quarter of it allowed", refused(ended, "larger than max_record_bytes"), ended
    ended = bench.build(source, *quarter, "--on-bad-record", "skip")
    yield f"{what}, the same, skipped", bench.check(ended, ["before", "after"]), ended
    ended = bench.build(array, *enough)
    yield f"{what}, JSON array", bench.check(ended, texts), ended


def _millions(bench: Bench, empty: bytes, documents: list[str]) -> tuple[Path, int]:
    """Ten million lines `empty`, with a document after every millionth."""
    tenth, source = bench.number(1_000_000), bench.work / "corpus.jsonl"
    with source.open("wb") as file:
        for number in range(10):
            file.write(empty * tenth + b"".join(map(json_line, documents[number : number + 1])))
    return source, 10 * tenth


TEN_DOCUMENTS = [f"第{number}篇" for number in range(10)]


def empty_records(bench: Bench) -> Iterator[Row]:
    """Ten million records without a text, as lines and as an array."""
    source, number = _millions(bench, b'{"text": ""}\n', TEN_DOCUMENTS)
    what = f'{number:,} records `{{"text": ""}}`'
    ended = bench.build(source)
    yield f"{what}, JSON Lines", bench.check(ended, TEN_DOCUMENTS), ended
    with source.open("rb") as lines:
        array = write_array(bench.work / "corpus.json", lines)
    ended = bench.build(array)
    yield f"{what}, JSON array", bench.check(ended, TEN_DOCUMENTS), ended
    ended = bench.build(_millions(bench, b'{"text": ""}\n', [])[0])
    yield "the same, and no text at all", refused(ended, "no text in", "nothing to build"), ended


def records_without_field(bench: Bench) -> Iterator[Row]:
    """Ten million records that are rejected, each of which is put on record."""
    source, number = _millions(bench, b"{}\n", TEN_DOCUMENTS)
    ended = bench.build(source)
    yield f"{number:,} records `{{}}`", refused(ended, "no field 'text'"), ended
    ended = bench.build(source, "--on-bad-record", "skip")
    outcome = bench.check(ended, TEN_DOCUMENTS)
    with (bench.out / "rejected.jsonl").open("rb") as lines:
        if (num_lines := sum(1 for _ in lines)) != number:
            raise Wrong(f"expected {number:,} lines in rejected.jsonl, found {num_lines:,}")
    yield f"{number:,} records `{{}}`, skipped", f"{outcome}; each of the others in rejected.jsonl", ended


def short_records(bench: Bench) -> Iterator[Row]:
    """Ten million documents of one or two characters."""
    texts = [f"文{place % 10}" if place % 2 else "字" for place in range(20)]
    again = bench.number(10_000_000) // len(texts)
    source, block = bench.work / "corpus.jsonl", b"".join(map(json_line, texts))
    with source.open("wb") as file:
        for _ in range(again):
            file.write(block)
    ended = bench.build(source)
    expected = itertools.chain.from_iterable(itertools.repeat(texts, again))
    yield f"{again * len(texts):,} documents of 1 or 2 characters", bench.check(ended, expected), ended


CASES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "workers": workers,
    "tiny-files": tiny_files,
    "long-record": long_record,
    "empty-records": empty_records,
    "records-without-field": records_without_field,
    "short-records": short_records,
}


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
        place = options.work.resolve() / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        try:
            for what, outcome, ended in CASES[name](Bench(place, options.scale)):
                seconds = (f"{value:.1f}" for value in (ended.wall_seconds, ended.cpu_seconds))
                memory = (f"{value / 2**20:,.0f}" for value in (ended.total_bytes, ended.largest_bytes))
                print_row(what, outcome, *seconds, *memory)
        except (Wrong, TimeoutError) as fault:
            num_wrong += 1
            print_row(name, f"WRONG: {fault}", "", "", "", "")
        shutil.rmtree(place)
    return int(num_wrong > 0)


if __name__ == "__main__":
    run_command(main)
