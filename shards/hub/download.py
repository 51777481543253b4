"""A file of a hub to a file here, which is whole or absent, and goes on where it broke off.

The bytes that have come are in `NAME.VERSION.part` beside it, also after a crash; they get their name when their number
and their digest are those that the hub lists. A connection that breaks is tried again as long as bytes come.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from shards.common.errors import InputError
from shards.common.files import flush_directory
from shards.common.text import size_text
from shards.hub.remote import CannotResume, ConnectionFailed, RemoteFile

_PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)  # before the attempts that follow one which brought no byte
_LONG_CHECK_BYTES = 500_000_000


class Progress:
    """Hears how a download goes on. This one says nothing."""

    def started(self, num_bytes: int | None, num_bytes_done: int) -> None: ...

    def advanced(self, num_bytes_done: int) -> None: ...

    def notice(self, line: str) -> None: ...

    def finished(self) -> None: ...


def download(
    remote: RemoteFile,
    path: Path,
    *,
    progress: Progress | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Fetch `remote` to `path`, replacing what is there. What an earlier attempt left is continued.

    Raises `InputError`: another process is at it, no room, no permission, a connection that stays broken, bytes that
    aren't those that the hub lists. `KeyboardInterrupt` says how much is kept.
    """
    progress = progress or Progress()
    part = part_path(path, remote)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_other_versions(path, part)
        with _locked(part, path) as file:
            try:
                _fill(file, remote, path, progress, pause)
            except KeyboardInterrupt as stop:
                now = kept(file.seek(0, os.SEEK_END), remote)
                raise type(stop)(f"{now}; the same command goes on from there") from None
            finally:
                progress.finished()
            os.fsync(file.fileno())
            os.replace(part, path)
    except OSError as error:
        do = "; make room, then the same command goes on" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise InputError(f"{error.filename or part}: {error.strerror or error}{do}") from None
    flush_directory(path.parent)


def part_path(path: Path, remote: RemoteFile) -> Path:
    """Where the bytes of this version of the file are gathered."""
    version = hashlib.sha256(remote.version.encode()).hexdigest()[:8]
    return path.with_name(f"{path.name}.{version}.part")


def _remove_other_versions(path: Path, part: Path) -> None:
    pattern = re.compile(re.escape(path.name) + r"\.[0-9a-f]{8}\.part")
    for entry in path.parent.iterdir():
        if pattern.fullmatch(entry.name) and entry != part:
            entry.unlink()


@contextlib.contextmanager
def _locked(part: Path, path: Path) -> Iterator[BinaryIO]:
    with open(part, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path}: another process is fetching it; wait for that, or stop it") from None
        yield file


class _WrongBytes(Exception):
    """What has come isn't what the hub lists."""


def _fill(file: BinaryIO, remote: RemoteFile, path: Path, progress: Progress, pause: Callable[[float], None]) -> None:
    """Bring the part to the whole content, checked."""
    num_there = file.seek(0, os.SEEK_END)
    if remote.num_bytes is not None and num_there > remote.num_bytes:
        file.truncate(0)
        num_there = 0
    _check_room(path, remote, num_there)
    progress.started(remote.num_bytes, num_there)
    num_fruitless = 0
    may_begin_again = True
    while True:
        before = file.seek(0, os.SEEK_END)
        try:
            if before != remote.num_bytes:
                _receive(file, remote, before, progress)
            _check_digest(file, remote, progress)
            return
        except ConnectionFailed as error:
            now = file.seek(0, os.SEEK_END)
            num_fruitless = 0 if now > before else num_fruitless + 1
            if num_fruitless > len(_PAUSES_SECONDS):
                raise InputError(
                    f"{remote.address}: the connection broke off ({error}); {kept(now, remote)}; "
                    "the same command goes on from there"
                ) from None
            progress.notice(f"the connection broke off at {size_text(now)} ({error}); trying again")
            pause(_PAUSES_SECONDS[max(0, num_fruitless - 1)])
        except (_WrongBytes, CannotResume) as error:
            # What has come is of no use. Once more from the beginning, unless it was from there already.
            problem = str(error) or "the server doesn't go on in the middle of the file"
            file.truncate(0)
            if before == 0 or not may_begin_again:
                os.unlink(file.name)
                expected = f" ({remote.digest.kind} {remote.digest.value})" if remote.digest else ""
                raise InputError(
                    f"{remote.address}: {problem}{expected}; they were thrown away; try again later, or another mirror"
                ) from None
            may_begin_again = False
            progress.notice(f"{problem}; beginning again")
            progress.advanced(0)


def _receive(file: BinaryIO, remote: RemoteFile, offset: int, progress: Progress) -> None:
    """Append what the hub sends from byte `offset` on."""
    with remote.open(offset) as stream:
        file.truncate(stream.offset)  # 0 where the server doesn't know ranges
        done = stream.offset
        for chunk in stream.chunks:
            done += len(chunk)
            if remote.num_bytes is not None and done > remote.num_bytes:
                raise _WrongBytes(f"more bytes came than the {remote.num_bytes:,} that the hub lists")
            file.write(chunk)
            progress.advanced(done)
        file.flush()
    if remote.num_bytes is not None and done < remote.num_bytes:
        raise ConnectionFailed("it ended too early")


def _check_digest(file: BinaryIO, remote: RemoteFile, progress: Progress) -> None:
    """Raise `_WrongBytes` unless the bytes in the part are those that the hub lists, as far as it does."""
    if remote.digest is None:
        return
    num_bytes = file.seek(0, os.SEEK_END)
    if num_bytes >= _LONG_CHECK_BYTES:
        progress.notice(f"checking the digest of {size_text(num_bytes)}")
    if not remote.digest.matches_file(file):
        raise _WrongBytes("the bytes that came aren't those that the hub lists")


def _check_room(path: Path, remote: RemoteFile, num_bytes_there: int) -> None:
    if remote.num_bytes is None:
        return
    missing, free = remote.num_bytes - num_bytes_there, shutil.disk_usage(path.parent).free
    if free < missing:
        raise InputError(
            f"{path}: {size_text(missing)} are needed, {size_text(free)} are free; make room, or choose another --out"
        )


def kept(num_bytes: int, remote: RemoteFile) -> str:
    """`512.00 MB of 1.99 GB are kept`"""
    whole = f" of {size_text(remote.num_bytes)}" if remote.num_bytes is not None else ""
    return f"{size_text(num_bytes)}{whole} are kept"
