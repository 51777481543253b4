"""The shards and tails of a set, as the manifest lists them: rows of NumPy columns, seen as a sequence of entries.

A set may have millions of shards. So a list holds no object for each: an entry is made when it is looked at, and what
concerns all of them is asked of a column. The rows are those of the tables in `docs/format.md`, in memory or mapped.

    manifest.shards[0].digest                   # one entry
    manifest.shards.column("num_blocks").sum()  # int64, shape (number of shards,)
"""

from __future__ import annotations

import abc
import bisect
import functools
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, overload

import numpy as np
import numpy.typing as npt

SplitName = Literal["train", "val"]
SPLITS: tuple[SplitName, ...] = ("train", "val")
MAX_NUMBER = 2**63 - 1  # that a row can hold

Rows = npt.NDArray[np.void]
Int64s = npt.NDArray[np.int64]

_ROWS_AT_ONCE = 4096
_FEW = 64  # of which Python's sum is faster


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """One `.bin` with its `.idx`."""

    name: str  # file name without suffix
    split: SplitName
    num_blocks: int
    num_tokens: int  # filling excluded
    num_pieces: int
    num_index_documents: int  # documents, or parts of one that is cut between two shards, in the index
    num_documents: int  # those that end here
    digest: str  # BLAKE3 of the .bin
    index_digest: str  # BLAKE3 of the .idx


@dataclass(frozen=True, kw_only=True, slots=True)
class TailEntry:
    """What was left over in one unit, in the last shard of its split."""

    unit: int
    split: SplitName
    num_pieces: int
    continues: bool  # its first piece continues the document that the unit's shard ends in


def shard_name(split: SplitName, number: int) -> str:
    """`train-00012` for the shard of unit 12."""
    return f"{split}-{number:05}"


def shard_number(name: str) -> int:
    """12 for `train-00012`: the unit of a shard, if it isn't the one with the tails."""
    return int(name.rpartition("-")[2])


def exact_sum(column: Int64s) -> int:
    """The sum of numbers from 0 on, however large.

    >>> exact_sum(np.array([2**62, 2**62, 1]))
    9223372036854775809
    """
    if len(column) < _FEW:
        return sum(column.tolist())
    return (int((column >> 32).sum()) << 32) + int((column & 0xFFFFFFFF).sum())


def unordered(splits: npt.NDArray[np.uint8], numbers: Int64s) -> Int64s:
    """The places of those that should not stand behind the one before them: in ascending order, each once.

    >>> unordered(np.array([0, 0, 0, 1, 1]), np.array([3, 5, 5, 0, 2])).tolist()
    [2]
    """
    found = (splits[1:] < splits[:-1]) | ((splits[1:] == splits[:-1]) & (numbers[1:] <= numbers[:-1]))
    return np.flatnonzero(found) + 1


E = TypeVar("E")


class _List(Sequence[E], Generic[E]):
    """What shards and tails have in common. Nothing changes a list."""

    dtype: ClassVar[np.dtype[np.void]]
    _struct: ClassVar[struct.Struct]

    def __init__(self, rows: Rows, entries: Sequence[E] | None = None) -> None:
        """`rows` have the type `dtype`, shape `(n,)`; they are kept, not copied. So are `entries`, where there are any."""
        assert rows.dtype == self.dtype
        self.rows, self._entries = rows, entries
        self._of_split: dict[str, Self] = {}

    @classmethod
    @abc.abstractmethod
    def pack(cls, entry: E) -> bytes:
        """The row of an entry. Raises `ValueError` or `struct.error` where none can hold it."""

    @abc.abstractmethod
    def _entry(self, values: tuple[Any, ...]) -> E:
        """The entry with the values of a row."""

    @classmethod
    def of(cls, entries: Iterable[E]) -> Self:
        """The list of `entries`. Raises as `pack`."""
        known = list(entries)
        return cls(np.frombuffer(b"".join(map(cls.pack, known)), cls.dtype), known)

    def column(self, name: str) -> Int64s:
        """One number of each entry (of the shards also `number`, as in the name), shape `(n,)`; a view."""
        values: Int64s = self.rows[name]
        return values

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, key: int) -> E: ...
    @overload
    def __getitem__(self, key: slice) -> Self: ...
    def __getitem__(self, key: int | slice) -> E | Self:
        if isinstance(key, slice):
            return self._some(key)
        place = range(len(self.rows))[key]
        if self._entries is not None:
            return self._entries[place]
        return self._entry(self._struct.unpack(self.rows[place].tobytes()))

    def __iter__(self) -> Iterator[E]:
        return self._new_entries() if self._entries is None else iter(self._entries)

    def _new_entries(self) -> Iterator[E]:
        for first in range(0, len(self.rows), _ROWS_AT_ONCE):
            yield from map(self._entry, self._struct.iter_unpack(self.rows[first : first + _ROWS_AT_ONCE].tobytes()))

    def _some(self, which: slice | Int64s) -> Self:
        entries = self._entries
        if entries is not None:
            entries = entries[which] if isinstance(which, slice) else [entries[place] for place in which.tolist()]
        return type(self)(self.rows[which], entries)

    def of_split(self, name: SplitName) -> Self:
        """Those of one split, in the same order."""
        if name not in self._of_split:
            places = np.flatnonzero(self.rows["split"] == SPLITS.index(name))
            first, behind = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
            # Side by side, as nearly always, they are a view.
            self._of_split[name] = self._some(slice(first, behind) if behind - first == len(places) else places)
        return self._of_split[name]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return len(self) == len(other) and all(
            self.rows[first : first + _ROWS_AT_ONCE].tobytes() == other.rows[first : first + _ROWS_AT_ONCE].tobytes()
            for first in range(0, len(self), _ROWS_AT_ONCE)
        )

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, _memo: object) -> Self:
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self):,} entries)"


