"""What a byte range is read as: batches of parsed records, each record at a known place.

In a source that can be read from the middle, a range `[start, stop)` owns the records whose first byte lies in it: its
reader finds the first by looking from `start` on, and reads past `stop` to the end of the last.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.readers.compression import Readable, unpack
from pipeline.readers.encodings import Decoded, hint, invalid_bytes
from pipeline.readers.files import HashedFile, SourceFile
from pipeline.sources import BYTE_ORDER_MARK, ByteRange, Source
from shards.common.errors import InputError

# The kinds of bad records, as the manifest counts them.
NOT_JSON = "not valid JSON"
INVALID_UTF8 = "invalid UTF-8"
INVALID_BYTES = "invalid in its encoding"
LONE_SURROGATE = "lone surrogate"
TOO_LARGE = "record too large"
NOT_AN_OBJECT = "not an object"
NO_FIELD = "no text field"
NOT_A_STRING = "text is not a string"
WRONG_COLUMNS = "wrong number of columns"
TRANSFORM_FAILED = "transform failed"
_REMEDIES = {  # of other kinds: mend it
    INVALID_UTF8: "convert the file to UTF-8",
    TOO_LARGE: "raise --max-record-bytes",
    NO_FIELD: "set --text-field or --template",
    NOT_A_STRING: "set --text-field or --template",
    TRANSFORM_FAILED: "mend the function",
}
_LOOK_BYTES = 1 << 16


class BadRecord(Exception):
    """A record that can't be used: `offset` in bytes of the (unpacked) source, or its row's number; `content` as it
    stands, maybe cut short."""

    decoded = b""  # its content as `Decoded` gave it, where that is invalid in its encoding

    def __init__(self, offset: int, kind: str, reason: str, content: bytes = b"") -> None:
        super().__init__(reason)
        self.offset, self.kind, self.reason, self.content = offset, kind, reason, content


class Incomplete(BadRecord):
    """The source ends inside a record. Never skipped: the file is not what it should be."""

    def __init__(self, offset: int) -> None:
        super().__init__(
            offset, NOT_JSON, "the file ends inside this record: the download is incomplete, fetch it again"
        )


def raise_bad(error: BadRecord) -> None:
    """For `ReadOptions.on_bad`: the first bad record ends the reading."""
    raise error


class Batch:
    """Parsed records that lie together."""

    def __init__(
        self, values: list[Any], num_bytes: int, find_places: Callable[[], Sequence[tuple[int, bytes]]]
    ) -> None:
        """`find_places` gives the offset and the content of each record; called when the first is asked for."""
        self.values, self.num_bytes = values, num_bytes
        self._places = functools.cache(find_places)

    def place(self, number: int) -> tuple[int, bytes]:
        return self._places()[number]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """How to read: `on_bad` is called with each bad record and raises it, or notes it so that reading goes on."""

    on_bad: Callable[[BadRecord], None]
    max_record_bytes: int = 256 * 2**20
    document_separator: str = ""
    text_field: str = "text"  # of the record that a document of plain text becomes
    columns: tuple[str, ...] | None = None  # the top-level fields that are needed, None for all
    counts_lines: bool = False


class RangeReader(abc.ABC):
    """The records of one byte range, in order: what the readers of all formats have in common.

    Iterate once; afterwards these are known:
    `first`: the offset of the range's first record; None if no record begins in it, or the source has rows.
    `last`: the offset after its last record, where the next range's first one begins.
    `digest`: BLAKE3 of the range's own bytes; of Parquet, of what its row groups hold of the columns that are needed.
    `num_newlines`: of the range's own bytes where `options.counts_lines` is set and the source can be cut, else 0.
    """

    first: int | None = None
    last: int | None = None
    digest = ""
    num_newlines = 0
    chunk_bytes = 1 << 21

    def __init__(self, byte_range: ByteRange, options: ReadOptions, *, first: int | None = None) -> None:
        """`first` is the offset of the range's first record where it is known already."""
        self._source, self._range, self._options, self._known_first = byte_range.source, byte_range, options, first

    @abc.abstractmethod
    def __iter__(self) -> Iterator[Batch]: ...

    def _known_columns(self, names: Sequence[str]) -> list[str] | None:
        """Those of `names` that are needed; None for all, also where none of the needed ones is known."""
        columns = self._options.columns
        return [name for name in names if columns is not None and name in columns] or None

    def compute_digest(self) -> str:
        """`digest`, for which as little is read and parsed as can be."""
        for _batch in self:
            pass
        return self.digest


