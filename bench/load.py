"""Builds under load: many workers, files, units and shards, huge and empty records.

    python -m bench.load WORK [--only NAME ...] [--scale 1.0]

Each case makes its corpus, runs `python -m pipeline build` and checks what came of it itself: a set must pass `verify`
and hold the documents that were written, in their order; all else must be one line on stderr and exit status 2. `--scale
0.01` makes all corpora so much smaller, to try the program. Prints a Markdown table; exit status 1 if a case went wrong.
Needs 8 GB of disk and, for the record of 1 GB, 16 GB of memory.
"""

from __future__ import annotations

import shlex
import shutil
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from bench.corpus import articles, json_line, numbered, write_array, write_lines
from bench.measure import Ended, ours, print_head, print_machine, print_row, refusal, run
from pipeline.outputs.local import LocalOutput
from pipeline.plan import make_plan
from pipeline.receipts import RangeReceipt, Receipt, encode_receipt, receipt_name
from pipeline.settings import BuildSettings
from pipeline.sources import find_corpus
from pipeline.tokenizers import load_tokenizer_files
from shards.common.command_line import Parser, run_command
from shards.edit import merge
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
    command: tuple[str, ...] = ()  # instead


# ---- the cases: `size` makes numbers smaller for a trial; a case goes on when its build has been made ----


def workers(work: Path, size: float) -> Iterator[Build]:
    """64 processes on few cores."""
    texts, manifests = list(numbered(ARTICLES, int(180_000 * size))), []
    source = write_lines(work / "corpus.jsonl", texts)
    num_bytes = source.stat().st_size
    for number in (2, 64):
        options = ("--workers", number, "--unit-bytes", num_bytes // 75)
        yield Build(f"{num_bytes / 1e6:.0f} MB of JSON Lines, {number} workers", source, texts, options)
        manifests.append((work / "set" / "manifest.json").read_bytes())
    if manifests[0] != manifests[1]:
        raise Wrong("other bytes with 64 workers than with 2")


def tiny_files(work: Path, size: float) -> Iterator[Build]:
    """100,000 files of a hundred characters."""
    source, texts = work / "files", list(numbered([text[:100] for text in ARTICLES], int(100_000 * size)))
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
    """Ten million records without a text, as lines and as an array, and as many of one or two characters."""
    line, what = b'{"text": ""}\n', f'{10 * int(1_000_000 * size):,} records `{{"text": ""}}`'
    source = _millions(work, line, size, TEN)
    yield Build(f"{what}, JSON Lines", source, TEN)
    with source.open("rb") as lines:
        array = write_array(work / "corpus.json", lines)
    yield Build(f"{what}, JSON array", array, TEN)
    yield Build("the same, and no text at all", _millions(work, line, size, []), refusal="nothing to build")
    texts = [f"文{place % 10}" if place % 2 else "字" for place in range(20)] * int(500_000 * size)
    yield Build(f"{len(texts):,} documents of 1 or 2 characters", write_lines(work / "corpus.jsonl", texts), texts)


def records_without_field(work: Path, size: float) -> Iterator[Build]:
    """Ten million records that are rejected, each of which is put on record."""
    source, number = _millions(work, b"{}\n", size, TEN), 10 * int(1_000_000 * size)
    yield Build(f"{number:,} records `{{}}`", source, refusal="no field 'text'")
    yield Build(f"{number:,} records `{{}}`, skipped, in rejected.jsonl", source, TEN, ("--on-bad-record", "skip"))
    with (work / "set" / "rejected.jsonl").open("rb") as lines:
        if (num_lines := sum(1 for _ in lines)) != number:
            raise Wrong(f"expected {number:,} lines in rejected.jsonl, found {num_lines:,}")


def receipts(work: Path, size: float) -> Iterator[Build]:
    """100,000 units of one record each, of which an earlier run did all but two, as made-up receipts say."""
    line, number, source = b'{"text": ""}\n', int(100_000 * size), work / "corpus.jsonl"
    source.write_bytes(line * number + json_line("篇"))
    settings, tokenizer = BuildSettings(val_fraction=0, unit_bytes=len(line)), load_tokenizer_files("qwen2").entry
    plan, output = make_plan(settings, tokenizer, find_corpus([str(source)]).sources), LocalOutput(work / "set")
    output.prepare(plan.encode(), replace=False)
    for unit in plan.units()[:number]:
        place = {"first": unit.ranges[0].start, "last": unit.ranges[0].stop}
        done = RangeReceipt(**place, digest=blake3(line).hexdigest(), num_records=1, num_newlines=0)
        receipt = Receipt(unit=unit.number, ranges=[done], left_out=Counter(empty=1))
        (output.partial / receipt_name(unit.number)).write_bytes(encode_receipt(receipt))
    yield Build(
        f"{number:,} units with a receipt, two without", source, ["篇"], ("--unit-bytes", len(line)), anew=False
    )


def many_shards(work: Path, size: float) -> Iterator[Build]:
    """20,000 shards, links to those of a small set: opened, read at random, and pulled by eight processes at once."""
    texts, copies = list(numbered(ARTICLES, 1_500)), int(1_000 * size)
    source = write_lines(work / "corpus.jsonl", texts)
    yield Build("a set in 20 shards", source, texts, ("--unit-bytes", source.stat().st_size // 20 + 1))
    small, many = (work / "set").rename(work / "small"), work / "many"
    merge([small] * copies, many, link=True)
    part, begin = open_shard_set(small)["train"], time.process_time()
    split = open_shard_set(many)["train"]
    opened, numbers = time.process_time(), split.epoch(0, 0)[:20_000]
    if (split[numbers] != part[numbers % len(part)]).any():
        raise Wrong("other blocks")
    seconds = f"{opened - begin:.2f}; {time.process_time() - opened:.2f}"
    print_row(f"{20 * copies:,} shards opened; 20,000 blocks of them at random", "right", "", seconds, "", "")
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=work))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pull = ours("shards", "pull", f"http://127.0.0.1:{server.server_port}/many", "--out", work / "set")
    what = f"{split.num_tokens * 4e-9:.1f} GB of them pulled by eight processes at once"
    yield Build(what, source, texts * copies, command=("sh", "-c", f"{shlex.join(pull)} & " * 8 + "wait"), anew=False)


ALL = (workers, tiny_files, long_record, empty_records, records_without_field, receipts, many_shards)
CASES = {case.__name__.replace("_", "-"): case for case in ALL}


# ---- building, and checking what came of it ----


def make(build: Build, out: Path) -> Ended:
    if build.anew:
        for path in (out, out.with_name("set.partial")):
            shutil.rmtree(path, ignore_errors=True)
    options = ("--val-fraction", 0, "--workers", 2, *build.options)
    command = build.command or ours("pipeline", "build", build.source, "--out", out, *options)
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
