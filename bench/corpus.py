"""A rehearsal corpus of any size, in the published file's shape, from the embedded sample; and it in other formats.

Texts are stretches of the sample's articles in random order, with log-normal lengths like Wikipedia's (430 characters on
average, at most 107,000). The same arguments always write the same bytes.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from isal import igzip

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "sample" / "wikipedia-zh-sample.json"
_POOL_CHARS = 20_000_000
_SIGMA = 1.35


def write_rehearsal(path: Path, num_records: int, *, seed: int = 0) -> None:
    """Write a JSON array of `num_records` records, one a line."""
    rng = random.Random(seed)
    paragraphs = [
        paragraph
        for record in json.loads(SAMPLE.read_text(encoding="utf-8"))
        for paragraph in record["text"].split("\n")
    ]
    pool = ""
    while len(pool) < _POOL_CHARS:
        rng.shuffle(paragraphs)
        pool += "\n".join(paragraphs)
    mean = math.log(430) - _SIGMA**2 / 2
    with path.open("w", encoding="utf-8") as file:
        file.write("[\n")
        for number in range(num_records):
            length = min(int(rng.lognormvariate(mean, _SIGMA)), 107_000)
            start = rng.randrange(len(pool) - length)
            text = pool[start : start + length].strip()
            record = {"id": str(number), "title": text[:8].replace("\n", " "), "tags": "", "text": text}
            file.write((",\n" if number else "") + json.dumps(record, ensure_ascii=False))
        file.write("\n]\n")


def convert(corpus: Path, name: str, work: Path) -> Path:
    """The corpus (a JSON array, one record a line) as `jsonl`, as `compact` (one line, every tenth record with \\uXXXX
    escapes) or as `gz`; made once."""
    if name == "array":
        return corpus
    path = work / {"jsonl": "corpus.jsonl", "compact": "compact.json", "gz": f"{corpus.name}.gz"}[name]
    if path.exists():
        return path
    partial = path.with_suffix(".tmp")
    if name == "gz":
        with corpus.open("rb") as source, igzip.open(partial, "wb", compresslevel=3) as compressed:
            shutil.copyfileobj(source, compressed, 1 << 20)
    else:
        with partial.open("wb") as file:
            for number, record in enumerate(_records(corpus)):
                if name == "jsonl":
                    file.write(record + b"\n")
                    continue
                if number % 10 == 0:
                    record = json.dumps(json.loads(record)).encode()
                file.write((b", " if number else b"[") + record)
            if name == "compact":
                file.write(b"]")
    partial.rename(path)
    return path


def write_part(corpus: Path, num_bytes: int, directory: Path, num_files: int) -> int:
    """The corpus's first records, about `num_bytes` of them, as JSON Lines in files of equal size; returns the bytes.

    Records with an empty text are left out: the peers differ in what they make of them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    records = (record for record in _records(corpus) if json.loads(record)["text"])
    total = 0
    for number in range(num_files):
        with (directory / f"{number}.jsonl").open("wb") as file:
            for record in records:
                file.write(record + b"\n")
                if file.tell() >= num_bytes / num_files:
                    break
            total += file.tell()
    return total


def _records(corpus: Path) -> Iterator[bytes]:
    with corpus.open("rb") as lines:
        for line in lines:
            record = line.strip().rstrip(b",")
            if record.startswith(b"{"):
                yield record
