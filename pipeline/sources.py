"""The corpus: which files, in what format.

Files are looked at, not their names: a JSON array, JSON Lines, Parquet and Arrow are told apart by their content, as
is compression. Only plain text (`.txt`) goes by its name, since any content is plain text.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pipeline.not_text import check_text
from pipeline.storage import file_status, find_urls, in_parallel, open_binary
from pipeline.streams import COMPRESSIONS, STREAM_ERRORS, compression_of, open_stream
from shards.common.errors import InputError
from shards.common.text import nearest, printable
from shards.common.urls import is_url

Format = Literal["json-lines", "json-array", "text", "parquet", "arrow", "arrow-stream", "hub"]
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
HUB_PREFIX = "hf:"
_HEAD_BYTES = 1 << 16
_KNOWN_SUFFIXES = (".json", ".jsonl", ".ndjson", ".txt", ".parquet", ".arrow")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One file of the corpus, or a data set on the hub (then `path` is its `hf:NAME[:SPLIT]`)."""

    path: str  # absolute, or a URL
    name: str  # as recorded in the manifest: relative to the directory or pattern that was given
    format: Format
    compression: str = ""  # gzip, zstd, bzip2 or xz
    num_bytes: int
    modified_ns: int  # of a file at a URL: a digest of the store's word for its version

    @property
    def is_stream(self) -> bool:
        """Whether it is read as bytes, whose places are offsets and lines; other sources have rows."""
        return self.format in ("json-lines", "json-array", "text")

    @property
    def is_splittable(self) -> bool:
        """Whether reading can begin in the middle."""
        return self.format in ("json-lines", "json-array") and not self.compression


def find_sources(names: Sequence[str]) -> list[Source]:
    """All files meant by `names` (files, directories, patterns, `hf:NAME`), in a fixed order, each looked at.

    Raises `InputError` for the first that is missing, empty, of an unknown kind, or visibly incomplete.
    """
    sources = [source for name in names for source in _find(name)]
    seen: set[str] = set()
    for source in sources:
        if source.path in seen:
            raise InputError(f"{source.path}: given twice; its documents would be in the set twice")
        seen.add(source.path)
    return sources


def _find(name: str) -> list[Source]:
    if name.startswith("file://"):
        name = name.removeprefix("file://")
    if is_url(name):
        return _find_at_url(name)
    if name.startswith(HUB_PREFIX):
        return [Source(path=name, name=name, format="hub", num_bytes=0, modified_ns=0)]
    path = Path(name)
    if path.is_dir():
        return _find_in_directory(path)
    if not path.exists() and glob.has_magic(name):
        matches = sorted(match for match in glob.glob(name, recursive=True) if Path(match).is_file())
        if not matches:
            raise InputError(f"{name}: no file matches this pattern")
        base = os.path.commonpath([os.path.dirname(match) for match in matches])
        return [look_at(match, os.path.relpath(match, base or ".")) for match in matches]
    return [look_at(name, path.name)]


def _find_at_url(url: str) -> list[Source]:
    packed = tuple(known + packing for known in _KNOWN_SUFFIXES for packing in ("", *COMPRESSIONS.values()))
    found = find_urls(url, packed)
    sources: list[Source] = in_parallel(lambda file: look_at(*file), found)
    return sources


def _find_in_directory(directory: Path) -> list[Source]:
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
            and _without_compression(path.name).endswith(_KNOWN_SUFFIXES)
        )
    if not paths:
        raise InputError(
            f"{directory}: no file in this directory is called {', '.join('*' + s for s in _KNOWN_SUFFIXES)}"
        )
    return [look_at(str(path), path.relative_to(directory).as_posix()) for path in paths]


def _without_compression(name: str) -> str:
    for suffix in COMPRESSIONS.values():
        name = name.removesuffix(suffix)
    return name


def removed(sources: Iterable[Source]) -> str | None:
    """What to say of the first source that isn't there any more; None if all are."""
    for source in sources:
        try:
            if source.format != "hub":
                file_status(source.path)
        except FileNotFoundError:
            return f"{source.path}: was removed while it was read; put it back, then the same command goes on"
    return None


def look_at(path_name: str, name: str) -> Source:
    """The file `path_name` as a source called `name`."""
    path = Path(path_name)
    if any("\ud800" <= character <= "\udfff" for character in path_name):  # bytes of the name that weren't decoded
        raise InputError(f"{path_name}: the name isn't UTF-8; rename it, or set LC_ALL=C.UTF-8 if it is")
    compression = ""
    try:
        status = file_status(path_name)
        with open_binary(path_name) as file:
            magic = file.read(8)
            file.seek(max(0, status.num_bytes - _HEAD_BYTES))
            foot = file.read()
        compression = compression_of(magic)
        with open_stream(path_name, compression) as stream:
            head = stream.read(_HEAD_BYTES)
    except FileNotFoundError:
        is_local = not is_url(path_name) and path.parent.is_dir()
        siblings = os.listdir(path.parent) if is_local else []
        how = "; fetch it with `make data`" if path.name in _published_files() else nearest(path.name, siblings)
        raise InputError(f"{path_name}: no such file{how}") from None
    except STREAM_ERRORS as error:
        if compression and not getattr(error, "errno", None):
            raise InputError(f"{path_name}: {compression}: {error}; the download is incomplete or damaged") from None
        raise InputError(f"{path_name}: {getattr(error, 'strerror', None) or error}") from None
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
        num_bytes=status.num_bytes,
        modified_ns=status.modified_ns,
    )


def _published_files() -> set[str]:
    from pipeline.fetch import CORPORA  # needed for a hint alone

    return {corpus.file for corpus in CORPORA.values()}


def _detect_format(name: str, head: bytes) -> Format:
    check_text(name, head)
    if _without_compression(name).endswith(".txt"):
        return "text"
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1"):
        return "arrow"
    if head.startswith(b"\xff\xff\xff\xff"):
        return "arrow-stream"
    first = head.removeprefix(BYTE_ORDER_MARK).lstrip()[:1]
    if first == b"[":
        return "json-array"
    if first == b"{":
        return "json-lines"
    if not first:
        raise InputError(f"{name}: expected records, found only white space")
    raise InputError(
        f"{name}: expected JSON Lines (first character '{{'), a JSON array ('['), Parquet, Arrow or a .txt file, "
        f"found {printable(first.decode('latin-1'))!r}"
    )
