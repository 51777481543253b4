"""Files that are either whole or absent, also after a power failure.

A file is written under a temporary name in its own directory, flushed to the disk, renamed, and then the
directory is flushed. Whoever sees the final name sees the whole content.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from shards.common.errors import InputError

TEMPORARY_SUFFIX = ".tmp"
_READ_BYTES = 1 << 22
_SHARED_BYTES = 1 << 25  # read at a time where all cores share the work


def user_cache() -> Path:
    """Where is kept what can be made or fetched again: `tokenize-once` in `$XDG_CACHE_HOME`, by default in `~/.cache`.

    Raises `InputError` for a user without a home directory.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tokenize-once"
    except RuntimeError:
        raise InputError("no home directory is known; set XDG_CACHE_HOME to a directory for what is kept") from None


def flush_directory(directory: Path) -> None:
    """Make renames and new names in `directory` survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_writer(path: Path, *, flush_parent: bool = True) -> Iterator[BinaryIO]:
    """Open `path` for writing; it appears under its name only if the block ends without an exception.

    `flush_parent=False` leaves the directory's flush to the caller, who has several files to rename.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if flush_parent:
        flush_directory(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    with atomic_writer(path) as file:
        file.write(content)


def file_digest(
    path: Path,
    *,
    write: Callable[[memoryview], object] = lambda _content: None,
    progress: Callable[[int], None] = lambda _num_bytes: None,
    all_cores: bool = False,
) -> str:
    """BLAKE3 of the content of `path`, which is also handed to `write`; `progress` is told the bytes just read.

    By one core, or by all of them, which pays for gigabytes. Not by `update_mmap`, whose errors don't tell what they are.
    """
    digest = blake3(max_threads=blake3.AUTO if all_cores else 1)
    with open(path, "rb", buffering=0) as file:
        most = min(os.fstat(file.fileno()).st_size, _SHARED_BYTES) if all_cores else 0
        buffer = memoryview(bytearray(max(most, _READ_BYTES)))
        while num_bytes := file.readinto(buffer):
            digest.update(buffer[:num_bytes])
            write(buffer[:num_bytes])
            progress(num_bytes)
    return digest.hexdigest()


def regular_file_bytes(path: Path | str) -> int:
    """Size of `path` in bytes. Raises `InputError` if it is missing, a link, or no regular file."""
    try:
        status = os.lstat(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; the set is incomplete, build it again") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no regular file"
        raise InputError(f"{path}: expected a regular file, found {kind}")
    return status.st_size
