"""The tables of a large set: its shards and tails in files beside the manifest, a row of fixed size for each.

`manifest.json` lists the shards and tails itself as long as they are few. `docs/format.md` says what the rows hold, byte
for byte; in memory they are the rows of `shards.entries`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from blake3 import blake3

from shards.common.errors import InputError
from shards.common.files import TEMPORARY_SUFFIX, atomic_writer, regular_file_bytes
from shards.entries import SPLITS, Rows, ShardList, TailList, shard_name, unordered

# Of more shards or tails than this, the writer makes tables.
MAX_LISTED = 16_384
SHARDS_TABLE = "shards.table"
TAILS_TABLE = "tails.table"
TABLE_NAMES = {"shards": SHARDS_TABLE, "tails": TAILS_TABLE}  # by the manifest's fields

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class TableEntry:
    """What the manifest says of a table, in the place of the list."""

    file: str
    num_records: int
    num_bytes: int
    digest: str  # BLAKE3


def are_many(shards: ShardList, tails: TailList) -> bool:
    """Whether a new set gets tables."""
    return max(len(shards), len(tails)) > MAX_LISTED


def table_entry(field: str, rows: Rows) -> TableEntry:
    """What the manifest says in `field` of the table with `rows`."""
    digest = blake3()
    for chunk in _chunks(rows):
        digest.update(chunk)
    return TableEntry(file=TABLE_NAMES[field], num_records=len(rows), num_bytes=rows.nbytes, digest=digest.hexdigest())


def write_table(directory: Path, field: str, rows: Rows) -> None:
    """Write the table whole or not at all; the directory is flushed by the caller."""
    with atomic_writer(directory / TABLE_NAMES[field], flush_parent=False) as file:
        for chunk in _chunks(rows):
            file.write(chunk)


def _chunks(rows: Rows) -> Iterator[bytes]:
    step = max(1, _CHUNK_BYTES // rows.itemsize)
    for first in range(0, len(rows), step):
        yield rows[first : first + step].tobytes()


def check_table_entry(entry: TableEntry, field: str, where: str) -> None:
    """Raise `InputError` unless the manifest's `field` names its table and its size fits its rows."""
    dtype = ShardList.dtype if field == "shards" else TailList.dtype
    if entry.file != TABLE_NAMES[field]:
        raise InputError(f"{where}: {field}: expected the file {TABLE_NAMES[field]}, found another name")
    if entry.num_bytes != entry.num_records * dtype.itemsize:
        raise InputError(
            f"{where}: {field}: {entry.num_records:,} records of {dtype.itemsize} bytes are not {entry.num_bytes:,} bytes"
        )


def read_shards(directory: Path, entry: TableEntry) -> ShardList:
    """The shards in the table, mapped, each row in its place. Raises `InputError`."""
    path = directory / SHARDS_TABLE
    rows = _read_rows(path, entry, ShardList.dtype)
    for place in unordered(rows["split"], rows["number"]):
        first, second = (shard_name(SPLITS[row["split"]], int(row["number"])) for row in rows[place - 1 : place + 1])
        if first == second:
            raise InputError(f"{path}: shard {first}: listed twice")
        raise InputError(f"{path}: shard {second}: behind {first}; expected ascending order")
    return ShardList(rows)


def read_tails(directory: Path, entry: TableEntry) -> TailList:
    """The tails in the table, mapped, each row in its place. Raises `InputError`."""
    path = directory / TAILS_TABLE
    rows = _read_rows(path, entry, TailList.dtype)
    for place in np.flatnonzero(rows["continues"] > 1):
        raise InputError(f"{path}: record {place:,}: continues: expected 0 or 1, found {rows['continues'][place]}")
    for place in unordered(rows["split"], rows["unit"]):
        unit = int(rows["unit"][place])
        raise InputError(f"{path}: record {place:,}: unit {unit:,}: expected ascending order, each unit once")
    return TailList(rows)


def _read_rows(path: Path, entry: TableEntry, dtype: np.dtype[np.void]) -> Rows:
    found = regular_file_bytes(path)
    if found != entry.num_bytes:
        kind = "truncated" if found < entry.num_bytes else "too long"
        raise InputError(
            f"{path}: {kind}: the manifest says {entry.num_bytes:,} bytes, the file has {found:,}; build the set again"
        )
    if not found:  # nothing can't be mapped
        content: bytes | mmap.mmap = b""
    else:
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(content) != found:
            raise InputError(f"{path}: the file has changed since the set was opened")
    digest = blake3(content).hexdigest()
    if digest != entry.digest:
        raise InputError(f"{path}: expected digest {entry.digest}, found {digest}; the file was changed")
    rows = np.frombuffer(content, dtype)
    for place in np.flatnonzero(rows["split"] >= len(SPLITS)):
        raise InputError(f"{path}: record {place:,}: split: expected 0 or 1, found {rows['split'][place]}")
    for name in (name for name in dtype.names or () if dtype[name] == np.int64):
        for place in np.flatnonzero(rows[name] < 0):
            found_number = int(rows[name][place]) + 2**64
            raise InputError(f"{path}: record {place:,}: {name}: expected less than 2**63, found {found_number:,}")
    return rows


class RowSpool:
    """Rows of a table in the making: in memory while they are few, then in a temporary file without a name."""

    def __init__(self, kind: type[ShardList] | type[TailList], directory: Path) -> None:
        """The file lies in `directory`."""
        self._dtype, self._directory = kind.dtype, directory
        self._buffer = bytearray()
        self._file: IO[bytes] | None = None

    def append(self, row: bytes) -> None:
        """Add one row, as `pack` of its list gives it."""
        self._buffer += row
        if len(self._buffer) > MAX_LISTED * self._dtype.itemsize:
            self._spill()

    def extend(self, rows: Rows) -> None:
        """Add all of `rows`."""
        for chunk in _chunks(rows):
            self._buffer += chunk
            if len(self._buffer) > MAX_LISTED * self._dtype.itemsize:
                self._spill()

    def _spill(self) -> None:
        import tempfile

        if self._file is None:
            # Where there are no files without a name, one that was left behind is known by its ending.
            self._file = tempfile.TemporaryFile(dir=self._directory, suffix=TEMPORARY_SUFFIX)  # noqa: SIM115
        self._file.write(self._buffer)
        self._buffer.clear()

    def rows(self) -> Rows:
        """All rows; none may be added from now on. They stay while the array does."""
        if self._file is None:
            return np.frombuffer(bytes(self._buffer), self._dtype)
        self._spill()
        self._file.flush()
        content = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._file.close()
        return np.frombuffer(content, self._dtype)
