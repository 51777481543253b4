"""Sources read without a build: range by range, with wrong guesses mended as a build does it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.fields import TextOf
from pipeline.readers import open_range
from pipeline.readers.base import BadRecord, Batch, Incomplete, ReadOptions, raise_bad
from pipeline.sources import ByteRange, Source, find_corpus

OPTIONS = ReadOptions(on_bad=raise_bad)


def find_sources(names: Sequence[str], encoding: str = "") -> list[Source]:
    return find_corpus(names, encoding).sources


def find(path: Path | str) -> Source:
    (source,) = find_sources([str(path)])
    return source


def ranges_of(source: Source, range_bytes: int) -> list[ByteRange]:
    """A source cut every `range_bytes`, or by each of its row groups, or whole where it can't be cut."""
    step, stop = 1, 1
    if source.is_splittable:
        step, stop = range_bytes, source.num_bytes
    elif source.format in ("parquet", "arrow"):
        from pipeline.readers.tables import row_group_bytes

        stop = len(row_group_bytes(source))
    starts = range(0, stop, step)
    return [ByteRange(source=source, start=start, stop=min(start + step, stop), num_bytes=step) for start in starts]


def read_and_peak(source: Source) -> tuple[int, int]:
    """How many records a source has, read in one range, and the most bytes of memory that took."""
    (byte_range,) = ranges_of(source, 10**9)
    tracemalloc.start()
    try:
        num_records = sum(len(batch.values) for batch in open_range(byte_range, OPTIONS))
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return num_records, peak


def read_range(byte_range: ByteRange, options: ReadOptions = OPTIONS, **known: Any) -> Any:
    """The reader of a range, and its batches."""
    reader = open_range(byte_range, options, **known)
    batches: list[Batch] = []
    error = None
    try:
        batches += reader
    except BadRecord as bad:
        error = bad
    return reader, batches, error


def batches_of(source: Source, range_bytes: int = 10**9, options: ReadOptions = OPTIONS) -> Iterator[Batch]:
    expected = 0
    for byte_range in ranges_of(source, range_bytes):
        true_first = expected if expected < byte_range.stop else None
        reader, batches, error = read_range(byte_range, options)
        if source.is_splittable and byte_range.start > 0 and reader.first != true_first:
            reader, batches, error = read_range(byte_range, options, first=expected)
            assert reader.first == true_first
        if error is not None:
            raise error
        if reader.last is not None and (reader.first is not None or byte_range.start == 0):
            expected = reader.last
        yield from batches
    assert not source.is_splittable or expected == source.num_bytes


def read_all(path: Path | str, range_bytes: int = 10**9, options: ReadOptions = OPTIONS) -> list[Any]:
    """All records."""
    return read_source(find(path), range_bytes, options)


def read_source(source: Source, range_bytes: int = 10**9, options: ReadOptions = OPTIONS) -> list[Any]:
    return [value for batch in batches_of(source, range_bytes, options) for value in batch.values]


def texts_of(*names: Path | str, field: str = "text", template: str = "", **options: Any) -> list[Any]:
    """The texts of all records of all sources, None for null."""
    text_of, range_bytes = TextOf(field, template), options.pop("range_bytes", 4000)
    read_options = ReadOptions(**{"on_bad": raise_bad, "columns": text_of.columns, **options})
    return [
        text
        for source in find_sources(list(map(str, names)))
        for batch in batches_of(source, range_bytes, read_options)
        for text in text_of.texts(batch, read_options)
    ]


def texts_and_bad(path: Path | str, **options: Any) -> tuple[list[Any], list[BadRecord]]:
    """The texts of the good records, and the bad ones, which are skipped."""
    bad: list[BadRecord] = []

    def note(error: BadRecord) -> None:
        if isinstance(error, Incomplete):
            raise error
        bad.append(error)

    return texts_of(path, on_bad=note, **options), bad
