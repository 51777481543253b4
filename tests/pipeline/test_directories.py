"""In a directory everything that is a corpus is read, whatever it is called; what isn't is named."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import shards
from pipeline.progress import summary
from pipeline.readers.files import SourceFile
from pipeline.sources import find_corpus
from pipeline.train_tokenizer import train_tokenizer
from shards.common.errors import InputError
from shards.show import describe
from shards.unread import UnreadEntry
from tests.conftest import write_corpus
from tests.pipeline.building import Builder, Heard, texts_in
from tests.pipeline.reading import find_sources, texts_of
from tests.pipeline.test_inputs import RECORDS, TEXTS, write_table

# What is no corpus, by its name: its first bytes, the kind it is counted under, and a part of what an error says of it.
NO_CORPUS = {
    "LICENSE": ("许可证".encode(), "", "found '许'"),
    "_SUCCESS": (b"", "empty", "the file is empty"),
    "blank.jsonl": (b" \n\n", "empty", "only white space"),
    "page.html": (b"\n<!DOCTYPE html>\n<html>", "HTML page", "take the text out first"),
    "page.txt": (b'<?xml version="1.0"?>\n<HTML lang="zh">', "HTML page", "an error page of the server"),
    "wiki_00": (b'\n<doc id="12" url="" title="">', "output of WikiExtractor with tags", "with --json"),
    "wiki.txt": (b'\xef\xbb\xbf<doc id="12">', "output of WikiExtractor with tags", "again with --json"),
    "zhwiki.xml": (b'<mediawiki xmlns="http://www.mediawiki.org/xml/">', "MediaWiki XML dump", "wikiextractor --json"),
    "feed.xml": (b"<?xml version='1.0'?><rss>", "XML document", "as JSON Lines"),
    "paper.txt": (b"%PDF-1.7\n", "PDF", "pdftotext"),
    "corpus.zip": (b"PK\x03\x04" + bytes(30), "zip archive or an office document (docx, xlsx, epub)", "unpack"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_CORPUS)
def test_what_is_no_corpus_is_refused_by_name_and_named_in_a_directory(tmp_path: Path, name: str) -> None:
    """Packed or not."""
    content, kind, reason = NO_CORPUS[name]
    write_corpus(tmp_path / "corpus.jsonl", RECORDS, "lines")
    for own, packed in ((name, content), (f"{name}.gz", gzip.compress(content))):
        (tmp_path / own).write_bytes(packed)
        with pytest.raises(InputError) as caught:
            find_sources([str(tmp_path / own)])
        assert reason in str(caught.value) and own in str(caught.value)
        corpus = find_corpus([str(tmp_path)])
        assert [source.name for source in corpus.sources] == ["corpus.jsonl"]
        assert corpus.unread == [UnreadEntry(kind=kind, num_files=1, names=[own])]
        (tmp_path / own).unlink()


def test_what_can_be_read_only_once_is_no_corpus(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "corpus.jsonl.gz")
    for path in (tmp_path / "corpus.jsonl.gz", "/dev/null"):
        with pytest.raises(InputError, match=f"^{path}: expected a file, found a pipe or a device; write its content"):
            find_sources([str(path)])


@pytest.mark.parametrize(
    "content", [b"[![badge](x)](y)\n", b"{% if x %}{{ x }}{% endif %}", b"\xff\xff\xff\xff\1\2\3\4"]
)
def test_a_note_that_begins_like_records_is_none_in_a_directory(tmp_path: Path, content: bytes) -> None:
    write_corpus(tmp_path / "corpus", RECORDS, "lines")
    (tmp_path / "note").write_bytes(content)
    assert find_corpus([str(tmp_path)]).unread == [UnreadEntry(kind="", num_files=1, names=["note"])]
    (tmp_path / "note").rename(tmp_path / "note.jsonl")
    with pytest.raises(InputError, match="truncated") if content[:1] == b"[" else contextlib.nullcontext():
        assert len(find_sources([str(tmp_path)])) == 2


def make_tree(directory: Path) -> list[str]:
    """As several programs write them, with what nobody wants to read. Returns the names of those that are read."""
    for name in ("AA", "AB", "体育", ".git", "table.partial", "z"):
        (directory / name).mkdir(parents=True)
    write_corpus(directory / "AA" / "wiki_00", RECORDS[:50], "lines")  # WikiExtractor's
    lines = write_corpus(directory / "AB" / "wiki_02.bz2", RECORDS[50:100], "lines")
    lines.write_bytes(bz2.compress(lines.read_bytes()))
    write_corpus(directory / "array", RECORDS[100:150], "pretty")
    write_table(directory / "part-0", "parquet")
    for number in range(150, 160):  # THUCNews's
        (directory / "体育" / f"{number}.txt").write_text(TEXTS[number], encoding="utf-8")
    (directory / "体育" / "{.txt").write_text("{ 一", encoding="utf-8")
    for name in (".git/x.jsonl", "table.partial/x.jsonl", ".hidden.jsonl", "x.jsonl.partial"):
        (directory / name).write_text("[]")
    for name in ("README.md", "notes", "AA/log", "z/.gitignore", "体育/a.csv.md"):
        (directory / name).write_text("no corpus")
    with tarfile.open(directory / "more.tar.gz", "w:gz") as archive:
        archive.add(directory / "notes")
    texts = [f"体育/{number}.txt" for number in range(150, 160)]
    return ["AA/wiki_00", "AB/wiki_02.bz2", "array", "part-0", *texts, "体育/{.txt"]


UNREAD = [
    UnreadEntry(kind="", num_files=4, names=["AA/log", "README.md", "notes"]),
    UnreadEntry(kind="tar archive", num_files=1, names=["more.tar.gz"]),
]
LINE = "5 files are no corpus: AA/log, README.md, notes and 1 more; tar archive: more.tar.gz"


def test_a_tree_of_formats_is_read_and_what_is_left_out_is_named(tmp_path: Path, memory: Any, run: Builder) -> None:
    directory = tmp_path / "corpus"
    names = make_tree(directory)
    memory.put(str(directory), "/", recursive=True)
    for base in (str(directory), "memory://corpus"):
        corpus = find_corpus([base])
        assert sorted(source.name for source in corpus.sources) == sorted(names)
        assert sorted(corpus.unread, key=lambda entry: entry.kind) == UNREAD
    expected = [*TEXTS[:150], *TEXTS, *TEXTS[150:160], "{ 一"]
    assert texts_of(directory) == expected
    heard, out = Heard(), tmp_path / "set"
    result = run(directory, out, reporter=heard, val_fraction=0)
    assert texts_in(out) == expected
    assert result.manifest.unread == UNREAD and heard.notices == [LINE]
    assert summary(result)["not read"] == LINE
    assert LINE in describe(shards.open(out))
    notices: list[str] = []
    train_tokenizer([str(directory)], tmp_path / "tokenizer", vocab_size=300, notice=notices.append)
    assert notices == [LINE]


def test_only_what_is_read_decides_whether_a_set_is_up_to_date(tmp_path: Path, run: Builder) -> None:
    """Also when it lies in the corpus's directory, and whatever else comes to lie there."""
    write_corpus(tmp_path / "a", RECORDS[:20], "lines")
    run(tmp_path, tmp_path / "set")
    (tmp_path / "note.md").write_text("later")
    shutil.copytree(tmp_path / "set", tmp_path / "b" / "set")
    assert run(tmp_path, tmp_path / "set").up_to_date
    assert find_corpus([str(tmp_path)]).unread == [
        UnreadEntry(kind="shard set", num_files=2, names=["b/set/", "set/"]),
        UnreadEntry(kind="", num_files=1, names=["note.md"]),
    ]
    with pytest.raises(InputError, match=r"set: is a shard set, not a corpus; name the files that it was built from$"):
        find_sources([str(tmp_path / "set")])
    write_corpus(tmp_path / "c", RECORDS[20:30], "lines")
    with pytest.raises(InputError, match="the sources have changed"):
        run(tmp_path, tmp_path / "set")


