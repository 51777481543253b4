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
import re
from collections.abc import Iterable, Iterator

import orjson

from pipeline.readers.base import NOT_JSON, BadRecord, Batch, Incomplete
from pipeline.readers.json_parser import end_of_text
from pipeline.readers.json_texts import LOOK_AHEAD_BYTES, LOOK_BACK_BYTES, WHITE_SPACE, JsonTextsReader

_MAX_TRIES = 4
_CANDIDATE = re.compile(rb"\}[ \t\r\n]*,[ \t\r\n]*\{")
_OPENING = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\[[ \t\r\n]*(?=\{)")
_SEPARATOR = re.compile(r"[ \t\r\n]*(?:,[ \t\r\n]*(?=[^ \t\r\n])|\][ \t\r\n]*\Z)")


class JsonArrayReader(JsonTextsReader):
    """The records that begin in the range."""

    _separator = _SEPARATOR
    _next_object = _CANDIDATE
    _is_array = True

    def _parse(self, pending: bytes, chunk: bytes, offset: int) -> tuple[Batch, int, bytes, BadRecord | None]:
        """As a rule up to the last end that can be found in `chunk`, so that most bytes are copied once; at the range's or
        the source's end up to the first record that isn't ours."""
        if len(pending) + len(chunk) <= self._options.max_record_bytes:
            if self._position <= self._stop and not self._at_end:
                ends: Iterable[tuple[int, int]] = itertools.islice(_ends_from_the_back(chunk), _MAX_TRIES)
            else:
                pending, chunk = b"", pending + chunk
                ends = _ends_from(self._stop - offset, chunk, at_end=self._at_end)
            for end, begin in ends:
                with contextlib.suppress(orjson.JSONDecodeError):
                    return _load(pending, chunk, end, offset), len(pending) + begin, chunk[begin:], None
            if pending:
                return self._parse(b"", pending + chunk, offset)
        return self._parse_one_by_one(pending + chunk, offset)

    def _first_record(self) -> tuple[bytes, int]:
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
        """From the first record on, with its offset; nothing, with the source's end, where the array is empty."""
        rest = self._skip_white_space(self._skip_white_space(self._read_start()).removeprefix(b"["))
        if not rest:
            raise Incomplete(self._position)
        if not rest.startswith(b"]"):
            return rest, self._position - len(rest)
        rest = self._skip_white_space(rest[1:])
        offset = self._position - len(rest)
        if not rest:
            return rest, offset
        reason = "the array has ended, but the file goes on"
        self._options.on_bad(BadRecord(offset, NOT_JSON, reason, rest[:LOOK_AHEAD_BYTES]))
        return self._next_plausible(rest, offset, skip=1)


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
    stripped = content.rstrip(WHITE_SPACE) if at_end else b""
    if stripped.endswith(b"]") and (inside := stripped[:-1].rstrip(WHITE_SPACE)):
        yield len(inside), len(content)


def _load(pending: bytes, chunk: bytes, num_bytes: int, offset: int) -> Batch:
    """The whole records in `pending` and the first `num_bytes` of `chunk`. Raises `orjson.JSONDecodeError`."""
    bracketed = b"".join((b"[", pending, memoryview(chunk)[:num_bytes], b"]"))
    return Batch(orjson.loads(bracketed), len(bracketed) - 2, functools.partial(_places, bracketed, offset))


def _places(bracketed: bytes, offset: int) -> list[tuple[int, bytes]]:
    """The place of each of the records within `bracketed`, the first of which begins at `offset`."""
    text, place = bracketed.decode("latin-1"), 1
    places: list[tuple[int, bytes]] = []
    while place < len(text):
        end, begin = end_of_text(text, place), place
        places.append((offset + begin - 1, bracketed[begin:end]))
        separator = _SEPARATOR.match(text, end)
        assert separator is not None  # they were parsed together
        place = separator.end()
    return places
