"""Byte ranges hold exactly the corpus's records, whatever the layout and wherever chunks and cuts fall."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.readers import open_range
from pipeline.readers.base import BadRecord, Incomplete, LineCounter, RangeReader, locate
from pipeline.readers.files import SourceFile
from pipeline.sources import ByteRange
from shards.common.errors import InputError
from tests.conftest import write_corpus
from tests.pipeline.reading import OPTIONS, find, ranges_of, read_all, read_range, texts_and_bad, texts_of

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
with_paths = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def join(records: list[bytes], layout: str) -> bytes:
    """Records as they stand, in lines or in an array."""
    if layout == "lines":
        return b"\n".join(records) + b"\n"
    return b"[" + {"array": b",\n", "compact": b", "}[layout].join(records) + b"]"


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@with_paths
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
def test_a_record_that_begins_at_the_end_of_a_range_is_the_next_ones(tmp_path: Path, layout: str) -> None:
    values = [{"text": "字" * number} for number in range(1, 5)]
    source = find(write_corpus(tmp_path / "corpus", values, layout))
    places = [place for place, byte in enumerate((tmp_path / "corpus").read_bytes()) if byte == ord("{")]
    bounds = [0, *places[1:], source.num_bytes]
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        reader, batches, _error = read_range(ByteRange(source=source, start=start, stop=stop, num_bytes=1))
        assert [value for batch in batches for value in batch.values] == values[number : number + 1]
        assert (reader.first, reader.last) == (places[number], stop)
        inside = ByteRange(source=source, start=places[number] + 1, stop=stop, num_bytes=1)
        reader, batches, _error = read_range(inside)
        assert (batches, reader.first) == ([], None)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_range_knows_the_digest_and_the_newlines_of_its_own_bytes(tmp_path: Path, layout: str) -> None:
    path = write_corpus(tmp_path / "corpus", [{"text": "字" * number} for number in range(60)], layout)
    source, options = find(path), dataclasses.replace(OPTIONS, counts_lines=True)
    for byte_range in ranges_of(source, 700):
        reader, _batches, _error = read_range(byte_range, options)
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
    assert read_all(write(path, mark + path.read_bytes()), range_bytes) == [{"text": "甲"}, {"text": "乙"}]


def test_blank_lines_are_no_records_and_of_equal_keys_the_last_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.jsonl", b'{"text": "a"}\r\n\r\n  \n{"text": "a", "text": "b"}')
    assert read_all(path) == [{"text": "a"}, {"text": "b"}]


# What stands in the file, the kind under which it is counted, and a part of the reason.
BAD: dict[str, tuple[bytes, str, str]] = {
    "bare word": (b'{"text": abc}', "not valid JSON", "Expecting value at"),
    "no colon": (b'{"text" "a"}', "not valid JSON", "Expecting ':' delimiter at"),
    "trailing comma": (b'{"text": "a",}', "not valid JSON", "at"),
    "NaN": (b'{"text": "a", "score": NaN}', "not valid JSON", "NaN is no JSON value"),
    "raw control character": (b'{"text": "a\x01b"}', "not valid JSON", "Invalid control character at"),
    "invalid UTF-8": (b'{"text": "\xff\xfe"}', "invalid UTF-8", "invalid UTF-8 at byte 10"),
    "lone surrogate": (b'{"text": "\\ud800"}', "lone surrogate", "a lone surrogate"),
    "big number and a surrogate": (b'{"n": 1e400, "x": "\\ud800"}', "lone surrogate", ""),
    "not an object": (b"[1]", "not an object", "expected an object, found an array"),
    "no text field": (b'{"id": 1, "title": "a"}', "no text field", "no field 'text'; this record has id, title"),
    "a number": (b'{"text": 5}', "text is not a string", "field 'text': expected a string, found a number"),
    "null": (b'{"text": null}', "text is not a string", "expected a string, found null"),
    "too large": (b'{"text": "' + b"x" * 3000 + b'"}', "record too large", "larger than max_record_bytes (2,000"),
    "deep, no text": (b'{"other": ' + b"[" * 800 + b"]" * 800 + b"}", "no text field", "this record has other"),
}


def good(number: int) -> bytes:
    return json.dumps({"text": f"第{number}篇"}, ensure_ascii=False).encode()


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("layout", ["lines", "array", "compact"])
def test_a_bad_record_is_found_where_it_stands(tmp_path: Path, layout: str, name: str) -> None:
    bad, kind, reason = BAD[name]
    content = join([good(1), good(2), bad, good(3)], layout)
    source = find(write(tmp_path / "corpus", content))
    offset = content.index(bad)
    with pytest.raises(BadRecord) as caught:
        texts_of(source.path, max_record_bytes=2000)
    assert (caught.value.offset, caught.value.kind) == (offset, kind) and reason in caught.value.reason
    line = content[:offset].count(b"\n") + 1
    assert str(locate(source, caught.value)).startswith(f"{source.path}: line {line}, byte {offset}: ")


@pytest.mark.parametrize("range_bytes", [100, 10_000_000])
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("layout", ["lines", "array", "compact"])
def test_bad_records_are_skipped_and_no_others(tmp_path: Path, layout: str, name: str, range_bytes: int) -> None:
    bad, kind, _reason = BAD[name]
    records = [good(number) for number in range(40)]
    records[7:7], records[20:20] = [bad], [bad, bad]
    content = join(records, layout)
    path = write(tmp_path / "corpus", content)
    texts, found = texts_and_bad(path, range_bytes=range_bytes, max_record_bytes=2000)
    expected = [f"第{number}篇" for number in range(40)]
    assert found[0].offset == content.index(bad) and kind in {error.kind for error in found}
    if layout == "lines":
        assert texts == expected and [error.kind for error in found] == [kind] * 3
    else:  # without line feeds, what follows a record that can't be parsed may be lost with it: nothing else is
        assert [text for text in texts if text in expected] == texts and len(texts) >= 36


@with_paths
@given(kinds=st.lists(st.sampled_from(["good", *sorted(BAD)]), max_size=30), range_bytes=st.integers(10, 6000))
def test_all_good_lines_survive_any_neighbours(tmp_path: Path, kinds: list[str], range_bytes: int) -> None:
    records = [good(number) if kind == "good" else BAD[kind][0] for number, kind in enumerate(kinds)]
    path = write(tmp_path / "corpus", join([b'{"text": "\xe6\x9c\xab"}', *records], "lines"))
    texts, bad = texts_and_bad(path, range_bytes=range_bytes, max_record_bytes=2000)
    assert texts == ["末", *(f"第{number}篇" for number, kind in enumerate(kinds) if kind == "good")]
    assert len(bad) == len(kinds) - kinds.count("good")


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize(
    "content", ['{"text": "a"}\n{"text": "b', '[{"text": "a"}, {"text": "b"', '[\n{"text": "a"},\n', '[{"text": "]']
)
def test_a_file_that_breaks_off_is_an_incomplete_download(tmp_path: Path, content: str, skips: bool) -> None:
    path = write(tmp_path / "corpus", content.encode())
    with pytest.raises((Incomplete, InputError), match="incomplete"):
        texts_and_bad(path) if skips else read_all(path)


def test_a_comma_after_the_last_record(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus", b'[{"text": "a"}, {"text": "b"}, ]\n')
    with pytest.raises(BadRecord, match="expected a record after the comma, found ']'"):
        read_all(path)
    texts, bad = texts_and_bad(path)
    assert (texts, len(bad)) == (["a", "b"], 1)


def test_all_that_is_read_to_look_ahead_is_searched_for_the_next_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read may end with what seems to begin a record, and, as more shows, doesn't."""
    monkeypatch.setattr(RangeReader, "chunk_bytes", 4096)
    opening = b"[" + good(0) + b',\n{"text" x "'
    false = opening + b"a" * (2 * 4096 - len(opening) - 3) + b"},{"
    path = write(tmp_path / "corpus", false + b'" x},\n' + join([good(number) for number in range(5000)], "array")[1:])
    texts, found = texts_and_bad(path, range_bytes=10**9)
    assert (len(texts), len(found)) == (5001, 1)


