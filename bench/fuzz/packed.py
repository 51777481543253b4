"""Packed streams against Python's own decompressors, and documents by the fast way against one by one."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import zlib
from typing import Any

import zstandard

from bench.fuzz.oracle import expect
from pipeline.encode import Encoder
from pipeline.native import NativeEncoder
from pipeline.readers.compression import unpack
from pipeline.tokenizers import ReferenceEncoder, load_encoder, load_tokenizer_files, same_ids
from shards.common.errors import InputError

KINDS = ("gzip", "zstd", "bzip2", "xz")
_MAGICS = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\x00")
_MOST = 1 << 20  # bytes unpacked of an input
_PLAIN = b'{"text": "abc"}\n' * 9


@functools.lru_cache(maxsize=256)
def _pack(kind: str, content: bytes) -> bytes:
    if kind == "gzip":
        return gzip.compress(content, mtime=0)
    if kind == "zstd":
        return zstandard.ZstdCompressor(write_checksum=True).compress(content)
    return bz2.compress(content) if kind == "bzip2" else lzma.compress(content, preset=0)


def packed(data: bytes) -> None:
    """The content that Python's own decompressors find, or an error; nothing in between and nothing larger than asked."""
    number, mode, ask, body = data[0] % 4, data[1] % 4, data[2] * 3 + 1, data[3:]
    kind = KINDS[number]
    if mode == 0:
        content = _MAGICS[number] + body
    else:  # two streams of which bytes are changed, or which are cut
        content = _pack(kind, _PLAIN[: body[0]]) + _pack(kind, _PLAIN) * (mode == 2)
        for place, value in zip(body[1::2], body[2::2], strict=False):
            place = place * len(content) // 256
            content = content[:place] + (bytes([value]) if value else b"") + content[place + 1 :]
    found, error = _read(kind, content, ask)
    expected, expected_error = _reference(kind, content)
    if error is None and expected_error is None:
        expect(found == expected, "other content")
    else:
        expect(error is not None, kind, "read, and is damaged:", expected_error)
        # A fault of the bits that the library overlooks, or that it alone minds, is the library's.


def _read(kind: str, content: bytes, ask: int) -> tuple[bytes, Exception | None]:
    parts: list[bytes] = []
    total = 0
    try:
        stream = unpack(io.BytesIO(content), kind, "packed")  # type: ignore[arg-type]
        while total < _MOST and (part := stream.read(ask)):
            expect(len(part) <= ask, "more than asked")
            parts.append(part)
            total += len(part)
    except InputError as error:
        return b"".join(parts), error
    return b"".join(parts), None


def _reference(kind: str, content: bytes) -> tuple[bytes, Exception | None]:
    """All streams of the file, by the plain decompressors."""
    found = b""
    rest = content
    try:
        while rest := rest.lstrip(b"\0"):
            stream: Any
            if kind == "gzip":
                return gzip.GzipFile(fileobj=io.BytesIO(rest)).read(_MOST), None
            if kind == "zstd":
                stream = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
                found += stream.decompress(rest)
            else:
                stream = bz2.BZ2Decompressor() if kind == "bzip2" else lzma.LZMADecompressor(memlimit=200 << 20)
                found += stream.decompress(rest, _MOST)
            if len(found) >= _MOST:
                return found, None
            if not stream.eof:
                raise EOFError("cut short")
            rest = stream.unused_data
    except (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        return found, error
    return found, None


@functools.lru_cache(maxsize=1)
def _own_and_reference() -> tuple[Encoder, Encoder]:
    content = load_tokenizer_files("qwen2").tokenizer_json
    own = load_encoder(NativeEncoder.name, content)
    expect(isinstance(own, NativeEncoder), "no native encoder")
    return own, load_encoder(ReferenceEncoder.name, content)


def native_ids(data: bytes) -> None:
    """The native encoder's ids for any text are the reference tokenizer's. Texts are cut at the byte 0xFF."""
    texts = [text for part in data.split(b"\xff") if (text := part.decode("utf-8", "ignore"))]
    if texts:
        expect(same_ids(*_own_and_reference(), texts), "other ids:", texts)
