"""Compressed files from strangers: memory stays within its bound, and damage is never taken for the end."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from pipeline.readers.compression import MAX_WINDOW_BYTES, unpack
from pipeline.readers.files import SourceFile
from shards.common.errors import InputError
from tests.conftest import REPOSITORY, write_corpus
from tests.pipeline.reading import find_sources, read_all

RECORDS = [{"text": f"第{number}篇" + "文" * (number % 50)} for number in range(300)]
READ = """
import resource, sys
from pipeline.readers.compression import unpack
from pipeline.readers.files import SourceFile
stream, num_bytes = unpack(SourceFile(sys.argv[1]), sys.argv[2], ""), 0
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
while content := stream.read(1 << 21):
    num_bytes += len(content)
print(num_bytes, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def zstd_frames(content: bytes) -> bytes:
    """As `pzstd` writes them: before each frame one to skip, which says how long it is."""
    frames = [zstandard.compress(content[:1000]), zstandard.compress(content[1000:])]
    return b"".join(struct.pack("<III", 0x184D2A50, 4, len(frame)) + frame for frame in frames)


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,  # as the command does
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("layout", ["lines", "pretty"])
@pytest.mark.parametrize("kind", [*PACK, "zstd by pzstd"])
def test_compressed_files_are_read_as_streams(tmp_path: Path, kind: str, layout: str) -> None:
    path = write_corpus(tmp_path / "corpus", RECORDS, layout)
    packed = PACK.get(kind, zstd_frames)(path.read_bytes())
    path.write_bytes(packed)
    assert read_all(path) == RECORDS
    path.write_bytes(packed[:-40])
    with pytest.raises(InputError, match="the download is incomplete or damaged"):
        read_all(path)


def zstd_with_window(log: int, content: bytes) -> bytes:
    """Without its size in the header, or the window is made no larger than the content."""
    parameters = zstandard.ZstdCompressionParameters(window_log=log, strategy=1, write_content_size=False)
    buffer = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(buffer, closefd=False) as writer:
        writer.write(content)
    return buffer.getvalue()


def xz_with_dictionary(num_bytes: int, content: bytes) -> bytes:
    return lzma.compress(content, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": num_bytes, "preset": 0}])


# What unpacks to the most; with the largest windows that are read, and with the usual ones (MiB unpacked, MiB of memory).
BOMBS: dict[str, tuple[str, Callable[[bytes], bytes], int, int]] = {
    "gzip": ("gzip", lambda content: gzip.compress(content, 1), 128, 40),
    "bzip2": ("bzip2", bz2.compress, 48, 40),
    "xz": ("xz", lambda content: xz_with_dictionary(1 << 23, content), 48, 40),
    "zstd": ("zstd", zstandard.compress, 256, 160),
    "xz, large dictionary": ("xz", lambda content: xz_with_dictionary(MAX_WINDOW_BYTES, content), 256, 180),
    "zstd, large window": ("zstd", lambda content: zstd_with_window(27, content), 512, 300),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * ("large" in name)) for name in BOMBS])
def test_a_file_that_unpacks_to_much_takes_bounded_memory(tmp_path: Path, name: str) -> None:
    compression, pack, num_mib, limit_mib = BOMBS[name]
    path = tmp_path / "bomb"
    path.write_bytes(pack(bytes(num_mib << 20)))
    output = subprocess.check_output([sys.executable, "-c", READ, str(path), compression], cwd=REPOSITORY, text=True)
    num_bytes, grown_mib = map(int, output.split())
    assert num_bytes == num_mib << 20
    assert grown_mib < limit_mib < num_mib


@pytest.mark.parametrize(
    "packed", [zstd_with_window(28, b'{"text": "a"}\n'), xz_with_dictionary(2 * MAX_WINDOW_BYTES, b'{"text": "a"}\n')]
)
def test_a_window_beyond_the_bound_is_refused(tmp_path: Path, packed: bytes) -> None:
    (tmp_path / "corpus").write_bytes(packed)
    with pytest.raises(InputError, match="unpacking needs more than 128 MiB; pack it anew"):
        find_sources([str(tmp_path / "corpus")])


@pytest.mark.parametrize("compression", PACK)
def test_all_members_are_read_and_damage_to_any_is_an_error(tmp_path: Path, compression: str) -> None:
    """Of a file in many streams, as parallel packers make them."""
    members = [random.Random(number).randbytes(300).hex().encode() for number in range(4)]
    packed = [PACK[compression](member) for member in members]
    whole, path = b"".join(packed), tmp_path / "corpus"

    def read(content: bytes, chunk: int = 1 << 16) -> bytes:
        path.write_bytes(content)
        with SourceFile(str(path)) as file:
            stream = unpack(file, compression, str(path))
            parts = list(iter(lambda: stream.read(chunk) or b"", b""))
        assert all(len(part) == chunk for part in parts[:-1])
        return b"".join(parts)

    assert read(whole, 7) == read(whole, 1000) == read(whole + bytes(8)) == b"".join(members)  # with padding
    changed = packed[0] + packed[1][:20] + bytes([packed[1][20] ^ 255]) + packed[1][21:] + packed[2]
    for damaged in (whole[: -len(packed[3])] + b"garbage", whole[:-1], changed, packed[0] + packed[1][1:] + packed[2]):
        with pytest.raises(InputError):
            read(damaged)
