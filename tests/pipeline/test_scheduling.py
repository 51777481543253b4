"""Units of JSON arrays begin at a guess: a wrong one is done again. And a unit that several threads encode is as one's."""

from __future__ import annotations

import gzip
import itertools
import threading
from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from pipeline import build as build_module
from pipeline.engines.base import Task
from pipeline.engines.local import LocalEngine
from pipeline.native import NativeEncoder
from pipeline.plan import default_unit_bytes, plan_units
from pipeline.readers.base import RangeReader
from pipeline.receipts import RangeReceipt, Receipt, encode_receipt
from pipeline.schedule import run_all
from pipeline.settings import BuildSettings
from pipeline.tokenizers import load_tokenizer_files
from pipeline.worker import Decisions, process_unit
from shards.common.errors import InputError
from shards.verify import verify
from tests.conftest import InlineEngine, directory_bytes, needs_compiler, sample_records, use_engine, write_corpus
from tests.pipeline.building import Builder, Heard, Killed, texts_in
from tests.pipeline.reading import find_sources

pytestmark = pytest.mark.usefixtures("inline_engine")


@pytest.mark.parametrize("dedup", ["off", "exact"])
@pytest.mark.parametrize("layout", ["compact", "array", "pretty"])
def test_false_starts_are_mended(tmp_path: Path, run: Builder, layout: str, dedup: str) -> None:
    """Records within records, good and bad ones: what a wrong beginning left is gone, shards too."""
    inner = [{"text": f"内{number}"} for number in range(80)]  # fills units in which no record begins
    records: list[dict[str, Any]] = []
    for number in range(20):
        records += [
            {"text": "}, {}, {" * 5 + f"第{number % 15}篇"},
            {"refs": [{"text": "a"}, {"text": 5}], "text": "另"},
        ]
        records += [{"refs": inner, "text": f"长{number}"}] * (number % 5 == 0)
    corpus = write_corpus(tmp_path / "corpus", records, layout)
    run(corpus, tmp_path / "set", block_tokens=16, unit_bytes=333, val_fraction=0.3, dedup=dedup)
    texts = [record["text"] for record in records]
    assert sorted(texts_in(tmp_path / "set")) == sorted(texts if dedup == "off" else set(texts))
    assert verify(tmp_path / "set") == []


