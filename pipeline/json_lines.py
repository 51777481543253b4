"""JSON Lines: a raw newline is never part of a JSON string, so each newline is a safe place to cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import orjson

from pipeline.json_errors import breaks_off, broken_off, diagnose
from pipeline.records import BadRecord, Batch, UnitReader
from pipeline.sources import BYTE_ORDER_MARK


class JsonLinesReader(UnitReader):
    """The lines that begin in the unit; blank ones are no records."""

    def _batches(self, file: BinaryIO) -> Iterator[Batch]:
        for content, offset in self._whole_lines(file):
            lines = content.split(b"\n")
            try:
                values = [orjson.loads(line) for line in lines if line and not line.isspace()]
            except orjson.JSONDecodeError:
                raise _bad_line(lines, offset, at_end=offset + len(content) >= self._source.num_bytes) from None
            yield Batch(values, content, offset)

    def _whole_lines(self, file: BinaryIO) -> Iterator[tuple[bytes, int]]:
        """Chunks of whole lines that begin in the unit, each with its offset."""
        start, stop = self._unit.start, self._unit.stop
        if start == 0:
            self.first = 0
        else:
            file.seek(start - 1)
            self.first = start if file.read(1) == b"\n" else None
        self._seek(file, start)
        pending, offset = b"", start  # an unfinished line and its offset
        while True:
            room = max(self.chunk_bytes, len(pending))
            chunk = self._read(file, min(room, stop - self._position) if self._position < stop else room)
            if not chunk:
                break
            if self.first is None:  # still in a line that began before the unit
                skipped = chunk.find(b"\n") + 1 or len(chunk)
                ends_line = chunk[skipped - 1 : skipped] == b"\n"
                offset, chunk = offset + skipped, chunk[skipped:]
                if ends_line and offset < stop:
                    self.first = offset
                elif self._position >= stop:
                    return
                else:
                    continue
            if self._position > stop:  # only the line that is begun belongs to us
                end = chunk.find(b"\n") + 1
                pending += chunk[: end or len(chunk)]
                if end:
                    break
                continue
            pending += chunk
            end = pending.rfind(b"\n") + 1
            if end:
                yield self._without_mark(pending[:end], offset)
                offset += end
                pending = pending[end:]
            if self._position == stop and not pending:
                break
        self.last = offset + len(pending)
        if pending:
            yield self._without_mark(pending, offset)

    def _without_mark(self, content: bytes, offset: int) -> tuple[bytes, int]:
        if offset == 0 and content.startswith(BYTE_ORDER_MARK):
            return content[len(BYTE_ORDER_MARK) :], len(BYTE_ORDER_MARK)
        return content, offset


def _bad_line(lines: list[bytes], offset: int, *, at_end: bool) -> BadRecord:
    """Which of `lines`, the first of which begins at `offset`, can't be parsed."""
    for number, line in enumerate(lines):
        if line and not line.isspace():
            try:
                orjson.loads(line)
            except orjson.JSONDecodeError:
                if at_end and number == len(lines) - 1 and breaks_off(line):
                    return BadRecord(offset, broken_off(offset + len(line)))
                return BadRecord(offset, diagnose(line))
        offset += len(line) + 1
    raise AssertionError("one of the lines must fail again")
