"""Byte ranges hold exactly the corpus's records, whatever the layout and wherever chunks and cuts fall.

A bad record ends the build, or is put on record and the rest is built.
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import os
import resource
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.plan import plan_units
from pipeline.readers.base import BadRecord, Incomplete, RangeReader, locate
from pipeline.readers.files import SourceFile
from pipeline.receipts import Receipt
from pipeline.settings import BuildSettings
from pipeline.sources import ByteRange
from pipeline.worker import read_texts
from shards.common.errors import InputError
from shards.verify import verify
from tests.conftest import write_corpus
from tests.pipeline.building import Builder, Heard, texts_in
from tests.pipeline.reading import (
    OPTIONS,
    find,
    find_sources,
    ranges_of,
    read_all,
    read_and_peak,
    read_range,
    texts_and_bad,
    texts_of,
)

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
with_paths = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def join(records: list[bytes], layout: str) -> bytes:
    """Records as they stand, in lines, in an array, or one after another."""
    between = {"lines": b"\n", "array": b",\n", "compact": b", ", "joined": b"", "spaced": b"\n \n"}[layout]
    content = between.join(records)
    return b"[" + content + b"]" if layout in ("array", "compact") else content + b"\n"


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RangeReader, "chunk_bytes", 1 << 18)


@pytest.mark.parametrize("layout", [*LAYOUTS, "joined", "jq"])
@with_paths
@given(
    values=st.lists(record, min_size=2, max_size=8), range_bytes=st.integers(1, 400), chunk_bytes=st.integers(1, 200)
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


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\n", b"\n\n"])
@pytest.mark.parametrize("layout", ["compact", "lines"])
def test_a_byte_order_mark_is_no_text_nor_is_an_empty_line(tmp_path: Path, layout: str, mark: bytes) -> None:
    path = write_corpus(tmp_path / "corpus", [{"text": "甲"}, {"text": "乙"}], layout)
    write(path, mark + path.read_bytes())
    for range_bytes in (1, 2, 3, 4, 1000):
        assert read_all(path, range_bytes) == [{"text": "甲"}, {"text": "乙"}]


def test_blank_lines_are_no_records_and_of_equal_keys_the_last_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.jsonl", b'{"text": "a"}\r\n\r\n  \n{"text": "a", "text": "b"}')
    assert read_all(path) == [{"text": "a"}, {"text": "b"}]


def test_white_space_around_the_brackets_of_an_array_is_not_kept(tmp_path: Path, small_chunks: None) -> None:
    spaces = b" " * 5_000_000
    for content in (b"[" + spaces + b"]" + spaces, b"[" + spaces + b'{"text": "a"}]'):
        num_records, peak = read_and_peak(find(write(tmp_path / "corpus", gzip.compress(content))))
        assert num_records == content.count(b"{") and peak < 2_500_000


HAS_ENDED, ENDS, COMMA = "the array has ended, but", "the array ends after this record, but", "a comma before the array"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b" \n"])
@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (b"[]  ", b'{"text": "b"}]', HAS_ENDED),
        (b"[ ]\n", b', {"a": 1}, {"text": "b"}]', HAS_ENDED),
        (b"[\n]\n", b'{\n"a": 1}, {"text": "b"}]', HAS_ENDED),
        (b"[] ", b"[]", HAS_ENDED),
        (b"[]", b"x]", HAS_ENDED),
        (b"[{}, ", b'] {"text": "b"}]', COMMA),
        (b"[", b'{"text": "a"}]  {"b": 1}]', ENDS),
        (b'[{"a": 1}, ', b'{"text": "a"}] x ]', ENDS),
    ],
)
def test_what_follows_an_array_is_found_wherever_the_file_is_cut(
    tmp_path: Path, mark: bytes, before: bytes, after: bytes, reason: str
) -> None:
    path = write(tmp_path / "corpus", mark + before + after)
    whole = texts_and_bad(path)[0]
    for range_bytes in range(1, path.stat().st_size + 1):
        with pytest.raises(BadRecord, match=reason) as caught:
            read_all(path, range_bytes)
        texts, found = texts_and_bad(path, range_bytes=range_bytes)
        assert caught.value.offset == len(mark + before) in {error.offset for error in found} and texts == whole


# What stands in the file, the kind under which it is counted, and a part of the reason.
BAD: dict[str, tuple[bytes, str, str]] = {
    "bare word": (b'{"text": abc}', "not valid JSON", "Expecting value at"),
    "no colon": (b'{"text" "a"}', "not valid JSON", "Expecting ':' delimiter at"),
    "trailing comma": (b'{"text": "a",}', "not valid JSON", "at"),
    "NaN": (b'{"text": "a", "score": NaN}', "not valid JSON", "NaN is no JSON value"),
    "raw control character": (b'{"text": "a\x01b"}', "not valid JSON", "Invalid control character at byte 11"),
    "invalid UTF-8": (b'{"text": "\xff\xfe"}', "invalid UTF-8", "invalid UTF-8 at byte 10"),
    "lone surrogate": (b'{"text": "\\ud800"}', "lone surrogate", "a lone surrogate"),
    "big number and a surrogate": (b'{"n": 1e400, "x": "\\ud800"}', "lone surrogate", ""),
    "not an object": (b"[1]", "not an object", "expected an object, found an array"),
    "no text field": (b'{"id": 1, "title": "a"}', "no text field", "no field 'text'; this record has id, title"),
    "a number": (b'{"text": 5}', "text is not a string", "field 'text': expected a string, found a number"),
    "too large": (b'{"text": "' + b"x" * 3000 + b'"}', "record too large", "larger than max_record_bytes (2,000"),
    "deep, no text": (b'{"other": ' + b"[" * 800 + b"]" * 800 + b"}", "no text field", "this record has other"),
}


def good(number: int) -> bytes:
    return json.dumps({"text": f"第{number}篇"}, ensure_ascii=False).encode()


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("layout", ["lines", "array", "compact", "joined", "spaced"])
def test_a_bad_record_is_found(tmp_path: Path, layout: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the last one, which doesn't break off."""
    bad, kind, reason = BAD[name]
    records = [good(number) for number in range(40)]
    records[7:7], records[20:20], records[43:] = [bad], [bad, bad], [bad]
    if layout in ("joined", "spaced"):
        records[0] = b" ".join(records[:2])
        del records[1]
    content = join(records, layout).rstrip()
    source, offset = find(write(tmp_path / "corpus", content)), content.index(bad)
    with pytest.raises(BadRecord) as caught:
        texts_of(source.path, max_record_bytes=2000)
    assert (caught.value.offset, caught.value.kind) == (offset, kind) and reason in caught.value.reason
    line = content[:offset].count(b"\n") + 1
    assert str(locate(source, caught.value)).startswith(f"{source.path}: line {line}, byte {offset}: ")
    expected = [f"第{number}篇" for number in range(40)]
    for range_bytes in (100, 10_000_000):
        monkeypatch.setattr(RangeReader, "chunk_bytes", range_bytes)
        texts, found = texts_and_bad(source.path, range_bytes=range_bytes, max_record_bytes=2000)
        assert found[0].offset == offset and kind in {error.kind for error in found}
        if layout not in ("array", "compact"):
            assert texts == expected and [error.kind for error in found] == [kind] * 4
        else:  # without line feeds, what follows a record that can't be parsed may be lost with it: nothing else is
            assert [text for text in texts if text in expected] == texts and len(texts) >= 36


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        *('{"text": "a"}\n{"text": "b', '{"text": "a"}\n{}{"text": "bbbbbbbbbbbbbbbbb', '{"text": "a"}\n{"text": tru'),
        *('[{"text": "a"}, {"text": "b"', '[\n{"text": "a"},\n', '[{"text": "]', '[{"text": [1]', '["a", "]'),
        *('{"text": "a"}{"text": "b"', '{"text": "a"} {"text": {"a": 1}', '{\n"text": tru', '"a" "b'),
    ],
)
def test_a_file_that_breaks_off_is_an_incomplete_download(tmp_path: Path, content: str, skips: bool) -> None:
    path = write(tmp_path / "corpus", content.encode())
    with pytest.raises((Incomplete, InputError), match="incomplete"):
        texts_and_bad(path) if skips else read_all(path)


