"""Builds under load: many workers, many files, huge and empty records.

    python -m bench.load WORK [--only NAME ...] [--scale 1.0] [--again] [--table]

Each case makes its corpus, runs `python -m pipeline build` and checks what came of it itself: a set must pass `verify`
and hold the documents that were written, in their order; all else must be one line on stderr and exit status 2. The rows
are kept in WORK/rows.jsonl, and cases that are there are left out the next time (`--again`: not). `--scale 0.01` makes
all corpora so much smaller, to try the program. Needs 8 GB of disk and, for the record of 1 GB, 16 GB of memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from blake3 import blake3

from bench.checked_builds import Bench, Ended, Wrong
from bench.corpus import SAMPLE

Row = tuple[str, str, Ended]


def articles() -> list[str]:
    """The sample's texts, normalized as the tokenizer does it."""
    return [unicodedata.normalize("NFC", record["text"]) for record in json.loads(SAMPLE.read_text(encoding="utf-8"))]


def numbered(num_bytes: int) -> Iterator[str]:
    """Articles, each with a number behind it, of about `num_bytes` in all."""
    texts = articles()
    for number in itertools.count():
        text = texts[number % len(texts)] + str(number)
        num_bytes -= len(text.encode())
        if num_bytes < 0 and number:
            return
        yield text


def json_line(text: str) -> bytes:
    return json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"


def write_lines(path: Path, texts: Iterable[str]) -> Path:
    with path.open("wb") as file:
        file.writelines(map(json_line, texts))
    return path


def encoded(texts: Iterable[str]) -> Iterator[bytes]:
    return (text.encode() for text in texts)


# The cases.


