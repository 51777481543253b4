"""JSON arrays, in any layout: one record a line, pretty-printed, all on one line.

`}`, white space, `,`, white space, `{` is a *candidate* for the end of a record; it may also stand inside a string, or
in an array within a record. From a record's true start, a stretch that parses as `[` stretch `]` ends at a true end.
So each batch is checked by parsing it, and only a unit's first record rests on a candidate: `first` of each unit must
equal `last` of the unit before, which the build checks for all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

from pipeline.json_errors import broken_off, diagnose, is_unfinished, refuse_constant
from pipeline.records import BadRecord, Batch, UnitReader
from pipeline.sources import BYTE_ORDER_MARK

LOOK_BACK_BYTES = 4096
_MAX_TRIES = 4
_CANDIDATE = re.compile(rb"\}[ \t\r\n]*,[ \t\r\n]*\{")
_OPENING = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\[[ \t\r\n]*(?=\{)")
_SEPARATOR = re.compile(r"[ \t\r\n]*(?:,[ \t\r\n]*(?=[^ \t\r\n])|(?P<end>\]))")
_WHITE_SPACE = b" \t\r\n"


class JsonArrayReader(UnitReader):
    """The records that begin in the unit."""

    def _batches(self, file: BinaryIO) -> Iterator[Batch]:
        stop, num_bytes = self._unit.stop, self._source.num_bytes
        content, offset = self._array_start(file)  # `content` begins at a record, or is empty
        if content and offset < stop:
            self.first = offset
        if self._unit.start == 0:
            self.last = offset
        while content and offset < stop:
            inside = self._position <= stop and self._position < num_bytes
            if inside:
                batch, consumed = _parse_to_last(content, offset)
            else:
                at_end = self._position >= num_bytes
                batch, consumed = _parse_past(content, offset, stop, at_end=at_end)
            if batch is not None:
                yield batch
            content, offset = content[consumed:], offset + consumed
            self.last = offset
            if offset < stop:
                room = max(self.chunk_bytes, len(content))
                content += self._read(file, min(room, stop - self._position) if self._position < stop else room)
        while self._position < stop:  # the digest is of all bytes of the unit
            self._read(file, self.chunk_bytes)

    def _array_start(self, file: BinaryIO) -> tuple[bytes, int]:
        """What has been read from the unit's first record on, and that record's offset."""
        start, stop = self._unit.start, self._unit.stop
        if start == 0:
            self._seek(file, 0)
            content = self._read(file, min(self.chunk_bytes, stop))
            while True:
                stripped = content.removeprefix(BYTE_ORDER_MARK).lstrip(_WHITE_SPACE).removeprefix(b"[")
                stripped = stripped.lstrip(_WHITE_SPACE)
                if stripped or not (more := self._read(file, self.chunk_bytes)):
                    break
                content += more
            if stripped.startswith(b"]"):  # an empty array
                return b"", self._source.num_bytes
            return stripped, len(content) - len(stripped)
        look_back = min(start, LOOK_BACK_BYTES)
        file.seek(start - look_back)
        content = _read_exactly(file, look_back)
        self._position = start
        origin = start - look_back
        content += self._read(file, min(self.chunk_bytes, stop - start))
        if self._known_first is not None:
            while len(content) <= self._known_first - origin and (more := self._read(file, self.chunk_bytes)):
                content += more
            return content[self._known_first - origin :], self._known_first
        if look_back == start and (opening := _OPENING.match(content)) and start <= opening.end() < stop:
            return content[opening.end() :], opening.end()
        searched = 0
        while True:
            for match in _CANDIDATE.finditer(content, searched):
                record = match.end() - 1
                if origin + record < start:
                    continue
                if origin + record >= stop:
                    return b"", origin + record
                if _could_be_record(content[record:]):
                    return content[record:], origin + record
            if self._position >= self._source.num_bytes:
                return b"", self._source.num_bytes
            searched = max(0, len(content) - LOOK_BACK_BYTES)
            content += self._read(file, max(self.chunk_bytes, len(content)))


def _read_exactly(file: BinaryIO, num_bytes: int) -> bytes:
    content = b""
    while len(content) < num_bytes and (more := file.read(num_bytes - len(content))):
        content += more
    return content


def _could_be_record(content: bytes) -> bool:
    """Whether an object begins `content`, as far as can be seen: it parses, or breaks off at the end."""
    text = content.decode("utf-8", "replace")
    try:
        value, _end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        return is_unfinished(error, text)
    except RecursionError:
        return True
    return isinstance(value, dict)


def _parse_to_last(content: bytes, offset: int) -> tuple[Batch | None, int]:
    """Parse all whole records of `content` that are followed by another one; how many bytes that took."""
    end = len(content)
    for _ in range(_MAX_TRIES):
        match = _last_candidate(content, end)
        if match is None:
            break
        end = match.start()
        records = content[: end + 1]
        try:
            return Batch(orjson.loads(b"[%b]" % records), records, offset), match.end() - 1
        except orjson.JSONDecodeError:
            continue
    return _parse_one_by_one(content, offset)


def _parse_past(content: bytes, offset: int, stop: int, *, at_end: bool) -> tuple[Batch | None, int]:
    """Parse the records of `content` that begin before `stop`, the last of which ends behind it."""
    place = max(0, stop - offset - LOOK_BACK_BYTES)
    tries = 0
    for match in _CANDIDATE.finditer(content, place):
        if offset + match.end() - 1 < stop:
            continue
        records = content[: match.start() + 1]
        try:
            return Batch(orjson.loads(b"[%b]" % records), records, offset), match.end() - 1
        except orjson.JSONDecodeError:
            tries += 1
            if tries == _MAX_TRIES:
                break
    if at_end:
        stripped = content.rstrip(_WHITE_SPACE)
        if stripped.endswith(b"]"):
            records = stripped[:-1].rstrip(_WHITE_SPACE)
            try:
                return Batch(orjson.loads(b"[%b]" % records), records, offset), len(content)
            except orjson.JSONDecodeError:
                pass
    return _parse_one_by_one(content, offset, stop=stop, at_end=at_end)


def _last_candidate(content: bytes, end: int) -> re.Match[bytes] | None:
    """The last candidate that begins before `end`."""
    while (place := content.rfind(b"}", 0, end)) >= 0:
        if match := _CANDIDATE.match(content, place):
            return match
        end = place
    return None


def _parse_one_by_one(
    content: bytes, offset: int, *, stop: int | None = None, at_end: bool = False
) -> tuple[Batch | None, int]:
    """The exact way: one record after another with Python's parser, up to the first that begins at `stop`.

    Returns what was read and where the next record begins in `content`: its length at the array's end, less where
    more must be read first. Raises `BadRecord`.
    """
    text = content.decode("utf-8", "surrogateescape")
    decoder = json.JSONDecoder(parse_constant=refuse_constant)
    values: list[Any] = []
    place = consumed = records_end = 0  # the next record in characters and in bytes; the end of the last in bytes
    while stop is None or offset + consumed < stop:
        where = offset + consumed
        try:
            _value, end = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            if not is_unfinished(error, text):
                distance = _num_bytes(text[place : error.pos])
                raise BadRecord(where, f"not valid JSON: {error.msg} at byte {distance:,} of the record") from None
            if at_end:
                raise BadRecord(where, broken_off(offset + len(content))) from None
            break
        except (ValueError, RecursionError) as error:
            raise BadRecord(where, f"not valid JSON: {error}") from None
        separator = _SEPARATOR.match(text, end)
        if separator is None:
            rest = text[end:].strip(" \t\r\n")
            if rest not in ("", ","):
                raise BadRecord(where, f"expected ',' or ']' after the record, found {rest[0]!r}")
            if at_end:
                raise BadRecord(where, broken_off(offset + len(content)))
            break
        if separator["end"] is not None:
            if text[separator.end() :].strip(" \t\r\n"):
                raise BadRecord(where, "the array ends behind this record, but the file goes on")
            if not at_end:
                break
        record = text[place:end].encode("utf-8", "surrogateescape")
        try:
            values.append(orjson.loads(record))
        except orjson.JSONDecodeError:
            raise BadRecord(where, diagnose(record)) from None
        records_end = consumed + len(record)
        consumed += _num_bytes(text[place : separator.end()])
        place = separator.end()
        if separator["end"] is not None:
            consumed = len(content)
            break
    batch = Batch(values, content[:records_end], offset) if values else None
    return batch, consumed


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))
