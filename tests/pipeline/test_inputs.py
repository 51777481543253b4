"""Every kind of input gives the same documents."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pipeline.units import plan_units

import shards
from pipeline.build import build
from pipeline.settings import BuildSettings
from pipeline.sources import find_sources
from shards.common.errors import InputError
from shards.vocabulary import Vocabulary
from tests.conftest import write_corpus

TEXTS = [f"第{number}篇文章，内容如下。\n" + "文" * (number % 50) for number in range(300)]
RECORDS = [{"id": str(number), "page": {"body": text}, "text": text} for number, text in enumerate(TEXTS)]

pytestmark = pytest.mark.usefixtures("inline_engine")


def built_texts(tmp_path: Path, tokenizer_dir: Path, *sources: str, **settings: Any) -> list[str]:
    """The documents of a set built from `sources`, in the corpus's order."""
    settings = {"block_tokens": 32, "val_fraction": 0.0, "unit_bytes": 4000, **settings}
    build(
        list(sources),
        tmp_path / "set",
        tokenizer_name=str(tokenizer_dir),
        settings=BuildSettings(**settings),
        num_workers=1,
    )
    shard_set = shards.open(tmp_path / "set")
    vocabulary = Vocabulary(shard_set.tokenizer_path)
    return [vocabulary.text(document) for document in shard_set["train"].documents()]


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "gz in two members": lambda content: gzip.compress(content[:5000]) + gzip.compress(content[5000:]),
    "zst": zstandard.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("layout", ["lines", "array", "pretty", "compact", "escaped"])
@pytest.mark.parametrize("kind", COMPRESSORS)
def test_compressed_files_are_read_as_streams(tmp_path: Path, tokenizer_dir: Path, kind: str, layout: str) -> None:
    content = write_corpus(tmp_path / "plain", RECORDS, layout).read_bytes()
    (tmp_path / "corpus").write_bytes(COMPRESSORS[kind](content))
    assert built_texts(tmp_path, tokenizer_dir, str(tmp_path / "corpus")) == TEXTS


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_a_compressed_file_cut_short_is_an_incomplete_download(tmp_path: Path, tokenizer_dir: Path, kind: str) -> None:
    content = COMPRESSORS[kind](write_corpus(tmp_path / "plain", RECORDS, "lines").read_bytes())
    (tmp_path / "corpus").write_bytes(content[: len(content) - 40])
    with pytest.raises(InputError, match="incomplete"):
        built_texts(tmp_path, tokenizer_dir, str(tmp_path / "corpus"))


def test_parquet_is_read_row_group_by_row_group(tmp_path: Path, tokenizer_dir: Path) -> None:
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "corpus", row_group_size=70)
    sources = find_sources([str(tmp_path / "corpus")])
    assert [stretch.start for unit in plan_units(sources, 1) for stretch in unit.stretches] == [0, 1, 2, 3, 4]
    assert built_texts(tmp_path, tokenizer_dir, str(tmp_path / "corpus"), unit_bytes=1) == TEXTS


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow_files_and_streams(tmp_path: Path, tokenizer_dir: Path, kind: str) -> None:
    table = pa.Table.from_pylist(RECORDS)
    opened = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with opened(str(tmp_path / "corpus"), table.schema) as writer:
        writer.write_table(table, max_chunksize=70)
    assert built_texts(tmp_path, tokenizer_dir, str(tmp_path / "corpus")) == TEXTS


def test_a_local_data_set_of_datasets(tmp_path: Path, tokenizer_dir: Path) -> None:
    import datasets

    datasets.Dataset.from_list(RECORDS).save_to_disk(str(tmp_path / "saved"))
    assert built_texts(tmp_path, tokenizer_dir, str(tmp_path / "saved")) == TEXTS
    datasets.DatasetDict({"train": datasets.Dataset.from_list(RECORDS)}).save_to_disk(str(tmp_path / "dict"))
    with pytest.raises(InputError, match="a data set with the splits train; name one"):
        find_sources([str(tmp_path / "dict")])


def test_a_data_set_by_name_is_streamed(tmp_path: Path, tokenizer_dir: Path) -> None:
    """A directory stands for the hub: `datasets` takes either by the same call."""
    (tmp_path / "named").mkdir()
    write_corpus(tmp_path / "named" / "train.jsonl", RECORDS, "lines")
    assert built_texts(tmp_path, tokenizer_dir, f"hf:{tmp_path / 'named'}:train") == TEXTS
    with pytest.raises(InputError, match="datasets can't open it"):
        built_texts(tmp_path / "other", tokenizer_dir, f"hf:{tmp_path / 'nowhere'}")


