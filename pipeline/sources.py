"""The corpus: which files, in what format, cut into which units.

A unit is a stretch of a source: `[start, stop)` in bytes, cut every `unit_bytes` by the source's size alone. The
unit owns the records whose first byte lies in that stretch (`pipeline.records` finds them).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from shards.errors import InputError, nearest

Format = Literal["json-lines", "json-array"]
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HEAD_BYTES = 1 << 16
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One file of the corpus."""

    path: str  # absolute
    name: str  # as recorded in the manifest: the file's name
    format: Format
    num_bytes: int
    modified_ns: int

    def __post_init__(self) -> None:
        assert os.path.isabs(self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """The stretch `[start, stop)` of a source, in bytes."""

    number: int
    source: int
    start: int
    stop: int


def find_sources(names: Sequence[str]) -> list[Source]:
    """The files called `names`, each looked at: it exists, isn't empty, holds JSON Lines or a JSON array, is whole.

    Raises `InputError` naming the first that isn't so.
    """
    return [_look_at(name) for name in names]


def plan_units(sources: Sequence[Source], unit_bytes: int) -> list[Unit]:
    """All units in the corpus's order. 130 bytes in units of 64 are [0, 64), [64, 128), [128, 130)."""
    units: list[Unit] = []
    for number, source in enumerate(sources):
        for start in range(0, source.num_bytes, unit_bytes):
            stop = min(start + unit_bytes, source.num_bytes)
            units.append(Unit(number=len(units), source=number, start=start, stop=stop))
    return units


def _look_at(name: str) -> Source:
    path = Path(name)
    try:
        status = path.stat()
        if path.is_dir():
            raise InputError(f"{name}: expected a file with JSON Lines or a JSON array, found a directory")
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
            file.seek(max(0, status.st_size - _HEAD_BYTES))
            foot = file.read()
    except FileNotFoundError:
        siblings = os.listdir(path.parent) if path.parent.is_dir() else []
        raise InputError(f"{name}: no such file{nearest(path.name, siblings)}") from None
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from None
    if not head:
        raise InputError(f"{name}: the file is empty; expected JSON Lines or a JSON array of records")
    file_format = _detect_format(name, head)
    if file_format == "json-array" and not foot.rstrip().endswith(b"]"):
        raise InputError(
            f"{name}: truncated: the array that begins the file is not closed by ']' at its end (byte "
            f"{status.st_size:,}); the download is incomplete, fetch the file again"
        )
    return Source(
        path=os.path.abspath(name),
        name=path.name,
        format=file_format,
        num_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
    )


def _detect_format(name: str, head: bytes) -> Format:
    for magic, kind in _COMPRESSED.items():
        if head.startswith(magic):
            raise InputError(f"{name}: compressed with {kind}; unpack it first")
    first = head.removeprefix(BYTE_ORDER_MARK).lstrip()[:1]
    if first == b"[":
        return "json-array"
    if first == b"{":
        return "json-lines"
    if not first:
        raise InputError(f"{name}: expected JSON Lines or a JSON array, found only white space")
    raise InputError(
        f"{name}: expected JSON Lines (first character '{{') or a JSON array ('['), found {first.decode('latin-1')!r}"
    )
