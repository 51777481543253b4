"""Sets built from and to a store, by the local engine: the bytes are those of a build on a disk, whatever happens."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("s3fs", reason="needs the packages of requirements-dev.lock")
pytest.importorskip("moto.server", reason="needs the packages of requirements-dev.lock")

from pipeline.build import BuildResult, build
from pipeline.sources import find_sources
from shards import tables
from shards.common.errors import InputError
from shards.share.pull import pull
from shards.verify import verify
from tests.conftest import SAMPLE, directory_bytes, sample_records, write_corpus
from tests.pipeline.store import BUCKET, SETTINGS, URL, file_system, stored_bytes


def run(source: Path | str, out: Path | str, tokenizer_dir: Path, **options: Any) -> BuildResult:
    options = {"settings": SETTINGS, "num_workers": 1, **options}
    return build([str(source)], out, tokenizer_name=str(tokenizer_dir), **options)


@pytest.mark.usefixtures("illness", "inline_engine")
def test_a_set_in_a_store_has_the_bytes_of_one_on_a_disk(tmp_path: Path, tokenizer_dir: Path) -> None:
    records = [*sample_records(), {"text": 7}, *sample_records()[:30]]
    corpus = write_corpus(tmp_path / "corpus.json", records)
    settings = dataclasses.replace(SETTINGS, on_bad_record="skip", dedup="exact")
    run(corpus, tmp_path / "set", tokenizer_dir, settings=settings)
    run(corpus, f"{URL}/equal", tokenizer_dir, settings=settings)
    assert stored_bytes("equal") == directory_bytes(tmp_path / "set")
    assert stored_bytes("equal.partial") == {}
    assert verify(pull(f"{URL}/equal", tmp_path / "pulled")) == []
    assert run(corpus, f"{URL}/equal", tokenizer_dir, settings=settings).up_to_date
    with pytest.raises(InputError, match="a shard set from other inputs is there"):
        run(corpus, f"{URL}/equal", tokenizer_dir)
    run(corpus, f"{URL}/equal", tokenizer_dir, settings=settings, force=True)
    run(corpus, tmp_path / "set", tokenizer_dir, settings=settings, force=True)
    assert stored_bytes("equal") == directory_bytes(tmp_path / "set")


@pytest.mark.usefixtures("illness", "inline_engine")
def test_a_large_set_in_a_store_has_its_tables(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_LISTED", 3)
    run(SAMPLE, tmp_path / "set", tokenizer_dir)
    for force in (False, True):
        result = run(SAMPLE, f"{URL}/large", tokenizer_dir, force=force)
        assert result.manifest.has_tables and len(result.manifest.shards) > 3
        assert stored_bytes("large") == directory_bytes(tmp_path / "set")
        assert {"shards.table", "tails.table"} < stored_bytes("large").keys()
    assert run(SAMPLE, f"{URL}/large", tokenizer_dir).up_to_date
    assert verify(pull(f"{URL}/large", tmp_path / "pulled")) == []
    file_system().pipe_file(f"{BUCKET}/large/shards.table", b"damaged")
    with pytest.raises(InputError, match=r"shards\.table: truncated"):
        run(SAMPLE, f"{URL}/large", tokenizer_dir)


@pytest.mark.usefixtures("illness", "inline_engine")
def test_sources_in_a_store_give_the_same_shards(tmp_path: Path, tokenizer_dir: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_corpus(corpus / "a.json", sample_records())
    lines = "".join(json.dumps(record) + "\n" for record in sample_records()[:40])
    (corpus / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    (corpus / "c.txt").write_text("第三\n", encoding="utf-8")
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["第四", "第五"]}), corpus / "d.parquet")
    (corpus / "ignored.csv").write_text("no corpus")
    file_system().put(str(corpus), f"{BUCKET}/", recursive=True)
    run(corpus, tmp_path / "local", tokenizer_dir)
    run(f"{URL}/corpus", tmp_path / "remote", tokenizer_dir)
    expected, found = directory_bytes(tmp_path / "local"), directory_bytes(tmp_path / "remote")
    assert expected.pop(".sources.json") != found.pop(".sources.json")
    assert found == expected
    names = [source.name for source in find_sources([f"{URL}/corpus/*.json*"])]
    assert names == ["a.json", "b.jsonl.gz"]
    with pytest.raises(InputError, match="no such file"):
        find_sources([f"{URL}/nothing.json"])


@pytest.mark.usefixtures("illness", "inline_engine")
def test_a_build_goes_on_from_receipts_whose_files_are_as_they_were(
    tmp_path: Path, tokenizer_dir: Path, kill_after_three_units: Callable[[Callable[[], object]], None]
) -> None:
    kill_after_three_units(lambda: run(SAMPLE, f"{URL}/resumed", tokenizer_dir))
    before = stored_bytes("resumed")
    assert sum(name.endswith(".json") for name in stored_bytes("resumed.partial/receipts")) == 3
    changed = sorted(name for name in before if name.endswith(".bin"))[0]
    content = before[changed]
    file_system().pipe_file(f"{BUCKET}/resumed/{changed}", bytes([content[0] ^ 1]) + content[1:])  # same size
    file_system().pipe_file(f"{BUCKET}/resumed/train-77777.bin", b"left over")
    with pytest.raises(InputError, match="--seed was 2333, now 7"):
        run(SAMPLE, f"{URL}/resumed", tokenizer_dir, settings=dataclasses.replace(SETTINGS, seed=7))
    result = run(SAMPLE, f"{URL}/resumed", tokenizer_dir)
    assert result.statistics.num_units_reused == 2
    run(SAMPLE, tmp_path / "whole", tokenizer_dir)
    assert stored_bytes("resumed") == directory_bytes(tmp_path / "whole")
    assert stored_bytes("resumed.partial") == {}


@pytest.mark.usefixtures("illness", "inline_engine")
def test_what_is_no_shard_set_is_left_alone(tokenizer_dir: Path) -> None:
    file_system().pipe_file(f"{BUCKET}/photos/1.jpg", b"mine")
    for force in (False, True):
        with pytest.raises(InputError, match="exists and is no shard set"):
            run(SAMPLE, f"{URL}/photos", tokenizer_dir, force=force)
    assert stored_bytes("photos") == {"1.jpg": b"mine"}


def test_worker_processes_build_to_a_store_that_is_ill_for_a_while(
    tmp_path: Path, tokenizer_dir: Path, illness: Path
) -> None:
    from tests.pipeline.store import ill_for

    recovery = ill_for(illness, 3)
    run(SAMPLE, f"{URL}/ill", tokenizer_dir, num_workers=1)
    recovery.join()
    run(SAMPLE, tmp_path / "whole", tokenizer_dir)
    assert stored_bytes("ill") == directory_bytes(tmp_path / "whole")


@pytest.mark.parametrize("url", ["nothing://here/set", "s3://no-such-bucket-here/set"])
@pytest.mark.usefixtures("illness")
def test_a_store_that_is_not_there_is_one_line(tokenizer_dir: Path, url: str) -> None:
    with pytest.raises(InputError, match=r"here/set"):
        run(SAMPLE, url, tokenizer_dir)
