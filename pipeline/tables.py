"""Parquet and Arrow by pyarrow: a stretch is a row group or a record batch; of an Arrow stream it is all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from pipeline.records import Batch, StretchReader, row_batch
from pipeline.sources import Source
from pipeline.storage import open_binary
from pipeline.streams import file_digest
from shards.common.errors import InputError
from shards.common.urls import is_url

ROWS_AT_A_TIME = 1024
_ERRORS = (pa.ArrowException, OSError)


def row_group_bytes(source: Source) -> list[int]:
    """The size in bytes of each row group or record batch. Raises `InputError` if the file can't be read."""
    try:
        if source.format == "parquet":
            metadata = _open_parquet(source).metadata
            return [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
        with _open_arrow(source) as file:
            num_batches = pa.ipc.open_file(file).num_record_batches
        return [source.num_bytes // max(1, num_batches)] * num_batches
    except _ERRORS as error:
        raise _unreadable(source, error) from None


class TableReader(StretchReader):
    """The rows of one stretch, as objects with the columns that are needed."""

    def __iter__(self) -> Iterator[Batch]:
        try:
            row = self._first_row()
            for table in self._tables():
                for batch in pa.Table.from_batches([table]).to_batches(max_chunksize=ROWS_AT_A_TIME):
                    yield self._batch(batch, row)
                    row += batch.num_rows
        except _ERRORS as error:
            raise _unreadable(self._source, error) from None
        if self._stretch.is_first:
            self.digest = file_digest(self._source.path)

    def _batch(self, batch: pa.RecordBatch, row: int) -> Batch:
        columns = self._options.columns
        if columns is not None and (known := [name for name in batch.schema.names if name in columns]):
            batch = batch.select(known)
        return row_batch(batch.to_pylist(), row, batch.nbytes)

    def _first_row(self) -> int:
        """The number of rows before the stretch."""
        if self._source.format != "parquet":
            return 0
        metadata = _open_parquet(self._source).metadata
        return sum(metadata.row_group(number).num_rows for number in range(self._stretch.start))

    def _tables(self) -> Iterator[pa.RecordBatch]:
        if self._source.format == "parquet":
            file = _open_parquet(self._source)
            columns = self._options.columns
            known = [name for name in file.schema_arrow.names if columns is None or name in columns]
            yield from file.iter_batches(ROWS_AT_A_TIME, row_groups=[self._stretch.start], columns=known or None)
            return
        with _open_arrow(self._source) as mapped:
            if self._source.format == "arrow":
                yield pa.ipc.open_file(mapped).get_batch(self._stretch.start)
            else:
                yield from pa.ipc.open_stream(mapped)


def _open_parquet(source: Source) -> Any:
    return pq.ParquetFile(open_binary(source.path) if is_url(source.path) else source.path)


def _open_arrow(source: Source) -> Any:
    return pa.PythonFile(open_binary(source.path), "r") if is_url(source.path) else pa.memory_map(source.path)


def _unreadable(source: Source, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    return InputError(f"{source.path}: pyarrow can't read this {source.format} file: {reason}")
