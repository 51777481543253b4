"""Compressed files, unpacked in constant memory. Damage, or an early end, is an error in every part of a file."""

from __future__ import annotations

import bz2
import io
import lzma
import re
from typing import Any, Protocol

import zstandard
from isal import igzip_lib

from shards.common.errors import InputError

# By the first bytes of a file. A zstd file may begin with a frame to skip, as pzstd's do.
_MAGICS = {
    "gzip": rb"\x1f\x8b",
    "zstd": rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
    "bzip2": rb"BZh",
    "xz": rb"\xfd7zXZ\x00",
}
# The usual suffixes of names.
COMPRESSIONS = {"gzip": ".gz", "zstd": ".zst", "bzip2": ".bz2", "xz": ".xz"}

# What unpacking may look back on, and so keeps: as much as `zstd --long` makes and twice what `xz -9` does.
MAX_WINDOW_BYTES = 1 << 27
_READ_BYTES = 1 << 18

# What the decompressors raise for a stream that is cut short or damaged.
_ISAL_ERROR: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]
_STREAM_ERRORS = (EOFError, _ISAL_ERROR, lzma.LZMAError, zstandard.ZstdError, OSError)


class Readable(Protocol):
    """What a stream is used for."""

    def read(self, num_bytes: int, /) -> bytes | None: ...


def compression_of(head: bytes) -> str:
    """The compression of a file that begins with `head`, or an empty string."""
    return next((kind for kind, magic in _MAGICS.items() if re.match(magic, head)), "")


def without_suffix(name: str) -> str:
    """`name` without `.gz` and its like at the end."""
    for suffix in COMPRESSIONS.values():
        name = name.removesuffix(suffix)
    return name


def unpack(file: io.RawIOBase, compression: str, path: str) -> Readable:
    """The content of `file`, unpacked; the file itself where it isn't compressed. `path` is for error messages."""
    return _Unpacked(compression, io.BufferedReader(file, _READ_BYTES), path) if compression else file


def _open_stream(compression: str) -> Any:
    """What unpacks one stream: has `eof`, `unused_data`, and raises one of `_STREAM_ERRORS`."""
    if compression == "gzip":
        return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    if compression == "bzip2":
        return bz2.BZ2Decompressor()
    if compression == "xz":
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_WINDOW_BYTES + (16 << 20))
    return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()


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
        while num_bytes:
            if self._place == len(self._unpacked):
                self._unpacked, self._place = self._next(num_bytes), 0
                if not self._unpacked:
                    break
            part = self._unpacked[self._place : self._place + num_bytes]
            self._place += len(part)
            self._num_read += len(part)
            num_bytes -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _next(self, num_bytes: int) -> bytes:
        """Some more bytes, or none at the end."""
        try:
            return self._unpack(num_bytes)
        except _STREAM_ERRORS as error:
            if getattr(error, "errno", None):  # the machine's
                raise
            if "memory" in str(error).lower():
                limit = f"{MAX_WINDOW_BYTES >> 20} MiB"
                raise InputError(
                    f"{self._path}: packed so that unpacking needs more than {limit}; pack it anew"
                ) from None
            raise InputError(
                f"{self._path}: {self._compression}: {error} (after {self._num_read:,} unpacked bytes); the download is "
                "incomplete or damaged"
            ) from None

    def _unpack(self, num_bytes: int) -> bytes:
        while True:
            if self._stream is None:
                while not (packed := self._packed.lstrip(b"\0")):
                    self._packed = self._file.read(self._packed_bytes) or b""
                    if not self._packed:
                        return b""
                self._packed, self._stream = packed, _open_stream(self._compression)
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