def test_all_that_is_read_ahead_is_searched_for_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
@pytest.mark.parametrize("chunk_bytes", [700, 1 << 21])
def test_depth_in_every_layout(tmp_path: Path, layout: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where Python's parser, which takes less by default, has to look at the record."""
    monkeypatch.setattr(RangeReader, "chunk_bytes", chunk_bytes)
    for depth, is_read in ((900, True), (1015, True), (1100, False), (100_000, False)):
        deep = b'{"text": "d", "x": ' + b"[" * depth + b"]" * depth + b"}"
        path = write(tmp_path / "corpus", join([b'{"text": "a"}', deep, b'{"text": "b"}'], layout))
        if is_read:
            assert [value["text"] for value in read_all(path)] == ["a", "d", "b"]
        else:
            with pytest.raises(BadRecord, match="nested too deeply"):
                read_all(path)


@pytest.mark.parametrize(("layout", "num_mb"), [("compact", 6), ("joined", 4), ("strings", 4)])
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, small_chunks: None, layout: str, num_mb: int) -> None:
    """A reader holds a chunk or two, never the file, also where reading can't begin in the middle."""
    value: Any = "文" * 300 if layout == "strings" else {"text": "文" * 300}
    records = [json.dumps(value, ensure_ascii=False).encode()] * 10_000
    source = find(write(tmp_path / "corpus", join(records, "compact" if layout == "strings" else layout)))
    num_records, peak = read_and_peak(source)
    assert num_records == 10_000 and peak < num_mb * 10**6 < source.num_bytes


# ---- bad records of a build ----


