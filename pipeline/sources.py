"""The corpus: which files, in what format, and which version of each.

File types are detected from content, not names: JSON in any layout, Parquet, Arrow, and the compression. Only plain text
(`.txt`), CSV and TSV go by their names, since any content is plain text. What a name means on a hub is pinned to a commit.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pipeline.readers.compression import COMPRESSIONS, compression_of, unpack, without_suffix
from pipeline.readers.files import FileStatus, SourceFile, file_status, find_urls, removed
from pipeline.readers.json_parser import is_in_lines
from shards.common.errors import InputError
from shards.common.text import nearest, printable
from shards.common.urls import in_parallel, is_url

# Arrays of strings are "json-strings"; "json-texts" stand one behind the other, without a line of its own for each.
Format = Literal[
    "json-lines", "json-array", "json-strings", "json-texts", "text", "csv", "tsv", "parquet", "arrow", "arrow-stream"
]
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
HUB_PREFIX = "hf:"
_HUB_URL = "hf://"
_PINNED = re.compile(r"hf://[^@]+@[0-9a-f]{40}/")  # what a commit holds can't change
_HEAD_BYTES = 1 << 16
_BY_SUFFIX: dict[str, Format] = {".txt": "text", ".csv": "csv", ".tsv": "tsv"}
_KNOWN_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow", *_BY_SUFFIX)
# How files begin that hold no text yet; what they are, and what to do.
_NOT_TEXT = {
    rb"\xff\xfe|\xfe\xff": "text in UTF-16; convert it to UTF-8 first: iconv -f UTF-16 -t UTF-8",
    rb"%PDF-": "a PDF, not text; convert it to text first, as with pdftotext",
    rb"PK\x03\x04": "a zip archive or an office document (docx, xlsx, epub), not text; unpack or save it as text first",
    rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an office document (doc, xls, ppt), not text; save it as text first",
    rb".{257}ustar": "a tar archive, not text; unpack it first",
    rb"Rar!\x1a\x07": "a rar archive, not text; unpack it first",
    rb"7z\xbc\xaf\x27\x1c": "a 7z archive, not text; unpack it first",
    rb"\x89PNG\r\n\x1a\n": "a picture (PNG), not text; recognize its text first, or leave it out",
    rb"\xff\xd8\xff": "a picture (JPEG), not text; recognize its text first, or leave it out",
    rb"GIF8": "a picture (GIF), not text; recognize its text first, or leave it out",
    rb"\x7fELF": "a program, not text; leave it out",
    rb"SQLite format 3\x00": "an SQLite database, not text; export its texts as JSON Lines first",
    rb"\{\\rtf": "an RTF document, not text; save it as text first",
}
_FORMATS: dict[bytes, Format] = {
    rb"PAR1": "parquet",
    rb"ARROW1": "arrow",
    rb"\xff{4}": "arrow-stream",
    rb"(?:\xef\xbb\xbf)?\s*\[\s*\"": "json-strings",
    rb"(?:\xef\xbb\xbf)?\s*\[": "json-array",
    rb"(?:\xef\xbb\xbf)?\s*[{\"]": "json-lines",
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One file of the corpus."""

    path: str  # absolute, or a URL
    name: str  # as recorded in the manifest: relative to the directory or pattern that was given
    format: Format
    compression: str = ""  # gzip, zstd, bzip2 or xz
    num_bytes: int
    modified_ns: int  # of a local file; 0 for a URL
    version: str = ""  # of a URL: what the server calls the file's version

    @property
    def is_stream(self) -> bool:
        """Whether it is read as bytes, whose places are offsets and lines; other sources have rows."""
        return self.format in ("json-lines", "json-array", "json-strings", "json-texts", "text")

    @property
    def is_splittable(self) -> bool:
        """Whether reading can begin at any byte."""
        return self.format in ("json-lines", "json-array") and not self.compression


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ByteRange:
    """A part of a source: `[start, stop)` in bytes, in row groups, or all of it (0, 1)."""

    source: Source
    start: int
    stop: int
    num_bytes: int  # for the progress


def find_sources(names: Sequence[str]) -> list[Source]:
    """All files meant by `names` (files, directories, patterns, URLs, `hf:NAME`), in a fixed order, each looked at.

    Raises `InputError` for the first that is missing, empty, of an unknown kind, or visibly incomplete.
    """
    sources = [source for name in names for source in _find(name)]
    for path, number in Counter(source.path for source in sources).items():
        if number > 1:
            raise InputError(f"{path}: given twice; its documents would be in the set twice")
    return sources


def check_unchanged(sources: Iterable[Source]) -> None:
    """Raise `InputError` if a file is gone, or another one than when it was found."""
    at_urls = []
    for source in sources:
        if not is_url(source.path):
            _check_unchanged(source)
        elif not _PINNED.match(source.path):
            at_urls.append(source)
    in_parallel(_check_unchanged, at_urls)


def _check_unchanged(source: Source) -> None:
    try:
        status = file_status(source.path)
    except FileNotFoundError:
        raise removed(source.path) from None
    if status != FileStatus(source.num_bytes, source.modified_ns, source.version):
        raise InputError(changed(source))


