"""The files that a corpus is read from: on a disk as ordinary files, at URLs by fsspec, in ranges of bytes."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from blake3 import blake3

from shards.common.errors import InputError
from shards.common.urls import file_system, is_url, storage_errors, version

# A reader asks for 2 MiB at a time. What a store is asked for at once is more: a request takes as long as a few MiB do.
_BLOCK_BYTES = 8 << 20
_REQUESTS_AT_ONCE = 32


class FileStatus(NamedTuple):
    """The size in bytes, and what changes when the file changes: its time, or a digest of what its store says."""

    num_bytes: int
    modified_ns: int


def open_binary(path: str | Path) -> BinaryIO:
    """`path` for reading, unbuffered where it is a file on a disk. Raises `OSError` or `TransientError`."""
    if is_url(str(path)):
        return cast(BinaryIO, _RemoteFile(str(path)))
    return cast(BinaryIO, Path(path).open("rb", buffering=0))


def file_status(path: str) -> FileStatus:
    """Raises `FileNotFoundError`, other `OSError`s or `TransientError`."""
    if not is_url(path):
        status = Path(path).stat()
        return FileStatus(status.st_size, status.st_mtime_ns)
    system, name = file_system(path)
    with storage_errors(path):
        system.invalidate_cache(name)
        entry = system.info(name)
    if entry.get("size") is None:
        raise InputError(f"{path}: the server doesn't say how large this file is; fetch it and build from the copy")
    number = int.from_bytes(blake3(version(entry).encode()).digest(7), "little")
    return FileStatus(int(entry["size"]), number)


def file_statuses(paths: list[str]) -> list[FileStatus]:
    """The status of each; of many at once where they are at URLs."""
    return in_parallel(file_status, paths) if any(map(is_url, paths)) else list(map(file_status, paths))


def in_parallel(function: Any, items: list[Any]) -> list[Any]:
    """`function` of each item, in their order, several at a time: for questions that a store takes its time to answer."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(_REQUESTS_AT_ONCE, len(items))) as pool:
        return list(pool.map(function, items))


class _RemoteFile:
    """A file at a URL, with the reading that the streams need. Faults of the store are `TransientError`s."""

    def __init__(self, url: str) -> None:
        self._url = url
        system, path = file_system(url)
        with storage_errors(url):
            self._file = system.open(path, "rb", block_size=_BLOCK_BYTES, cache_type="readahead")

    def read(self, num_bytes: int = -1) -> bytes:
        with storage_errors(self._url):
            content: bytes = self._file.read(num_bytes)
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    # pyarrow wants these of a file.
    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return True

    def flush(self) -> None: ...

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    @functools.cached_property
    def size(self) -> int:
        return int(self._file.size)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> _RemoteFile:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def find_urls(url: str, suffixes: tuple[str, ...]) -> list[tuple[str, str]]:
    """The files that `url` means (a file, a directory, a pattern): the URL of each and its name relative to what was given.

    In a directory only files whose names end with one of `suffixes` count. Raises `InputError` if there is none.
    """
    system, path = file_system(url)
    system.invalidate_cache()
    is_pattern = any(character in path for character in "*?[")
    reason = ""
    with storage_errors(url):
        try:
            found = system.glob(path) if is_pattern else system.find(path)
        except FileNotFoundError as error:  # no such bucket, or repository
            found, reason = [], str(error)
    if not found:
        why = f"; {reason}" if "not found" in reason else ""
        raise InputError(f"{url}: no such file, and no file below it{why}")
    path = path.rstrip("/")
    if found == [path]:
        return [(url, path.rpartition("/")[2])]
    if is_pattern:
        base = path[: min(path.find(character) for character in "*?[" if character in path)].rpartition("/")[0]
        names = sorted(found)
        with storage_errors(url):
            names = [name for name in names if system.isfile(name)]
    else:
        base = path
        names = sorted(
            name
            for name in found
            if name.endswith(suffixes)
            and not any(part.startswith(".") for part in name.removeprefix(base + "/").split("/"))
        )
    if not names:
        raise InputError(f"{url}: no file below it is called {', '.join('*' + suffix for suffix in suffixes)}")
    common = _common_directory(names) if is_pattern else base
    return [(system.unstrip_protocol(name), name.removeprefix(common).lstrip("/")) for name in names]


def _common_directory(names: list[str]) -> str:
    first, last = names[0].split("/")[:-1], names[-1].split("/")[:-1]
    length = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    return "/".join(first[: min(len(first), len(last)) if length is None else length])
