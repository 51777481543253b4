"""Every kind of input gives the same documents, is known by its version, and fails in one of three ways."""

from __future__ import annotations

import errno
import gzip
import json
import os
import pkgutil
import shutil
import threading
import types
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blake3 import blake3

from pipeline.plan import plan_units
from pipeline.readers import open_range
from pipeline.readers.base import RangeReader, ReadOptions, raise_bad
from pipeline.readers.files import HashedFile, SourceFile
from pipeline.readers.tables import row_group_bytes
from pipeline.sources import ByteRange, check_unchanged
from shards.common.errors import InputError, TransientError
from tests.conftest import write_corpus
from tests.hub_server import Hub
from tests.pipeline.reading import find, find_sources, ranges_of, read_range, read_source, texts_and_bad, texts_of
from tests.pipeline.test_packed import PACK

TEXTS = [f"第{number}篇文章，内容如下。\n" + "文" * (number % 50) for number in range(300)]
RECORDS = [{"id": str(number), "page": {"body": text}, "text": text} for number, text in enumerate(TEXTS)]
TABLE = pa.Table.from_pylist(RECORDS)


def write_table(path: Path, kind: str, table: pa.Table = TABLE) -> Path:
    """In row groups, or record batches, of 70 rows."""
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=70)
    else:
        with (pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream)(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=70)
    return path


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow-stream"])
def test_tables(tmp_path: Path, memory: Any, kind: str) -> None:
    path = write_table(tmp_path / "corpus", kind)
    assert texts_of(path) == texts_of(path, field="page.body") == texts_of(path, template="{text}") == TEXTS
    memory.pipe_file("/corpus", path.read_bytes())
    assert texts_of("memory://corpus") == TEXTS
    assert len(ranges_of(find(path), 1)) == (1 if kind == "arrow-stream" else 5)
    (whole,) = plan_units([find(path)], 10**9)
    assert whole.num_bytes == sum(unit.num_bytes for unit in plan_units([find(path)], 1))
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(InputError, match=f"pyarrow can't read this {kind} file: "):
        texts_of(path)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow-stream"])
def test_rows_are_numbered_from_the_file(tmp_path: Path, kind: str) -> None:
    rows = [{"text": b"\xff" if number in (7, 207) else "文".encode()} for number in range(300)]
    path = write_table(tmp_path / "corpus", kind, pa.Table.from_pylist(rows))
    assert [error.offset for error in texts_and_bad(path)[1]] == [7, 207]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow-stream"])
def test_text_in_a_table_that_is_not_utf8_is_a_bad_record(tmp_path: Path, kind: str) -> None:
    """Its column is one of text, which whoever wrote the file didn't check."""
    content = pa.array([b"good", b"b\xff", "文".encode()])
    text = pa.StringArray.from_buffers(3, *content.buffers()[1:])
    parts = pa.StructArray.from_arrays([text, pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), text)], "ab")
    path = write_table(tmp_path / "corpus", kind, pa.table({"text": text, "page": parts}))
    for field in ("text", "page.a", "page.b[]"):
        texts, bad = texts_and_bad(path, field=field)
        assert texts == ["good", "文"] and [(error.offset, error.kind) for error in bad] == [(1, "invalid UTF-8")]
    strange = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int32()), text)
    if kind != "parquet":
        assert len(texts_and_bad(write_table(path, kind, pa.table({"text": strange})))[1]) == 1


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow-stream"])
def test_what_python_has_no_value_or_no_name_for_in_a_table(tmp_path: Path, kind: str) -> None:
    """Of two columns with one name the last counts, as in JSON."""
    arrays = [pa.array(["a"]), pa.array(["b"]), pa.array([10**9], pa.date32())]
    path = write_table(tmp_path / "corpus", kind, pa.Table.from_arrays(arrays, names=["text", "text", "when"]))
    assert texts_of(path) == ["b"]
    assert [error.kind for error in texts_and_bad(path, field="when")[1]] == ["text is not a string"]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow-stream"])
def test_ranges_of_tables_have_digests_of_their_own(tmp_path: Path, kind: str) -> None:
    """Of any row groups; of Parquet without the columns that aren't needed."""
    path = tmp_path / "corpus"

    def digests(field: str, value: str) -> list[str]:
        """With the field of the last row set to `value`."""
        write_table(path, kind, pa.Table.from_pylist([*RECORDS[:-1], {**RECORDS[-1], field: value}]))
        source, options = find(path), ReadOptions(on_bad=raise_bad, columns=("text",))
        return [open_range(byte_range, options).compute_digest() for byte_range in ranges_of(source, 1)]

    first = digests("id", "299")
    assert all(first) and len(set(first)) == len(first) and digests("id", "299") == first
    assert (digests("id", "300") == first) == (kind == "parquet")
    assert digests("text", "other")[-1] != first[-1]