class Watched(InlineEngine):
    """Does the units from the front and keeps their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[int] = []

    def run(self, work: Any, tasks: deque[Any], progress: Any) -> Generator[tuple[Any, Any], None, None]:
        while tasks:
            task = tasks.popleft()
            self.numbers.append(task.unit.number)
            yield from super().run(work, deque([task]), progress)


def test_a_bad_record_waits_for_units_before(tmp_path: Path, run: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Watched()
    use_engine(monkeypatch, engine)
    corpus = write_corpus(tmp_path / "corpus.json", [{"text": f"第{number}篇"} for number in range(500)])
    content = corpus.read_text(encoding="utf-8").replace('{"text": "第321篇"}', '{"text": "第321篇}')
    corpus.write_text(content, encoding="utf-8")
    offset = content.encode().index('{"text": "第321篇}'.encode())
    with pytest.raises(InputError, match=f"line 323, byte {offset:,}: "):
        run(corpus, tmp_path / "set", unit_bytes=1000)
    assert set(engine.numbers) == set(range(offset // 1000 + 1))


@pytest.mark.parametrize("unit_bytes", [20, 10_000])
def test_what_follows_an_array_is_not_lost_without_a_word(tmp_path: Path, run: Builder, unit_bytes: int) -> None:
    array = "[" + ", ".join(f'{{"text": "第{number}篇"}}' for number in range(20)) + "]\n"
    (tmp_path / "corpus").write_text(array * 2, encoding="utf-8")
    with pytest.raises(InputError, match=r"the file goes on|what follows it was not read"):
        run(tmp_path / "corpus", tmp_path / "set", unit_bytes=unit_bytes)


class Changing:
    """A source whose records are never where they were: somebody writes it while it is read."""

    num_tasks = 0

    def __call__(self, task: Task, progress: Any) -> bytes:
        assert self.num_tasks < 50, "again and again"
        self.num_tasks += 1
        (byte_range,) = task.unit.ranges
        first, last = byte_range.start + 3, byte_range.stop + 1
        done = RangeReceipt(first=first, last=last, digest="", num_records=1, num_newlines=0)
        return encode_receipt(Receipt(unit=task.unit.number, ranges=[done]))


def test_a_source_that_is_written_while_it_is_read_ends_the_build(tmp_path: Path) -> None:
    sources = find_sources([str(write_corpus(tmp_path / "corpus", [{"text": "文"}] * 20, "lines"))])
    with pytest.raises(InputError, match="corpus: the file was changed while it was read"):
        run_all(Changing(), plan_units(sources, 50), InlineEngine(), {}, lambda *_counts: None)


def test_the_size_of_units_follows_from_the_sources() -> None:
    mib = 1 << 20
    sizes = [default_unit_bytes(num_bytes) for num_bytes in (0, 1, 51_000_000, 2 * 10**9, 10**11, 10**13, 10**14)]
    assert sizes == [2 * mib, 2 * mib, 2 * mib, 32 * mib, 64 * mib, 1024 * mib, 8192 * mib]
    for power in range(60):
        unit_bytes = default_unit_bytes(3 << power)
        assert unit_bytes & (unit_bytes - 1) == 0 and (3 << power) <= unit_bytes * 16_384


def test_small_sources_share_units_and_large_ones_are_cut(tmp_path: Path) -> None:
    """As the docstring of `plan_units` has it."""
    sizes = (130, 30, 30, 20, 64)
    for number, size in enumerate(sizes):
        (tmp_path / f"{number}.jsonl").write_bytes(b"{}" + b"\n" * (size - 2))
    sources = find_sources([str(tmp_path)])
    units = plan_units(sources, 64)
    found = [[(sources.index(part.source), part.start, part.stop) for part in unit.ranges] for unit in units]
    assert found == [
        [(0, 0, 64)],
        [(0, 64, 128)],
        [(0, 128, 130)],
        [(1, 0, 30), (2, 0, 30)],
        [(3, 0, 20)],
        [(4, 0, 64)],
    ]
    assert [unit.number for unit in units] == list(range(6)) and sum(unit.num_bytes for unit in units) == sum(sizes)


# ---- threads ----

TEXTS = [record["text"][:600] for record in sample_records()[:60]]
NUM_THREADS = (1, 2, 4)


def process(
    tokenizer_dir: Path, scratch: Path, records: list[Any], num_threads: int, heard: Heard, **settings: Any
) -> tuple[bytes, dict[str, bytes]]:
    """The receipt and the files of a unit, which is one compressed file read in small batches."""
    needs_compiler()
    scratch.mkdir()
    corpus = write_corpus(scratch.parent / "corpus", records, "lines")
    (scratch.parent / "corpus.gz").write_bytes(gzip.compress(corpus.read_bytes(), mtime=0))
    tokenizer = load_tokenizer_files(str(tokenizer_dir))
    decisions = Decisions(
        settings=BuildSettings(block_tokens=64, unit_bytes=1000, **settings),
        encoder="native",
        tokenizer_json=tokenizer.tokenizer_json,
        eos_id=tokenizer.eos_id,
        begin_id=None,
        check_every=1,
        check_units=1,
        num_threads=num_threads,
    )
    (unit,) = plan_units(find_sources([f"{corpus}.gz"]), 1000)
    duplicates = {5: "duplicate", 40: "near duplicate"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RangeReader, "chunk_bytes", 4096)
        receipt = process_unit(unit, decisions, scratch, first=None, duplicates=duplicates, progress=heard.progress)
    return encode_receipt(receipt), directory_bytes(scratch)


def test_same_bytes_for_any_num_threads(tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out and rejected stands in its order, too. And as many threads as there may be encode at once."""
    others = itertools.cycle([{"text": 7}, {"text": ""}, {"text": "短"}, {"text": "e\u0301" * 20}, {"text": "又短"}])
    records = [record for text in TEXTS for record in ({"text": text}, next(others))]
    encode_closed, found = NativeEncoder.encode_closed, []
    for num_threads in NUM_THREADS:
        meeting, numbers = threading.Barrier(num_threads), itertools.count()

        def encode(self: NativeEncoder, *given: Any, meeting: Any = meeting, numbers: Any = numbers) -> Any:
            if next(numbers) < meeting.parties:
                meeting.wait(timeout=30)
            return encode_closed(self, *given)

        monkeypatch.setattr(NativeEncoder, "encode_closed", encode)
        settings: dict[str, Any] = {"on_bad_record": "skip", "min_chars": 5, "val_fraction": 0.3}
        heard, scratch = Heard(), tmp_path / f"with{num_threads}"
        found.append(process(tokenizer_dir, scratch, records, num_threads, heard, **settings))
        assert len(heard.counts) > 2 * max(NUM_THREADS) and sum(counts[2] for counts in heard.counts) == 12
    assert found[0] == found[1] == found[2] and "rejected" in found[0][1]


@pytest.mark.parametrize("is_encoded_wrong", [False, True])
def test_the_first_error_ends_a_unit(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, is_encoded_wrong: bool
) -> None:
    """A bad record is read while the batches before it are still encoded, and one of those may be wrong."""
    encode_closed, num_running = NativeEncoder.encode_closed, threading.active_count()

    def encode(self: NativeEncoder, texts: list[str], closing: int) -> Any:
        documents = encode_closed(self, texts, closing)
        if is_encoded_wrong and TEXTS[25] in texts:
            documents.ids[:] = 7
        return documents

    monkeypatch.setattr(NativeEncoder, "encode_closed", encode)
    records = [{"text": text} for text in TEXTS]
    records.insert(30, {"text": 7})  # type: ignore[dict-item]
    ends = []
    for num_threads in NUM_THREADS:
        heard = Heard()
        expected = "differs from the reference" if is_encoded_wrong else "line 31, byte"
        with pytest.raises(InputError, match=expected) as error:
            process(tokenizer_dir, tmp_path / f"with{num_threads}", records, num_threads, heard)
        ends.append((str(error.value), heard.counts))
        assert threading.active_count() == num_running
    assert ends[0] == ends[1] == ends[2]
    assert len(ends[0][1]) > 2


def test_a_unit_has_threads_where_units_are_few(tmp_path: Path, run: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    def note(work: Any, *_others: Any) -> None:
        found.append(work.args[1].num_threads)
        raise Killed

    needs_compiler()
    found: list[int] = []
    monkeypatch.setattr(RangeReader, "chunk_bytes", 4096)
    monkeypatch.setattr(build_module, "run_all", note)
    corpus = write_corpus(tmp_path / "corpus", [{"text": text} for text in TEXTS], "lines")
    for num_workers, unit_bytes in ((1, 1 << 20), (2, 1 << 20), (99, 1 << 20), (2, 10_000)):
        use_engine(monkeypatch, LocalEngine(num_workers))
        with pytest.raises(Killed):
            run(corpus, tmp_path / f"{len(found)}", unit_bytes=unit_bytes)
    assert found == [1, 2, 3, 1]
