"""JSON arrays, in any layout: one record a line, pretty-printed, all on one line.

`}`, white space, `,`, white space, `{` is a *candidate* for the end of a record; it may also stand inside a string, or
in an array within a record. From a record's true start, bytes that parse between `[` and `]` end at a true end. So each
batch is proven by parsing it, and only a range's first record rests on a guess: `first` of each range must equal `last`
of the one before it, or the range is read again with its `first` given.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from pipeline.readers.base import NOT_JSON, TOO_LARGE, BadRecord, Batch, Incomplete, StreamReader
from pipeline.readers.json_parser import DECODER, LENIENT_DECODER, in_words, is_unfinished, room_for_depth
from pipeline.readers.json_record import load_record
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
    """What was parsed: a batch if there was a whole record, the bytes that took, those that remain, and the bad record
    that ended it."""

    batch: Batch | None
    num_bytes: int
    rest: bytes
    error: BadRecord | None = None


class JsonArrayReader(StreamReader):
    """The records that begin in the range."""

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
        """As many whole records as `pending` and `chunk` after it hold, the first of which begins at `offset`.

        As a rule up to the last end that can be found in `chunk`, so that most bytes are copied once; at the range's or
        the source's end up to the first record that isn't ours.
        """
        limit = self._options.max_record_bytes
        if len(pending) + len(chunk) <= limit:
            if self._position <= self._stop and not self._at_end:
                ends: Iterable[tuple[int, int]] = itertools.islice(_ends_from_the_back(chunk), _MAX_TRIES)
            else:
                pending, chunk = b"", pending + chunk
                ends = _ends_from(self._stop - offset, chunk, at_end=self._at_end)
            for end, begin in ends:
                with contextlib.suppress(orjson.JSONDecodeError):
                    return _Parsed(_load(pending, chunk, end, offset), len(pending) + begin, chunk[begin:])
            if pending:
                return self._parse(b"", pending + chunk, offset)
        at_end = self._position if self._at_end else None
        return _parse_one_by_one(pending + chunk, offset, stop=self._stop, source_bytes=at_end, max_bytes=limit)

    def _first_record(self) -> tuple[bytes, int]:
        """What has been read from the range's first record on, and that record's offset."""
        if self._start == 0:
            return self._opening()
        look_back = min(self._start, LOOK_BACK_BYTES)
        origin = self._start - look_back
        self._go_back(origin)
        content = self._read_up_to((self._known_first or self._start) - origin + 1, self._read(look_back))
        if self._known_first is not None:
            return content[self._known_first - origin :], self._known_first
        if origin == 0 and (opening := _OPENING.match(content)) and opening.end() >= self._start:
            return content[opening.end() :], opening.end()
        return self._next_plausible(content, origin, skip=look_back, limit=self._stop)

    def _opening(self) -> tuple[bytes, int]:
        """What follows the array's opening bracket; `content` is empty where the array is."""
        content = self._read_up_to(len(BYTE_ORDER_MARK))
        while True:
            rest = content.removeprefix(BYTE_ORDER_MARK).lstrip(_WHITE_SPACE).removeprefix(b"[").lstrip(_WHITE_SPACE)
            if rest or not (more := self._read_next(0)):
                break
            content += more
        offset = len(content) - len(rest)
        if rest.startswith(b"]") and not rest[1:].strip(_WHITE_SPACE):
            rest = self._read_up_to(sys.maxsize, rest)
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
            while match := _CANDIDATE.search(content, searched):
                place = searched = match.end() - 1
                if place < skip:
                    continue
                if limit is not None and offset + place >= limit:
                    return b"", offset + place
                content = self._read_up_to(place + _LOOK_AHEAD_BYTES, content)
                if _could_be_record(content[place : place + _LOOK_AHEAD_BYTES]):
                    return content[place:], offset + place
            if self._at_end:
                if not content.rstrip(_WHITE_SPACE).endswith(b"]"):
                    raise Incomplete(offset, offset + len(content))
                return b"", offset + len(content)
            if limit is not None and offset + len(content) >= limit:
                return b"", offset + len(content)
            kept = max(0, len(content) - LOOK_BACK_BYTES)
            content, offset, skip, searched = content[kept:], offset + kept, max(0, skip - kept), 0
            content += self._read_next(0)


def _could_be_record(content: bytes) -> bool:
    """Whether an object begins `content`, as far as can be seen: it parses, or breaks off at the end."""
    text = content.decode("utf-8", "replace")
    try:
        value, _end = LENIENT_DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        return is_unfinished(error, text)
    except RecursionError:
        return True
    return isinstance(value, dict)


def _ends_from_the_back(content: bytes) -> Iterator[tuple[int, int]]:
    """Where a record seems to end in `content` and the next one begins: the last such pair first."""
    end = len(content)
    while (end := content.rfind(b"}", 0, end)) >= 0:
        if match := _CANDIDATE.match(content, end):
            yield end + 1, match.end() - 1


