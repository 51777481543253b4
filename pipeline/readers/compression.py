"""Compressed files, unpacked in constant memory. Damage, or an early end, is an error in every part of a file."""

from __future__ import annotations

import bz2
import io
import lzma
import re
from collections.abc import Callable
from typing import Any, Protocol

import zstandard
from isal import igzip_lib

from shards.common.errors import InputError

# What unpacking may look back on, and so keeps: as much as `zstd --long` makes and twice what `xz -9` does.
MAX_WINDOW_BYTES = 1 << 27
_READ_BYTES = 1 << 18

# The first bytes of a file (a zstd file may begin with a frame to skip, as pzstd's do), and what unpacks one stream of it.
_KINDS: dict[str, tuple[bytes, Callable[[], Any]]] = {
    "gzip": (rb"\x1f\x8b", lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)),
    "zstd": (
        rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
        lambda: zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj(),
    ),
    "bzip2": (rb"BZh", bz2.BZ2Decompressor),
    "xz": (rb"\xfd7zXZ\x00", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_WINDOW_BYTES + (16 << 20))),
}
_ISAL_ERROR: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]
_STREAM_ERRORS = (EOFError, _ISAL_ERROR, lzma.LZMAError, zstandard.ZstdError, OSError)  # it is cut short or damaged


class Readable(Protocol):
    """What a stream is used for."""

    def read(self, num_bytes: int, /) -> bytes | None: ...


def compression_of(head: bytes) -> str:
    """The compression of a file that begins with `head`, or an empty string."""
    return next((kind for kind, (magic, _open) in _KINDS.items() if re.match(magic, head)), "")


def unpack(file: io.RawIOBase | io.BufferedReader, compression: str, path: str) -> Readable:
    """The content of `file`, unpacked; the file itself where it isn't compressed. `path` is for error messages."""
    return _Unpacked(compression, io.BufferedReader(file, _READ_BYTES), path) if compression else file


class _Unpacked:
    """A packed file as a stream: streams of one kind, one after the other, maybe with zero bytes as padding between.

    Unlike with Python's own files of these kinds, a stream that is cut short is an error, and so is anything else that
    follows a stream: of a file in many streams, a damaged one in the middle would end it without a word.
    """

    def __init__(self, compression: str, file: Readable, path: str) -> None:
        self._compression, self._file, self._path = compression, file, path
        self._stream: Any = None  # None between two streams
        self._packed = b""
        self._unpacked, self._place = b"", 0  # unpacked, and read up to here
        self._num_read = 0
        # zstd's gives all at once that is in what it gets. Four bytes can be a block of 128 KiB: 1 KiB is at most 32 MiB.
        self._is_limited = compression != "zstd"
        self._packed_bytes = 1 << 17 if self._is_limited else 1 << 10

    def read(self, num_bytes: int) -> bytes:
        """The next bytes: `num_bytes` of them, fewer only at the end. Raises `InputError` for a damaged file."""
        parts: list[bytes] = []
        try:
            while num_bytes:
                if self._place == len(self._unpacked):
                    self._unpacked, self._place = self._unpack(num_bytes), 0
                    if not self._unpacked:
                        break
                part = self._unpacked[self._place : self._place + num_bytes]
                self._place += len(part)
                self._num_read += len(part)
                num_bytes -= len(part)
                parts.append(part)
        except _STREAM_ERRORS as error:
            if getattr(error, "errno", None):  # the machine's
                raise
            fault = f"{error} (after {self._num_read:,} unpacked bytes); the download is incomplete or damaged"
            if "memory" in str(error).lower():
                fault = f"unpacking needs more than {MAX_WINDOW_BYTES >> 20} MiB; pack it anew"
            raise InputError(f"{self._path}: {self._compression}: {fault}") from None
        return b"".join(parts)

    def _unpack(self, num_bytes: int) -> bytes:
        """Some more bytes, or none at the end."""
        while True:
            if self._stream is None:
                while not (packed := self._packed.lstrip(b"\0")):
                    self._packed = self._file.read(self._packed_bytes) or b""
                    if not self._packed:
                        return b""
                self._packed, self._stream = packed, _KINDS[self._compression][1]()
            elif not self._packed and (not self._is_limited or self._stream.needs_input):
                self._packed = self._file.read(self._packed_bytes) or b""
                if not self._packed:
                    raise EOFError("the compressed stream ends early")
            packed, self._packed = self._packed, b""
            content: bytes = self._stream.decompress(packed, *[num_bytes] * self._is_limited)
            if self._stream.eof:
                self._packed, self._stream = self._stream.unused_data, None
            if content:
                return content
