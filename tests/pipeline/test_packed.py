"""Packed files from strangers: memory stays within its bound, and damage is never taken for the end."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from pipeline.streams import COMPRESSIONS, MAX_WINDOW_BYTES, STREAM_ERRORS, open_stream

from pipeline.sources import find_sources
from shards.common.errors import InputError
from tests.conftest import REPOSITORY, assert_one_error_line, run_module

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,  # as the command does
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}
READ = """
import resource, sys
from pipeline.streams import open_stream
stream, num_bytes = open_stream(sys.argv[1], sys.argv[2]), 0
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
while content := stream.read(1 << 21):
    num_bytes += len(content)
print(num_bytes, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def zstd_with_window(log: int, content: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=log, strategy=1)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(content)


def xz_with_dictionary(num_bytes: int, content: bytes) -> bytes:
    return lzma.compress(content, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": num_bytes, "preset": 0}])


# What unpacks to the most; with the largest windows that are read, and with the usual ones (MiB unpacked, MiB of memory).
BOMBS: dict[str, tuple[str, Callable[[bytes], bytes], int, int]] = {
    "gzip": ("gzip", lambda content: gzip.compress(content, 1), 128, 40),
    "bzip2": ("bzip2", bz2.compress, 64, 40),
    "xz": ("xz", lambda content: xz_with_dictionary(1 << 23, content), 64, 40),
    "zstd": ("zstd", zstandard.compress, 512, 160),
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


@pytest.mark.parametrize("kind", ["zst", "xz"])
def test_a_window_beyond_the_bound_is_refused(tmp_path: Path, kind: str) -> None:
    content = b'{"text": "a"}\n' * 1000
    path = tmp_path / f"corpus.jsonl.{kind}"
    path.write_bytes(
        zstd_with_window(28, bytes(1 << 20)) if kind == "zst" else xz_with_dictionary(2 * MAX_WINDOW_BYTES, content)
    )
    if kind == "zst":  # without its size in the header, or the window is made no larger than the content
        parameters = zstandard.ZstdCompressionParameters(window_log=28, strategy=1, write_content_size=False)
        path.write_bytes(zstandard.ZstdCompressor(compression_params=parameters).compressobj().compress(content) or b"")
        with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(path.open("wb")) as writer:
            writer.write(content)
    with pytest.raises(InputError, match="unpacking needs more than 128 MiB; pack it anew"):
        find_sources([str(path)])


@pytest.mark.parametrize("compression", PACK)
def test_all_members_are_read_and_none_is_left_out_without_a_word(tmp_path: Path, compression: str) -> None:
    """Of a file in many streams, as parallel packers make them, damage to any is an error."""
    rng = random.Random(1)
    members = [rng.randbytes(300).hex().encode() for _ in range(4)]
    packed = [PACK[compression](member) for member in members]
    path = tmp_path / ("corpus" + COMPRESSIONS[compression])

    def read(content: bytes, chunk: int = 1 << 16) -> bytes:
        path.write_bytes(content)
        with open_stream(path, compression) as stream:
            parts = list(iter(lambda: stream.read(chunk), b""))
        assert all(len(part) == chunk for part in parts[:-1]) or compression == "gzip"
        return b"".join(parts)

    whole = b"".join(packed)
    for chunk in (1, 7, 1000, 1 << 16):
        assert read(whole, chunk) == b"".join(members)
    assert read(whole + bytes(8)) == b"".join(members)  # padding
    for damaged in (
        whole[: -len(packed[3])] + b"garbage",
        whole[:-1],
        packed[0] + packed[1][:20] + bytes([packed[1][20] ^ 255]) + packed[1][21:] + packed[2],
        packed[0] + packed[1][1:] + packed[2],
    ):
        with pytest.raises(STREAM_ERRORS):
            read(damaged)


def test_a_bomb_ends_the_build_with_one_line(tmp_path: Path, tokenizer_dir: Path) -> None:
    """One record without an end: it is larger than the limit, however small it is packed."""
    buffer = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(buffer, closefd=False) as writer:
        writer.write(b'{"text": "' + b"a" * (300 << 20))
    (tmp_path / "corpus.jsonl.zst").write_bytes(buffer.getvalue())
    arguments = [tmp_path / "corpus.jsonl.zst", "--out", tmp_path / "set", "--tokenizer", tokenizer_dir]
    result = run_module("pipeline", "build", *arguments, "--max-record-bytes", "1000000", "--workers", "1")
    assert_one_error_line(result, "line 1, byte 0: the record is larger than --max-record-bytes (1,000,000 bytes)")
