"""Plain text: a document a file, or the parts between the lines that hold a separator and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.readers.base import INVALID_UTF8, BadRecord, Batch, StreamReader
from pipeline.sources import BYTE_ORDER_MARK


class TextReader(StreamReader):
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
                yield Batch(values, num_bytes, places.copy)
                places, values, num_bytes = [], [], 0
        if values or num_bytes:
            yield Batch(values, num_bytes, places.copy)
        self.last = self._position

    def _documents(self) -> Iterator[tuple[bytes, int]]:
        """Each document with its offset. The first has a made-up line feed before it, so that a separator on the first line
        is one like any other."""
        mark = b"\n" + self._options.document_separator.encode() + b"\n"
        is_cut = len(mark) > 2
        pending, offset = b"\n" + self._read_up_to(len(BYTE_ORDER_MARK)), -1
        if pending.startswith(BYTE_ORDER_MARK, 1):
            pending, offset = b"\n" + pending[1 + len(BYTE_ORDER_MARK) :], len(BYTE_ORDER_MARK) - 1
        begin = 0  # of what is pending: the line feed before a document
        too_large = False
        while True:
            end = pending.find(mark, begin) if is_cut else -1
            if end >= 0:
                if not too_large:
                    yield pending[begin + 1 : end], offset + begin + 1
                too_large = False
                begin = end + len(mark) - 1
                continue
            offset, pending, begin = offset + begin, pending[begin:], 0
            # No end in it: this is one document, maybe with the beginning of a separator after it.
            if len(pending) - len(mark) > self._options.max_record_bytes:
                if not too_large:
                    self._options.on_bad(self._too_large(offset + 1, pending[1:]))
                    too_large = True
                kept = len(mark)
                offset, pending = offset + len(pending) - kept, pending[-kept:]
            more = self._read_next(len(pending))
            if not more:
                break
            pending += more
        if is_cut and pending.endswith(mark[:-1]):
            pending = pending[: 1 - len(mark)]
        if pending and not too_large:
            yield pending[1:], offset + 1
