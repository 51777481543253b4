"""Parquet and Arrow by pyarrow: a range counts row groups, or record batches; of an Arrow stream it is all of it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from blake3 import blake3

from pipeline.readers.base import Batch, RangeReader
from pipeline.readers.files import HashedFile, SourceFile, removed
from pipeline.sources import Source
from shards.common.errors import InputError
from shards.common.urls import is_url

ROWS_AT_A_TIME = 1024


def row_group_bytes(source: Source) -> list[int]:
    """The size in bytes of each row group or record batch. Raises `InputError` if the file can't be read."""
    with readable(source):
        if source.format == "parquet":
            metadata = _parquet_metadata(source)
            return [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
        num_batches = _num_batches(source)
    return [source.num_bytes // max(1, num_batches)] * num_batches


def rows_of(batch: pa.RecordBatch) -> list[Any]:
    """The rows as objects; binary columns are text where they are UTF-8, and text that isn't UTF-8 is bytes."""
    for number, field in enumerate(batch.schema):
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            with contextlib.suppress(pa.ArrowInvalid):
                batch = batch.set_column(number, field.name, batch.column(number).cast(pa.large_string()))
    try:
        values: list[Any] = batch.to_pylist()
    except (ValueError, OverflowError):  # not all that a table holds is a value of Python's
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        values = [{name: _value(column[row]) for name, column in columns.items()} for row in range(batch.num_rows)]
    return values


def _value(scalar: Any) -> Any:
    """As Python has it; bytes for text that isn't UTF-8, the number for a time in no year of Python's."""
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        if isinstance(scalar, pa.StructScalar):
            return {name: _value(own) for name, own in scalar.items()}
        if isinstance(scalar, pa.ListScalar) and not isinstance(scalar, pa.MapScalar):
            return [_value(own) for own in scalar]
        value = scalar.as_buffer().to_pybytes() if hasattr(scalar, "as_buffer") else getattr(scalar, "value", b"\xff")
        return _value(value) if isinstance(value, pa.Scalar) else value


class TableReader(RangeReader):
    """The rows of a range, as objects with the columns that are needed."""

    def __iter__(self) -> Iterator[Batch]:
        row = 0  # in the range
        with readable(self._source):
            for table in self._parquet_batches() if self._source.format == "parquet" else self._arrow_batches():
                for batch in pa.Table.from_batches([table]).to_batches(max_chunksize=ROWS_AT_A_TIME):
                    yield self._batch(batch, row)
                    row += batch.num_rows

    def _batch(self, batch: pa.RecordBatch, row: int) -> Batch:
        names = batch.schema.names
        if known := self._known_columns(names):  # by number: of two columns with one name the last counts, as in JSON
            batch = batch.select([number for number, name in enumerate(names) if name in known])
        values = rows_of(batch)
        return Batch(
            values,
            batch.nbytes,
            lambda: [(self._first_row + row + number, repr(value).encode()) for number, value in enumerate(values)],
        )

    @functools.cached_property
    def _first_row(self) -> int:
        """The number of rows before the range: only for bad records, since Arrow's batches must be opened for it."""
        source, numbers = self._source, range(self._range.start)
        if source.format == "parquet":
            metadata = _parquet_metadata(source)
            return sum(metadata.row_group(number).num_rows for number in numbers)
        if source.format == "arrow-stream":
            return 0
        with _open_arrow(source) as file:
            batches = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=[0]))
            return sum(batches.get_batch(number).num_rows for number in numbers)

    def _arrow_batches(self) -> Iterator[pa.RecordBatch]:
        with _open_arrow(self._source) as file:
            if self._source.format == "arrow":
                yield from map(pa.ipc.open_file(file).get_batch, range(self._range.start, self._range.stop))
            else:
                yield from pa.ipc.open_stream(file)
        # pyarrow doesn't say where a batch lies: each has an equal share of the file's bytes.
        num_bytes, num_batches = self._source.num_bytes, _num_batches(self._source)
        start, stop = (number * num_bytes // num_batches for number in (self._range.start, self._range.stop))
        with HashedFile(self._source.path, start, stop, num_bytes) as hashed:
            self.digest = hashed.hexdigest()

    def _parquet_batches(self) -> Iterator[pa.RecordBatch]:
        digest = blake3()
        with _LoadedFile(self._source.path) as file:
            parquet = pq.ParquetFile(pa.PythonFile(file, "r"), pre_buffer=False)
            columns = self._known_columns(parquet.schema_arrow.names)
            for number in range(self._range.start, self._range.stop):
                for offset, num_bytes in _column_chunks(parquet.metadata.row_group(number), columns):
                    digest.update(file.load(offset, num_bytes))
                yield from parquet.iter_batches(ROWS_AT_A_TIME, row_groups=[number], columns=columns)
        self.digest = digest.hexdigest()


class _LoadedFile(SourceFile):
    """A file for pyarrow. What was loaded of it is given away from memory, once; all else is read when it is asked for."""

    def __init__(self, path: str) -> None:
        super().__init__(path, reads_ahead=False)
        self._loaded: dict[tuple[int, int], bytes] = {}

    def load(self, offset: int, num_bytes: int) -> bytes:
        self.seek(offset)
        content = self._loaded[offset, num_bytes] = super().read(num_bytes)
        return content

    def read(self, num_bytes: int = -1) -> bytes:
        content = self._loaded.pop((self.tell(), num_bytes), None)
        return content if content is not None else super().read(num_bytes)


def _column_chunks(row_group: Any, columns: list[str] | None) -> Iterator[tuple[int, int]]:
    """The offset and the size of what the row group holds of `columns` (None for all)."""
    for number in range(row_group.num_columns):
        chunk = row_group.column(number)
        path = chunk.path_in_schema  # of a column that has parts: `page.body`, `tags.list.element`
        if columns is None or any(path == name or path.startswith(f"{name}.") for name in columns):
            begins = [chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset]
            yield min(begins), chunk.total_compressed_size


def _parquet_metadata(source: Source) -> Any:
    with SourceFile(source.path, reads_ahead=False) as file:
        return pq.read_metadata(file)


def _num_batches(source: Source) -> int:
    if source.format == "arrow-stream":
        return 1
    with _open_arrow(source) as file:
        return int(pa.ipc.open_file(file).num_record_batches)


def _open_arrow(source: Source) -> Any:
    return pa.PythonFile(SourceFile(source.path), "r") if is_url(source.path) else pa.memory_map(source.path)


@contextlib.contextmanager
def readable(source: Source) -> Iterator[None]:
    """What pyarrow raises becomes an `InputError`, where it isn't the machine's."""
    try:
        yield
    except FileNotFoundError:
        raise removed(source.path) from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if getattr(error, "errno", None):  # the machine's
            raise
        reason = " ".join(str(error).split())
        if "straddling" in reason:
            reason = "a row is too large, or a quotation mark doesn't close"
        raise InputError(f"{source.path}: pyarrow can't read this {source.format} file: {reason}") from None