class StreamReader(RangeReader):
    """A range of a stream of bytes, compressed or not. What is read is UTF-8, and offsets are those in it."""

    _file: Any
    _at_end = False

    def __init__(self, byte_range: ByteRange, options: ReadOptions, *, first: int | None = None) -> None:
        source = byte_range.source
        if source.encoding:
            on_bad = options.on_bad
            options = dataclasses.replace(options, on_bad=lambda error: on_bad(_in_encoding(error, source.encoding)))
        super().__init__(byte_range, options, first=first)
        self._start, self._stop = (byte_range.start, byte_range.stop) if source.is_splittable else (0, sys.maxsize)
        self._position = self._start

    def __iter__(self) -> Iterator[Batch]:
        with self._open() as hashed:
            self._file = open_stream(hashed, self._source)
            yield from self._batches()
            self.digest, self.num_newlines = hashed.hexdigest(), hashed.num_newlines

    def compute_digest(self) -> str:
        with self._open() as hashed:
            return hashed.hexdigest()

    def _open(self) -> HashedFile:
        counts_lines = self._options.counts_lines and self._source.is_splittable
        return HashedFile(self._source.path, self._start, self._stop, self._source.num_bytes, counts_lines=counts_lines)

    @abc.abstractmethod
    def _batches(self) -> Iterator[Batch]: ...

    def _read(self, num_bytes: int) -> bytes:
        """The next bytes. Notes whether the stream has ended."""
        source = self._source
        content: bytes = self._file.read(num_bytes) or b""
        self._position += len(content)
        self._at_end = self._position >= source.num_bytes if source.is_splittable else not content
        if not content and not self._at_end:
            raise InputError(f"{source.path}: the file became shorter while it was read; build again")
        return content

    def _read_next(self, num_pending: int = 0, *, is_look: bool = False) -> bytes:
        """The next chunk, up to the range's end: at least as much as is pending, so that a large record is read in a few
        steps. A small one will do for a look, and beyond the end, where only the rest of a record is ours."""
        is_small = is_look or self._position >= self._stop
        room = max(min(self.chunk_bytes, _LOOK_BYTES) if is_small else self.chunk_bytes, num_pending)
        return self._read(min(room, self._stop - self._position) if self._position < self._stop else room)

    def _read_up_to(self, num_bytes: int, content: bytes = b"") -> bytes:
        """`content` and what follows it: at least `num_bytes`, if there are as many."""
        while (missing := num_bytes - len(content)) > 0 and (more := self._read_next(missing, is_look=True)):
            content += more
        return content

    def _read_start(self) -> bytes:
        """The first bytes of the source, without a byte order mark."""
        return self._read_up_to(len(BYTE_ORDER_MARK)).removeprefix(BYTE_ORDER_MARK)

    def _go_back(self, offset: int) -> None:
        """Read on from `offset`, before the range. Only in a source that is splittable, before anything is read."""
        self._position = self._file.seek(offset)

    def _too_large(self, offset: int, content: bytes) -> BadRecord:
        limit = self._options.max_record_bytes
        reason = f"the record is larger than max_record_bytes ({limit:,} bytes)"
        return BadRecord(offset, TOO_LARGE, reason, content[:1000])


def locate(source: Source, error: BadRecord) -> InputError:
    """`error` with its source, line (counted from 1) and byte offset, or its row, and with what to do."""
    place = f"row {error.offset:,}"
    if source.is_stream:
        with contextlib.closing(LineCounter(source)) as lines:
            line, offset = lines.place(error.offset)
        place = f"line {line:,}, byte {offset:,}"
    text = f"{source.path}: {place}: {error.reason}"
    if isinstance(error, Incomplete):
        return InputError(text)
    is_invalid = error.kind in (INVALID_UTF8, INVALID_BYTES)
    encoded = hint(error.decoded or error.content, source.encoding) if is_invalid else ""
    if source.encoding and error.kind == INVALID_UTF8:  # a field of CSV
        encoded = f"give another --encoding than {source.encoding}"
    remedy = f"{encoded or _REMEDIES.get(error.kind, 'mend it')}, or leave such records out with --on-bad-record skip"
    return InputError(f"{text} {remedy[0].upper()}{remedy[1:]}" if text.endswith("?") else f"{text}; {remedy}")


def open_stream(file: io.RawIOBase | io.BufferedReader, source: Source) -> Readable:
    """The content of `file`, which is opened for `source`: unpacked, and in UTF-8."""
    stream = unpack(file, source.compression, source.path)
    return Decoded(stream, source.encoding) if source.encoding else stream


def _in_encoding(error: BadRecord, encoding: str) -> BadRecord:
    """What isn't valid UTF-8, as it wasn't valid before it was decoded."""
    if error.kind == INVALID_UTF8:
        place, shown = invalid_bytes(error.content, encoding)
        found = BadRecord(error.offset, INVALID_BYTES, f"invalid {encoding} at byte {place:,} of the record", shown)
        found.decoded = error.content
        return found
    return error


class LineCounter:
    """Lines of a reader's offsets in a source, counted from 1 at `start` (0 unless it is splittable), and what offsets
    these are in the file's own encoding. Asked in ascending order, it reads the source once, and not before."""

    def __init__(self, source: Source, start: int = 0) -> None:
        self._source, self._line, self._position = source, 1, start
        self._raw: io.BufferedReader | None = None

    def place(self, offset: int) -> tuple[int, int]:
        """The line of an offset, and the offset in the (unpacked) file."""
        assert offset >= self._position, "asked in descending order"
        if self._raw is None:
            file = SourceFile(self._source.path)
            file.seek(self._position)
            self._raw = io.BufferedReader(file, 1 << 10)  # places may be few bytes apart
            self._file: Any = open_stream(self._raw, self._source)
        while self._position < offset and (chunk := self._file.read(min(offset - self._position, 1 << 20))):
            self._line += chunk.count(b"\n")
            self._position += len(chunk)
        return self._line, self._file.num_read if self._source.encoding else offset

    def close(self) -> None:
        if self._raw is not None:
            self._raw.close()