def test_a_directory_without_a_corpus_says_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file in this directory"):
        find_sources([str(tmp_path)])
    (tmp_path / "a.md").write_text("# A")
    (tmp_path / "b").write_bytes(NO_CORPUS["wiki_00"][0])
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(InputError) as caught:
        find_sources([str(tmp_path)])
    line = f"{tmp_path}: 3 files are no corpus: a.md; link to a directory: link; output of WikiExtractor with tags: b; "
    assert str(caught.value).startswith(f"{line}{tmp_path}/b: is output of WikiExtractor with tags, not text; run")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b'[{"text": "a"}', "truncated"),
        ("a", gzip.compress(b'{"text": "a"}', mtime=0)[:-9], "incomplete or damaged"),
        (os.fsdecode("语料".encode("gbk")), b'{"text": "a"}', "the name isn't UTF-8"),
    ],
)
def test_a_damaged_corpus_is_an_error_in_a_directory(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    write_corpus(tmp_path / "b", RECORDS, "lines")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason):
        find_sources([str(tmp_path)])


def test_a_directory_that_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(path: str) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=f"{tmp_path}: Permission denied"):
        find_sources([str(tmp_path)])


def test_a_small_file_is_opened_and_read_once(tmp_path: Path) -> None:
    """A hundred thousand of them take no longer than they must."""
    write_corpus(tmp_path / "a", RECORDS[:9])
    (tmp_path / "b.txt").write_text("文")
    (tmp_path / "c.md").write_text("x")
    with (
        mock.patch.object(SourceFile, "__init__", autospec=True, side_effect=SourceFile.__init__) as opened,
        mock.patch.object(SourceFile, "read", autospec=True, side_effect=SourceFile.read) as read,
    ):
        find_sources([str(tmp_path)])
    assert opened.call_count == read.call_count == 3


def test_a_web_server_that_does_not_answer_is_not_a_missing_file() -> None:
    with pytest.raises(InputError, match=r"x.jsonl: Connect call failed .*; the same command goes on when the server"):
        find_sources(["http://127.0.0.1:9/x.jsonl"])
