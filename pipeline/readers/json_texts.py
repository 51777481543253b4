"""JSON texts one after another: over several lines each, as `jq .` prints them, or several in one line.

What array and lines do with the texts that the fast parser refuses is here, too: one by one with Python's parser.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import orjson

from pipeline.readers.base import INVALID_UTF8, LONE_SURROGATE, NOT_JSON, BadRecord, Batch, Incomplete, StreamReader
from pipeline.readers.json_parser import DECODER, breaks_off, end_of_text, in_words, is_unfinished

LOOK_BACK_BYTES = 4096
LOOK_AHEAD_BYTES = 1 << 16
WHITE_SPACE = b" \t\r\n"
_COMMA = re.compile(rb",[ \t\r\n]*\{")
# After a text: part of a number, or what lies between two texts, to the end of what is read. More must be seen.
_UNDECIDED = re.compile(r"[.eE+-]{0,2}[ \t\r\n]*(?:[],][ \t\r\n]*)?")


def load_record(record: bytes, offset: int) -> Any:
    """The value of a record that lies at `offset`, also of one with a number beyond a float's range. Raises `BadRecord`."""
    try:
        return orjson.loads(record)
    except orjson.JSONDecodeError:
        pass
    try:
        text = record.decode()
        DECODER.decode(record.decode("latin-1"))  # its faults have places in bytes
        value = DECODER.decode(text)
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeDecodeError as error:
        kind, reason = INVALID_UTF8, f"invalid UTF-8 at byte {error.start:,} of the record"
    except UnicodeEncodeError:
        kind, reason = LONE_SURROGATE, "a lone surrogate (half of a \\uXXXX pair) is no text"
    except json.JSONDecodeError as error:
        kind, reason = NOT_JSON, in_words(error)
    except RecursionError:
        kind, reason = NOT_JSON, "not valid JSON: nested too deeply"
    except ValueError as error:
        kind, reason = NOT_JSON, f"not valid JSON: {error}"
    raise BadRecord(offset, kind, reason, record)