@pytest.mark.parametrize("layout", ["lines", "array", "compact"])
@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "1" * 400, "1" * 5000, "18446744073709551616", "1e-400", "-0", "-0.0"]
)
def test_numbers_of_any_size_are_valid(tmp_path: Path, layout: str, number: str) -> None:
    record = f'{{"text": "字 \\ud83d\\ude00", "n": {number}}}'.encode()
    path = write(tmp_path / "corpus", join([b'{"text": "a"}', record, b'{"text": "b"}'], layout))
    for range_bytes in (10**6, 20):
        values = read_all(path, range_bytes)
        assert [value["text"] for value in values] == ["a", "字 😀", "b"]
        assert values[1]["n"] == float(number) or str(values[1]["n"]) == number


@pytest.mark.parametrize("layout", ["lines", "array", "compact"])
@pytest.mark.parametrize(("depth", "is_read"), [(900, True), (1015, True), (1100, False), (100_000, False)])
@pytest.mark.parametrize("chunk_bytes", [700, 1 << 21])
def test_depth_is_the_same_in_every_layout(
    tmp_path: Path, layout: str, depth: int, is_read: bool, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Python's parser, which takes less by default, has to look at the record."""
    monkeypatch.setattr(RangeReader, "chunk_bytes", chunk_bytes)
    deep = b'{"text": "d", "x": ' + b"[" * depth + b"]" * depth + b"}"
    path = write(tmp_path / "corpus", join([b'{"text": "a"}', deep, b'{"text": "b"}'], layout))
    if is_read:
        assert [value["text"] for value in read_all(path)] == ["a", "d", "b"]
    else:
        with pytest.raises(BadRecord, match="nested too deeply"):
            read_all(path)


def test_memory_for_a_range_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """A reader holds a chunk or two, never the file: of a single-line array too."""
    record = json.dumps({"text": "文" * 300}, ensure_ascii=False)
    source = find(write(tmp_path / "corpus", ("[" + ", ".join([record] * 60_000) + "]").encode()))
    (byte_range,) = ranges_of(source, 10**9)
    tracemalloc.start()
    try:
        assert sum(len(batch.values) for batch in open_range(byte_range, OPTIONS)) == 60_000
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 45_000_000 < source.num_bytes
