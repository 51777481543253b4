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
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pipeline.readers.compression import compression_of, unpack
from pipeline.readers.encodings import check_encoding, encoding_of, to_utf8
from pipeline.readers.files import FileStatus, SourceFile, file_status, find_files, find_urls, removed
from pipeline.readers.json_parser import is_in_lines
from shards.common.errors import InputError, nearest_path
from shards.common.text import printable
from shards.common.urls import in_parallel, is_url
from shards.layout import MANIFEST_NAME
from shards.unread import UnreadEntry, add_up, unread_text

Result = TypeVar("Result")

# Arrays of strings are "json-strings"; "json-texts" stand one after another, without a line of its own for each.
Format = Literal[
    "json-lines", "json-array", "json-strings", "json-texts", "text", "csv", "tsv", "parquet", "arrow", "arrow-stream"
]
_TABLES = ("parquet", "arrow", "arrow-stream")  # which have no encoding
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
HUB_PREFIX = "hf:"
_HUB_URL = "hf://"
_PINNED = re.compile(r"hf://[^@]+@[0-9a-f]{40}/")  # what a commit holds can't change
_HEAD_BYTES = 1 << 16
_BY_SUFFIX: dict[str, Format] = {".txt": "text", ".csv": "csv", ".tsv": "tsv"}
_PACKED_SUFFIX = re.compile(r"\.(?:gz|zst|bz2|xz)$")
_KNOWN_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow", *_BY_SUFFIX)
# How files begin that are no corpus yet: what they are, and what to do.
_NOT_TEXT = {
    rb"%PDF-": ("a PDF", "convert it to text first, as with pdftotext"),
    rb"PK\x03\x04": ("a zip archive or an office document (docx, xlsx, epub)", "unpack or save it as text first"),
    rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1|\{\\rtf": ("an office document (doc, xls, rtf)", "save it as text first"),
    rb".{257}ustar": ("a tar archive", "unpack it first"),
    rb"Rar!\x1a\x07|7z\xbc\xaf\x27\x1c": ("an archive (rar, 7z)", "unpack it first"),
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8": ("a picture", "recognize its text first, or leave it out"),
    rb"(?:\xef\xbb\xbf)?\s*<mediawiki\b": (
        "a MediaWiki XML dump",
        "take the articles out with WikiExtractor first: wikiextractor --json --output DIR FILE",
    ),
    rb"(?:\xef\xbb\xbf)?\s*<doc id=": ("output of WikiExtractor with tags", "run WikiExtractor again with --json"),
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?i:<!doctype\s+html|<html\b)": (
        "an HTML page",
        "take the text out first, as with trafilatura; where a corpus should be, it may be an error page of the server",
    ),
    rb"(?:\xef\xbb\xbf)?\s*<\?xml\b": ("an XML document", "take the texts out first, as JSON Lines"),
}
_ANY_NOT_TEXT = b"|".join(_NOT_TEXT)
_FORMATS: dict[bytes, Format] = {
    rb"PAR1": "parquet",
    rb"ARROW1": "arrow",
    rb"\xff{4}": "arrow-stream",
    rb"(?:\xef\xbb\xbf)?\s*\[\s*\"": "json-strings",
    rb"(?:\xef\xbb\xbf)?\s*\[": "json-array",
    rb"(?:\xef\xbb\xbf)?\s*[{\"]": "json-lines",
}
# Of those, what a file without a suffix for it has to begin with in a directory: notes may begin with a bracket, too.
_SURELY_RECORDS = rb"PAR1|ARROW1|\xff{4}...\x00|(?:\xef\xbb\xbf)?\s*(?:\{\s*[\"'}]|\[\s*[\"'{\]])"
_SHARD_SET = rb'\{\s*"format_version":\s*\d+,\s*"generator":\s*"tokenize-once'


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
    encoding: str = ""  # of a stream that isn't UTF-8

    @property
    def is_stream(self) -> bool:
        """Whether it is read as bytes, whose places are offsets and lines; other sources have rows."""
        return self.format not in ("csv", "tsv", *_TABLES)

    @property
    def is_splittable(self) -> bool:
        """Whether reading can begin at any byte."""
        return self.format in ("json-lines", "json-array") and not self.compression and not self.encoding


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ByteRange:
    """A part of a source: `[start, stop)` in bytes, in row groups, or all of it (0, 1)."""

    source: Source
    start: int
    stop: int
    num_bytes: int  # for the progress


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """The sources, and what lies among them that isn't read."""

    sources: list[Source]
    unread: list[UnreadEntry]