class JsonTextsReader(StreamReader):
    """All texts of the file. After one whose end can't be found, the next place counts where an object seems to begin."""

    _separator = re.compile(r"[ \t\r\n]*")
    _next_object = re.compile(rb"(?:\}[ \t\r\n]*|\n)\{")
    _is_array = False

    def _batches(self) -> Iterator[Batch]:
        pending = b""  # the beginning of a record, which goes on in `chunk`
        chunk, offset = self._first_record()  # begins at a record, or is empty
        if chunk and offset < self._stop:
            self.first = offset
        if self._start == 0:
            self.last = offset
        while (pending or chunk) and offset < self._stop:
            batch, num_bytes, rest, error = self._parse(pending, chunk, offset)
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

    def _first_record(self) -> tuple[bytes, int]:
        """What has been read from the range's first record on, and that record's offset."""
        content = self._skip_white_space(self._read_start())
        return content, self._position - len(content)

    def _skip_white_space(self, content: bytes) -> bytes:
        """What has been read from the first byte on, in `content` or after it, that is no white space."""
        while not (content := content.lstrip(WHITE_SPACE)) and (more := self._read_next()):
            content = more
        return content

    def _parse(self, pending: bytes, chunk: bytes, offset: int) -> tuple[Batch, int, bytes, BadRecord | None]:
        """The whole records in `pending` and `chunk` after it, the first of which begins at `offset`; the bytes that took,
        those that remain, and the bad record that begins these, if its end can't be found."""
        return self._parse_one_by_one(pending + chunk, offset)

    def _parse_one_by_one(self, content: bytes, offset: int) -> tuple[Batch, int, bytes, BadRecord | None]:
        """As `_parse`: one after another with Python's parser, up to the first that begins at the range's end."""
        text, place, limit = content.decode("latin-1"), 0, self._options.max_record_bytes
        values: list[Any] = []
        good: list[tuple[int, bytes]] = []
        error: BadRecord | None = None
        while place < len(text) and offset + place < self._stop:
            try:
                bounds = self._bounds(text, place, offset)
            except ValueError as fault:
                following = self._following(content, place)
                shown = content[place : min(place + (1 << 16), following or len(content))]
                error = BadRecord(offset + place, NOT_JSON, str(fault), shown)
                if following is None:
                    break
                self._options.on_bad(error)
                place, error = following, None
                continue
            if bounds is None:
                break
            record = content[place : bounds[0]]
            try:
                if len(record) > limit:
                    raise self._too_large(offset + place, record)
                values.append(load_record(record, offset + place))
                good.append((offset + place, record))
            except BadRecord as bad:
                self._options.on_bad(bad)
            place = bounds[1]
        return Batch(values, place, lambda: good), place, content[place:], error

    def _following(self, content: bytes, place: int) -> int | None:
        """Where the next record seems to begin in `content` after the bad one at `place`, if enough follows to tell."""
        while match := self._search(content, place):
            place = match.end() - 1
            if not self._is_array:
                return place
            if place + LOOK_AHEAD_BYTES > len(content) and not self._at_end:
                return None
            if _could_be_object(content[place : place + LOOK_AHEAD_BYTES]):
                return place
        return None

    def _search(self, content: bytes, place: int) -> re.Match[bytes] | None:
        """What ends where the next object seems to begin, after `place`; a comma at `place` may stand between two texts."""
        comma = None if self._is_array else _COMMA.match(content, place)
        return comma or self._next_object.search(content, place)

    def _bounds(self, text: str, place: int, offset: int) -> tuple[int, int] | None:
        """Where the record at `place` of `text` ends, and where the next one begins; None if more must be read first.

        Raises `ValueError` for what hides its end, and `Incomplete`.
        """
        try:
            end = end_of_text(text, place)
        except json.JSONDecodeError as fault:
            if not self._at_end and is_unfinished(fault):
                return None
            if self._at_end and breaks_off(fault):
                raise Incomplete(offset + place) from None
            raise ValueError(in_words(fault, place)) from None
        except RecursionError:
            raise ValueError("not valid JSON: nested too deeply") from None
        if not self._at_end and _UNDECIDED.fullmatch(text, end):
            return None
        if separator := self._separator.match(text, end):
            return end, separator.end()
        rest = text[end:].strip(" \t\r\n")
        if rest in ("", ","):
            raise Incomplete(offset + place)
        if rest.startswith("]"):
            raise ValueError("the array ends after this record, but the file goes on")
        raise ValueError(f"expected ',' or ']' after the record, found {rest[0]!r}")

    def _next_plausible(self, content: bytes, offset: int, *, skip: int, limit: int = sys.maxsize) -> tuple[bytes, int]:
        """The next place in `content` (which begins at `offset`) where a record seems to begin, `skip` bytes on at least.

        Returns what has been read from there, or nothing at the source's end or if there is no such place before
        `limit`. Raises `Incomplete` if the source doesn't end as it should.
        """
        searched = 0
        while True:
            while match := self._search(content, searched):
                place = searched = match.end() - 1
                if place < skip:
                    continue
                if offset + place >= limit:
                    return b"", offset + place
                content = self._read_up_to(place + LOOK_AHEAD_BYTES, content)
                if not self._is_array or _could_be_object(content[place : place + LOOK_AHEAD_BYTES]):
                    return content[place:], offset + place
            if self._at_end and self._is_array and not content.rstrip(WHITE_SPACE).endswith(b"]"):
                raise Incomplete(offset)
            if self._at_end or offset + len(content) >= limit:
                return b"", offset + len(content)
            kept = max(0, len(content) - LOOK_BACK_BYTES)
            content, offset, skip, searched = content[kept:], offset + kept, max(0, skip - kept), 0
            content += self._read_next()


def _could_be_object(content: bytes) -> bool:
    """Whether an object begins `content`, as far as can be seen: it parses, or breaks off at the end."""
    try:
        end_of_text(content.decode("latin-1"), 0)
    except json.JSONDecodeError as error:
        return is_unfinished(error)
    except RecursionError:
        pass
    return True
