"""Plain text: a document a file, or the parts between the lines that hold a separator and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.records import INVALID_UTF8, BadRecord, Batch, StreamReader
from pipeline.sources import BYTE_ORDER_MARK


class PlainTextReader(StreamReader):
    """The documents of a `.txt` file, each as the record `{"text": …}`."""

    def _batches(self) -> Iterator[Batch]:
        self.first = 0
        places: list[tuple[int, bytes]] = []
        values: list[Any] = []
        num_bytes = 0
        for content, offset in self._documents():
            num_bytes += len(content)
            if len(content) > self._options.max_record_bytes:
                self._options.on_bad(self._too_large(offset, content))
                continue
            try:
                values.append({"text": content.decode("utf-8")})
                places.append((offset, content))
            except UnicodeDecodeError as error:
                reason = f"invalid UTF-8 at byte {error.start:,} of the document"
                self._options.on_bad(BadRecord(offset, INVALID_UTF8, reason, content))
            if num_bytes >= self.chunk_bytes:
                yield Batch(values, num_bytes, places.__getitem__)
                places, values, num_bytes = [], [], 0
        if values or num_bytes:
            yield Batch(values, num_bytes, places.__getitem__)
        self.last = self._position

    def _documents(self) -> Iterator[tuple[bytes, int]]:
        separator = self._options.document_separator
        pending, offset = self._read_next(0), 0
        if pending.startswith(BYTE_ORDER_MARK):
            pending, offset = pending[len(BYTE_ORDER_MARK) :], len(BYTE_ORDER_MARK)
        if separator:
            mark = b"\n" + separator.encode() + b"\n"
            if pending.startswith(mark[1:]):
                pending = b"\n" + pending  # a separator on the first line
                offset -= 1
        too_large = False
        while True:
            if separator and (end := pending.find(mark)) >= 0:
                if not too_large:
                    yield pending[:end], offset
                too_large = False
                offset += end + len(mark) - 1  # the line feed behind a separator may be the one before the next
                pending = pending[end + len(mark) - 1 :]
                if not pending.startswith(mark):
                    pending, offset = pending[1:], offset + 1
                continue
            more = self._read_next(len(pending))
            if not more:
                break
            pending += more
            if not self._check_size(len(pending)):
                if not too_large:
                    self._options.on_bad(self._too_large(offset, pending))
                    too_large = True
                kept = len(separator.encode()) + 2
                offset, pending = offset + len(pending) - kept, pending[-kept:]
        if too_large:
            return
        if separator and pending.endswith(mark[:-1]):
            pending = pending[: -len(mark) + 1]
        yield pending, offset
