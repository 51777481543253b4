"""A file on a hub as both hubs' clients show it, and the ways in which fetching it fails.

What another attempt may mend is a `ConnectionFailed`; what it won't is an `InputError`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, Literal, TypeVar

from shards.common.errors import InputError
from shards.common.text import printable

# How long a hub may take to answer a question about a file. Without a network the clients themselves try for a minute.
ANSWER_SECONDS = 8.0

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_READ_BYTES = 1 << 20
_TRIED_AGAIN = (408, 425, 429)  # and all from 500 on

RepositoryType = Literal["model", "dataset"]
T = TypeVar("T")


class ConnectionFailed(Exception):
    """The hub doesn't answer, or the connection broke. The message is the reason in words, with the proxy if one is set."""

    def __str__(self) -> str:
        return super().__str__() + _proxy_note()


def _proxy_note() -> str:
    """`; HTTPS_PROXY is set to http://…` if the clients go by a proxy, without a password in it."""
    endpoints = [os.environ.get(name, "") for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT")]
    schemes = ["https", "all", *(["http"] if any(url.startswith("http://") for url in endpoints) else [])]
    for name in [cased for scheme in schemes for cased in (f"{scheme}_proxy", f"{scheme}_proxy".upper())]:
        if proxy := os.environ.get(name):
            return f"; {name} is set to {printable(re.sub('//[^/@]*@', '//', proxy))}: does that proxy work?"
    return ""


class NoSuchFile(InputError):
    """The repository is there, and has no such file."""


class CannotResume(Exception):
    """The hub doesn't continue in the middle of the file: begin at its beginning."""


@dataclasses.dataclass(frozen=True)
class Digest:
    """What a hub says of a file's content: its SHA-256 (large files), or git's SHA-1 of it as a blob."""

    kind: Literal["sha256", "git-sha1"]
    value: str  # hexadecimal

    def matches(self, content: bytes) -> bool:
        return self.matches_file(io.BytesIO(content))

    def matches_file(self, file: BinaryIO) -> bool:
        """Whether it is that of the whole file."""
        hasher = hashlib.sha256()
        if self.kind == "git-sha1":
            hasher = hashlib.sha1(b"blob %d\0" % file.seek(0, os.SEEK_END), usedforsecurity=False)
        file.seek(0)
        while block := file.read(_READ_BYTES):
            hasher.update(block)
        return bool(hasher.hexdigest() == self.value)


def parse_digest(text: object) -> Digest | None:
    """The digest that an ETag is, or None if it is something else."""
    if isinstance(text, str) and re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return Digest("sha256", text.lower())
    if isinstance(text, str) and re.fullmatch(r"[0-9a-fA-F]{40}", text):
        return Digest("git-sha1", text.lower())
    return None


@dataclasses.dataclass(frozen=True)
class Stream:
    """The content of a file from byte `offset` on."""

    offset: int
    chunks: Iterator[bytes]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file on a hub."""

    address: str  # for people
    num_bytes: int | None  # None: the hub doesn't say
    digest: Digest | None  # None: the hub doesn't say
    version: str  # another one where the content is another
    open: Callable[[int], contextlib.AbstractContextManager[Stream]]
    """Open the content at a byte. Raises `InputError`, `ConnectionFailed`, `CannotResume`, also while it is read."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of `call`, in a thread that is left behind if it takes longer: then raises `ConnectionFailed`.

    A name that isn't resolved, or a client that tries again and again, can't be stopped otherwise.
    """
    results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put((call(), None))
        except BaseException as error:
            results.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = results.get(timeout=seconds)
    except queue.Empty:
        raise ConnectionFailed(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    result: T = value
    return result


def reason(error: BaseException) -> str:
    """An exception of a client in a few words: those of what is at its root, such as `Name or service not known`."""
    root = error
    for _ in range(10):
        root = root.__cause__ or root.__context__ or root
    text = (root.strerror if isinstance(root, OSError) else None) or str(root) or type(root).__name__
    return printable(" ".join(text.split()))[:200]


def check_status(status: int, address: str) -> None:
    """Raise what an HTTP status of failure means."""
    if status < 400:
        return
    if status == 416:
        raise CannotResume
    if status >= 500 or status in _TRIED_AGAIN:
        raise ConnectionFailed(f"HTTP {status}")
    if status == 404:
        raise InputError(f"{address}: no such file there (HTTP 404)")
    if status in (401, 403):
        raise InputError(f"{address}: access is refused (HTTP {status}); it may need a login, or be blocked on the way")
    raise InputError(f"{address}: refused (HTTP {status})")


def range_headers(offset: int) -> dict[str, str]:
    """Of a request for all bytes of a file from `offset` on, as they are."""
    return {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})


def stream_of(
    status: int,
    headers: Mapping[str, str],
    chunks: Iterator[bytes],
    *,
    offset: int,
    num_bytes: int | None,
    address: str,
) -> Stream:
    """The answer to a request for all bytes from `offset` on, of a file of `num_bytes`.

    Raises `InputError` if it is visibly the answer to another question, `CannotResume` if it begins elsewhere.
    """
    check_status(status, address)
    found: int | None = None
    begin = 0
    if status == 206:
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        if match is None or int(match[1]) != offset:
            raise CannotResume
        begin = offset
        found = None if match[3] == "*" else int(match[3])
    elif not headers.get("Content-Encoding") and headers.get("Content-Length", "").isdigit():
        found = int(headers["Content-Length"])
    if num_bytes is not None and found is not None and found != num_bytes:
        raise InputError(
            f"{address}: the hub lists {num_bytes:,} bytes, its server sends {found:,}: another file, or a page of a "
            "proxy in between; try again later, or another mirror"
        )
    return Stream(begin, chunks)
