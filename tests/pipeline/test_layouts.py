"""The same records in any layout give the same texts: lines, arrays, texts one after another, plain strings, CSV, TSV."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.readers import delimited
from pipeline.readers.base import BadRecord, Incomplete, RangeReader, ReadOptions, locate
from pipeline.readers.json_parser import end_of_text
from shards.common.errors import InputError
from tests.conftest import write_corpus
from tests.pipeline.building import Builder, texts_in
from tests.pipeline.reading import batches_of, find, ranges_of, read_all, read_range, texts_and_bad, texts_of
from tests.pipeline.test_records import good, tricky_text, with_paths, write

pytestmark = pytest.mark.usefixtures("inline_engine")


def write_in(path: Path, records: list[dict[str, Any]], layout: str) -> Path:
    """Records in one of all layouts; of `csv` and `tsv`, whose values are strings, in a file of that suffix."""
    if layout not in ("csv", "tsv"):
        return write_corpus(path, records, layout)
    path = path.with_suffix(f".{layout}")
    with path.open("w", encoding="utf-8", newline="") as file:
        delimiter = "," if layout == "csv" else "\t"
        writer = csv.DictWriter(file, list(records[0]), delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(records)
    return path


@pytest.mark.parametrize("layout", ["array", "joined", "csv", "tsv"])
@with_paths
@given(texts=st.lists(tricky_text, min_size=1, max_size=6), chunk_bytes=st.integers(1, 200))
@example(texts=["\ufdd0\ufdef"], chunk_bytes=1)  # what stands in CSV for bytes that aren't UTF-8
def test_every_layout_gives_the_same_texts(tmp_path: Path, layout: str, texts: list[str], chunk_bytes: int) -> None:
    records = [{"id": f"00{number}", "text": text, "last": '"'} for number, text in enumerate(texts)]
    path = write_in(tmp_path / "corpus", records, layout)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RangeReader, "chunk_bytes", chunk_bytes)
        assert texts_of(path, range_bytes=chunk_bytes) == texts
        assert texts_of(path, template="{id}{text}") == [record["id"] + record["text"] for record in records]


@with_paths
@given(texts=st.lists(tricky_text | st.none(), min_size=1), chunk_bytes=st.integers(1, 200), is_array=st.booleans())
def test_plain_strings_are_documents(tmp_path: Path, texts: list[str | None], chunk_bytes: int, is_array: bool) -> None:
    texts = ["甲", *texts]
    path = write_in(tmp_path / "corpus", texts, "array" if is_array else "lines")  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RangeReader, "chunk_bytes", chunk_bytes)
        assert texts_of(path, field="content", range_bytes=chunk_bytes) == texts
    with pytest.raises(BadRecord, match="expected an object, whose fields the template names, found a string"):
        texts_of(path, template="{text}")


LONG = '{"text": "' + "x" * (1 << 17) + '"}'
FORMATS = {
    "json-lines": ['{"a": 1}', '{"a": 1}\n{"b": 2}{"c": 3}', '{"a": 1},\n{"b": 2}', LONG + "\n{}", '{"a": x}\n{}',
                   '{"a": "\n', '{"a": 1} x', '"a"\n"b"', '"id","text"\n', '{"a": ' + "[" * 3000 + "\n"],
    "json-texts": ['{"a": 1}{"b": 2}', ' {"a": 1}\t {"b": 2}\n', '{\n"a": 1}', '{"a": 1,\n"b": ' + LONG, "{\n  'a': 1\n}",
                   '{"a": 1},{"b": 2}', '"a" "b"'],
    "json-array": ["[]", "[{}]", "[\n1]", '[["a"]]'],
    "json-strings": ['["a"]', '\n[ \n"a", {}]'],
}  # fmt: skip


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_layout_shows_at_the_beginning(tmp_path: Path, mark: str) -> None:
    for expected, contents in FORMATS.items():
        for content in contents:
            path = write(tmp_path / "corpus.json", (mark + content + ("]" if content[0] == "[" else "")).encode())
            source = find(path)
            assert source.format == expected, content
            assert source.is_splittable == (expected in ("json-lines", "json-array")) and source.is_stream


def test_a_text_too_large_is_a_bad_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RangeReader, "chunk_bytes", 200)
    large = json.dumps({"text": "x" * 5000}).encode()
    path = write(tmp_path / "corpus.json", good(0) + large + good(1) + large + b"\n" + good(2))
    texts, errors = texts_and_bad(path, max_record_bytes=2000)
    assert texts == [f"第{number}篇" for number in range(3)]
    assert [error.kind for error in errors] == ["record too large"] * 2


def test_a_large_text_is_parsed_only_a_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RangeReader, "chunk_bytes", 1000)
    num_parsed = 0

    def counted(text: str, place: int) -> int:
        nonlocal num_parsed
        num_parsed += len(text) - place
        return end_of_text(text, place)

    monkeypatch.setattr("pipeline.readers.json_texts.end_of_text", counted)
    path = write(tmp_path / "corpus.json", good(0) + json.dumps({"text": "x" * 10**6}).encode())
    assert len(texts_of(path)) == 2 and num_parsed < 6e6


def test_many_bad_texts_are_left_out_together(tmp_path: Path) -> None:
    path = tmp_path / "corpus.json"
    path.write_text('{\n"text": "a"}\n' + '{"text":\nNone}\n' * 3000 + '{"text": "z"}')
    bad: list[BadRecord] = []
    batches = list(batches_of(find(path), options=ReadOptions(on_bad=bad.append)))
    assert [value for batch in batches for value in batch.values] == [{"text": "a"}, {"text": "z"}]
    assert len(bad) == 3000 and bad[1].content == b'{"text":\nNone}\n'
    assert len(batches) < 10  # or each of them would cost as much as all that was read with it


def test_after_a_comma_between_texts_the_next_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "corpus.json"
    path.write_text('{\n"text": "a"}\n{"text":\nNone}\n{"text": "b"},{"text": "c"}\n{"text": "d"}')
    texts, bad = texts_and_bad(path)
    assert texts == ["a", "b", "c", "d"] and len(bad) == 2


def test_a_line_may_hold_several_objects(tmp_path: Path) -> None:
    lines = [good(0), good(1) + good(2) + b" " + good(3), good(4) + b" x", good(5) + b'{"text": 1}' + good(6), good(7)]
    lines.append(b'{"text": "\xff"}' + good(8))
    content = b"\n".join(lines)
    path = write(tmp_path / "corpus.json", content)
    for range_bytes in (20, 10**6):
        texts, errors = texts_and_bad(path, range_bytes=range_bytes)
        assert texts == [f"第{number}篇" for number in (0, 1, 2, 3, 5, 6, 7, 8)]
        offsets = [content.index(good(4)), content.index(b'{"text": 1}'), content.index(lines[-1])]
        assert sorted(error.offset for error in errors) == offsets


PYTHON, COMMAS = "as Python's print() does, not as json.dumps()", "is it a JSON array without its '[' and ']'?"
ODD = {
    '[{"text": "a"},]': "a comma before the array's closing ']'",
    '["a",\n]': "a comma before the array's closing ']'",
    '{"text": "a"},\n{"text": "b"}\n': f"{COMMAS} Mend",
    '{"text": "a"}, {"text": "b"}': COMMAS,
    '{\n"text": "a"\n},\n{\n"text": "b"\n}': COMMAS,
    "{'text': 'a'}\n{'text': 'b'}\n": PYTHON,
    '{"text": None}': PYTHON,
    "[{'text': 'a'}]": PYTHON,
    "['a']": PYTHON,
    '"id","text"\n"1","a"\n': "is it CSV, whose name should end in .csv? Mend",
    "id,text\n1,a\n": "or a .txt, .csv or .tsv file, found 'i'",
}


@pytest.mark.parametrize("content", ODD)
def test_what_is_almost_json_is_called_by_its_name(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "corpus.json", content.encode())
    with pytest.raises((BadRecord, InputError)) as caught:
        texts_of(path)
    line = str(locate(find(path), caught.value)) if isinstance(caught.value, BadRecord) else str(caught.value)
    assert ODD[content] in line


# ---- CSV and TSV ----


def test_all_that_stands_in_csv_is_text(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfid,text,n\r\n\r\n007,NA,\r\n1.50,"a ""b""\r\n,c",true\r\n,,null'
    path = write(tmp_path / "corpus.csv", content)
    expected = [("007", "NA", ""), ("1.50", 'a "b"\r\n,c', "true"), ("", "", "null")]
    assert [tuple(row.values()) for row in read_all(path)] == expected
    with pytest.raises(BadRecord, match="no field 'txt'; this record has id, text, n; did you mean 'text'"):
        texts_of(path, field="txt")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bad_rows_are_counted_from_the_header(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_READ_BYTES", "_HEAD_BYTES"):
        monkeypatch.setattr(delimited, name, 100)
    rows = [f"{number},第{number}篇".encode() for number in range(100)]
    rows[20:20], rows[50:50], rows[99:] = [b"1,2,3"], [b"5,ab\xff\xfe"], [b"1\xff", b"5,\xff", b"1,2,\xb0"]
    content = b"\n".join([b"id,text", *rows]) + b"\n"
    path = write(tmp_path / f"corpus.csv{suffix}", gzip.compress(content) if suffix else content)
    texts, errors = texts_and_bad(path)
    assert texts == [f"第{number}篇" for number in range(97)]
    columns, encoding = "wrong number of columns", "invalid UTF-8"
    found = sorted((error.offset, error.kind) for error in errors)
    assert found == [(22, columns), (52, encoding), (101, columns), (102, encoding), (103, columns)]
    assert "invalid UTF-8 at byte 2" in next(error.reason for error in errors if error.offset == 52)
    _reader, _batches, error = read_range(ranges_of(find(path), 1)[0])
    assert str(locate(find(path), error)).startswith(f"{path}: row 22: expected 2 columns, found 3; mend it, or ")


@pytest.mark.parametrize("is_whole", [False, True])
def test_csv_that_breaks_off_is_an_incomplete_download(tmp_path: Path, is_whole: bool) -> None:
    whole, broken = ('"a"', '""', '"""a"""', 'a"b', "", "\n", '"a\n"\n'), ('"a', '"a\n', '"', '"a ""b""', "x\n1")
    for end in whole if is_whole else broken:
        path = write(tmp_path / "corpus.csv", f"id,text\n1,x\n2,{end}".encode())
        with contextlib.nullcontext() if is_whole else pytest.raises(Incomplete, match="incomplete"):
            assert len(texts_and_bad(path)[0]) == 2
    reader, _batches, _error = read_range(ranges_of(find(path), 1)[0])
    assert reader.compute_digest() == blake3(path.read_bytes()).hexdigest() and reader.digest in (
        "",
        reader.compute_digest(),
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"i\xff,text\n1,2\n", "row 1: the names of the columns aren't UTF-8"),
        (b"\n\n", "pyarrow can't read this csv file: "),
        (b'id,text\n1,"' + b"x" * 5000 + b'"\n1,2\n' * 2000, "a row is too large, or a quotation mark doesn't close"),
    ],
)
def test_csv_that_can_not_be_read(tmp_path: Path, content: bytes, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "_READ_BYTES", 1000)
    monkeypatch.setattr(delimited, "_HEAD_BYTES", 900)
    with pytest.raises(InputError, match=reason):
        texts_and_bad(write(tmp_path / "corpus.csv", content))


def test_a_directory_of_several_layouts_is_built(tmp_path: Path, run: Builder) -> None:
    layouts = ["lines", "array", "jq", "csv"]
    (tmp_path / "in").mkdir()
    for number, layout in enumerate(layouts):
        records = [{"id": str(row), "text": f"{layout} {row}"} for row in range(20)]
        write_in(tmp_path / "in" / f"{number}.json", records, layout)
    (tmp_path / "in" / "6.csv").write_text('id,text\n1,a\n1\n2,""\n', encoding="utf-8")
    (tmp_path / "in" / "7.jsonl").write_text('{"text": null}\n{"text": ""}\n"b"\nnull\n', encoding="utf-8")
    manifest = run(tmp_path / "in", tmp_path / "set", val_fraction=0.0, on_bad_record="skip").manifest
    assert texts_in(tmp_path / "set") == [f"{layout} {row}" for layout in layouts for row in range(20)] + ["a", "b"]
    assert manifest.left_out == {"empty": 2, "null": 2} and manifest.rejected == {"wrong number of columns": 1}
    (line,) = (tmp_path / "set" / "rejected.jsonl").read_text("utf-8").splitlines()
    reason = "expected 2 columns, found 1"
    assert json.loads(line) == {"source": "6.csv", "reason": reason, "row": 3, "record": "1"}
    assert [source.format for source in manifest.sources[2:4]] == ["json-texts", "csv"]
