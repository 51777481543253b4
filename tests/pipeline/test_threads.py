"""A unit that several threads encode leaves what it leaves with one, and ends with the same error."""

from __future__ import annotations

import gzip
import itertools
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline import build as build_module
from pipeline.native import NativeEncoder
from pipeline.plan import plan_units
from pipeline.readers.base import RangeReader
from pipeline.receipts import encode_receipt
from pipeline.settings import BuildSettings
from pipeline.sources import find_sources
from pipeline.tokenizers import load_tokenizer_files
from pipeline.worker import Decisions, process_unit
from shards.common.errors import InputError
from tests.conftest import directory_bytes, needs_compiler, sample_records, write_corpus
from tests.pipeline.building import Builder, Heard, Killed

TEXTS = [record["text"][:600] for record in sample_records()[:60]]
NUM_THREADS = (1, 2, 4)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_compiler()
    monkeypatch.setattr(RangeReader, "chunk_bytes", 4096)


def process(
    tokenizer_dir: Path, scratch: Path, records: list[Any], num_threads: int, heard: Heard, **settings: Any
) -> tuple[bytes, dict[str, bytes]]:
    """The receipt and the files of a unit, which is one compressed file."""
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
    receipt = process_unit(unit, decisions, scratch, first=None, duplicates=duplicates, progress=heard.progress)
    return encode_receipt(receipt), directory_bytes(scratch)


def test_same_bytes_for_any_number_of_threads(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_the_first_error_ends_a_unit_for_any_number_of_threads(
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


def test_a_unit_has_threads_where_there_are_fewer_units_than_workers(
    tmp_path: Path, run: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def note(work: Any, *_others: Any) -> None:
        found.append(work.args[1].num_threads)
        raise Killed

    monkeypatch.setattr(build_module, "run_all", note)
    corpus = write_corpus(tmp_path / "corpus", [{"text": text} for text in TEXTS], "lines")
    for num_workers, unit_bytes in ((1, 1 << 20), (2, 1 << 20), (99, 1 << 20), (2, 10_000)):
        with pytest.raises(Killed):
            run(corpus, tmp_path / f"{len(found)}", num_workers=num_workers, unit_bytes=unit_bytes)
    assert found == [1, 2, 3, 1]
