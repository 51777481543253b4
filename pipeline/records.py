"""What a stretch is read as: batches of parsed records, each record at a known place.

The readers of the formats are in modules of their own; `pipeline.readers.open_stretch` takes the right one. In a source
that can be read from the middle, a stretch `[start, stop)` owns the records whose first byte lies in it: its reader finds
the first by looking from `start` on, and reads past `stop` to the end of the last.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.sources import BYTE_ORDER_MARK, Source
from pipeline.streams import STREAM_ERRORS, HashedFile, open_stream
from pipeline.units import Stretch
from shards.common.errors import InputError

# The kinds of bad records, as the manifest counts them.
NOT_JSON = "not valid JSON"
INVALID_UTF8 = "invalid UTF-8"
LONE_SURROGATE = "lone surrogate"
TOO_LARGE = "record too large"
NOT_AN_OBJECT = "not an object"
NO_FIELD = "no text field"
NOT_A_STRING = "text is not a string"


class BadRecord(Exception):
    """A record that can't be used: where it is, what kind of fault it has, and what exactly.

    `offset` is in bytes of the (unpacked) source, or the row's number where a source has rows. `content` is the record
    as it stands, maybe cut short.
    """

    def __init__(self, offset: int, kind: str, reason: str, content: bytes = b"") -> None:
        super().__init__(reason)
        self.offset, self.kind, self.reason, self.content = offset, kind, reason, content


def raise_bad(error: BadRecord) -> None:
    """For `ReadOptions.on_bad`: the first bad record ends the reading."""
    raise error


class Incomplete(BadRecord):
    """The source ends inside a record. Never skipped: the file is not what it should be."""

    def __init__(self, offset: int, num_bytes: int) -> None:
        reason = f"the file ends inside a record (at byte {num_bytes:,}): the download is incomplete"
        super().__init__(offset, NOT_JSON, reason)


@dataclasses.dataclass
class Batch:
    """Parsed records that lie together.

    `place(number)` is the offset of record `number` of the batch and its content.
    """

    values: list[Any]
    num_bytes: int
    place: Callable[[int], tuple[int, bytes]]


def found_once(find: Callable[[], Sequence[tuple[int, bytes]]]) -> Callable[[int], tuple[int, bytes]]:
    """For `Batch.place`: the places of all records, which `find` looks for when the first is asked for."""
    places = functools.cache(find)
    return lambda number: places()[number]


def row_batch(values: list[Any], row: int, num_bytes: int) -> Batch:
    """The rows `values`, the first of which has the number `row` in its source."""
    return Batch(values, num_bytes, lambda number: (row + number, repr(values[number]).encode()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read: `on_bad` is called with each bad record and raises it, or notes it so that reading goes on."""

    on_bad: Callable[[BadRecord], None]
    max_record_bytes: int = 256 * 2**20
    document_separator: str = ""
    columns: tuple[str, ...] | None = None  # the top-level fields that are needed, None for all


class StretchReader(abc.ABC):
    """The records of one stretch, in order: what the readers of all formats have in common.

    Iterate once; then `digest`, `first` and `last` are known. `first` is the offset of the stretch's first record, `last`
    the offset behind its last one, where the next stretch's first begins; `first` is None if no record begins in it.
    `digest` is BLAKE3 of the bytes of the stretch; empty if the first stretch's digest is of the whole source.
    """

    chunk_bytes = 1 << 21

    def __init__(self, source: Source, stretch: Stretch, options: ReadOptions, *, first: int | None = None) -> None:
        """`first` is the offset of the stretch's first record where it is known already."""
        self._source, self._stretch, self._options = source, stretch, options
        self._known_first = first
        self.first: int | None = None
        self.last: int | None = None
        self.digest = ""

    @abc.abstractmethod
    def __iter__(self) -> Iterator[Batch]: ...


class StreamReader(StretchReader):
    """A stretch of a stream of bytes, packed or not."""

    def __init__(self, source: Source, stretch: Stretch, options: ReadOptions, *, first: int | None = None) -> None:
        super().__init__(source, stretch, options, first=first)
        self._start, self._stop = stretch.start, stretch.stop
        if not source.is_splittable:
            self._start, self._stop = 0, sys.maxsize
        self._position = self._start
        self._at_end = False

    def __iter__(self) -> Iterator[Batch]:
        source = self._source
        with (
            HashedFile(source.path, source.num_bytes, start=self._start, stop=self._stop) as hashed,
            open_stream(source.path, source.compression, hashed=hashed) as self._file,
        ):
            yield from self._batches()
            self.digest = hashed.hexdigest()

    @abc.abstractmethod
    def _batches(self) -> Iterator[Batch]: ...

    def _read(self, num_bytes: int) -> bytes:
        """The next bytes. Notes whether the stream has ended."""
        source = self._source
        try:
            content = self._file.read(num_bytes)
        except STREAM_ERRORS as error:
            if not source.compression:
                raise
            raise InputError(
                f"{source.path}: {source.compression}: {error} (after {self._position:,} unpacked bytes); "
                "the download is incomplete or damaged"
            ) from None
        self._position += len(content)
        self._at_end = self._position >= source.num_bytes if source.is_splittable else not content
        if not content and not self._at_end:
            raise InputError(f"{source.path}: the file became shorter while it was read; build again")
        return content

    def _read_next(self, num_pending: int) -> bytes:
        """The next chunk: up to the stretch's end, and beyond it as much again as is pending."""
        room = max(self.chunk_bytes, num_pending)
        return self._read(min(room, self._stop - self._position) if self._position < self._stop else room)

    def _read_head(self) -> bytes:
        """The first bytes, at least as many as a byte order mark has."""
        content = self._read_next(0)
        while len(content) < len(BYTE_ORDER_MARK) and (more := self._read_next(0)):
            content += more
        return content

    def _too_large(self, offset: int, content: bytes) -> BadRecord:
        limit = self._options.max_record_bytes
        return BadRecord(
            offset, TOO_LARGE, f"the record is larger than --max-record-bytes ({limit:,} bytes)", content[:1000]
        )


def locate(source: Source, error: BadRecord) -> InputError:
    """`error` with its source, line (counted from 1) and byte offset, or its row."""
    if not source.is_stream:
        return InputError(f"{source.path}: row {error.offset:,}: {error.reason}")
    lines = LineCounter(source)
    line = lines.line(error.offset)
    lines.close()
    return InputError(f"{source.path}: line {line:,}, byte {error.offset:,}: {error.reason}")


class LineCounter:
    """Lines of offsets in a source, counted from 1. Asked in ascending order, so it reads the source once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._line, self._position = 1, 0
        self._file = open_stream(source.path, source.compression)

    def line(self, offset: int) -> int:
        assert offset >= self._position, "asked in descending order"
        while self._position < offset and (chunk := self._file.read(min(offset - self._position, 1 << 20))):
            self._line += chunk.count(b"\n")
            self._position += len(chunk)
        return self._line

    def close(self) -> None:
        self._file.close()