def _ends_from(stop: int, content: bytes, *, at_end: bool) -> Iterator[tuple[int, int]]:
    """Where a record seems to end in `content` and the next one begins, at `stop` or after it; the array's end too."""
    candidates = _CANDIDATE.finditer(content, max(0, stop - LOOK_BACK_BYTES))
    for match in itertools.islice((match for match in candidates if match.end() > stop), _MAX_TRIES):
        yield match.start() + 1, match.end() - 1
    stripped = content.rstrip(_WHITE_SPACE) if at_end else b""
    if stripped.endswith(b"]") and (inside := stripped[:-1].rstrip(_WHITE_SPACE)):
        yield len(inside), len(content)


def _load(pending: bytes, chunk: bytes, num_bytes: int, offset: int) -> Batch:
    """The whole records in `pending` and the first `num_bytes` of `chunk`. Raises `orjson.JSONDecodeError`."""
    bracketed = b"".join((b"[", pending, memoryview(chunk)[:num_bytes], b"]"))
    return Batch(orjson.loads(bracketed), len(bracketed) - 2, functools.partial(_places, bracketed, offset))


def _places(bracketed: bytes, offset: int) -> Sequence[tuple[int, bytes]]:
    """The place of each of the records within `bracketed`, the first of which begins at `offset`."""
    batch = _parse_one_by_one(bracketed[1:], offset, stop=sys.maxsize, source_bytes=0, max_bytes=sys.maxsize).batch
    return batch.find_places() if batch else []


def _parse_one_by_one(content: bytes, offset: int, *, stop: int, source_bytes: int | None, max_bytes: int) -> _Parsed:
    """The exact way: one record after another with Python's parser, up to the first that begins at `stop`.

    `num_bytes` is where the next record begins in `content`: its length at the array's end, less where more must be
    read first, the bad record's place if there is one. `source_bytes` is known where `content` ends the source. Raises
    `Incomplete`.
    """
    text = content.decode("utf-8", "surrogateescape")
    values: list[Any] = []
    places: list[tuple[int, bytes]] = []
    place = consumed = 0  # the next record in characters and in bytes
    error: BadRecord | None = None
    while (where := offset + consumed) < stop:
        try:
            separator = _end_of(text, place, at_end=source_bytes is not None)
            if separator is None:
                break
            record = _encoded(text[place : separator.start()])
            if len(record) > max_bytes:
                raise BadRecord(where, TOO_LARGE, f"the record is larger than max_record_bytes ({max_bytes:,} bytes)")
            values.append(load_record(record, where))
        except EOFError:
            raise Incomplete(where, source_bytes or 0) from None
        except ValueError as fault:
            error = BadRecord(where, NOT_JSON, str(fault))
            break
        except BadRecord as bad:
            error = bad
            break
        places.append((where, record))
        if separator["end"]:
            consumed = len(content)
            break
        consumed += len(_encoded(text[place : separator.end()]))
        place = separator.end()
    rest = content[consumed:]
    if error is not None:
        error.content = rest[: 1 << 16]
    batch = None
    if places:
        last, record = places[-1]
        batch = Batch(values, last + len(record) - offset, lambda: places)
    return _Parsed(batch, consumed, rest, error)


def _end_of(text: str, place: int, *, at_end: bool) -> re.Match[str] | None:
    """What follows the record at `place` of `text`, and so begins where that ends; None if more must be read first.

    Raises `ValueError` for what is wrong with the record, and `EOFError` if the source ends (`at_end`) before the array.
    """
    if text.startswith("]", place):
        raise ValueError("not valid JSON: a comma before the array's closing ']': expected a record after it")
    separator = None
    try:
        with room_for_depth():
            _value, end = DECODER.raw_decode(text, place)
    except json.JSONDecodeError as fault:
        if not is_unfinished(fault, text):
            distance = len(_encoded(text[place : fault.pos]))
            raise ValueError(in_words(fault, f"at byte {distance:,} of the record", place)) from None
    except (ValueError, RecursionError) as fault:
        reason = "nested too deeply" if isinstance(fault, RecursionError) else str(fault)
        raise ValueError(f"not valid JSON: {reason}") from None
    else:
        separator = _SEPARATOR.match(text, end)
        if separator is None:
            rest = text[end:].strip(" \t\r\n")
            may_go_on = not at_end and _NUMBER_GOES_ON.fullmatch(text, end)
            if rest not in ("", ",") and not may_go_on:
                raise ValueError(f"expected ',' or ']' after the record, found {rest[0]!r}")
        elif separator["end"]:
            if text[separator.end() :].strip(" \t\r\n"):
                raise ValueError("the array ends after this record, but the file goes on")
            if not at_end:
                return None
    if separator is None and at_end:
        raise EOFError
    return separator


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
