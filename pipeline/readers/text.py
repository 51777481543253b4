"""Plain text: a document a file, or the parts between the lines that hold a separator and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.readers.base import INVALID_UTF8, BadRecord, Batch, StreamReader


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
        yield Batch(values, num_bytes, places.copy)
        self.last = self._position

    def _documents(self) -> Iterator[tuple[bytes, int]]:
        """Each document with its offset; of one that is too large, a part that is too large itself."""
        mark = b"\n" + self._options.document_separator.encode() + b"\n"
        is_cut = len(mark) > 2
        # The first has a made-up line feed before it, so that a separator on the first line is one like any other.
        pending = b"\n" + self._read_start()
        offset, begin = self._position - len(pending), 0  # of what is pending; in it, the line feed before a document
        is_given = False  # the document that begins there, in part
        while True:
            end = pending.find(mark, begin) if is_cut else -1
            if end >= 0:
                if not is_given:
                    yield pending[begin + 1 : end], offset + begin + 1
                is_given = False
                begin = end + len(mark) - 1
                continue
            offset, pending, begin = offset + begin, pending[begin:], 0
            # No end in it: this is one document, maybe with the beginning of a separator after it.
            if len(pending) - len(mark) > self._options.max_record_bytes:
                if not is_given:
                    yield pending[1:], offset + 1
                is_given = True
                offset, pending = offset + len(pending) - len(mark), pending[-len(mark) :]
            more = self._read_next(len(pending))
            if not more:
                break
            pending += more
        if is_cut and pending.endswith(mark[:-1]):
            pending = pending[: 1 - len(mark)]
        if pending and not is_given:
            yield pending[1:], offset + 1
