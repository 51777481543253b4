"""Builds under load: many workers, many files, huge and empty records, sources that change.

    python -m bench.load WORK [--only NAME ...] [--scale 1.0] [--again] [--table]

Each case makes its corpus, runs `python -m pipeline build` and checks what came of it itself: a set must pass `verify`
and hold the documents that were written, in their order; all else must be one line on stderr and exit status 2. The rows
are kept in WORK/rows.jsonl, and cases that are there are left out the next time (`--again`: not). `--scale 0.01` makes
all corpora so much smaller, to try the program. Needs 8 GB of disk and, for the record of 1 GB, 16 GB of memory.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
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


def workers_parquet(bench: Bench) -> Iterator[Row]:
    """64 processes, each started anew (a library may have threads)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    num_bytes = bench.number(100_000_000)
    texts = list(numbered(num_bytes))
    source = bench.work / "corpus.parquet"
    pq.write_table(pa.table({"text": texts}), source, row_group_size=max(1, len(texts) // 75))
    for number in (2, 64):
        bench.remove_set()
        ended = bench.build([source], "--workers", number, "--unit-bytes", 1)
        yield f"{num_bytes / 1e6:.0f} MB of Parquet, {number} workers", bench.check(ended, encoded(texts)), ended


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
    yield f"{what}, a quarter of it allowed", ended.refused("larger than --max-record-bytes"), ended
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


def growing(bench: Bench) -> Iterator[Row]:
    """A file that somebody writes to while it is read."""
    texts = list(numbered(bench.number(60_000_000)))
    lines = b"".join(map(json_line, texts))
    halves = (b'{"text": "half of', b' a record"}\n')
    contents: dict[str, tuple[str, bytes, tuple[bytes, ...]]] = {
        "JSON Lines": ("corpus.jsonl", lines, (json_line("more"),)),
        "JSON array": ("corpus.json", b"[" + lines.rstrip().replace(b"\n", b",\n") + b"]", (b' {"text": "more"}]',)),
        ".txt": ("corpus.txt", "\n".join(texts).encode(), (b"more ",)),
        "JSON Lines, gzip": ("corpus.jsonl.gz", gzip.compress(lines, 1), (gzip.compress(json_line("more")),)),
        "JSON Lines, half a record at a time": ("half.jsonl", lines, halves),
    }
    for what, (name, content, more) in contents.items():
        bench.remove_set()
        source = bench.work / name
        source.write_bytes(content)
        process = bench.start([source], "--workers", 2)
        with _growing(source, more, begin=bench.out.with_name("set.partial") / "plan.json"):
            ended = bench.finish(process)
        yield f"a file that grows: {what}", _without_path(ended.refused(source.name, "changed"), bench), ended
    bench.remove_set()
    source = bench.work / "early.jsonl"
    source.write_bytes(lines)
    with _growing(source, halves):
        ended = bench.build([source], "--workers", 2)
    yield "half a record at a time, from before the build on", _without_path(ended.refused(source.name), bench), ended


@contextlib.contextmanager
def _growing(path: Path, more: tuple[bytes, ...], *, begin: Path | None = None) -> Iterator[None]:
    """Append to the file fifty times a second, as soon as `begin` is there, each of `more` in turn."""
    ended = threading.Event()

    def append() -> None:
        while begin is not None and not begin.exists() and not ended.is_set():
            time.sleep(0.005)
        with path.open("ab", buffering=0) as file:
            for part in itertools.cycle(more):
                file.write(part)
                if ended.wait(0.02):
                    break

    thread = threading.Thread(target=append)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _without_path(line: str, bench: Bench) -> str:
    return line.replace(str(bench.work) + "/", "")


def changing(bench: Bench) -> Iterator[Row]:
    """A source that changes after a build was killed and before the same command goes on."""
    num_bytes = bench.number(30_000_000)
    directory, kept = bench.work / "corpus", bench.work / "kept"
    kept.mkdir()
    texts = list(numbered(num_bytes))
    half = len(texts) // 2
    write_lines(kept / "a.jsonl", texts[:half])
    write_lines(kept / "b.jsonl", texts[half:])
    options = ("--workers", 1, "--unit-bytes", num_bytes // 30)
    first = directory / "a.jsonl"

    def same_size() -> None:
        content = first.read_bytes()
        first.write_bytes(content.replace(texts[0][:4].encode(), texts[0][3::-1].encode(), 1))

    def same_size_and_time() -> None:
        times = first.stat()
        same_size()
        os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))

    def copied() -> None:
        shutil.copy2(first, bench.work / "copy")
        os.replace(bench.work / "copy", first)

    changes: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "a copy in its place, same time": copied,
        "a record more": lambda: first.open("ab").write(json_line("more")),
        "cut short": lambda: os.truncate(first, first.stat().st_size // 3),
        "other text, same size": same_size,
        "other text, same size, same time": same_size_and_time,
        "touched": lambda: os.utime(first),
        "removed": lambda: first.unlink(),
        "a file more": lambda: write_lines(directory / "c.jsonl", ["more"]),
        "a file renamed": lambda: first.rename(directory / "z.jsonl"),
    }
    for what, change in changes.items():
        bench.remove_set()
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(kept, directory)
        _kill_after(bench, bench.start([directory], *options), num_receipts=3)
        change()
        before = {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
        ended = bench.build([directory], *options)
        now = b"".join(before.values()).splitlines()
        expected = (json.loads(line)["text"].encode() for line in now if line.endswith(b"}"))
        if ended.status == 0:
            outcome = bench.check(ended, expected)
        else:
            outcome = _without_path(ended.refused(), bench)
            forced = bench.build([directory], *options, "--force")
            if what == "cut short":
                forced.refused("incomplete")
            else:
                outcome += f" (--force: {bench.check(forced, expected)})"
        yield f"between two runs: {what}", outcome, ended


def _kill_after(bench: Bench, process: subprocess.Popen[bytes], *, num_receipts: int) -> None:
    receipts = bench.out.with_name("set.partial") / "receipts"
    while len(list(receipts.glob("*.json"))) < num_receipts and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise Wrong(f"the first run ended before it was killed, with status {process.returncode}")


CASES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "workers": workers,
    "workers-parquet": workers_parquet,
    "tiny-files": tiny_files,
    "long-record": long_record,
    "empty-records": empty_records,
    "records-without-field": records_without_field,
    "short-records": short_records,
    "growing": growing,
    "changing": changing,
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