def test_plain_text_is_a_document_a_file(tmp_path: Path, tokenizer_dir: Path) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number:03}.txt").write_text(text, encoding="utf-8")
    assert built_texts(tmp_path, tokenizer_dir, str(tmp_path)) == TEXTS
    assert len(plan_units(find_sources([str(tmp_path)]), 4000)) < 30  # small files share units


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 20])
def test_plain_text_is_cut_at_a_separator(
    tmp_path: Path, tokenizer_dir: Path, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.records import StretchReader

    monkeypatch.setattr(StretchReader, "chunk_bytes", chunk_bytes)
    documents = ["甲\n乙", "----x", "丙\n----", "丁"]
    path = tmp_path / "corpus.txt"
    path.write_text("\n-----\n".join(documents) + "\n-----\n-----\n", encoding="utf-8")
    assert built_texts(tmp_path, tokenizer_dir, str(path), document_separator="-----") == documents


@pytest.mark.parametrize("name", ["corpus.txt", "corpus.jsonl.gz"])
def test_reading_ends_where_the_file_ended_at_first(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Somebody appends as fast as it is read: it would never end."""
    from pipeline.streams import HashedFile

    corpus, read, num_reads = tmp_path / name, HashedFile.read, 0
    line = json.dumps({"text": "文"}).encode() + b"\n"
    content = gzip.compress(line) if name.endswith(".gz") else line
    corpus.write_bytes(content)

    def read_and_append(file: HashedFile, num_bytes: int) -> bytes:
        nonlocal num_reads
        num_reads += 1
        assert num_reads < 100, "reads on and on"
        with corpus.open("ab") as more:
            more.write(content)
        return read(file, num_bytes)

    monkeypatch.setattr(HashedFile, "read", read_and_append)
    with pytest.raises(InputError, match="the file was changed while it was read"):
        built_texts(tmp_path, tokenizer_dir, str(corpus))


def test_directories_and_patterns_in_a_fixed_order(tmp_path: Path, tokenizer_dir: Path) -> None:
    (tmp_path / "corpus" / "b").mkdir(parents=True)
    (tmp_path / "corpus" / ".hidden").mkdir()
    write_corpus(tmp_path / "corpus" / "b" / "one.json", RECORDS[100:200])
    write_corpus(tmp_path / "corpus" / "a.jsonl", RECORDS[:100], "lines")
    (tmp_path / "corpus" / "c.jsonl.gz").write_bytes(
        gzip.compress(write_corpus(tmp_path / "x", RECORDS[200:], "lines").read_bytes())
    )
    (tmp_path / "corpus" / ".hidden" / "no.json").write_text("[]")
    (tmp_path / "corpus" / "notes.md").write_text("no corpus")
    assert built_texts(tmp_path, tokenizer_dir, str(tmp_path / "corpus")) == TEXTS
    names = [source.name for source in find_sources([str(tmp_path / "corpus" / "**" / "*.json*")])]
    assert names == ["a.jsonl", "b/one.json", "c.jsonl.gz"]
    with pytest.raises(InputError, match="no file matches"):
        find_sources([str(tmp_path / "*.nothing")])
    with pytest.raises(InputError, match="given twice"):
        find_sources([str(tmp_path / "corpus"), str(tmp_path / "corpus" / "a.jsonl")])


def test_a_path_of_fields(tmp_path: Path, tokenizer_dir: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [{"page": {"body": text}} for text in TEXTS])
    assert built_texts(tmp_path, tokenizer_dir, str(corpus), text_field="page.body") == TEXTS
    with pytest.raises(InputError, match=r"no field 'page\.bdy'; this record has body; did you mean 'body'"):
        built_texts(tmp_path / "other", tokenizer_dir, str(corpus), text_field="page.bdy")


def test_a_template_over_several_fields(tmp_path: Path, tokenizer_dir: Path) -> None:
    records = [{"title": f"题{number}", "text": text} for number, text in enumerate(TEXTS)]
    records[7] = {"title": "", "text": ""}
    corpus = write_corpus(tmp_path / "corpus", records)
    expected = [f"题{number}\n{{{text}}}" for number, text in enumerate(TEXTS) if number != 7]
    assert built_texts(tmp_path, tokenizer_dir, str(corpus), template="{title}\\n{{{text}}}") == expected
    for template in ("{", "no field", "{}", "{text!r}", "{text:5}"):
        with pytest.raises(InputError, match="--template"):
            built_texts(tmp_path / "other", tokenizer_dir, str(corpus), template=template)


def test_the_format_is_found_from_the_content(tmp_path: Path) -> None:
    write_corpus(tmp_path / "wrong.parquet", RECORDS, "lines")
    write_corpus(tmp_path / "wrong.jsonl", RECORDS, "array")
    found = [find_sources([str(tmp_path / name)])[0].format for name in ("wrong.parquet", "wrong.jsonl")]
    assert found == ["json-lines", "json-array"]


def test_memory_for_a_unit_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """A reader holds a chunk or two, never the file: of a single-line array too."""
    import tracemalloc

    from pipeline.records import ReadOptions, raise_bad

    from pipeline.readers import open_stretch

    path = tmp_path / "corpus"
    record = json.dumps({"text": "文" * 300}, ensure_ascii=False)
    path.write_text("[" + ", ".join([record] * 120_000) + "]", encoding="utf-8")
    (source,) = find_sources([str(path)])
    (unit,) = plan_units([source], 1 << 30)
    tracemalloc.start()
    count = sum(len(batch.values) for batch in open_stretch(source, unit.stretches[0], ReadOptions(on_bad=raise_bad)))
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 120_000 and source.num_bytes > 100_000_000
    assert peak < 45_000_000


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode("语料.jsonl".encode("gbk"))
    path.write_text('{"text": "文"}\n', encoding="utf-8")
    for source in (path, tmp_path):
        with pytest.raises(InputError, match="the name isn't UTF-8; rename it"):
            find_sources([str(source)])
