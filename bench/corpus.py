"""Corpora made of the embedded sample's articles. The same arguments always write the same bytes."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.measure import REPOSITORY

SAMPLE = REPOSITORY / "data" / "sample" / "wikipedia-zh-sample.json"
_POOL_CHARS = 20_000_000
_MEAN_CHARS, _SIGMA, _MOST_CHARS = 430, 1.35, 107_000  # of the published file's texts: their lengths are log-normal


def articles() -> list[str]:
    return [record["text"] for record in json.loads(SAMPLE.read_text(encoding="utf-8"))]


def numbered(texts: list[str], num_texts: int) -> Iterator[str]:
    """The texts in turns, each with a number after it, so that no two are equal."""
    return (texts[number % len(texts)] + str(number) for number in range(num_texts))


def json_line(text: str) -> bytes:
    return json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"


def write_lines(path: Path, texts: Iterable[str]) -> Path:
    with path.open("wb") as file:
        file.writelines(map(json_line, texts))
    return path


def write_array(path: Path, lines: Iterable[bytes]) -> Path:
    """JSON Lines as one array."""
    with path.open("wb") as file:
        for number, line in enumerate(lines):
            file.write((b",\n" if number else b"[") + line.rstrip())
        file.write(b"]\n")
    return path


def make_tokenizer(directory: Path, vocab_size: int) -> Path:
    """A tokenizer of the sample, made once."""
    from pipeline.train_tokenizer import train_tokenizer

    if not directory.exists():
        train_tokenizer([str(SAMPLE)], directory, vocab_size=vocab_size)
    return directory


def write_rehearsal(path: Path, num_records: int) -> None:
    """A JSON array in the published file's shape, one record a line: parts of the articles in random order."""
    rng = random.Random(0)
    paragraphs = [paragraph for text in articles() for paragraph in text.split("\n")]
    pool = ""
    while len(pool) < _POOL_CHARS:
        rng.shuffle(paragraphs)
        pool += "\n".join(paragraphs)
    mean = math.log(_MEAN_CHARS) - _SIGMA**2 / 2
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_records):
            length = min(int(rng.lognormvariate(mean, _SIGMA)), _MOST_CHARS)
            start = rng.randrange(len(pool) - length)
            text = pool[start : start + length].strip()
            record = {"id": str(number), "title": text[:8].replace("\n", " "), "tags": "", "text": text}
            file.write((",\n" if number else "[\n") + json.dumps(record, ensure_ascii=False))
        file.write("\n]\n")


def records(corpus: Path) -> Iterator[bytes]:
    """Of JSON Lines, or of an array with one record a line."""
    with corpus.open("rb") as lines:
        stripped = (line.strip().rstrip(b",") for line in lines)
        yield from (record for record in stripped if record.startswith(b"{"))


def write_part(corpus: Path, num_bytes: int, directory: Path, num_files: int) -> int:
    """The corpus's first records, about `num_bytes` of them, as JSON Lines in files of equal size; returns the bytes.

    Records with an empty text are left out: the peers differ in what they make of them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    full = (record for record in records(corpus) if json.loads(record)["text"])
    total = 0
    for number in range(num_files):
        with (directory / f"{number}.jsonl").open("wb") as file:
            for record in full:
                file.write(record + b"\n")
                if file.tell() >= num_bytes / num_files:
                    break
            total += file.tell()
    return total