class ShardList(_List[ShardEntry]):
    """The shards of a set, or of one split of it."""

    dtype = np.dtype(
        [
            ("number", "<i8"),
            ("num_blocks", "<i8"),
            ("num_tokens", "<i8"),
            ("num_pieces", "<i8"),
            ("num_index_documents", "<i8"),
            ("num_documents", "<i8"),
            ("digest", "V32"),
            ("index_digest", "V32"),
            ("split", "u1"),
        ]
    )
    _struct = struct.Struct("<6Q32s32sB")

    def __init__(self, rows: Rows, entries: Sequence[ShardEntry] | None = None) -> None:
        """Without `entries` the names follow from split and number (`shard_name`)."""
        super().__init__(rows, entries)
        # For `find`: where each split begins and the last one ends, or else all names.
        self._bounds: list[int] | None = None
        self._places: dict[str, int] | None = None

    @classmethod
    def pack(cls, entry: ShardEntry) -> bytes:
        return cls._struct.pack(
            shard_number(entry.name),
            entry.num_blocks,
            entry.num_tokens,
            entry.num_pieces,
            entry.num_index_documents,
            entry.num_documents,
            bytes.fromhex(entry.digest),
            bytes.fromhex(entry.index_digest),
            SPLITS.index(entry.split),
        )

    def _entry(self, values: tuple[Any, ...]) -> ShardEntry:
        number, num_blocks, num_tokens, num_pieces, num_index_documents, num_documents, digest, index, code = values
        split = SPLITS[code]
        return ShardEntry(
            name=shard_name(split, number),
            split=split,
            num_blocks=num_blocks,
            num_tokens=num_tokens,
            num_pieces=num_pieces,
            num_index_documents=num_index_documents,
            num_documents=num_documents,
            digest=digest.hex(),
            index_digest=index.hex(),
        )

    @functools.cached_property
    def has_usual_names(self) -> bool:
        """Whether all names follow from split and number."""
        return self._entries is None or all(
            shard_name(entry.split, shard_number(entry.name)) == entry.name for entry in self._entries
        )

    def name(self, place: int) -> str:
        """The name of one shard."""
        if self._entries is not None:
            return self._entries[place].name
        row = self.rows[place]
        return shard_name(SPLITS[row["split"]], int(row["number"]))

    def find(self, name: str) -> int | None:
        """The place of the shard called `name`."""
        if self._bounds is None and self._places is None:
            if self._entries is None and not len(unordered(self.rows["split"], self.rows["number"])):
                self._bounds = np.searchsorted(self.rows["split"], range(len(SPLITS) + 1)).tolist()
            else:
                self._places = {self.name(place): place for place in range(len(self))}
        if self._places is not None:
            return self._places.get(name)
        split, _, digits = name.partition("-")
        if split not in SPLITS or not (digits.isascii() and digits.isdigit()) or len(digits) > len(str(MAX_NUMBER)):
            return None
        assert self._bounds is not None
        code, number, numbers = SPLITS.index(split), int(digits), self.rows["number"]
        first, behind = self._bounds[code : code + 2]
        place = bisect.bisect_left(range(first, behind), number, key=numbers.__getitem__) + first
        return place if place < behind and self.name(place) == name else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ShardList):
            return NotImplemented
        is_equal = super().__eq__(other)
        if self.has_usual_names and other.has_usual_names:
            return is_equal
        return bool(is_equal) and all(self.name(place) == other.name(place) for place in range(len(self)))


class TailList(_List[TailEntry]):
    """The tails of a set, or of one split of it."""

    dtype = np.dtype([("unit", "<i8"), ("num_pieces", "<i8"), ("split", "u1"), ("continues", "u1")])
    _struct = struct.Struct("<2Q2B")

    @classmethod
    def pack(cls, entry: TailEntry) -> bytes:
        return cls._struct.pack(entry.unit, entry.num_pieces, SPLITS.index(entry.split), entry.continues)

    def _entry(self, values: tuple[Any, ...]) -> TailEntry:
        unit, num_pieces, code, continues = values
        return TailEntry(unit=unit, split=SPLITS[code], num_pieces=num_pieces, continues=bool(continues))


@dataclass(frozen=True, slots=True)
class UnitPlace:
    """Where the documents of one unit lie in a split."""

    shard: int | None  # the place of its own shard in the list
    tail: int | None  # the place of its tail in the list
    first_piece: int  # of the tail, in the last shard


def unit_places(shards: ShardList, tails: TailList) -> dict[int, UnitPlace]:
    """For each unit that has anything in a split, in order, where that lies.

    The last shard is no unit's own if it holds what the units left over.
    """
    own = shards[:-1] if tails else shards
    shard_of_unit = {unit: place for place, unit in enumerate(own.column("number").tolist())}
    order = np.argsort(tails.column("unit"), kind="stable")
    num_pieces = tails.column("num_pieces")[order]
    units, firsts = tails.column("unit")[order], np.cumsum(num_pieces) - num_pieces
    tail_of_unit = dict(zip(units.tolist(), zip(order.tolist(), firsts.tolist(), strict=True), strict=True))
    return {
        unit: UnitPlace(shard_of_unit.get(unit), *tail_of_unit.get(unit, (None, 0)))
        for unit in sorted(shard_of_unit.keys() | tail_of_unit.keys())
    }
