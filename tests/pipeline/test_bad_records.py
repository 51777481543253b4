"""Bad records: the first ends the build, or each is put on record and the rest is built."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import shards
from pipeline.build import build
from pipeline.readers.base import RangeReader
from pipeline.settings import BuildSettings
from shards.common.errors import InputError
from shards.verify import verify
from shards.vocabulary import Vocabulary
from tests.pipeline.test_records import BAD, good, join

pytestmark = pytest.mark.usefixtures("inline_engine")

SETTINGS: dict[str, Any] = {"block_tokens": 16, "val_fraction": 0.0, "max_record_bytes": 2000}


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


@pytest.mark.parametrize("layout", ["lines", "compact"])
def test_by_default_the_first_bad_record_ends_the_build(tmp_path: Path, tokenizer_dir: Path, layout: str) -> None:
    content = join([good(1), good(2), b'{"text": 5}', good(3), b"broken"], layout)
    offset = content.index(b'{"text": 5}')
    line = content[:offset].count(b"\n") + 1
    with pytest.raises(InputError, match=f"corpus: line {line}, byte {offset}: field 'text': expected a string"):
        build_texts(tmp_path, tokenizer_dir, content)


@pytest.mark.parametrize("unit_bytes", [100, 10_000_000])
@pytest.mark.parametrize("name", ["bare word", "no text field", "invalid UTF-8", "too large"])
@pytest.mark.parametrize("layout", ["lines", "array"])
def test_skipped_records_are_counted_and_written_down(
    tmp_path: Path, tokenizer_dir: Path, layout: str, name: str, unit_bytes: int
) -> None:
    """With the line on which each stands in its file, whichever unit found it."""
    bad, kind, _reason = BAD[name]
    records = [good(number) for number in range(40)]
    records[7:7], records[20:20] = [bad], [bad, bad]
    content = join(records, layout)
    texts = build_texts(tmp_path, tokenizer_dir, content, on_bad_record="skip", unit_bytes=unit_bytes)
    manifest = shards.open(tmp_path / "set").manifest
    rejected = [json.loads(line) for line in (tmp_path / "set" / "rejected.jsonl").read_text("utf-8").splitlines()]
    assert sum(entry.num_records for entry in manifest.rejected) == len(rejected)
    assert manifest.num_records == len(texts) + len(rejected)
    assert {entry.kind for entry in manifest.rejected} >= {kind}
    if layout == "lines":
        assert texts == [f"第{number}篇" for number in range(40)]
        assert [entry["line"] for entry in rejected] == [8, 21, 22]
    assert all(entry["source"] == "corpus" and entry["reason"] for entry in rejected)
    assert all(entry["line"] == content[: entry["byte"]].count(b"\n") + 1 for entry in rejected)


def test_memory_does_not_grow_with_the_rejected_records(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RangeReader, "chunk_bytes", 1 << 13)
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


def test_empty_texts_are_counted(tmp_path: Path, tokenizer_dir: Path) -> None:
    content = join([good(1), b'{"text": ""}', good(2), b'{"text": ""}'], "lines")
    assert build_texts(tmp_path, tokenizer_dir, content) == ["第1篇", "第2篇"]
    manifest = shards.open(tmp_path / "set").manifest
    assert (manifest.num_records, manifest.num_empty) == (4, 2)


def test_bad_records_of_both_kinds_stand_in_their_order(tmp_path: Path, tokenizer_dir: Path) -> None:
    """Some are found when the line is parsed, others when its text is looked for."""
    records = [b'{"text": 1}', b"broken", b'{"text": 2}', good(1), b"broken", b'{"title": ""}']
    texts = build_texts(tmp_path, tokenizer_dir, join(records, "lines"), on_bad_record="skip", dedup="exact")
    assert texts == ["第1篇"]
    rejected = [json.loads(line) for line in (tmp_path / "set" / "rejected.jsonl").read_text("utf-8").splitlines()]
    assert [entry["line"] for entry in rejected] == [1, 2, 3, 5, 6]


def test_progress_counts_each_rejected_record_once(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    from pipeline.build import Reporter

    monkeypatch.setattr(RangeReader, "chunk_bytes", 60)  # many batches behind the bad record
    (tmp_path / "corpus").write_bytes(join([good(0), b"broken", *map(good, range(1, 40)), b"broken"], "lines"))
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
