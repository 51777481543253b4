"""Bad records: the first ends the build, or each is put on record and the rest is built."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pipeline.records import StretchReader

import shards
from pipeline.build import build
from pipeline.settings import BuildSettings
from shards.common.errors import InputError
from shards.verify import verify
from shards.vocabulary import Vocabulary

pytestmark = pytest.mark.usefixtures("inline_engine")

# What stands in the file, and the kind under which it is counted.
BAD: dict[str, tuple[bytes, str]] = {
    "not JSON": (b'{"text": abc}', "not valid JSON"),
    "no colon": (b'{"text" "a"}', "not valid JSON"),
    "not an object": (b"[1]", "not an object"),
    "no text field": (b'{"title": "a"}', "no text field"),
    "a number": (b'{"text": 5}', "text is not a string"),
    "null": (b'{"text": null}', "text is not a string"),
    "invalid UTF-8": (b'{"text": "\xff\xfe"}', "invalid UTF-8"),
    "lone surrogate": (b'{"text": "\\ud800"}', "lone surrogate"),
    "NaN": (b'{"text": "a", "score": NaN}', "not valid JSON"),
    "raw control character": (b'{"text": "a\x01b"}', "not valid JSON"),
    "too large": (b'{"text": "' + b"x" * 3000 + b'"}', "record too large"),
    "too deep": (b'{"text": "a", "deep": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "too"),
}
SETTINGS: dict[str, Any] = {"block_tokens": 16, "val_fraction": 0.0, "max_record_bytes": 2000}


def corpus_bytes(records: list[bytes], layout: str) -> bytes:
    if layout == "lines":
        return b"\n".join(records) + b"\n"
    separator = {"array": b",\n", "compact": b", "}[layout]
    return b"[" + separator.join(records) + b"]"


def good(number: int) -> bytes:
    return json.dumps({"text": f"第{number}篇"}, ensure_ascii=False).encode()


def build_texts(directory: Path, tokenizer_dir: Path, content: bytes, **settings: Any) -> list[str]:
    directory.mkdir(exist_ok=True)
    (directory / "corpus").write_bytes(content)
    build(
        [str(directory / "corpus")],
        directory / "set",
        tokenizer_name=str(tokenizer_dir),
        settings=BuildSettings(**{**SETTINGS, **settings}),
        num_workers=1,
    )
    assert verify(directory / "set") == []
    shard_set = shards.open(directory / "set")
    vocabulary = Vocabulary(shard_set.tokenizer_path)
    return [vocabulary.text(document) for document in shard_set["train"].documents()]


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("layout", ["lines", "array", "compact"])
def test_by_default_the_first_bad_record_ends_the_build(
    tmp_path: Path, tokenizer_dir: Path, layout: str, name: str
) -> None:
    bad, _kind = BAD[name]
    content = corpus_bytes([good(1), good(2), bad, good(3)], layout)
    offset = content.index(bad)
    line = content[:offset].count(b"\n") + 1
    with pytest.raises(InputError, match=f"corpus: line {line}, byte {offset}: "):
        build_texts(tmp_path, tokenizer_dir, content)


@pytest.mark.parametrize("unit_bytes", [100, 10_000_000])
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("layout", ["lines", "array", "compact"])
def test_skipped_records_are_counted_and_written_down(
    tmp_path: Path, tokenizer_dir: Path, layout: str, name: str, unit_bytes: int
) -> None:
    bad, kind = BAD[name]
    if name == "too deep":
        pytest.skip("larger than the limit of these tests; see the test below")
    records = [good(number) for number in range(40)]
    records[7:7] = [bad]
    records[20:20] = [bad, bad]
    content = corpus_bytes(records, layout)
    texts = build_texts(tmp_path, tokenizer_dir, content, on_bad_record="skip", unit_bytes=unit_bytes)
    manifest = shards.open(tmp_path / "set").manifest
    rejected = [json.loads(line) for line in (tmp_path / "set" / "rejected.jsonl").read_text("utf-8").splitlines()]
    assert sum(entry.num_records for entry in manifest.rejected) == len(rejected)
    assert manifest.num_records == len(texts) + len(rejected)
    if layout == "lines":
        assert texts == [f"第{number}篇" for number in range(40)]
        assert [(entry.kind, entry.num_records) for entry in manifest.rejected] == [(kind, 3)]
    else:  # without line feeds, what follows a record that can't be parsed may be lost with it: nothing else is
        assert [text for text in texts if text in {f"第{number}篇" for number in range(40)}] == texts
        assert len(texts) >= 36
        assert kind in {entry.kind for entry in manifest.rejected}
    places = [place for place in range(len(content)) if content.startswith(bad, place)]
    assert rejected[0]["byte"] == places[0]
    assert rejected[0]["line"] == content[: places[0]].count(b"\n") + 1
    assert rejected[0]["source"] == "corpus" and rejected[0]["reason"]


def test_nesting_ten_thousand_deep_is_skipped_too(tmp_path: Path, tokenizer_dir: Path) -> None:
    content = corpus_bytes([good(1), BAD["too deep"][0], good(2)], "lines")
    texts = build_texts(tmp_path, tokenizer_dir, content, on_bad_record="skip", max_record_bytes=10**6)
    assert texts == ["第1篇", "第2篇"]


def test_the_places_of_a_batch_are_found_once() -> None:
    """A batch has a million of the shortest records: to look for each from the front took the square of that."""
    from pipeline.json_lines import places_of
    from pipeline.records import found_once

    class Lines(list[bytes]):
        num_passes = 0

        def __iter__(self) -> Iterator[bytes]:
            self.num_passes += 1
            return super().__iter__()

    lines = Lines([b"{}", b" ", b"", b"[1]", b"{}"])
    place = found_once(lambda: places_of(lines, 100))
    assert [place(number) for number in (2, 0, 1)] == [(110, b"{}"), (100, b"{}"), (106, b"[1]")]
    assert lines.num_passes == 1


def test_memory_does_not_grow_with_the_rejected_records(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StretchReader, "chunk_bytes", 1 << 13)
    num_bad = 30_000  # 14 MB, if they were kept until the unit is done
    build_texts(tmp_path / "warm", tokenizer_dir, b'{"text": "a"}\n')
    tracemalloc.start()
    try:
        texts = build_texts(tmp_path, tokenizer_dir, b"{}\n" * num_bad + good(1) + b"\n", on_bad_record="skip")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert texts == ["第1篇"]
    with (tmp_path / "set" / "rejected.jsonl").open("rb") as lines:
        assert sum(1 for _ in lines) == num_bad
    assert peak < 7e6


def test_a_build_that_fails_leaves_no_rejected_records(tmp_path: Path, tokenizer_dir: Path) -> None:
    content = b'{"text": 5}\n{"text": "a"}\n{"text": "b'
    with pytest.raises(InputError, match="incomplete"):
        build_texts(tmp_path, tokenizer_dir, content, on_bad_record="skip")
    assert list((tmp_path / "set.partial" / "receipts").iterdir()) == []


def test_duplicate_keys_mean_the_last_as_in_pythons_json(tmp_path: Path, tokenizer_dir: Path) -> None:
    assert build_texts(tmp_path, tokenizer_dir, b'{"text": "a", "text": "b"}\n') == ["b"]


@pytest.mark.parametrize("on_bad_record", ["fail", "skip"])
@pytest.mark.parametrize("content", [b'{"text": "a"}\n{"text": "b', b'[{"text": "a"}, {"text": "b"'])
def test_an_incomplete_file_is_an_error_in_any_case(
    tmp_path: Path, tokenizer_dir: Path, on_bad_record: str, content: bytes
) -> None:
    with pytest.raises(InputError, match="incomplete"):
        build_texts(tmp_path, tokenizer_dir, content, on_bad_record=on_bad_record)


def test_empty_texts_are_counted(tmp_path: Path, tokenizer_dir: Path) -> None:
    content = corpus_bytes([good(1), b'{"text": ""}', good(2), b'{"text": ""}'], "lines")
    assert build_texts(tmp_path, tokenizer_dir, content) == ["第1篇", "第2篇"]
    manifest = shards.open(tmp_path / "set").manifest
    assert (manifest.num_records, manifest.num_empty) == (4, 2)


def test_bad_records_of_both_kinds_stand_in_their_order(tmp_path: Path, tokenizer_dir: Path) -> None:
    """Some are found when the line is parsed, others when its text is looked for."""
    records = [b'{"text": 1}', b"broken", b'{"text": 2}', good(1), b"broken", b'{"title": ""}']
    texts = build_texts(tmp_path, tokenizer_dir, corpus_bytes(records, "lines"), on_bad_record="skip", dedup="exact")
    assert texts == ["第1篇"]
    rejected = [json.loads(line) for line in (tmp_path / "set" / "rejected.jsonl").read_text("utf-8").splitlines()]
    assert [entry["line"] for entry in rejected] == [1, 2, 3, 5, 6]


def test_progress_counts_each_rejected_record_once(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.records import StretchReader

    from pipeline.build import Reporter

    monkeypatch.setattr(StretchReader, "chunk_bytes", 60)  # many batches behind the bad record
    (tmp_path / "corpus").write_bytes(corpus_bytes([good(0), b"broken", *map(good, range(1, 40)), b"broken"], "lines"))
    rejected: list[int] = []

    class Heard(Reporter):
        def progress(self, num_bytes: int, num_tokens: int, num_rejected: int) -> None:
            rejected.append(num_rejected)

    build(
        [str(tmp_path / "corpus")],
        tmp_path / "set",
        tokenizer_name=str(tokenizer_dir),
        settings=BuildSettings(**SETTINGS, on_bad_record="skip"),
        num_workers=1,
        reporter=Heard(),
    )
    assert len(rejected) > 10 and sum(rejected) == 2


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_all_good_lines_survive_any_neighbours(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path, data: st.DataObject
) -> None:
    kinds = data.draw(st.lists(st.sampled_from(["good", *sorted(set(BAD) - {"too deep"})]), min_size=1, max_size=30))
    records = [good(number) if kind == "good" else BAD[kind][0] for number, kind in enumerate(kinds)]
    expected = [f"第{number}篇" for number, kind in enumerate(kinds) if kind == "good"]
    expected = ["末", *expected]
    records = [b'{"text": "\xe6\x9c\xab"}', *records]
    directory = tmp_path_factory.mktemp("any")
    unit_bytes = data.draw(st.integers(10, 6000))
    content = corpus_bytes(records, "lines")
    assert build_texts(directory, tokenizer_dir, content, on_bad_record="skip", unit_bytes=unit_bytes) == expected
