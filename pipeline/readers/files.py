"""The files that a corpus is read from: on a disk, or at URLs by fsspec in ranges of bytes.

A connection that breaks while a file is read, also one of a network file system, is a `TransientError`.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from blake3 import blake3

from shards.common.errors import InputError, TransientError
from shards.common.server_errors import server_errors
from shards.common.urls import file_system, is_url, version

# A reader asks for 2 MiB at a time. What an object store is asked for at once is more: a request takes as long as a few
# MiB do.
_BLOCK_BYTES = 8 << 20
_NETWORK_ERRNOS = {errno.ENOTCONN, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}


class FileStatus(NamedTuple):
    """What changes when a file does: its size, and its time or, at a URL, what the server calls its version."""

    num_bytes: int
    modified_ns: int = 0
    version: str = ""


def file_status(path: str) -> FileStatus:
    """Raises `FileNotFoundError`, other `OSError`s, `InputError` or `TransientError`."""
    if not is_url(path):
        status = os.stat(path)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # one that can be read only once
            raise InputError(f"{path}: expected a file, found a pipe or a device; write its content to a file first")
        return FileStatus(status.st_size, modified_ns=status.st_mtime_ns)
    system, name = file_system(path)
    with server_errors(path):
        system.invalidate_cache(name)
        entry = system.info(name)
    if entry.get("size") is None:
        raise InputError(f"{path}: the server doesn't say how large this file is; fetch it and build from the copy")
    return FileStatus(int(entry["size"]), version=version(entry))


class SourceFile(io.RawIOBase):
    """A file on a disk or at a URL, for reading, unbuffered. Raises `OSError` or `InputError`.

    With `reads_ahead=False` a server is asked for exactly what is read: for a look, or reads of many MiB.
    """

    _file: Any = None

    def __init__(self, path: str, *, reads_ahead: bool = True) -> None:
        self.path = path
        with _read_errors(path):
            if is_url(path):
                system, name = file_system(path)
                cache = "readahead" if reads_ahead else "none"
                self._file = system.open(name, "rb", block_size=_BLOCK_BYTES, cache_type=cache)
            else:
                self._file = io.FileIO(path)

    def read(self, num_bytes: int = -1) -> bytes:
        with _read_errors(self.path):
            content: bytes = self._file.read(num_bytes)
        return content

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def removed(path: str) -> InputError:
    """For a file that was there."""
    return InputError(f"{path}: was removed while it was read; put it back, then the same command goes on")


@contextlib.contextmanager
def _read_errors(path: str) -> Iterator[None]:
    try:
        with server_errors(path) if is_url(path) else contextlib.nullcontext():
            yield
    except FileNotFoundError:
        raise removed(path) from None
    except OSError as error:
        if not isinstance(error, ConnectionError | TimeoutError) and error.errno not in _NETWORK_ERRNOS:
            raise
        reason = error.strerror or type(error).__name__
        raise TransientError(f"{path}: {reason}; the same command goes on when the file can be read") from None


class HashedFile(SourceFile):
    """A file whose bytes `[start, stop)` go into a digest, and with `counts_lines` into `num_newlines`, as they are read.

    It is read from front to back. It ends at `max_bytes`: one that somebody appends to might never end otherwise.
    """

    def __init__(self, path: str, start: int, stop: int, max_bytes: int, *, counts_lines: bool = False) -> None:
        super().__init__(path)
        self._hash = blake3()
        self._start, self._stop, self._max_bytes, self._counts_lines = start, stop, max_bytes, counts_lines
        self.num_newlines = 0
        self.seek(start)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = super().seek(offset, whence)
        return self._position

    def read(self, num_bytes: int = -1) -> bytes:
        begin = self._position
        room = max(0, self._max_bytes - begin)
        content = super().read(min(num_bytes, room) if num_bytes >= 0 else room)
        self._position += len(content)
        is_inside = self._start <= begin and self._position <= self._stop
        own = content if is_inside else content[max(0, self._start - begin) : max(0, self._stop - begin)]
        self._hash.update(own)
        if self._counts_lines:
            self.num_newlines += own.count(b"\n")
        return content

    def hexdigest(self) -> str:
        """The digest of all the bytes `[start, stop)`: those that haven't been read yet are read."""
        while self._position < self._stop and self.read(min(1 << 20, self._stop - self._position)):
            pass
        return self._hash.hexdigest()


def find_files(directory: Path) -> list[tuple[str, str]]:
    """The files below a local directory as `find_urls` gives them, directory by directory; of links to directories the
    links. Raises `InputError` for a directory that can't be read."""

    def fail(error: OSError) -> NoReturn:
        raise InputError(f"{error.filename}: {error.strerror}")

    paths: list[str] = []
    for base, directories, names in os.walk(directory, onerror=fail):
        directories[:] = [name for name in directories if not _is_skipped(name)]
        found = [os.path.join(base, name) for name in names if not _is_skipped(name)]
        paths += filter(os.path.isfile, found)
        paths += filter(os.path.islink, [os.path.join(base, name) for name in directories])
    prefix = os.path.join(directory, "")
    return sorted(((path, path.removeprefix(prefix)) for path in paths), key=lambda pair: pair[1].split("/"))


def _is_skipped(name: str) -> bool:
    """Whether it is hidden, or what a command of ours hasn't finished."""
    return any(part.startswith(".") or part.endswith(".partial") for part in name.split("/"))


def _check_answers(system: Any, url: str) -> None:
    """Raise `InputError` if the web server answers otherwise than that there is no such file, which a listing hides."""
    with server_errors(url):
        try:
            system.info(url)
        except FileNotFoundError as error:
            if error.__cause__ is not None and getattr(error.__cause__, "status", 0) not in (404, 410):
                raise error.__cause__ from None


def find_urls(url: str) -> list[tuple[str, str]]:
    """The files that `url` means (a file, a directory, a pattern): the URL of each, and its name relative to `url`."""
    system, path = file_system(url)
    system.invalidate_cache()
    path, is_pattern = path.rstrip("/"), glob.has_magic(path)
    found: list[str] = []
    with server_errors(url), contextlib.suppress(FileNotFoundError):  # no such bucket, or repository
        found = sorted(filter(system.isfile, system.glob(path)) if is_pattern else system.find(path))
    if not found:
        if url.startswith("http"):
            _check_answers(system, url)
        raise InputError(f"{url}: no such file, and no file below it")
    if found == [path]:
        return [(url, path.rpartition("/")[2])]
    base = os.path.commonprefix(found).rpartition("/")[0] if is_pattern else path  # noqa: RUF071 (cut at a slash)
    pairs = [(name, name.removeprefix(base).lstrip("/")) for name in found]
    protocol = url.partition("://")[0]  # the user's: `oss` and others are spellings of `s3`
    return [
        (name if "://" in name else f"{protocol}://{name}", own)
        for name, own in pairs
        if is_pattern or not _is_skipped(own)
    ]
