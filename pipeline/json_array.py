"""JSON arrays, in any layout: one record a line, pretty-printed, all on one line.

`}`, white space, `,`, white space, `{` is a *candidate* for the end of a record; it may also stand inside a string, or
in an array within a record. From a record's true start, a stretch that parses as `[` stretch `]` ends at a true end.
So each batch is checked by parsing it, and only a stretch's first record rests on a candidate: `first` of each stretch
must equal `last` of the one before, which the build checks for all of them (`pipeline.chain`).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from pipeline.json_errors import diagnose, is_unfinished, load_record, refuse_constant, room_for_depth, whole_number
from pipeline.records import NOT_JSON, TOO_LARGE, BadRecord, Batch, Incomplete, StreamReader, found_once
from pipeline.sources import BYTE_ORDER_MARK

LOOK_BACK_BYTES = 4096
_LOOK_AHEAD_BYTES = 1 << 16
_MAX_TRIES = 4
_CANDIDATE = re.compile(rb"\}[ \t\r\n]*,[ \t\r\n]*\{")
_OPENING = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\[[ \t\r\n]*(?=\{)")
_SEPARATOR = re.compile(r"[ \t\r\n]*(?:,[ \t\r\n]*(?=[^ \t\r\n])|(?P<end>\]))")
_NUMBER_GOES_ON = re.compile(r"\.|[eE][+-]?")
_WHITE_SPACE = b" \t\r\n"


class _Parsed(NamedTuple):
    """What was parsed: a batch if there was a whole record, the bytes that took, those that are left, and the bad record
    that ended it."""

    batch: Batch | None
    num_bytes: int
    rest: bytes
    error: BadRecord | None = None


class JsonArrayReader(StreamReader):
    """The records that begin in the stretch."""

    def _batches(self) -> Iterator[Batch]:
        pending = b""  # the beginning of a record, which goes on in `chunk`
        chunk, offset = self._first_record()  # begins at a record, or is empty
        if chunk and offset < self._stop:
            self.first = offset
        if self._start == 0:
            self.last = offset
        while (pending or chunk) and offset < self._stop:
            batch, num_bytes, rest, error = self._parse(pending, chunk, offset)
            if batch is not None:
                yield batch
            offset += num_bytes
            if error is None and not num_bytes and len(rest) > self._options.max_record_bytes:
                error = self._too_large(offset, rest)
            if error is not None:
                self._options.on_bad(error)
                pending, (chunk, offset) = b"", self._next_plausible(rest, offset, skip=1)
            else:
                may_go_on = offset < self._stop and not self._at_end
                pending, chunk = rest, self._read_next(len(rest)) if may_go_on else b""
            self.last = offset

    def _parse(self, pending: bytes, chunk: bytes, offset: int) -> _Parsed:
        limit = self._options.max_record_bytes
        is_small = len(pending) + len(chunk) <= limit
        if is_small and self._position <= self._stop and not self._at_end:
            return _parse_to_last(pending, chunk, offset)
        content = pending + chunk
        if is_small:
            return _parse_past(content, offset, self._stop, at_end=self._at_end)
        return parse_one_by_one(content, offset, stop=self._stop, at_end=self._at_end, max_bytes=limit)

    def _first_record(self) -> tuple[bytes, int]:
        """What has been read from the stretch's first record on, and that record's offset."""
        if self._start == 0:
            return self._opening()
        look_back = min(self._start, LOOK_BACK_BYTES)
        origin = self._start - look_back
        self._file.seek(origin)
        content = b""
        while len(content) < look_back and (more := self._file.read(look_back - len(content))):
            content += more
        content += self._read_next(0)
        if self._known_first is not None:
            while len(content) <= self._known_first - origin and (more := self._read_next(0)):
                content += more
            return content[self._known_first - origin :], self._known_first
        if look_back == self._start and (opening := _OPENING.match(content)) and opening.end() >= self._start:
            return content[opening.end() :], opening.end()
        return self._next_plausible(content, origin, skip=look_back, limit=self._stop)

    def _opening(self) -> tuple[bytes, int]:
        """What follows the array's opening bracket; `content` is empty where the array is."""
        content = self._read_head()
        while True:
            rest = content.removeprefix(BYTE_ORDER_MARK).lstrip(_WHITE_SPACE).removeprefix(b"[").lstrip(_WHITE_SPACE)
            if rest or not (more := self._read_next(0)):
                break
            content += more
        offset = len(content) - len(rest)
        if rest.startswith(b"]") and not rest[1:].strip(_WHITE_SPACE):
            while more := self._read_next(0):
                rest += more
            if not rest[1:].strip(_WHITE_SPACE):
                return b"", offset + len(rest)
        if not rest:
            raise Incomplete(offset, self._position)
        return rest, offset

    def _next_plausible(self, content: bytes, offset: int, *, skip: int, limit: int | None = None) -> tuple[bytes, int]:
        """The next place in `content` (which begins at `offset`) where a record seems to begin, `skip` bytes on at least.

        Returns what has been read from there, or nothing at the array's end or if there is no such place before
        `limit`. Raises `Incomplete` if the source ends with neither.
        """
        searched = 0
        while True:
            for match in _CANDIDATE.finditer(content, searched):
                place = match.end() - 1
                if place < skip:
                    continue
                if limit is not None and offset + place >= limit:
                    return b"", offset + place
                while len(content) - place < _LOOK_AHEAD_BYTES and not self._at_end and (more := self._read_next(0)):
                    content += more
                if _could_be_record(content[place : place + _LOOK_AHEAD_BYTES]):
                    return content[place:], offset + place
            if self._at_end:
                if not content.rstrip(_WHITE_SPACE).endswith(b"]"):
                    raise Incomplete(offset, offset + len(content))
                return b"", offset + len(content)
            if limit is not None and offset + len(content) >= limit:
                return b"", offset + len(content)
            kept = max(0, len(content) - LOOK_BACK_BYTES)
            content, offset, skip = content[kept:], offset + kept, max(0, skip - kept)
            content += self._read_next(0)


