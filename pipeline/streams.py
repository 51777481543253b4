"""Files as streams of bytes, unpacked where they are compressed, their own bytes hashed as they go by."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from pathlib import Path
from typing import IO, BinaryIO, cast

import zstandard
from blake3 import blake3
from isal import igzip

from pipeline.storage import open_binary

# By the first bytes of a file.
_MAGICS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
# The usual ends of the names.
COMPRESSIONS = {"gzip": ".gz", "zstd": ".zst", "bzip2": ".bz2", "xz": ".xz"}

# What the decompressors raise for a stream that is cut short or damaged.
STREAM_ERRORS = (EOFError, zlib.error, igzip.BadGzipFile, lzma.LZMAError, zstandard.ZstdError, OSError)


def compression_of(magic: bytes) -> str:
    """The compression of a file that begins with `magic`, or an empty string."""
    return next((kind for start, kind in _MAGICS.items() if magic.startswith(start)), "")


def open_stream(path: str | Path, compression: str, *, hashed: HashedFile | None = None) -> BinaryIO:
    """The content of `path`, unpacked, as a stream to read from. With `hashed`, that file is read instead."""
    raw = cast(BinaryIO, hashed) if hashed is not None else open_binary(path)
    if compression == "gzip":
        return cast(BinaryIO, _Owning(igzip.GzipFile(fileobj=io.BufferedReader(_Raw(raw), 1 << 18)), raw))
    if compression == "zstd":
        return cast(BinaryIO, _Owning(cast(IO[bytes], _Zstd(raw)), raw))
    if compression == "bzip2":
        return cast(BinaryIO, _Owning(bz2.BZ2File(_Raw(raw)), raw))
    if compression == "xz":
        return cast(BinaryIO, _Owning(lzma.LZMAFile(cast(IO[bytes], _Raw(raw))), raw))
    return raw


class HashedFile:
    """A file whose bytes go into a digest as they are read from front to back."""

    def __init__(self, path: str | Path) -> None:
        self._file = open_binary(path)
        self._hash = blake3()
        self.num_bytes = 0

    def read(self, num_bytes: int = -1) -> bytes:
        content = self._file.read(num_bytes)
        self._hash.update(content)
        self.num_bytes += len(content)
        return content

    def hexdigest(self) -> str:
        """The digest of the whole file: what hasn't been read yet is read."""
        while self.read(1 << 20):
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


class _Zstd:
    """Frames of zstd, one behind the other. Unlike zstandard's own reader, a frame that is cut short is an error."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._is_inside = False  # a frame has begun and not ended
        self._packed = self._unpacked = b""

    def read(self, num_bytes: int) -> bytes:
        while not self._unpacked:
            packed = self._packed or self._file.read(1 << 17)
            if not packed:
                if self._is_inside:
                    raise EOFError("the compressed stream ends early")
                return b""
            self._unpacked = self._frame.decompress(packed)
            self._is_inside, self._packed = not self._frame.eof, b""
            if self._frame.eof:
                self._packed = self._frame.unused_data
                self._frame = zstandard.ZstdDecompressor().decompressobj()
        content, self._unpacked = self._unpacked[:num_bytes], self._unpacked[num_bytes:]
        return content

    def close(self) -> None:
        """Nothing to close: the file below belongs to the caller."""


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
