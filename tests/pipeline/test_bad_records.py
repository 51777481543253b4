"""Bad records: the first ends the build, or each is put on record and the rest is built."""

from __future__ import annotations

import json
import os
import resource
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pipeline.plan import plan_units
from pipeline.readers.base import RangeReader
from pipeline.readers.files import SourceFile
from pipeline.settings import BuildSettings
from pipeline.sources import find_sources
from pipeline.worker import RejectedLog, read_texts
from shards.common.errors import InputError
from shards.verify import verify
from tests.pipeline.building import Builder, Heard, texts_in
from tests.pipeline.test_records import BAD, good, join

pytestmark = pytest.mark.usefixtures("inline_engine")
OPTIONS: dict[str, Any] = {"block_tokens": 16, "val_fraction": 0.0, "max_record_bytes": 2000, "unit_bytes": 10**7}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return tmp_path / "corpus"


def rejected(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("layout", ["lines", "compact"])
def test_by_default_the_first_bad_record_ends_the_build(corpus: Path, run: Builder, layout: str) -> None:
    content = join([good(1), good(2), b'{"text": 5}', good(3), b'{"text": 6}'], layout)
    corpus.write_bytes(content)
    offset = content.index(b'{"text": 5}')
    line = content[:offset].count(b"\n") + 1
    with pytest.raises(InputError, match=f"corpus: line {line}, byte {offset}: field 'text': expected a string"):
        run(corpus, corpus.parent / "set", **OPTIONS)


@pytest.mark.parametrize("unit_bytes", [100, 10_000_000])
@pytest.mark.parametrize("name", ["bare word", "no text field", "invalid UTF-8", "too large"])
@pytest.mark.parametrize("layout", ["lines", "array"])
def test_skipped_records_are_counted_and_written_down(
    corpus: Path, run: Builder, layout: str, name: str, unit_bytes: int
) -> None:
    """With the line on which each stands in its file, whichever unit found it."""
    bad, kind, _reason = BAD[name]
    records = [good(number) for number in range(40)]
    records[7:7], records[20:20] = [bad], [bad, bad]
    content = join(records, layout)
    corpus.write_bytes(content)
    out = corpus.parent / "set"
    manifest = run(corpus, out, **OPTIONS | {"on_bad_record": "skip", "unit_bytes": unit_bytes}).manifest
    texts, entries = texts_in(out), rejected(out)
    assert sum(entry.num_records for entry in manifest.rejected) == len(entries)
    assert manifest.num_records == len(texts) + len(entries)
    assert {entry.kind for entry in manifest.rejected} >= {kind}
    if layout == "lines":
        assert texts == [f"第{number}篇" for number in range(40)]
        assert [entry["line"] for entry in entries] == [8, 21, 22]
    assert all(entry["source"] == "corpus" and entry["reason"] for entry in entries)
    assert all(entry["line"] == content[: entry["byte"]].count(b"\n") + 1 for entry in entries)
    assert verify(out) == []


def test_lines_are_counted_from_each_unit_on_and_not_from_the_front(
    corpus: Path, run: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus.write_bytes(join([record for number in range(2000) for record in (good(number), b"broken")], "lines"))
    num_read, read = 0, SourceFile.read

    def counted(file: SourceFile, num_bytes: int = -1) -> bytes:
        nonlocal num_read
        content = read(file, num_bytes)
        num_read += len(content)
        return content

    monkeypatch.setattr(RangeReader, "chunk_bytes", 500)
    monkeypatch.setattr(SourceFile, "read", counted)
    run(corpus, corpus.parent / "set", **OPTIONS | {"on_bad_record": "skip", "unit_bytes": 1500})
    assert [entry["line"] for entry in rejected(corpus.parent / "set")] == list(range(2, 4001, 2))
    assert num_read < 5 * corpus.stat().st_size  # twice each unit, and what lies beyond its end


def test_files_that_share_a_unit_are_opened_one_after_another(tmp_path: Path, run: Builder) -> None:
    for number in range(150):
        (tmp_path / f"{number:03}.jsonl").write_bytes(b"\n" * (number % 3) + join([good(number), b"broken"], "lines"))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_open = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 80, before[1]))
    try:
        run(tmp_path, tmp_path / "set", **OPTIONS, on_bad_record="skip")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert [entry["line"] for entry in rejected(tmp_path / "set")] == [2 + number % 3 for number in range(150)]


def test_memory_does_not_grow_with_the_rejected_records(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RangeReader, "chunk_bytes", 1 << 13)
    num_bad = 12_000  # 6 MB, if they were kept until the unit is done
    corpus.write_bytes(b"{}\n" * num_bad)
    sources = find_sources([str(corpus)])
    (unit,) = plan_units(sources, 10**6)
    tracemalloc.start()
    try:
        log = RejectedLog(corpus.parent / "rejected.jsonl")
        for _texts in read_texts(unit.ranges, BuildSettings(on_bad_record="skip"), [], rejected=log):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(rejected(corpus.parent)) == log.counts.total() == num_bad
    assert peak < 3e6


def test_a_build_that_fails_leaves_no_rejected_records(corpus: Path, run: Builder) -> None:
    corpus.write_bytes(b'{"text": 5}\n{"text": "a"}\n{"text": "b')
    with pytest.raises(InputError, match="incomplete"):
        run(corpus, corpus.parent / "set", **OPTIONS, on_bad_record="skip")
    assert list((corpus.parent / "set.partial" / "receipts").iterdir()) == []


def test_bad_records_of_both_kinds_stand_in_their_order_and_empty_texts_are_counted(corpus: Path, run: Builder) -> None:
    """Some are found when the line is parsed, others when its text is looked for."""
    records = [b'{"text": 1}', b"broken", b'{"text": 2}', good(1), b"broken", b'{"title": ""}', b'{"text": ""}']
    corpus.write_bytes(join(records, "lines"))
    manifest = run(corpus, corpus.parent / "set", **OPTIONS, on_bad_record="skip", dedup="exact").manifest
    assert texts_in(corpus.parent / "set") == ["第1篇"]
    assert [entry["line"] for entry in rejected(corpus.parent / "set")] == [1, 2, 3, 5, 6]
    assert (manifest.num_records, manifest.num_empty) == (7, 1)


def test_progress_counts_each_rejected_record_once(corpus: Path, run: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RangeReader, "chunk_bytes", 60)  # many batches after the bad record
    corpus.write_bytes(join([good(0), b"broken", *map(good, range(1, 40)), b"broken"], "lines"))
    heard = Heard()
    run(corpus, corpus.parent / "set", **OPTIONS, on_bad_record="skip", reporter=heard)
    assert len(heard.counts) > 10 and sum(counts[2] for counts in heard.counts) == 2
