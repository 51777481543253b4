"""Byte ranges hold exactly the corpus's records, whatever the layout and wherever the cuts fall."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.fields import TextOf
from pipeline.plan import ByteRange
from pipeline.readers import open_range
from pipeline.readers.base import BadRecord, Incomplete, LineCounter, RangeReader, ReadOptions, raise_bad
from pipeline.readers.files import SourceFile
from pipeline.sources import Source, find_sources
from tests.conftest import write_corpus

LAYOUTS = ["lines", "array", "pretty", "compact", "escaped"]
# Texts that look like the structure around them.
TRICKY = ['},\n{"text": "', '"}, {"', "[{}, {}]", "\\", '\\"},{', "},{", "\n", "]", "", "{", "，。𠀀é", "\u2028"]
tricky_text = st.lists(st.sampled_from(TRICKY) | st.text(max_size=8), max_size=6).map("".join)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | tricky_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(tricky_text, inner, max_size=3),
    max_leaves=6,
)
record = st.builds(lambda text, extra: {"refs": extra, "text": text}, tricky_text, json_value)
OPTIONS = ReadOptions(on_bad=raise_bad)


def find(path: Path) -> Source:
    (source,) = find_sources([str(path)])
    return source


def ranges_of(source: Source, range_bytes: int) -> list[ByteRange]:
    """A source cut every `range_bytes`, or whole where it can't be cut."""
    if not source.is_splittable:
        return [ByteRange(source=0, start=0, stop=1, num_bytes=source.num_bytes)]
    starts = range(0, source.num_bytes, range_bytes)
    stops = [min(start + range_bytes, source.num_bytes) for start in starts]
    return [ByteRange(source=0, start=a, stop=b, num_bytes=b - a) for a, b in zip(starts, stops, strict=True)]


def read_all(path: Path, range_bytes: int = 10**9, options: ReadOptions = OPTIONS) -> list[Any]:
    """All records, range by range, with wrong guesses mended as a build does it."""
    source = find(path)
    values: list[Any] = []
    expected = 0
    for byte_range in ranges_of(source, range_bytes):
        reader = open_range(source, byte_range, options)
        try:
            own = [value for batch in reader for value in batch.values]
        except BadRecord:
            if byte_range.is_first or reader.first == expected:
                raise
        if not byte_range.is_first and reader.first != (expected if expected < byte_range.stop else None):
            reader = open_range(source, byte_range, options, first=expected)
            own = [value for batch in reader for value in batch.values]
            assert reader.first == (expected if expected < byte_range.stop else None)
        if reader.last is not None and (reader.first is not None or byte_range.is_first):
            expected = reader.last
        values += own
    assert not source.is_splittable or expected == source.num_bytes
    return values


def texts_and_bad(path: Path, range_bytes: int = 10**9, **options: Any) -> tuple[list[str], list[BadRecord]]:
    """The texts of all records, and those that are bad, which are skipped."""
    bad: list[BadRecord] = []

    def note(error: BadRecord) -> None:
        if isinstance(error, Incomplete):
            raise error
        bad.append(error)

    source, read_options = find(path), ReadOptions(on_bad=note, **options)
    texts: list[str] = []
    for byte_range in ranges_of(source, range_bytes):
        for batch in open_range(source, byte_range, read_options):
            texts += TextOf("text").texts(batch, read_options)
    return texts, bad


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(record, min_size=1, max_size=8), range_bytes=st.integers(1, 400), chunk_bytes=st.integers(1, 200)
)
def test_each_record_exactly_once_in_order(
    tmp_path: Path, layout: str, values: list[Any], range_bytes: int, chunk_bytes: int
) -> None:
    path = write_corpus(tmp_path / "corpus", values, layout)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RangeReader, "chunk_bytes", chunk_bytes)
        assert read_all(path, range_bytes) == values


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_range_knows_the_digest_and_the_newlines_of_its_own_bytes(tmp_path: Path, layout: str) -> None:
    path = write_corpus(tmp_path / "corpus", [{"text": "字" * number} for number in range(60)], layout)
    source, options = find(path), dataclasses.replace(OPTIONS, counts_lines=True)
    for byte_range in ranges_of(source, 700):
        reader = open_range(source, byte_range, options)
        for _batch in reader:
            pass
        own = path.read_bytes()[byte_range.start : byte_range.stop]
        assert reader.digest == reader.compute_digest() == blake3(own).hexdigest()
        assert reader.num_newlines == own.count(b"\n")


def test_lines_are_counted_from_a_range_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from the file's beginning for each range that has a bad record."""
    path = write_corpus(tmp_path / "corpus", [{"text": "字"}] * 1000, "lines")
    content, start = path.read_bytes(), 15_000
    read, num_read = SourceFile.read, []

    def count(file: SourceFile, num_bytes: int = -1) -> bytes:
        num_read.append(num_bytes)
        return read(file, num_bytes)

    lines = LineCounter(find(path), start)
    monkeypatch.setattr(SourceFile, "read", count)
    for offset in (start, start + 300, start + 500):
        assert lines.line(offset) == content[start:offset].count(b"\n") + 1
    assert sum(num_read) == 500
    lines.close()


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("range_bytes", [1, 2, 3, 4, 1000])
@pytest.mark.parametrize("layout", ["compact", "lines"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, layout: str, mark: bytes, range_bytes: int) -> None:
    path = write_corpus(tmp_path / "corpus", [{"text": "甲"}, {"text": "乙"}], layout)
    path.write_bytes(mark + path.read_bytes())
    assert read_all(path, range_bytes) == [{"text": "甲"}, {"text": "乙"}]


def test_blank_lines_and_carriage_returns_are_no_records(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(b'{"text": "a"}\r\n\r\n  \n{"text": "a", "text": "b"}')
    assert read_all(tmp_path / "corpus.jsonl") == [
        {"text": "a"},
        {"text": "b"},
    ]  # of two equal keys the last, as in json