class NotCorpus(InputError):
    """A file that is no corpus. `kind` says what it is, in a word or two, where that is known."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


def find_corpus(names: Sequence[str], encoding: str = "") -> Corpus:
    """All files meant by `names` (files, directories, patterns, URLs, `hf:NAME`), in a fixed order, each looked at.

    Text is in `encoding`, or in UTF-8. Raises `InputError` for the first that is missing, empty, of an unknown kind, or
    visibly incomplete; in a directory, what is empty or of an unknown kind isn't read.
    """
    sources: list[Source] = []
    unread: list[UnreadEntry] = []
    for name in names:
        files, is_directory = _find(name.removeprefix("file://"))
        if is_directory:
            corpus = _look_into(name, files, encoding)
            sources += corpus.sources
            unread += corpus.unread
        else:
            sources += _for_each(lambda pair: look_at(*pair, encoding), files)
    for path, number in Counter(source.path for source in sources).items():
        if number > 1:
            raise InputError(f"{path}: given twice; its documents would be in the set twice")
    return Corpus(sources=sources, unread=add_up(unread))


def check_unchanged(sources: Iterable[Source]) -> None:
    """Raise `InputError` if a file is gone, or another one than when it was found."""
    changeable = [source for source in sources if not _PINNED.match(source.path)]
    for source in changeable:
        if not is_url(source.path):
            _check_unchanged(source)
    in_parallel(_check_unchanged, [source for source in changeable if is_url(source.path)])


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


def _find(name: str) -> tuple[list[tuple[str, str]], bool]:
    """The files that `name` means, each with its name in the manifest; and whether it means a directory's."""
    if not name:
        raise InputError("expected a source's name, found an empty string")
    if name.startswith(_HUB_URL):
        from shards.share.hub import pin_url

        name = pin_url(name)
    elif name.startswith(HUB_PREFIX):
        from pipeline.fetch import data_files

        return [(url, url.split("/", 3)[3]) for url in data_files(name)], False
    if is_url(name):
        found = find_urls(name)
        return found, not glob.has_magic(name) and [path for path, _own in found] != [name]
    path = Path(name)
    if path.is_dir():
        saved = _files_of_datasets(path)
        return ([(str(file), file.name) for file in saved], False) if saved else (find_files(path), True)
    if path.exists() or not glob.has_magic(name):
        return [(name, path.name)], False
    matches = sorted(filter(os.path.isfile, glob.glob(name, recursive=True)))
    if not matches:
        raise InputError(f"{name}: no file matches this pattern")
    base = os.path.commonpath([os.path.dirname(match) for match in matches])
    return [(match, os.path.relpath(match, base or ".")) for match in matches], False


def _files_of_datasets(directory: Path) -> list[Path]:
    """The files of a data set that `datasets` saved; none in any other directory."""
    if (directory / "dataset_dict.json").is_file():
        splits = sorted(path.name for path in directory.iterdir() if path.is_dir())
        if not splits:
            raise InputError(f"{directory}: a data set of which no split is there; save or fetch it again")
        names = ", ".join(splits)
        raise InputError(f"{directory}: a data set with the splits {names}; name one: {directory}/{splits[0]}")
    is_saved = (directory / "state.json").is_file() and (directory / "dataset_info.json").is_file()
    return sorted(directory.glob("*.arrow")) if is_saved else []


def _look_into(directory: str, files: list[tuple[str, str]], encoding: str) -> Corpus:
    """The files of a directory: what is no corpus isn't read, but named."""

    def look(pair: tuple[str, str]) -> tuple[str, Source | NotCorpus]:
        try:
            return pair[1], look_at(*pair, encoding, is_named=False)
        except NotCorpus as error:
            return pair[1], error

    manifests = [pair for pair in files if pair[1].rpartition("/")[2] == MANIFEST_NAME]
    sets = [own.removesuffix(MANIFEST_NAME) for own in _for_each(_set_manifest, manifests) if own]
    if "" in sets:
        raise InputError(f"{directory}: is a shard set, not a corpus; name the files that it was built from")
    found = _for_each(look, [pair for pair in files if not pair[1].startswith(tuple(sets))])
    sources = [what for _own, what in found if isinstance(what, Source)]
    errors = [(own, what) for own, what in found if isinstance(what, NotCorpus)]
    kinds = [("shard set", own) for own in sets] + [(error.kind, own) for own, error in errors]
    unread = add_up(UnreadEntry(kind=kind, num_files=1, names=[printable(own)]) for kind, own in kinds)
    if not sources:
        found_text = unread_text(unread) if unread else "no file in this directory"
        explained = max((error for _own, error in errors), key=lambda error: error.kind != "", default="")
        raise InputError(f"{directory}: {found_text}{explained and f'; {explained}'}")
    return Corpus(sources=sources, unread=unread)