def workers(bench: Bench) -> Iterator[Row]:
    """64 processes on few cores, forked (JSON Lines)."""
    num_bytes = bench.number(300_000_000)
    source = write_lines(bench.work / "corpus.jsonl", numbered(num_bytes))
    digests = []
    for number in (2, 64):
        bench.remove_set()
        ended = bench.build([source], "--workers", number, "--unit-bytes", num_bytes // 75)
        digests.append([_file_digest(path) for path in sorted(bench.out.rglob("*")) if path.is_file()])
        yield (
            f"{num_bytes / 1e6:.0f} MB of JSON Lines, {number} workers",
            bench.check(ended, _articles(num_bytes)),
            ended,
        )
    if digests[0] != digests[1]:
        raise Wrong("other bytes with 64 workers than with 2")


def _articles(num_bytes: int) -> Iterator[bytes]:
    return encoded(numbered(num_bytes))


def _file_digest(path: Path) -> str:
    return blake3().update_mmap(path).hexdigest()


def tiny_files(bench: Bench) -> Iterator[Row]:
    """100,000 files of a hundred characters."""
    directory = bench.work / "files"
    pool = [text[:100].strip() for text in articles()]
    texts = [f"{number} {pool[number % len(pool)]}" for number in range(bench.number(100_000))]
    for number, text in enumerate(texts):
        folder = directory / f"{number // 1000:03}"
        folder.mkdir(parents=True, exist_ok=True)
        if number % 2:
            (folder / f"{number:06}.txt").write_text(text, encoding="utf-8")
        else:
            (folder / f"{number:06}.jsonl").write_bytes(json_line(text))
    what = f"{len(texts):,} files, half of them JSON Lines, half .txt"
    ended = bench.build([directory], "--workers", 2)
    yield what, bench.check(ended, encoded(texts)), ended
    ended = bench.build([directory], "--workers", 2)
    yield f"{what}, the second time", bench.check(ended, encoded(texts)), ended
    with (directory / "000" / "000002.jsonl").open("ab") as file:
        file.write(json_line("more"))
    ended = bench.build([directory], "--workers", 2)
    yield f"{what}, one of them longer since", ended.refused("the sources have changed"), ended


def _long_text(num_bytes: int) -> str:
    whole = "\n".join(articles())
    return whole * (num_bytes // len(whole.encode()))


def long_record(bench: Bench) -> Iterator[Row]:
    """A record of 1 GB between two small ones."""
    num_bytes = bench.number(1_000_000_000)
    text = _long_text(num_bytes)
    texts = ["before", text, "behind"]
    limit = num_bytes + 10_000_000
    source = write_lines(bench.work / "corpus.jsonl", texts)
    what = f"a record of {len(json_line(text)) / 1e6:,.0f} MB"
    ended = bench.build([source], "--max-record-bytes", limit, "--workers", 2)
    yield f"{what}, JSON Lines", bench.check(ended, encoded(texts)), ended
    bench.remove_set()
    ended = bench.build([source], "--max-record-bytes", num_bytes // 4, "--workers", 2)
    yield f"{what}, a quarter of it allowed", ended.refused("larger than max_record_bytes"), ended
    bench.remove_set()
    ended = bench.build([source], "--max-record-bytes", num_bytes // 4, "--workers", 2, "--on-bad-record", "skip")
    yield f"{what}, the same, skipped", bench.check(ended, [b"before", b"behind"]), ended
    bench.remove_set()
    source.unlink()
    source = bench.work / "corpus.json"
    with source.open("wb") as file:
        file.write(b"[" + b",\n".join(json_line(part).rstrip() for part in texts) + b"]\n")
    ended = bench.build([source], "--max-record-bytes", limit, "--workers", 2)
    yield f"{what}, JSON array", bench.check(ended, encoded(texts)), ended


def _millions(bench: Bench, empty: bytes, name: str) -> tuple[Path, list[bytes], int]:
    """Ten million lines `empty`, with a document behind every millionth."""
    num_records, num_good = bench.number(10_000_000), 10
    source, documents = bench.work / name, [f"第{number}篇".encode() for number in range(num_good)]
    with source.open("wb") as file:
        for document in documents:
            file.write(empty * (num_records // num_good) + json_line(document.decode()))
    return source, documents, num_records


def empty_records(bench: Bench) -> Iterator[Row]:
    """Ten million records without a text, as lines and as an array."""
    source, documents, number = _millions(bench, b'{"text": ""}\n', "corpus.jsonl")
    ended = bench.build([source], "--workers", 2)
    yield f'{number:,} records `{{"text": ""}}`, JSON Lines', bench.check(ended, documents), ended
    bench.remove_set()
    array = bench.work / "corpus.json"
    array.write_bytes(b"[" + source.read_bytes().rstrip().replace(b"\n", b",\n") + b"]")
    ended = bench.build([array], "--workers", 2)
    yield f'{number:,} records `{{"text": ""}}`, JSON array', bench.check(ended, documents), ended
    bench.remove_set()
    with source.open("wb") as file:
        file.write(b'{"text": ""}\n' * number)
    ended = bench.build([source], "--workers", 2)
    yield "the same, and no text at all", ended.refused("no text in", "nothing to build"), ended


def records_without_field(bench: Bench) -> Iterator[Row]:
    """Ten million records that are rejected, each of which is put on record."""
    source, documents, number = _millions(bench, b"{}\n", "corpus.jsonl")
    ended = bench.build([source], "--workers", 2)
    yield f"{number:,} records `{{}}`", ended.refused("no field 'text'"), ended
    bench.remove_set()
    ended = bench.build([source], "--workers", 2, "--on-bad-record", "skip")
    outcome = bench.check(ended, documents)
    with (bench.out / "rejected.jsonl").open("rb") as lines:
        if (num_lines := sum(1 for _ in lines)) != number:
            raise Wrong(f"expected {number:,} lines in rejected.jsonl, found {num_lines:,}")
    yield f"{number:,} records `{{}}`, skipped", f"{outcome}; each of the others in rejected.jsonl", ended


def short_records(bench: Bench) -> Iterator[Row]:
    """Ten million documents of one or two characters."""
    number = bench.number(10_000_000)
    texts = [f"文{place % 10}" if place % 2 else "字" for place in range(20)]
    source = bench.work / "corpus.jsonl"
    block = b"".join(map(json_line, texts))
    with source.open("wb") as file:
        for _ in range(number // len(texts)):
            file.write(block)
    ended = bench.build([source], "--workers", 2)
    expected = itertools.chain.from_iterable(encoded(texts) for _ in range(number // len(texts)))
    yield f"{number // len(texts) * len(texts):,} documents of 1 or 2 characters", bench.check(ended, expected), ended


CASES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "workers": workers,
    "tiny-files": tiny_files,
    "long-record": long_record,
    "empty-records": empty_records,
    "records-without-field": records_without_field,
    "short-records": short_records,
}


def run_case(name: str, work: Path, scale: float) -> Iterator[dict[str, object]]:
    """The rows of one case; the last one is the fault if there is one."""
    place = work / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        for what, outcome, ended in CASES[name](Bench(place, scale)):
            figures = {"wall": ended.wall_seconds, "cpu": ended.cpu_seconds}
            memory = {"total": ended.total_bytes, "largest": ended.largest_bytes}
            yield {"case": name, "scale": scale, "what": what, "outcome": outcome, **figures, **memory}
    except Wrong as fault:
        yield {"case": name, "scale": scale, "what": name, "outcome": f"WRONG: {fault}"}
    shutil.rmtree(place)


def print_row(row: dict[str, object]) -> None:
    numbers = ["" if key not in row else f"{row[key]:.1f}" for key in ("wall", "cpu")]
    memory = ["" if key not in row else f"{int(str(row[key])) / 2**20:,.0f} MiB" for key in ("total", "largest")]
    outcome = str(row["outcome"]).replace("|", "\\|").replace("\n", " ")
    print(f"| {' | '.join([str(row['what']), outcome, *numbers, *memory])} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="directory for all of it")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--scale", type=float, default=1.0, help="sizes of the corpora (1.0)")
    parser.add_argument("--again", action="store_true", help="the cases that are done, too")
    parser.add_argument("--table", action="store_true", help="only print what is known")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    log = work / "rows.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    print("| what | outcome | wall s | CPU s | peak memory | of one process |\n|---|---|---|---|---|---|")
    wrong = 0
    for name in options.only or CASES:
        known = [row for row in rows if (row["case"], row["scale"]) == (name, options.scale)]
        is_done = options.table or (known and not options.again)
        for row in known if is_done else run_case(name, work, options.scale):
            print_row(row)
            wrong += str(row["outcome"]).startswith("WRONG")
            if not is_done:
                rows = [*(other for other in rows if other not in known), row]
                log.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