pytestmark = pytest.mark.usefixtures("inline_engine")
SMALL: dict[str, Any] = {"block_tokens": 16, "val_fraction": 0.0, "max_record_bytes": 2000, "unit_bytes": 10**7}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return tmp_path / "corpus"


def rejected(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("unit_bytes", [100, 10_000_000])
@pytest.mark.parametrize("layout", ["lines", "array"])
def test_skipped_records_are_counted_and_written_down(corpus: Path, run: Builder, layout: str, unit_bytes: int) -> None:
    """With the line on which each stands in its file, whichever unit found it."""
    kinds = ["bare word", "no text field", "invalid UTF-8", "too large"]
    records = [good(number) for number in range(40)]
    for place, name in zip((7, 20, 21, 39), kinds, strict=True):
        records.insert(place, BAD[name][0])
    content = join(records, layout)
    corpus.write_bytes(content)
    out = corpus.parent / "set"
    manifest = run(corpus, out, **SMALL | {"on_bad_record": "skip", "unit_bytes": unit_bytes}).manifest
    texts, entries = texts_in(out), rejected(out)
    assert sum(manifest.rejected.values()) == len(entries)
    assert manifest.num_records == len(texts) + len(entries)
    assert set(manifest.rejected) >= {BAD[name][1] for name in kinds}
    if layout == "lines":
        assert texts == [f"第{number}篇" for number in range(40)]
        assert [entry["line"] for entry in entries] == [8, 21, 22, 40]
    assert all(entry["source"] == "corpus" and entry["reason"] for entry in entries)
    assert all(entry["line"] == content[: entry["byte"]].count(b"\n") + 1 for entry in entries)
    assert verify(out) == []


def test_lines_are_counted_within_each_unit(corpus: Path, run: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """In few reads, and whatever the records say of lines."""
    bad = b'broken, "line": 7'
    corpus.write_bytes(join([record for number in range(2000) for record in (good(number), bad)], "lines"))
    reads, read = list[int](), SourceFile.read

    def counted(file: SourceFile, num_bytes: int = -1) -> bytes:
        content = read(file, num_bytes)
        reads.append(len(content))
        return content

    monkeypatch.setattr(RangeReader, "chunk_bytes", 500)
    monkeypatch.setattr(SourceFile, "read", counted)
    run(corpus, corpus.parent / "set", **SMALL | {"on_bad_record": "skip", "unit_bytes": 1500})
    assert [entry["line"] for entry in rejected(corpus.parent / "set")] == list(range(2, 4001, 2))
    assert sum(reads) < 5 * corpus.stat().st_size  # twice each unit, and what lies beyond its end
    assert len(reads) < 1000


def test_files_that_share_a_unit_are_opened_one_after_another(tmp_path: Path, run: Builder) -> None:
    for number in range(150):
        (tmp_path / f"{number:03}.jsonl").write_bytes(b"\n" * (number % 3) + join([good(number), b"broken"], "lines"))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_open = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 80, before[1]))
    try:
        run(tmp_path, tmp_path / "set", **SMALL, on_bad_record="skip")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert [entry["line"] for entry in rejected(tmp_path / "set")] == [2 + number % 3 for number in range(150)]


def test_memory_does_not_grow_with_the_rejected_records(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RangeReader, "chunk_bytes", 1 << 11)
    num_bad = 4_000  # 2 MB, if they were kept until the unit is done
    corpus.write_bytes(b"{}\n" * num_bad)
    (unit,) = plan_units(find_sources([str(corpus)]), 10**6)
    receipt, log = Receipt(unit=0), corpus.parent / "rejected.jsonl"
    tracemalloc.start()
    try:
        for _texts in read_texts(unit.ranges, BuildSettings(on_bad_record="skip"), receipt, rejected=log):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(rejected(corpus.parent)) == receipt.rejected.total() == num_bad
    assert peak < 1.2e6


def test_bad_records_of_both_kinds_stand_in_order(corpus: Path, run: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some are found when the line is parsed, others when its text is looked for. Progress counts each once."""
    monkeypatch.setattr(RangeReader, "chunk_bytes", 60)  # many batches after a bad record
    records = [b'{"text": 1}', b"broken", b'{"text": 2}', good(1), b"broken", b'{"title": ""}', b'{"text": ""}']
    corpus.write_bytes(join([*records, *map(good, range(2, 40))], "lines"))
    heard = Heard()
    options = SMALL | {"on_bad_record": "skip", "dedup": "exact", "reporter": heard}
    manifest = run(corpus, corpus.parent / "set", **options).manifest
    assert texts_in(corpus.parent / "set") == [f"第{number}篇" for number in range(1, 40)]
    assert [entry["line"] for entry in rejected(corpus.parent / "set")] == [1, 2, 3, 5, 6]
    assert (manifest.num_records, manifest.left_out) == (45, {"empty": 1})
    assert len(heard.counts) > 10 and sum(counts[2] for counts in heard.counts) == 5