def _for_each(look: Callable[[tuple[str, str]], Result], files: Sequence[tuple[str, str]]) -> list[Result]:
    """What is seen of each file; servers are asked for many at once."""
    is_remote = any(is_url(path) for path, _own in files[:1])
    return in_parallel(look, files) if is_remote else [look(pair) for pair in files]


def _set_manifest(pair: tuple[str, str]) -> str:
    """Its name if it is a shard set's manifest."""
    try:
        with SourceFile(pair[0], reads_ahead=False) as file:
            return pair[1] if re.match(_SHARD_SET, file.read(200)) else ""
    except OSError:
        return ""


def look_at(path_name: str, name: str, encoding: str = "", *, is_named: bool = True) -> Source:
    """The file `path_name` as a source called `name`; one that nobody named has to look more like a corpus. Raises
    `InputError`; `NotCorpus` for what is no corpus."""
    try:
        status = file_status(path_name)
        with SourceFile(path_name, reads_ahead=False) as file:
            head = foot = file.read(_HEAD_BYTES)
            if compression := compression_of(head):
                file.seek(0)
                head = unpack(file, compression, path_name).read(_HEAD_BYTES) or b""
            file_format = _detect_format(path_name, head, encoding, is_named=is_named)
            text_encoding = "" if file_format in _TABLES else check_encoding(path_name, head, encoding)
            ends_in_sight = file_format == "json-array" and not compression and not text_encoding
            if ends_in_sight and status.num_bytes > len(foot):
                file.seek(max(0, status.num_bytes - _HEAD_BYTES))
                foot = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        raise _missing(path_name) from None
    except IsADirectoryError:
        raise NotCorpus(f"{path_name}: is a link to a directory; name that itself", "link to a directory") from None
    except OSError as error:
        raise InputError(f"{path_name}: {error.strerror or error}") from None
    try:
        path_name.encode()
    except UnicodeEncodeError:  # bytes of the name that weren't decoded
        raise InputError(f"{path_name}: the name isn't UTF-8; rename it, or set LC_ALL=C.UTF-8 if it is") from None
    if ends_in_sight and not foot.rstrip().endswith(b"]"):
        raise InputError(
            f"{path_name}: truncated: the array that begins the file is not closed by ']' at its end (byte "
            f"{status.num_bytes:,}); the download is incomplete, fetch the file again"
        )
    return Source(
        path=path_name if is_url(path_name) else os.path.abspath(path_name),
        name=name,
        format=file_format,
        compression=compression,
        encoding=text_encoding,
        **status._asdict(),
    )


def _missing(path_name: str) -> InputError:
    from pipeline.fetch import CORPORA  # needed for a hint alone

    path = Path(path_name)
    if path.name in {corpus.file for corpus in CORPORA.values()}:
        return InputError(f"{path_name}: no such file; fetch it with `make data`")
    return InputError(f"{path_name}: no such file{'' if is_url(path_name) else nearest_path(path)}")


def _detect_format(name: str, head: bytes, encoding: str, *, is_named: bool) -> Format:
    """The format of a file that begins with `head`. Raises `NotCorpus`."""
    decoded = to_utf8(head, encoding_of(head, encoding))
    contents = (head,) if decoded is head else (head, decoded)

    def begins(pattern: bytes) -> bool:
        return any(re.match(pattern, content, re.DOTALL) for content in contents)

    if begins(_ANY_NOT_TEXT):  # one look for the many files that aren't
        what, cure = next(own for beginning, own in _NOT_TEXT.items() if begins(beginning))
        raise NotCorpus(f"{name}: is {what}, not text; {cure}", re.sub("^an? ", "", what))
    plain_name = _PACKED_SUFFIX.sub("", name)
    for suffix, by_name in _BY_SUFFIX.items():
        if plain_name.endswith(suffix) and (head or by_name == "text"):
            return by_name
    if not head:
        raise NotCorpus(f"{name}: the file is empty; expected records", "empty")
    if is_named or plain_name.endswith(_KNOWN_SUFFIXES) or begins(_SURELY_RECORDS):
        for beginning, file_format in _FORMATS.items():
            if begins(beginning):
                content = decoded.removeprefix(BYTE_ORDER_MARK).lstrip()
                return file_format if file_format != "json-lines" or is_in_lines(content) else "json-texts"
    first = decoded.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "replace").lstrip()[:1]
    if not first:
        raise NotCorpus(f"{name}: expected records, found only white space", "empty")
    raise NotCorpus(
        f"{name}: expected JSON Lines (first character '{{'), a JSON array ('['), Parquet, Arrow or a .txt, .csv or .tsv "
        f"file, found {printable(first)!r}; rename it if it is one of the last three, else convert it"
    )