def _could_be_record(content: bytes) -> bool:
    """Whether an object begins `content`, as far as can be seen: it parses, or breaks off at the end."""
    text = content.decode("utf-8", "replace")
    try:
        value, _end = json.JSONDecoder(parse_int=whole_number).raw_decode(text)
    except json.JSONDecodeError as error:
        return is_unfinished(error, text)
    except RecursionError:
        return True
    return isinstance(value, dict)


def _load(pending: bytes, chunk: bytes, num_bytes: int, offset: int) -> Batch:
    """The whole records in `pending` and the first `num_bytes` of `chunk`. Raises `orjson.JSONDecodeError`."""
    bracketed = b"".join((b"[", pending, memoryview(chunk)[:num_bytes], b"]"))
    places = found_once(functools.partial(_places, bracketed, offset))
    return Batch(orjson.loads(bracketed), len(bracketed) - 2, places)


def _parse_to_last(pending: bytes, chunk: bytes, offset: int) -> _Parsed:
    """Parse all whole records that are followed by another one: as a rule one in `chunk`, so that most bytes are copied
    once."""
    end = len(chunk)
    for _ in range(_MAX_TRIES):
        match = _last_candidate(chunk, end)
        if match is None:
            break
        end = match.start()
        try:
            batch = _load(pending, chunk, end + 1, offset)
        except orjson.JSONDecodeError:
            continue
        begin = match.end() - 1  # of the next record
        return _Parsed(batch, len(pending) + begin, chunk[begin:])
    return _parse_to_last(b"", pending + chunk, offset) if pending else parse_one_by_one(chunk, offset)


def _parse_past(content: bytes, offset: int, stop: int, *, at_end: bool) -> _Parsed:
    """Parse the records of `content` that begin before `stop`, the last of which ends behind it."""
    tries = 0
    for match in _CANDIDATE.finditer(content, max(0, stop - offset - LOOK_BACK_BYTES)):
        if offset + match.end() - 1 < stop:
            continue
        try:
            begin = match.end() - 1  # of the next record
            return _Parsed(_load(b"", content, match.start() + 1, offset), begin, content[begin:])
        except orjson.JSONDecodeError:
            tries += 1
            if tries == _MAX_TRIES:
                break
    stripped = content.rstrip(_WHITE_SPACE)
    if at_end and stripped.endswith(b"]") and (inside := stripped[:-1].rstrip(_WHITE_SPACE)):
        try:
            return _Parsed(_load(b"", content, len(inside), offset), len(content), b"")
        except orjson.JSONDecodeError:
            pass
    return parse_one_by_one(content, offset, stop=stop, at_end=at_end)