def test_remote_parquet_is_read_once_by_column(memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = TABLE.append_column("other", [[os.urandom(2000).hex() for _ in RECORDS]])
    content = write_table(tmp_path / "corpus", "parquet", table).read_bytes()
    memory.pipe_file("/corpus", content)
    source = find("memory://corpus")
    num_read, read = Counter[SourceFile](), SourceFile.read

    def count_read(file: SourceFile, num_bytes: int = -1) -> bytes:
        found = read(file, num_bytes)
        num_read[file] += len(found)
        return found

    monkeypatch.setattr(SourceFile, "read", count_read)
    byte_range = ByteRange(source=source, start=0, stop=5, num_bytes=1)
    reader, batches, _error = read_range(byte_range, ReadOptions(on_bad=raise_bad, columns=("text",)))
    assert [row["text"] for batch in batches for row in batch.values] == TEXTS
    assert len(num_read) == 1 and num_read.total() < len(content) / 4
    assert sum(row_group_bytes(source)) > 0 and reader.digest


def test_a_local_data_set_of_datasets(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(RECORDS).save_to_disk(str(tmp_path / "saved"))
    assert texts_of(tmp_path / "saved") == TEXTS
    datasets.DatasetDict({"train": datasets.Dataset.from_list(RECORDS)}).save_to_disk(str(tmp_path / "dict"))
    with pytest.raises(InputError, match="a data set with the splits train; name one"):
        find_sources([str(tmp_path / "dict")])
    shutil.rmtree(tmp_path / "dict" / "train")
    with pytest.raises(InputError, match="of which no split is there"):
        find_sources([str(tmp_path / "dict")])


def test_plain_text_is_cut_at_a_separator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--max-record-bytes` is of a document, not of what is read at once."""
    path, documents = tmp_path / "corpus.txt", ["甲\n乙", "----x", "丙\n----", "x" * 19]
    path.write_text("\n-----\n".join(documents) + "\n-----\n-----\n", encoding="utf-8")
    assert [text for text in texts_of(path, document_separator="-----", max_record_bytes=20) if text] == documents
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    texts = texts_of(path, document_separator="-----", max_record_bytes=20)
    assert [text.replace("\r\n", "\n") for text in texts if text] == documents
    monkeypatch.setattr(RangeReader, "chunk_bytes", 16)
    path.write_text("甲\n-----\n" + "x" * 90 + "\n-----\n乙\n-----\n" + "y" * 90, encoding="utf-8")
    texts, bad = texts_and_bad(path, document_separator="-----", max_record_bytes=20)
    assert (texts, [error.kind for error in bad]) == (["甲", "乙"], ["record too large"] * 2)


def test_directories_and_patterns_in_a_fixed_order(tmp_path: Path, memory: Any) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "b").mkdir(parents=True)
    (corpus / ".hidden").mkdir()
    write_corpus(corpus / "b" / "one.json", RECORDS[100:200])
    write_corpus(corpus / "a.jsonl", RECORDS[:100], "lines")
    lines = write_corpus(tmp_path / "x", RECORDS[200:], "lines").read_bytes()
    (corpus / "c.jsonl.gz").write_bytes(gzip.compress(lines))
    (corpus / ".hidden" / "no.json").write_text("[]")
    (corpus / "notes.md").write_text("no corpus")
    memory.put(str(corpus), "/", recursive=True)
    for base in (str(corpus), "memory://corpus"):
        assert texts_of(base) == TEXTS
        assert [source.name for source in find_sources([base])] == ["a.jsonl", "b/one.json", "c.jsonl.gz"]
        assert [source.name for source in find_sources([f"{base}/[ab]*/*"])] == ["one.json"]
        assert [source.name for source in find_sources([f"{base}/*.jsonl*"])] == ["a.jsonl", "c.jsonl.gz"]
        assert find(f"{base}/a.jsonl").name == "a.jsonl"
        with pytest.raises(InputError, match=r"no such file|no file matches"):
            find_sources([f"{base}/*.nothing"])
    with pytest.raises(InputError, match="expected a source's name, found an empty string"):
        find_sources([""])
    with pytest.raises(InputError, match="given twice"):
        find_sources([str(corpus), f"{corpus}/a.jsonl"])
    for name in (os.fsdecode("语料.jsonl".encode("gbk")), "empty.jsonl"):
        (tmp_path / name).write_text("")
        with pytest.raises(InputError, match=r"the name isn't UTF-8; rename it|the file is empty"):
            find_sources([str(tmp_path / name)])


def test_what_a_hub_calls_by_a_name_is_pinned_and_read(data_sets_of: Hub, tmp_path: Path) -> None:
    hub = data_sets_of
    lines = write_corpus(tmp_path / "lines", RECORDS[:100], "lines").read_bytes()
    table = write_table(tmp_path / "table", "parquet", TABLE.slice(100)).read_bytes()
    hub.commit("datasets/org/lines", {"README.md": b"", "train.jsonl": lines})
    hub.commit("datasets/org/table", {"README.md": b"", "data/train.parquet": table})
    for name in ("hf:org/lines", "hf://datasets/org/lines", "hf://datasets/org/lines/*.jsonl"):
        source = find(name)
        hub.put("datasets/org/lines", "train.jsonl", b'{"text": "newer"}\n')
        assert read_source(source) == RECORDS[:100]
        check_unchanged([source])
        hub.put("datasets/org/lines", "train.jsonl", lines)
    assert find("hf:org/lines").name == "org/lines@" + find("hf:org/lines").path.partition("@")[2]
    assert texts_of("hf:org/table") == texts_of("hf://datasets/org/table/data") == TEXTS[100:]


@pytest.mark.parametrize("name", ["pipeline.readers.tables.row_group_bytes", "pipeline.sources.file_status"])
def test_a_server_is_asked_about_many_files_at_once(
    memory: Any, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = write_table(tmp_path / "table", "parquet").read_bytes()
    for number in range(3):
        memory.pipe_file(f"/many/{number}.parquet", content)
    sources, original = find_sources(["memory://many"]), pkgutil.resolve_name(name)
    all_asked = threading.Barrier(3, timeout=10)

    def wait(argument: Any) -> Any:
        all_asked.wait()
        return original(argument)

    monkeypatch.setattr(name, wait)
    plan_units(sources, 10**9) if "plan" in name else check_unchanged(sources)


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_source_that_changed_or_is_gone_is_noticed(tmp_path: Path, memory: Any, is_remote: bool) -> None:
    path = write_corpus(tmp_path / "corpus", RECORDS, "lines")
    content = path.read_bytes()

    def put(content: bytes) -> None:
        path.write_bytes(content)
        memory.pipe_file("/corpus", content)

    put(content)
    source = find("memory://corpus" if is_remote else path)
    (byte_range,) = ranges_of(source, 10**9)
    assert (source.modified_ns == 0, source.version != "") == (is_remote, is_remote)
    check_unchanged([source])
    put(content.replace("文".encode(), "字".encode()))  # of the same size
    with pytest.raises(InputError, match="the file was changed while it was read"):
        check_unchanged([source])
    put(content[:-9])
    with pytest.raises(InputError, match="the file became shorter while it was read"):
        read_range(byte_range)
    path.unlink()
    memory.rm_file("/corpus")
    for ask in (lambda: check_unchanged([source]), lambda: read_range(byte_range)):
        with pytest.raises(InputError, match="was removed while it was read"):
            ask()


CONNECTION_ERRORS = (errno.ECONNRESET, errno.ETIMEDOUT)


@pytest.mark.parametrize("number", [*CONNECTION_ERRORS, errno.ESTALE])
@pytest.mark.parametrize("form", ["lines", *PACK, "parquet"])
@pytest.mark.parametrize("is_remote", [False, True])
def test_what_breaks_while_a_source_is_read_is_no_damage_to_it(
    tmp_path: Path, memory: Any, form: str, is_remote: bool, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection is a transient error, a network file system's too; a stale file handle of a disk is the machine's."""
    path = write_corpus(tmp_path / "corpus", RECORDS, "lines")
    path.write_bytes(PACK.get(form, bytes)(path.read_bytes()))
    if form == "parquet":
        write_table(path, "parquet")
    memory.pipe_file("/corpus", path.read_bytes())
    byte_range = ranges_of(find("memory://corpus" if is_remote else path), 10**9)[0]
    initialize = SourceFile.__init__

    def break_it(file: SourceFile, *arguments: Any, **options: Any) -> None:
        initialize(file, *arguments, **options)
        names = {name: getattr(file._file, name) for name in ("seek", "tell", "close")}
        file._file = types.SimpleNamespace(**names, read=Mock(side_effect=OSError(number, os.strerror(number))))

    monkeypatch.setattr(SourceFile, "__init__", break_it)
    is_transient = is_remote or number in CONNECTION_ERRORS
    line = "corpus: .*; the same command goes on when" if is_transient else "."
    with pytest.raises(TransientError if is_transient else OSError, match=line):
        read_range(byte_range)


@pytest.mark.parametrize("name", ["corpus.txt", "corpus.jsonl.gz"])
def test_reading_ends_where_the_file_ended_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Somebody appends as fast as it is read: it would never end."""
    corpus, read, num_reads = tmp_path / name, HashedFile.read, 0
    line = json.dumps({"text": "文"}).encode() + b"\n"
    content = gzip.compress(line) if name.endswith(".gz") else line
    corpus.write_bytes(content)

    def read_and_append(file: HashedFile, num_bytes: int = -1) -> bytes:
        nonlocal num_reads
        num_reads += 1
        assert num_reads < 100, "reads on and on"
        with corpus.open("ab") as more:
            more.write(content)
        return read(file, num_bytes)

    source = find(corpus)
    monkeypatch.setattr(HashedFile, "read", read_and_append)
    reader, batches, _error = read_range(ranges_of(source, 1)[0])
    assert len(batches[0].values) == 1 and reader.digest == blake3(content).hexdigest()
