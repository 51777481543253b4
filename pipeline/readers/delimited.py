"""CSV and TSV by pyarrow: the first row names the columns, quoted values may hold line breaks, every value is text.

Rows are counted from 1, which is the header; empty lines don't count.
"""

from __future__ import annotations

import codecs
import functools
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv

from pipeline.readers.base import WRONG_COLUMNS, BadRecord, Batch, Incomplete, StreamReader
from pipeline.readers.tables import ROWS_AT_A_TIME, readable, rows_of
from shards.common.errors import InputError

_READ_BYTES = 1 << 22  # at a time, up to 32 times ahead; no row can be larger
_HEAD_BYTES = 1 << 20  # has the header
_MARK = "\ufdd0\ufdef"  # no characters


class DelimitedReader(StreamReader):
    """The rows as objects with the columns that are needed."""

    def _batches(self) -> Iterator[Batch]:
        self._bad: deque[Any] = deque()  # rows with too few or too many columns, up to where pyarrow has parsed
        stream, delimiter = _Stream(self._read), "\t" if self._source.format == "tsv" else ","
        reading = pa.csv.ReadOptions(use_threads=False, block_size=_READ_BYTES * len(_MARK.encode()))
        parsing = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=self._skip)
        with readable(self._source), pa.csv.open_csv(pa.BufferReader(stream.head), reading, parsing) as first:
            names: list[str] = first.schema.names
        self._bad.clear()
        if stream.has_marks and _MARK in "".join(names):
            raise InputError(f"{self._source.path}: row 1: the names of the columns aren't UTF-8")
        wanted = [*dict.fromkeys(self._known_columns(names) or names)]
        converting = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.binary()), include_columns=[*dict.fromkeys([*wanted, names[-1]])]
        )
        numbers, row, last = self._good_rows(), 1, b""
        with (
            readable(self._source),
            pa.csv.open_csv(pa.PythonFile(stream, "r"), reading, parsing, converting) as tables,
        ):
            for table in filter(len, tables):
                last = table.column(names[-1])[-1].as_py()
                for batch in pa.Table.from_batches([table]).to_batches(max_chunksize=ROWS_AT_A_TIME):
                    values, rows = rows_of(batch.select(wanted)), [*itertools.islice(numbers, len(batch))]
                    row = rows[-1]
                    values = _unmarked(values) if stream.has_marks else values
                    yield Batch(values, batch.nbytes, functools.partial(_places, rows, values))
        breaks_off = bool(self._bad) and self._bad[-1].actual_columns < len(names) and stream.tail[-1:] not in b"\r\n"
        opened, tail = b'"' + last.replace(b'"', b'""'), stream.tail
        is_closed = tail.endswith((opened + b'"', opened + b'"\n', opened + b'"\r\n', opened + b'"\r'))
        is_open = tail.endswith(tuple(before + opened for before in (delimiter.encode(), b"\n", b"\r")))
        if breaks_off or (is_open and not is_closed):
            raise Incomplete(row)
        for bad in self._bad:
            self._report(bad)

    def _skip(self, row: Any) -> str:
        self._bad.append(row)
        return "skip"

    def _good_rows(self) -> Iterator[int]:
        """The numbers of the rows, without those of bad ones, which are reported on the way."""
        for row in itertools.count(2):
            if self._bad and self._bad[0].number == row:
                self._report(self._bad.popleft())
            else:
                yield row

    def _report(self, row: Any) -> None:
        reason = f"expected {row.expected_columns} columns, found {row.actual_columns}"
        self._options.on_bad(BadRecord(row.number, WRONG_COLUMNS, reason, row.text.encode()))


def _places(rows: list[int], values: list[Any]) -> list[tuple[int, bytes]]:
    return [(row, repr(value).encode()) for row, value in zip(rows, values, strict=True)]


def _unmarked(records: list[Any]) -> list[Any]:
    """With bytes that aren't UTF-8 in place of texts with marks."""
    for record in records:
        for name, value in record.items():
            if _MARK in value:
                record[name] = value.encode().replace(_MARK.encode(), b"\xff")
    return records


class _Stream:
    """What pyarrow reads, as UTF-8 in any case, since it can't report a row that isn't: what isn't is marked."""

    closed = False

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.has_marks = False
        self._read, self._last = read, deque[bytes](maxlen=2)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.head = self._next = self._valid(_HEAD_BYTES)

    def read(self, num_bytes: int) -> bytes:
        content, self._next = self._next or self._valid(num_bytes // len(_MARK.encode())), b""
        self._last.append(content)
        return content

    def _valid(self, num_bytes: int) -> bytes:
        text = ""
        while not text and (content := self._read(num_bytes)):
            text = self._decoder.decode(content)
        text = text or self._decoder.decode(b"", final=True)
        try:
            return text.encode()
        except UnicodeEncodeError:
            self.has_marks = True
            return re.sub("[\udc80-\udcff]", _MARK, text).encode()

    @property
    def tail(self) -> bytes:
        """The last that was read."""
        return b"".join(self._last)

    def close(self) -> None:
        pass