def _last_candidate(content: bytes, end: int) -> re.Match[bytes] | None:
    """The last candidate that begins before `end`."""
    while (place := content.rfind(b"}", 0, end)) >= 0:
        if match := _CANDIDATE.match(content, place):
            return match
        end = place
    return None


def parse_one_by_one(
    content: bytes, offset: int, *, stop: int | None = None, at_end: bool = False, max_bytes: int | None = None
) -> _Parsed:
    """The exact way: one record after another with Python's parser, up to the first that begins at `stop`.

    `num_bytes` is where the next record begins in `content`: its length at the array's end, less where more must be
    read first, the bad record's place if there is one. Raises `Incomplete`.
    """
    text = content.decode("utf-8", "surrogateescape")
    decoder = json.JSONDecoder(parse_constant=refuse_constant, parse_int=whole_number)
    values: list[Any] = []
    places: list[tuple[int, bytes]] = []
    place = consumed = 0  # the next record in characters and in bytes
    error: BadRecord | None = None
    while stop is None or offset + consumed < stop:
        where = offset + consumed
        if text.startswith("]", place):
            error = BadRecord(where, NOT_JSON, "not valid JSON: expected a record behind the comma, found ']'")
            break
        try:
            with room_for_depth():
                _value, end = decoder.raw_decode(text, place)
        except json.JSONDecodeError as fault:
            if not is_unfinished(fault, text):
                distance = _num_bytes(text[place : fault.pos])
                reason = f"not valid JSON: {fault.msg} at byte {distance:,} of the record"
                error = BadRecord(where, NOT_JSON, reason)
            elif at_end:
                raise Incomplete(where, offset + len(content)) from None
            break
        except (ValueError, RecursionError) as fault:
            reason = "nested too deeply" if isinstance(fault, RecursionError) else str(fault)
            error = BadRecord(where, NOT_JSON, f"not valid JSON: {reason}")
            break
        separator = _SEPARATOR.match(text, end)
        if separator is None:
            rest = text[end:].strip(" \t\r\n")
            if not at_end and _NUMBER_GOES_ON.fullmatch(text, end):
                break
            if rest not in ("", ","):
                error = BadRecord(where, NOT_JSON, f"expected ',' or ']' after the record, found {rest[0]!r}")
            elif at_end:
                raise Incomplete(where, offset + len(content))
            break
        if separator["end"] is not None:
            if text[separator.end() :].strip(" \t\r\n"):
                error = BadRecord(where, NOT_JSON, "the array ends behind this record, but the file goes on")
                break
            if not at_end:
                break
        record = text[place:end].encode("utf-8", "surrogateescape")
        try:
            values.append(load_record(record))
        except (ValueError, RecursionError):
            error = BadRecord(where, *diagnose(record))
        if max_bytes is not None and len(record) > max_bytes:
            error = BadRecord(where, TOO_LARGE, f"the record is larger than --max-record-bytes ({max_bytes:,} bytes)")
            del values[len(places) :]
        if error is not None:
            break
        places.append((where, record))
        consumed += _num_bytes(text[place : separator.end()])
        place = separator.end()
        if separator["end"] is not None:
            consumed = len(content)
            break
    if error is not None:
        error.content = content[consumed : consumed + (1 << 16)]
    if not values:
        return _Parsed(None, consumed, content[consumed:], error)
    last, record = places[-1]
    batch = Batch(values, last + len(record) - offset, places.__getitem__)
    return _Parsed(batch, consumed, content[consumed:], error)


def _places(bracketed: bytes, offset: int) -> list[tuple[int, bytes]]:
    """The place of each of the records between the brackets of `bracketed`, the first of which begins at `offset`."""
    text = bracketed[1:-1].decode("utf-8")
    decoder = json.JSONDecoder(parse_int=whole_number)
    places: list[tuple[int, bytes]] = []
    place = 0
    while place < len(text):
        with room_for_depth():
            _value, end = decoder.raw_decode(text, place)
        record = text[place:end].encode()
        places.append((offset, record))
        separator = _SEPARATOR.match(text, end)
        place = separator.end() if separator else len(text)
        offset += len(record) + place - end  # separators are ASCII
    return places


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))
