"""JSON Lines: a raw newline is never part of a JSON string, so each newline is a safe place to cut."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from typing import Any

import orjson

from pipeline.readers.base import TOO_LARGE, BadRecord, Batch, Incomplete, StreamReader
from pipeline.readers.json_parser import breaks_off, end_of_text, skip_white_space
from pipeline.readers.json_texts import load_record


class JsonLinesReader(StreamReader):
    """The lines that begin in the range; blank ones are no records."""

    def _batches(self) -> Iterator[Batch]:
        for lines, offset, num_bytes in self._whole_lines():
            if num_bytes <= self._options.max_record_bytes:
                try:
                    values = [orjson.loads(line) for line in lines if line and not line.isspace()]
                    yield Batch(values, num_bytes, functools.partial(_places, lines, offset))
                    continue
                except orjson.JSONDecodeError:
                    pass
            yield self._one_by_one(lines, offset, num_bytes)

    def _one_by_one(self, lines: list[bytes], offset: int, num_bytes: int) -> Batch:
        """The good ones among `lines`, the first of which begins at `offset`; the bad ones are reported. A line may hold
        several objects."""
        values: list[Any] = []
        good: list[tuple[int, bytes]] = []
        end = offset + num_bytes
        pending = _places(lines, offset)[::-1]
        while pending:
            place, line = pending.pop()
            try:
                if len(line) > self._options.max_record_bytes:
                    raise self._too_large(place, line)
                values.append(load_record(line, place))
                good.append((place, line))
            except BadRecord as error:
                objects, is_open = ([], False) if error.kind == TOO_LARGE else _objects_in(line)
                if len(objects) > 1:
                    pending += [(place + begin, content) for begin, content in reversed(objects)]
                elif is_open and self._at_end and place + len(line) == end:
                    raise Incomplete(place) from None
                else:
                    self._options.on_bad(error)
        return Batch(values, num_bytes, lambda: good)

    def _whole_lines(self) -> Iterator[tuple[list[bytes], int, int]]:
        """The range's lines without their newlines, many at a time; the first one's offset, and the bytes. A line that ends
        the source without a newline is the last in its list."""
        offset, stop = self._start, self._stop
        pending = read = b""  # an unfinished line, which begins at `offset`; and what is read of the next chunk already
        if offset > 0:
            self._go_back(offset - 1)
            offset, read = self._skip_line(offset - 1, stop)
            if offset >= stop:
                return
        else:
            read = self._read_start()
            offset = self._position - len(read)
        self.first = offset
        while chunk := read or self._read_next(len(pending)):
            read = b""
            if self._position > stop:  # only lines that are begun before it belong to us
                end = chunk.find(b"\n", max(0, stop - self._position + len(chunk) - 1)) + 1
                pending += chunk[: end or len(chunk)]
                if end:
                    break
            else:
                lines = chunk.split(b"\n")
                lines[0] = pending + lines[0]
                num_bytes = len(pending) + len(chunk) - len(lines[-1])
                pending, lines[-1] = lines[-1], b""
                if len(lines) > 1:
                    yield lines, offset, num_bytes
                    offset += num_bytes
                if self._position == stop and not pending:
                    break
            if len(pending) > self._options.max_record_bytes:
                self._options.on_bad(self._too_large(offset, pending))
                offset, read = self._skip_line(offset + len(pending))
                pending = b""
                if offset >= stop:
                    break
        self.last = offset + len(pending)
        if pending:
            yield pending.split(b"\n"), offset, len(pending)

    def _skip_line(self, offset: int, limit: int = sys.maxsize) -> tuple[int, bytes]:
        """Read on from `offset`, inside a line, to its end or `limit`; the offset there, and what is read from there on."""
        while offset < limit and (chunk := self._read_next(0)):
            if end := chunk.find(b"\n") + 1:
                return offset + end, chunk[end:]
            offset += len(chunk)
        return offset, b""


def _places(lines: list[bytes], offset: int) -> list[tuple[int, bytes]]:
    """The offset and the content of each record among `lines`, the first of which begins at `offset`."""
    places: list[tuple[int, bytes]] = []
    for line in lines:
        if line and not line.isspace():
            places.append((offset, line))
        offset += len(line) + 1
    return places


def _objects_in(line: bytes) -> tuple[list[tuple[int, bytes]], bool]:
    """The place and content of each object of a line that holds nothing else; else none, and if it breaks off."""
    text = line.decode("latin-1").rstrip(" \t\r\n")
    found: list[tuple[int, bytes]] = []
    place = skip_white_space(text, 0)
    while place < len(text):
        try:
            end = end_of_text(text, place)
        except json.JSONDecodeError as error:
            return [], breaks_off(error)
        except RecursionError:
            return [], False
        if not text.startswith("{", place):
            return [], False
        found.append((place, line[place:end]))
        place = skip_white_space(text, end)
    return found, False
