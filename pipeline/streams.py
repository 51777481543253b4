"""Files as streams of bytes, unpacked where they are compressed, their own bytes hashed as they go by."""

from __future__ import annotations

import bz2
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

import zstandard
from blake3 import blake3
from isal import igzip, igzip_lib

from pipeline.storage import open_binary
from shards.common.errors import InputError

# By the first bytes of a file.
_MAGICS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
# The usual ends of the names.
COMPRESSIONS = {"gzip": ".gz", "zstd": ".zst", "bzip2": ".bz2", "xz": ".xz"}

# What unpacking may look back on, and so keeps: as much as `zstd --long` makes and twice what `xz -9` does.
MAX_WINDOW_BYTES = 1 << 27

# What the decompressors raise for a stream that is cut short or damaged.
_ISAL_ERROR: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]
STREAM_ERRORS = (EOFError, zlib.error, _ISAL_ERROR, lzma.LZMAError, zstandard.ZstdError, OSError)


def compression_of(magic: bytes) -> str:
    """The compression of a file that begins with `magic`, or an empty string."""
    return next((kind for start, kind in _MAGICS.items() if magic.startswith(start)), "")


def open_stream(path: str | Path, compression: str, *, hashed: HashedFile | None = None) -> BinaryIO:
    """The content of `path`, unpacked, as a stream to read from. With `hashed`, that file is read instead."""
    raw = cast(BinaryIO, hashed) if hashed is not None else open_binary(path)
    if compression == "gzip":
        return cast(BinaryIO, _Owning(igzip.GzipFile(fileobj=io.BufferedReader(_Raw(raw), 1 << 18)), raw))
    if compression:
        return cast(BinaryIO, _Owning(cast(IO[bytes], _Unpacked(_KINDS[compression], raw, str(path))), raw))
    return raw


class HashedFile:
    """A file whose bytes `[start, stop)` go into a digest as they are read from front to back, beginning at `start`.

    With `max_bytes` the file ends there: one that somebody appends to might never end otherwise.
    """

    def __init__(
        self, path: str | Path, max_bytes: int = sys.maxsize, *, start: int = 0, stop: int = sys.maxsize
    ) -> None:
        self._file = open_binary(path)
        self._hash = blake3()
        self._max_bytes, self._start, self._stop = max_bytes, start, stop
        self.seek(start)

    def seek(self, offset: int) -> None:
        """Go back to an `offset` up to `start`, for a look at what is before it."""
        self._file.seek(offset)
        self._position = offset

    def read(self, num_bytes: int) -> bytes:
        begin = self._position
        content = self._file.read(min(num_bytes, self._max_bytes - begin))
        self._position += len(content)
        is_inside = self._start <= begin and self._position <= self._stop
        self._hash.update(content if is_inside else content[max(0, self._start - begin) : max(0, self._stop - begin)])
        return content

    def hexdigest(self) -> str:
        """The digest of all the bytes `[start, stop)`: what hasn't been read yet is read."""
        while self.read(min(1 << 20, max(0, self._stop - self._position))):
            pass
        return self._hash.hexdigest()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def file_digest(path: str | Path) -> str:
    """BLAKE3 of a file's own bytes, packed as they are."""
    with HashedFile(path) as file:
        return file.hexdigest()


class _Kind(NamedTuple):
    """How files of one kind are unpacked."""

    open: Callable[[], Any]  # what unpacks one stream: has `eof`, `unused_data`, and raises one of STREAM_ERRORS
    packed_bytes: int = 1 << 17  # unpacked at a time
    is_limited: bool = True  # whether it gives no more than it is asked for, and keeps the rest


_KINDS = {
    "bzip2": _Kind(bz2.BZ2Decompressor),
    "xz": _Kind(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_WINDOW_BYTES + (16 << 20))),
    # The library unpacks at once all that it is given. Four bytes can be a block of 128 KiB: 1 KiB is at most 32 MiB.
    "zstd": _Kind(
        lambda: zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj(),
        packed_bytes=1 << 10,
        is_limited=False,
    ),
}


class _Unpacked:
    """A packed file as a stream: streams of one kind, one behind the other, maybe with zero bytes as padding between.

    Unlike Python's own files of these kinds, a stream that is cut short is an error, and so is what follows a stream and
    is none: of a file in many streams, a damaged one in the middle would end it without a word.
    """

    _stream: Any

    def __init__(self, kind: _Kind, file: IO[bytes], path: str) -> None:
        self._kind, self._file, self._path = kind, file, path
        self._packed = b""
        self._is_new = True  # no byte of the stream has been seen
        self._unpacked, self._place = b"", 0  # unpacked, and asked for up to here

    def read(self, num_bytes: int) -> bytes:
        """The next bytes: `num_bytes` of them, fewer only at the end. Raises one of `STREAM_ERRORS`, or `InputError`."""
        parts: list[bytes] = []
        while num_bytes:
            if self._place == len(self._unpacked):
                self._unpacked, self._place = self._next(num_bytes), 0
                if not self._unpacked:
                    break
            part = self._unpacked[self._place : self._place + num_bytes]
            self._place += len(part)
            num_bytes -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _next(self, num_bytes: int) -> bytes:
        """Some more bytes, or none at the end."""
        while True:
            if self._is_new:
                packed = self._packed.lstrip(b"\0")
                while not packed:
                    if not (read := self._file.read(self._kind.packed_bytes)):
                        return b""
                    packed = read.lstrip(b"\0")
                self._packed, self._stream = packed, self._kind.open()
                self._is_new = False
            elif not self._packed and (not self._kind.is_limited or self._stream.needs_input):
                self._packed = self._file.read(self._kind.packed_bytes)
                if not self._packed:
                    raise EOFError("the compressed stream ends early")
            packed, self._packed = self._packed, b""
            try:
                limit = (num_bytes,) if self._kind.is_limited else ()
                content: bytes = self._stream.decompress(packed, *limit)
            except (lzma.LZMAError, zstandard.ZstdError) as error:
                if "memory" not in str(error).lower():
                    raise
                raise InputError(
                    f"{self._path}: packed so that unpacking needs more than {MAX_WINDOW_BYTES >> 20} MiB; pack it anew"
                ) from None
            if self._stream.eof:
                self._packed = self._stream.unused_data
                self._is_new = True
            if content:
                return content

    def close(self) -> None:
        """Let go of what is unpacked; the file below belongs to the caller."""
        self._unpacked, self._place = b"", 0


class _Raw(io.RawIOBase):
    """`read` as a raw stream, for decompressors that want one."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        content = self._file.read(len(view))
        view[: len(content)] = content
        return len(content)


class _Owning:
    """A decompressor together with the file below it: both are closed."""

    def __init__(self, stream: IO[bytes], raw: IO[bytes]) -> None:
        self._stream, self._raw = stream, raw
        self.read = stream.read

    def close(self) -> None:
        self._stream.close()
        self._raw.close()

    def __enter__(self) -> _Owning:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
