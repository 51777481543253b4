"""Files that are either whole or absent, also after a power failure.

A file is written under a temporary name in its own directory, flushed to the disk, renamed, and then the
directory is flushed. Whoever sees the final name sees the whole content.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from shards.common.errors import InputError, is_full
from shards.common.text import printable, size_text

TEMPORARY_SUFFIX = ".tmp"
_READ_BYTES = 1 << 22
_LOCK_TRIES, _SECONDS_BETWEEN_TRIES = 20, 0.05
_SHARED_BYTES = 1 << 25  # read at a time where all cores share the work


def user_cache() -> Path:
    """Where is kept what can be made or fetched again: `tokenize-once` in `$XDG_CACHE_HOME`, by default in `~/.cache`.

    Raises `InputError` for a user without a home directory.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tokenize-once"
    except RuntimeError:
        raise InputError("no home directory is known; set XDG_CACHE_HOME to a directory for what is kept") from None


def partial_of(out: Path) -> Path:
    """`NAME.partial`, where `out` grows until it is whole. Raises `InputError` if a file or a link is there."""
    partial = out.with_name(f"{out.name}.partial")
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise InputError(f"{partial}: expected a directory, or nothing there; move it elsewhere")
    return partial


def flush_directory(directory: Path) -> None:
    """Make renames and new names in `directory` survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_file(path: Path) -> None:
    """As `flush_directory`, for the content of a file that another program wrote."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def named_when_full(path: Path) -> Iterator[None]:
    """A full disk is reported with the name of `path`, which is written: the system's error often has none."""
    try:
        yield
    except OSError as error:
        if is_full(error) and not error.filename:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_writer(path: Path, *, flush_parent: bool = True) -> Iterator[BinaryIO]:
    """Open `path` for writing; it appears under its name only if the block ends without an exception.

    `flush_parent=False` leaves the directory's flush to the caller, who has several files to rename.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        with named_when_full(path), open(temporary, "wb") as file:
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
    """BLAKE3 of the content of `path`, which is also handed to `write`; `progress` is called with the bytes just read.

    By one core, or by all of them, which pays for gigabytes. Not by `update_mmap`, whose errors don't tell what they are.
    """
    digest = blake3(max_threads=blake3.AUTO if all_cores else 1)
    with open(path, "rb", buffering=0) as file:
        most = _SHARED_BYTES if all_cores else _READ_BYTES
        buffer = memoryview(bytearray(min(most, max(os.fstat(file.fileno()).st_size, 1 << 12))))
        while num_bytes := file.readinto(buffer):
            digest.update(buffer[:num_bytes])
            write(buffer[:num_bytes])
            progress(num_bytes)
    return digest.hexdigest()


def check_digest(
    path: Path,
    digest: str | None,
    *,
    write: Callable[[memoryview], object] = lambda _content: None,
    progress: Callable[[int], None] = lambda _num_bytes: None,
) -> str:
    """As `file_digest`. Raises `InputError` unless the BLAKE3 is `digest`, where one is known."""
    try:
        found = file_digest(path, write=write, progress=progress)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; build the set again") from None
    if digest not in (None, found):
        raise InputError(f"{path}: expected digest {digest}, found {found}; the file was changed, build the set again")
    return found


def regular_file_bytes(path: Path | str) -> int:
    """Size of `path` in bytes. Raises `InputError` if it is missing or no regular file, `OSError` if it can't be seen."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file; the set is incomplete, build it again") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "something else"
        raise InputError(f"{path}: expected a regular file, found {kind}")
    return status.st_size


def check_room(directory: Path, num_bytes: int, instead: str) -> None:
    """Raise `InputError` if `num_bytes` more can't fit on the disk of `directory`; `instead` is what else can be done."""
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise InputError(
            f"{directory}: {size_text(num_bytes)} more are needed, {size_text(free)} are free; make room, or {instead}"
        )


class FileLock:
    """The one process that works on `path`: a context manager around a lock on `.NAME.lock` beside it.

    The lock file goes at the end; a process that died holds nothing. With `wait` set, that is called when another process
    holds the lock, and the lock is waited for; else `InputError` names the other process.
    """

    def __init__(self, path: Path, busy: str, *, wait: Callable[[], None] | None = None) -> None:
        if path.name in ("", ".."):  # `.`, `/`, `..`
            raise InputError(f"{path}: expected the name of a directory to make")
        self._path, self._busy, self._wait = path, busy, wait
        self._lock_path = path.with_name(f".{path.name}.lock")
        self._descriptor = -1

    def __enter__(self) -> FileLock:
        while self._descriptor < 0:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                is_free = self._try(descriptor)
            except OSError as error:  # also of a file system without locks
                raise InputError(f"{self._path.parent}: can't write here: {error.strerror}; choose another") from None
            if not is_free:
                if self._wait is None:
                    holder = os.read(descriptor, 100).decode("utf-8", "replace").strip() or "unknown"
                    os.close(descriptor)
                    raise InputError(f"{self._path}: {self._busy} (process {printable(holder)})") from None
                self._wait()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if self._is_current(descriptor):
                self._descriptor = descriptor
            else:
                os.close(descriptor)  # its holder has just removed it: take the new one
        os.truncate(self._descriptor, 0)
        with named_when_full(self._lock_path):
            os.write(self._descriptor, f"{os.getpid()}\n".encode())
        return self

    def _try(self, descriptor: int) -> bool:
        """Take the lock if no process holds it for longer than `is_held` does; who waits anyway tries once."""
        for _ in range(1 if self._wait else _LOCK_TRIES):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            time.sleep(_SECONDS_BETWEEN_TRIES)
        return False

    def is_held(self) -> bool:
        """Whether a process holds it. To find out, this holds it for an instant."""
        try:
            with open(self._lock_path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._lock_path))
        except FileNotFoundError:
            return False

    def __exit__(self, *_error: object) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._lock_path)
        os.close(self._descriptor)
        self._descriptor = -1