def changed(source: Source) -> str:
    """What to say of a source that isn't what it was when it was found."""
    return f"{source.path}: the file was changed while it was read; build again with --force when it is complete"


def _find(name: str) -> list[Source]:
    name = name.removeprefix("file://")
    if name.startswith(_HUB_URL):
        from shards.share.hub import pin_url

        name = pin_url(name)
    elif name.startswith(HUB_PREFIX):
        from pipeline.fetch import data_files

        return in_parallel(lambda url: look_at(url, url.split("/", 3)[3]), data_files(name))
    if is_url(name):
        suffixes = tuple(known + packed for known in _KNOWN_SUFFIXES for packed in ("", *COMPRESSIONS.values()))
        return in_parallel(lambda found: look_at(*found), find_urls(name, suffixes))
    path = Path(name)
    if path.is_dir():
        return [look_at(str(file), file.relative_to(path).as_posix()) for file in _files_in(path)]
    if not path.exists() and glob.has_magic(name):
        matches = sorted(match for match in glob.glob(name, recursive=True) if Path(match).is_file())
        if not matches:
            raise InputError(f"{name}: no file matches this pattern")
        base = os.path.commonpath([os.path.dirname(match) for match in matches])
        return [look_at(match, os.path.relpath(match, base or ".")) for match in matches]
    return [look_at(name, path.name)]


def _files_in(directory: Path) -> list[Path]:
    if (directory / "state.json").is_file() and (directory / "dataset_info.json").is_file():  # datasets' save_to_disk
        paths = sorted(directory.glob("*.arrow"))
    elif (directory / "dataset_dict.json").is_file():
        splits = sorted(path.name for path in directory.iterdir() if path.is_dir())
        raise InputError(
            f"{directory}: a data set with the splits {', '.join(splits)}; name one: {directory}/{splits[0]}"
        )
    else:
        paths = sorted(
            path
            for path in directory.rglob("*")
            if path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(directory).parts)
            and without_suffix(path.name).endswith(_KNOWN_SUFFIXES)
        )
    if not paths:
        raise InputError(
            f"{directory}: no file in this directory is called {', '.join('*' + s for s in _KNOWN_SUFFIXES)}"
        )
    return paths


def look_at(path_name: str, name: str) -> Source:
    """The file `path_name` as a source called `name`."""
    if any("\ud800" <= character <= "\udfff" for character in path_name):  # bytes of the name that weren't decoded
        raise InputError(f"{path_name}: the name isn't UTF-8; rename it, or set LC_ALL=C.UTF-8 if it is")
    try:
        status = file_status(path_name)
        with SourceFile(path_name, reads_ahead=False) as file:
            head = file.read(_HEAD_BYTES)
            file.seek(max(0, status.num_bytes - _HEAD_BYTES))
            foot = file.read(_HEAD_BYTES)
            if compression := compression_of(head):
                file.seek(0)
                head = unpack(file, compression, path_name).read(_HEAD_BYTES) or b""
    except FileNotFoundError:
        raise _missing(path_name) from None
    except OSError as error:
        raise InputError(f"{path_name}: {error.strerror or error}") from None
    if not head and not path_name.endswith(".txt"):
        raise InputError(f"{path_name}: the file is empty; expected records")
    file_format = _detect_format(path_name, head)
    if file_format == "json-array" and not compression and not foot.rstrip().endswith(b"]"):
        raise InputError(
            f"{path_name}: truncated: the array that begins the file is not closed by ']' at its end (byte "
            f"{status.num_bytes:,}); the download is incomplete, fetch the file again"
        )
    return Source(
        path=path_name if is_url(path_name) else os.path.abspath(path_name),
        name=name,
        format=file_format,
        compression=compression,
        **status._asdict(),
    )


def _missing(path_name: str) -> InputError:
    from pipeline.fetch import CORPORA  # needed for a hint alone

    path = Path(path_name)
    siblings = os.listdir(path.parent) if not is_url(path_name) and path.parent.is_dir() else []
    is_published = path.name in {corpus.file for corpus in CORPORA.values()}
    hint = "; fetch it with `make data`" if is_published else nearest(path.name, siblings)
    return InputError(f"{path_name}: no such file{hint}")


def _detect_format(name: str, head: bytes) -> Format:
    for beginning, what in _NOT_TEXT.items():
        if re.match(beginning, head, re.DOTALL):
            raise InputError(f"{name}: is {what}")
    for suffix, by_name in _BY_SUFFIX.items():
        if without_suffix(name).endswith(suffix):
            return by_name
    content = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    for beginning, file_format in _FORMATS.items():
        if re.match(beginning, head):
            return file_format if file_format != "json-lines" or is_in_lines(content) else "json-texts"
    first = content[:1]
    if not first:
        raise InputError(f"{name}: expected records, found only white space")
    raise InputError(
        f"{name}: expected JSON Lines (first character '{{'), a JSON array ('['), Parquet, Arrow or a .txt, .csv or .tsv "
        f"file, found {printable(first.decode('latin-1'))!r}"
    )
