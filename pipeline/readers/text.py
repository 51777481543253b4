"""Plain text: a document a file, or the parts between the lines that hold a separator and nothing else.

The first line of a file, if it ends within 64 KiB, says how lines end in it: with LF or with CR LF.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.readers.base import INVALID_UTF8, BadRecord, Batch, StreamReader

_LINE_BYTES = 1 << 16  # of the first line, up to which its end is looked for


class TextReader(StreamReader):
    """The documents of a `.txt` file, each as the record `{"text": …}`, or with the field that was asked for."""

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
                values.append({self._options.text_field: content.decode("utf-8")})
                places.append((offset, content))
            except UnicodeDecodeError as error:
                reason = f"invalid UTF-8 at byte {error.start:,} of the document"
                self._options.on_bad(BadRecord(offset, INVALID_UTF8, reason, content))
            if num_bytes >= self.chunk_bytes:
                yield Batch(values, num_bytes, places.copy)
                places, values, num_bytes = [], [], 0
        yield Batch(values, num_bytes, places.copy)
        self.last = self._position

    def _documents(self) -> Iterator[tuple[bytes, int]]:
        """Each document with its offset; of one that is too large, a part that is too large itself."""
        separator, start = self._options.document_separator.encode(), self._read_up_to(_LINE_BYTES, self._read_start())
        newline = b"\r\n" if start.partition(b"\n")[0].endswith(b"\r") else b"\n"
        mark = newline + separator + newline
        # The first has a made-up newline before it, so that a separator on the first line is one like any other.
        pending = newline + start
        offset, begin = self._position - len(pending), 0  # of what is pending; in it, the newline before a document
        is_given = False  # the document that begins there, in part
        while True:
            end = pending.find(mark, begin) if separator else -1
            if end >= 0:
                if not is_given:
                    yield pending[begin + len(newline) : end], offset + begin + len(newline)
                is_given = False
                begin = end + len(mark) - len(newline)
                continue
            offset, pending, begin = offset + begin, pending[begin:], 0
            # No end in it: this is one document, maybe with the beginning of a separator after it.
            if len(pending) - len(mark) > self._options.max_record_bytes:
                if not is_given:
                    yield pending[len(newline) :], offset + len(newline)
                is_given = True
                offset, pending = offset + len(pending) - len(mark), pending[-len(mark) :]
            more = self._read_next(len(pending))
            if not more:
                break
            pending += more
        if separator:
            pending = pending.removesuffix(newline + separator)
        if pending and not is_given:
            yield pending[len(newline) :], offset + len(newline)
