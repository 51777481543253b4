"""What a unit is read as: batches of parsed records, each record at a known place.

The readers are in `pipeline.json_lines` and `pipeline.json_array`; `pipeline.readers.open_unit` takes the right one.
A unit `[start, stop)` owns the records whose first byte lies in it: its reader finds the first by looking from `start`
on, and reads past `stop` to the end of the last.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from blake3 import blake3

from pipeline.sources import Source, Unit
from shards.errors import InputError, nearest, printable


class BadRecord(Exception):
    """A record that can't be read: `offset` in bytes of its source, and why."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset, self.reason = offset, reason

    def __reduce__(self) -> tuple[type[BadRecord], tuple[int, str]]:
        return BadRecord, (self.offset, self.reason)


class Batch:
    """Parsed records that lie together in `content`, which begins at byte `offset` of the source."""

    def __init__(self, values: list[Any], content: bytes, offset: int) -> None:
        self.values, self.content, self.offset = values, content, offset


class UnitReader:
    """The records of one unit, in order: what the readers of all formats have in common.

    Iterate once; then `digest`, `first` and `last` are known.

    `first` is the offset of the unit's first record, `last` the offset behind its last one, where the next unit's
    first begins. `first` is None if no record begins in the unit.
    """

    chunk_bytes = 1 << 20

    def __init__(self, source: Source, unit: Unit, *, first: int | None = None) -> None:
        """`first` is the offset of the unit's first record where it is known already."""
        self._source, self._unit = source, unit
        self._hash = blake3()
        self._position = 0
        self._known_first = first
        self.first: int | None = None
        self.last: int | None = None

    @property
    def digest(self) -> str:
        """BLAKE3 of the bytes `[start, stop)`."""
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[Batch]:
        with open(self._source.path, "rb", buffering=0) as file:
            yield from self._batches(file)

    def _batches(self, file: BinaryIO) -> Iterator[Batch]:
        raise NotImplementedError

    def _read(self, file: BinaryIO, num_bytes: int) -> bytes:
        """The next bytes; those inside the unit go into the digest."""
        content = file.read(num_bytes)
        if not content and self._position < self._source.num_bytes:
            raise InputError(f"{self._source.path}: the file became shorter while it was read; build again")
        inside = max(0, min(len(content), self._unit.stop - self._position))
        self._hash.update(content if inside == len(content) else content[:inside])
        self._position += len(content)
        return content

    def _seek(self, file: BinaryIO, offset: int) -> None:
        file.seek(offset)
        self._position = offset


def texts_of(batch: Batch, field: str) -> list[str]:
    """The text of each record of `batch`. Raises `BadRecord`."""
    try:
        texts: list[Any] = [value[field] for value in batch.values]
        if set(map(type, texts)) <= {str}:
            return texts
    except (KeyError, TypeError, IndexError):
        pass
    for number, value in enumerate(batch.values):
        if reason := _why_no_text(value, field):
            raise BadRecord(_record_offset(batch, number), reason)
    raise AssertionError("one of the records must have no text")


def _why_no_text(value: Any, field: str) -> str | None:
    kinds = {dict: "an object", list: "an array", str: "a string", type(None): "null", bool: "true or false"}
    if not isinstance(value, dict):
        return f"expected an object, found {kinds.get(type(value), 'a number')}"
    if field not in value:
        names = printable(", ".join(list(value)[:12])) or "no fields at all"
        return f"no field {field!r}; this record has {names}{nearest(field, value)} (choose with --text-field)"
    if not isinstance(value[field], str):
        return f"field {field!r}: expected a string, found {kinds.get(type(value[field]), 'a number')}"
    return None


def _record_offset(batch: Batch, number: int) -> int:
    """The offset in the source of the batch's record `number`."""
    text = batch.content.decode("utf-8")
    decoder = json.JSONDecoder()
    place = 0
    for _ in range(number + 1):
        place += len(text[place:]) - len(text[place:].lstrip(" \t\r\n,"))
        begin = place
        _value, place = decoder.raw_decode(text, place)
    return batch.offset + len(text[:begin].encode("utf-8"))


def locate(source: Source, error: BadRecord) -> InputError:
    """`error` with its source, line (counted from 1) and byte offset."""
    line, left = 1, error.offset
    with open(source.path, "rb") as file:
        while left and (chunk := file.read(min(left, UnitReader.chunk_bytes))):
            line += chunk.count(b"\n")
            left -= len(chunk)
    return InputError(f"{source.path}: line {line:,}, byte {error.offset:,}: {error.reason}")
