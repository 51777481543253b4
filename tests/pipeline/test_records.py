"""Units hold exactly the corpus's records, whatever the layout and wherever the cuts fall."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.fields import TextOf
from pipeline.readers import open_stretch
from pipeline.records import BadRecord, ReadOptions, StretchReader, raise_bad
from pipeline.sources import find_sources
from pipeline.units import plan_units
from shards.common.errors import InputError
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


def read_all(path: Path, unit_bytes: int, options: ReadOptions = OPTIONS) -> list[Any]:
    """All records, stretch by stretch, with false starts mended as the build does it."""
    (source,) = find_sources([str(path)])
    values: list[Any] = []
    expected = 0
    for unit in plan_units([source], unit_bytes):
        (stretch,) = unit.stretches
        reader = open_stretch(source, stretch, options)
        try:
            own = [value for batch in reader for value in batch.values]
        except BadRecord:
            if stretch.is_first or reader.first == expected:
                raise
        if not stretch.is_first and reader.first != (expected if expected < stretch.stop else None):
            reader = open_stretch(source, stretch, options, first=expected)
            own = [value for batch in reader for value in batch.values]
            assert reader.first == (expected if expected < stretch.stop else None)
        if reader.last is not None and (reader.first is not None or stretch.is_first):
            expected = reader.last
        values += own
    assert not source.is_splittable or expected == source.num_bytes
    return values


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(record, max_size=8), unit_bytes=st.integers(1, 400), chunk_bytes=st.integers(1, 200))
def test_each_record_exactly_once_in_order(
    tmp_path: Path, layout: str, values: list[Any], unit_bytes: int, chunk_bytes: int
) -> None:
    path = write_corpus(tmp_path / "corpus", values or [{"text": "x"}], layout)
    before = StretchReader.chunk_bytes
    StretchReader.chunk_bytes = chunk_bytes
    try:
        assert read_all(path, unit_bytes) == (values or [{"text": "x"}])
    finally:
        StretchReader.chunk_bytes = before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_unit_digest_covers_its_bytes_and_no_others(tmp_path: Path, layout: str) -> None:
    from blake3 import blake3

    path = write_corpus(tmp_path / "corpus", [{"text": "字" * number} for number in range(60)], layout)
    (source,) = find_sources([str(path)])
    for unit in plan_units([source], 700):
        (stretch,) = unit.stretches
        reader = open_stretch(source, stretch, OPTIONS)
        for _batch in reader:
            pass
        assert reader.digest == blake3(path.read_bytes()[stretch.start : stretch.stop]).hexdigest()


@pytest.mark.parametrize("layout", ["array", "lines"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, layout: str) -> None:
    path = write_corpus(tmp_path / "corpus", [{"text": "甲"}, {"text": "乙"}], layout)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_all(path, 1000) == [{"text": "甲"}, {"text": "乙"}]


def test_blank_lines_and_carriage_returns_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"text": "a"}\r\n\r\n  \n{"text": "b"}')
    assert read_all(path, 1000) == [{"text": "a"}, {"text": "b"}]


BAD = {
    "cut string": '{"text": "abc',
    "bare word": '{"text": abc}',
    "NaN": '{"text": NaN}',
    "raw control character": '{"text": "a\x01b"}',
    "lone surrogate": '{"text": "\\ud800"}',
    "trailing comma": '{"text": "a",}',
    "no colon": '{"text" "a"}',
    "too deep": '{"text": ' + "[" * 10_000 + "]" * 10_000 + "}",
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("layout", ["array", "lines", "compact"])
def test_a_bad_record_is_found_where_it_stands(tmp_path: Path, layout: str, name: str) -> None:
    good = [json.dumps({"text": f"文{number}"}, ensure_ascii=False) for number in range(5)]
    separator = {"array": ",\n", "lines": "\n", "compact": ", "}[layout]
    content = separator.join([*good, BAD[name], *good])
    content = content if layout == "lines" else f"[{content}]"
    path = tmp_path / "corpus"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BadRecord) as caught:
        read_all(path, 10**6)
    assert caught.value.offset == content.encode().index(BAD[name].encode())


def test_invalid_utf8_is_found(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(BadRecord, match="invalid UTF-8") as caught:
        read_all(path, 10**6)
    assert caught.value.offset == 14


@pytest.mark.parametrize(
    "content", ['{"text": "a"}\n{"text": "b', '[{"text": "a"}, {"text": "b"', '[\n{"text": "a"},\n']
)
def test_a_file_that_breaks_off_is_an_incomplete_download(tmp_path: Path, content: str) -> None:
    path = tmp_path / "corpus"
    path.write_text(content)
    with pytest.raises((BadRecord, InputError), match="incomplete"):
        read_all(path, 10**6)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"id": 1, "title": "t"}, "no field 'text'; this record has id, title"),
        ({"text": 5}, "field 'text': expected a string, found a number"),
        ({"text": None}, "expected a string, found null"),
        ([1], "expected an object, found an array"),
    ],
)
@pytest.mark.parametrize("layout", ["lines", "compact"])
def test_a_record_without_text_is_found_where_it_stands(tmp_path: Path, layout: str, value: Any, reason: str) -> None:
    path = write_corpus(tmp_path / "corpus", [{"text": "字"}, {"text": "文"}, value, {"text": "b"}], layout)
    (source,) = find_sources([str(path)])
    (unit,) = plan_units([source], 10**6)
    with pytest.raises(BadRecord) as caught:
        for batch in open_stretch(source, unit.stretches[0], OPTIONS):
            TextOf("text").texts(batch, OPTIONS)
    assert reason in caught.value.reason
    assert caught.value.offset == path.read_bytes().index(json.dumps(value).encode())
