"""Reading a shard set: blocks by number, documents one after another, without copying where possible.

import shards
shard_set = shards.open("data/shards/sample")
train = shard_set["train"]
len(train)                 # number of blocks
train[0]                   # the first block: uint32, shape (block_tokens,), a read-only view of the file
train[np.array([7, 3])]    # uint32, shape (2, block_tokens), one copy
for document in train.documents(): ...   # uint32 arrays, EOS left off, in the corpus's order
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
import mmap
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, overload

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError
from shards.common.files import regular_file_bytes
from shards.common.text import nearest
from shards.entries import ShardEntry, SplitName, UnitPlace, unit_places
from shards.index import HEADER, Index, check_index_header, index_bytes, read_index
from shards.manifest import MANIFEST_NAME, TOKENIZER_DIRECTORY, Manifest, read_manifest
from shards.order import epoch_order
from shards.writer import BIN_SUFFIX, INDEX_SUFFIX, bin_bytes

Tokens = npt.NDArray[np.uint32]

# A split of more shards is mapped shard by shard, as they are touched, and only so many stay mapped: a process may have
# some 65,000 maps, and each takes an open file.
_MAX_MAPPED_AT_ONCE = 4096
_OTHER_OPEN_FILES = 256


def open_shard_set(directory: str | os.PathLike[str]) -> ShardSet:
    """Open the shard set in `directory` after a check of its manifest, its files' sizes and index headers.

    The files of a set so large that its manifest has tables are checked one by one, when a block of theirs is first read.
    Raises `InputError` with one line about the first fault. Reads no token; `shards.verify` reads them all.
    """
    path = Path(directory)
    manifest = read_manifest(path)
    if not manifest.has_tables:
        for shard in manifest.shards:
            check_shard_files(path, shard, manifest.block_tokens)
    return ShardSet(path, manifest)


def check_shard_files(directory: Path, shard: ShardEntry, block_tokens: int) -> None:
    """Raise `InputError` unless both files of `shard` are there, regular, of the right size and header."""
    stem = os.path.join(directory, shard.name)
    path, index_path = stem + BIN_SUFFIX, stem + INDEX_SUFFIX
    found, expected = regular_file_bytes(path), bin_bytes(shard.num_blocks, block_tokens)
    if found != expected:
        kind = "truncated" if found < expected else "too long"
        raise InputError(
            f"{path}: {kind}: the manifest says {expected:,} bytes, the file has {found:,}; build the set again"
        )
    found = regular_file_bytes(index_path)
    expected = index_bytes(shard.num_pieces, shard.num_index_documents)
    if found != expected:
        raise InputError(
            f"{index_path}: the manifest says {expected:,} bytes, the file has {found:,}; build the set again"
        )
    with open(index_path, "rb", buffering=0) as file:
        check_index_header(
            index_path,
            file.read(HEADER.size),
            num_bytes=found,
            num_pieces=shard.num_pieces,
            num_documents=shard.num_index_documents,
        )


def read_shard_index(directory: Path, shard: ShardEntry, block_tokens: int) -> Index:
    """The index of a shard, checked against its entry in the manifest. Raises `InputError`."""
    return read_index(
        directory / (shard.name + INDEX_SUFFIX),
        num_pieces=shard.num_pieces,
        num_documents=shard.num_index_documents,
        num_tokens=shard.num_tokens,
        room_tokens=shard.num_blocks * block_tokens,
    )


class ShardSet:
    """A complete shard set. `shard_set["train"]` and `shard_set["val"]` are its splits."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._splits: dict[str, Split] = {}

    @property
    def sets(self) -> list[ShardSet]:
        """This one alone, as a mixture has several."""
        return [self]

    @property
    def description(self) -> str:
        return str(self.path)

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def block_tokens(self) -> int:
        return self.manifest.block_tokens

    @property
    def vocab_size(self) -> int:
        """Every id in the set is below this."""
        return self.manifest.tokenizer.vocab_size

    @property
    def eos_id(self) -> int:
        return self.manifest.tokenizer.eos_id

    @property
    def tokenizer_path(self) -> Path:
        """The directory with the tokenizer's own files."""
        return self.path / TOKENIZER_DIRECTORY

    @property
    def manifest_path(self) -> Path:
        return self.path / MANIFEST_NAME

    def __reduce__(self) -> tuple[Callable[[str], ShardSet], tuple[str]]:
        """Pickled and copied by its path: nothing that is mapped is copied."""
        return open_shard_set, (str(self.path.absolute()),)

    def __getitem__(self, name: str) -> Split:
        if name not in self.manifest.splits:
            known = ", ".join(self.manifest.splits)
            raise KeyError(f"no split {name!r}: this set has {known}{nearest(name, self.manifest.splits)}")
        if name not in self._splits:
            self._splits[name] = Split(self, "train" if name == "train" else "val")
        return self._splits[name]


class Split:
    """The blocks of one split, numbered from 0 through its shards. Shards are mapped when first touched."""

    def __init__(self, shard_set: ShardSet, name: SplitName) -> None:
        entry = shard_set.manifest.splits[name]
        self.name = name
        self.block_tokens = shard_set.block_tokens
        self.num_documents = entry.num_documents
        self.num_tokens = entry.num_tokens
        self.num_fill_tokens = entry.num_fill_tokens
        self.num_dropped_tokens = entry.num_dropped_tokens
        self.num_text_bytes = entry.num_text_bytes
        self.num_text_chars = entry.num_text_chars
        self.shards = shard_set.manifest.shards.of_split(name)
        self.tails = shard_set.manifest.tails.of_split(name)
        self._num_closing_tokens = shard_set.manifest.num_closing_tokens
        self.directory = shard_set.path
        self._first_blocks = np.zeros(len(self.shards) + 1, dtype=np.int64)
        np.cumsum(self.shards.column("num_blocks"), out=self._first_blocks[1:])
        self._are_checked = not shard_set.manifest.has_tables
        self._maps: list[Tokens | None] = [None] * len(self.shards)
        self._mapped: collections.deque[int] = collections.deque()
        self._max_mapped = _allowed_maps(len(self.shards))
        self._rows: _Rows | None = None

    def __reduce__(self) -> tuple[Callable[[str, str], Split], tuple[str, str]]:
        return _reopen_split, (str(self.directory.absolute()), self.name)

    def __len__(self) -> int:
        """Number of blocks."""
        return int(self._first_blocks[-1])

    def shard_blocks(self, number: int) -> Tokens:
        """All blocks of the split's shard `number`, shape `(num_blocks, block_tokens)`, a read-only view."""
        blocks = self._maps[number]
        if blocks is None:
            blocks = self.map_shard(number)
            self._maps[number] = blocks
            self._mapped.append(number)
            if len(self._mapped) > self._max_mapped:
                self._maps[self._mapped.popleft()] = None  # views of it that are in use keep it mapped
        return blocks

    def map_shard(self, number: int) -> Tokens:
        """As `shard_blocks`, but mapped anew, and only while the view is in use. Raises `InputError`."""
        if not self._are_checked:
            check_shard_files(self.directory, self.shards[number], self.block_tokens)
        path = self.directory / (self.shards.name(number) + BIN_SUFFIX)
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        blocks = np.frombuffer(content, "<u4").reshape(-1, self.block_tokens)
        if len(blocks) != self.first_block(number + 1) - self.first_block(number):
            raise InputError(f"{path}: the file has changed since the set was opened")
        return blocks

    def first_block(self, shard: int) -> int:
        """The number of the first block of a shard; for the number behind the last shard, the number of blocks."""
        return int(self._first_blocks[shard])

    def shards_between(self, start: int, stop: int) -> range:
        """The numbers of the shards with the blocks `start` … `stop` − 1, of which there is at least one."""
        first, last = np.searchsorted(self._first_blocks, [start, stop - 1], side="right").tolist()
        return range(first - 1, last)

    @overload
    def __getitem__(self, key: int) -> Tokens: ...
    @overload
    def __getitem__(self, key: slice | npt.NDArray[np.integer] | list[int]) -> Tokens: ...
    def __getitem__(self, key: int | slice | npt.NDArray[np.integer] | list[int]) -> Tokens:
        """Block `key` as a view, shape `(block_tokens,)`; a slice or an index array: `(n, block_tokens)`.

        A slice within one shard is a view too. Negative numbers count from the end. Raises `IndexError`.
        """
        if isinstance(key, slice):
            return self._slice(key)
        if isinstance(key, (int, np.integer)):
            number = int(key) + len(self) if key < 0 else int(key)
            if not 0 <= number < len(self):
                raise IndexError(f"block {int(key):,}: split {self.name!r} has {len(self):,} blocks")
            shard = int(np.searchsorted(self._first_blocks, number, side="right")) - 1
            block: Tokens = self.shard_blocks(shard)[number - self._first_blocks[shard]]
            return block
        return self._gather(np.asarray(key))

    def _slice(self, key: slice) -> Tokens:
        start, stop, step = key.indices(len(self))
        if step == 1 and start < stop:
            shard = int(np.searchsorted(self._first_blocks, start, side="right")) - 1
            if stop <= self._first_blocks[shard + 1]:
                first = self._first_blocks[shard]
                return self.shard_blocks(shard)[start - first : stop - first]
        return self._gather(np.arange(start, stop, step))

    def _gather(self, numbers: npt.NDArray[np.integer]) -> Tokens:
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
            raise IndexError(f"expected a 1-D array of block numbers, found {numbers.dtype} {numbers.shape}")
        if self._rows is None and len(self.shards) <= self._max_mapped:
            self._rows = _Rows([self.shard_blocks(shard) for shard in range(len(self.shards))], self._first_blocks)
        if self._rows is not None:
            try:
                return self._rows[numbers]
            except IndexError:
                pass  # negative or too large
        numbers = numbers.astype(np.int64)
        numbers[numbers < 0] += len(self)
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(self)):
            raise IndexError(f"block numbers must lie in 0 … {len(self) - 1:,} (split {self.name!r})")
        if self._rows is not None:
            return self._rows[numbers]
        blocks = np.empty((len(numbers), self.block_tokens), dtype=np.uint32)
        shards = np.searchsorted(self._first_blocks, numbers, side="right") - 1
        offsets = numbers - self._first_blocks[shards]
        for place, (shard, offset) in enumerate(zip(shards.tolist(), offsets.tolist(), strict=True)):
            blocks[place] = self.shard_blocks(shard)[offset]
        return blocks

    def epoch(self, seed: int, epoch: int, start: int = 0, stop: int | None = None) -> npt.NDArray[np.int64]:
        """The block numbers at positions `start` … `stop` of the epoch's order (`shards.epoch_order`)."""
        stop = len(self) if stop is None else stop
        return epoch_order(len(self), seed, epoch, np.arange(start, stop))

    def shard_documents(self, number: int) -> Iterator[Tokens]:
        """The documents in the split's shard `number`, EOS included; views, but for those in several pieces."""
        index = read_shard_index(self.directory, self.shards[number], self.block_tokens)
        tokens = self.shard_blocks(number).reshape(-1)
        starts, ends = index.starts.tolist(), index.ends.tolist()
        for first, behind in itertools.pairwise(index.boundaries.tolist()):
            pieces = [tokens[starts[piece] : ends[piece]] for piece in range(first, behind)]
            yield pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    @functools.cached_property
    def unit_places(self) -> dict[int, UnitPlace]:
        """Where the documents of each unit of the corpus lie."""
        return unit_places(self.shards, self.tails)

    @functools.cached_property
    def _tail_index(self) -> Index:
        return read_shard_index(self.directory, self.shards[-1], self.block_tokens)

    def _tail_pieces(self, first: int, num_pieces: int) -> Iterator[Tokens]:
        tokens = self.shard_blocks(len(self.shards) - 1).reshape(-1)
        own = slice(first, first + num_pieces)
        for start, end in zip(self._tail_index.starts[own].tolist(), self._tail_index.ends[own].tolist(), strict=True):
            yield tokens[start:end]

    def units(self) -> dict[int, int]:
        """How many documents each unit of the corpus has here, in the corpus's order; those without any are left out."""
        num_documents = self.shards.column("num_index_documents").tolist()
        sizes = {}
        for unit, place in self.unit_places.items():
            sizes[unit] = 0 if place.shard is None else num_documents[place.shard]
            if place.tail is not None:
                tail = self.tails[place.tail]
                sizes[unit] += tail.num_pieces - tail.continues
        return sizes

    def unit_shards(self, unit: int) -> list[ShardEntry]:
        """The shards in which the documents of one unit of the corpus lie."""
        place = self.unit_places[unit]
        numbers = ([] if place.shard is None else [place.shard]) + ([] if place.tail is None else [-1])
        return [self.shards[number] for number in numbers]

    def unit_documents(self, unit: int) -> Iterator[Tokens]:
        """The documents of one unit of the corpus, in its order, EOS included (the packing `tutorial` has none).

        A document cut at the end of its unit's shard is put together again with its rest in the last shard.
        """
        place = self.unit_places[unit]
        pieces = iter(()) if place.shard is None else self.shard_documents(place.shard)
        if place.tail is None:
            return pieces
        tail = self.tails[place.tail]
        rest = self._tail_pieces(place.first_piece, tail.num_pieces)
        return _joined(pieces, rest) if tail.continues else itertools.chain(pieces, rest)

    def documents(self) -> Iterator[Tokens]:
        """Each document's ids without its EOS, in the corpus's order."""
        for unit in self.units():
            for document in self.unit_documents(unit):
                yield document[: len(document) - self._num_closing_tokens]


def _allowed_maps(num_shards: int) -> int:
    """How many shards may be mapped at once; lets this process open as many files as that takes, if it may."""
    wanted = min(num_shards, _MAX_MAPPED_AT_ONCE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted + _OTHER_OPEN_FILES:
        limit = wanted + 2 * _OTHER_OPEN_FILES
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - _OTHER_OPEN_FILES))


def _reopen_split(path: str, name: str) -> Split:
    return open_shard_set(path)[name]


class _Rows:
    """The blocks of several mapped shards as the rows of one array, so that a batch is one gather.

    The array spans the addresses from the first map to the end of the last, in steps that divide both a page and a
    block; only rows that lie in a map are ever touched. With pages of 4,096 bytes and blocks of 2,048, maps at 8,192 and
    at 40,960 begin at the rows 0 and 16.
    """

    def __init__(self, maps: list[Tokens], first_blocks: npt.NDArray[np.int64]) -> None:
        self._maps = maps  # keeps them mapped
        addresses = [blocks.__array_interface__["data"][0] for blocks in maps]
        lowest = min(addresses, default=0)
        block_tokens = maps[0].shape[1] if maps else 1
        step = math.gcd(mmap.PAGESIZE, block_tokens * 4)
        self._rows_a_block = np.int64(block_tokens * 4 // step)
        self._behind = first_blocks[1:].astype(np.uint64)
        first_rows = (np.array(addresses, dtype=np.int64) - lowest) // step
        self._shift = first_rows - first_blocks[:-1] * self._rows_a_block
        if maps:
            end = max(address + blocks.nbytes for address, blocks in zip(addresses, maps, strict=True))
            num_rows = (end - lowest - block_tokens * 4) // step + 1
            self._array: Tokens = np.lib.stride_tricks.as_strided(
                maps[addresses.index(lowest)], (num_rows, block_tokens), (step, 4), writeable=False
            )
        else:
            self._array = np.empty((0, block_tokens), dtype=np.uint32)

    def __reduce__(self) -> NoReturn:
        raise TypeError("not to be copied: between the maps there is nothing")

    def __getitem__(self, numbers: npt.NDArray[np.integer]) -> Tokens:
        """The blocks `numbers`. Raises `IndexError` where one is negative or too large: there is no shard for it."""
        whole = numbers.astype(np.int64, copy=False)
        shards = self._behind.searchsorted(whole.view(np.uint64), side="right")
        if (
            self._rows_a_block == 1
        ):  # rows side by side: `take` is faster then (otherwise it would copy the whole array)
            rows: Tokens = self._array.take(whole + self._shift[shards], axis=0)
        else:
            rows = self._array[whole * self._rows_a_block + self._shift[shards]]
        return rows


def _joined(pieces: Iterator[Tokens], rest: Iterator[Tokens]) -> Iterator[Tokens]:
    """All of `pieces` and then of `rest`, the last of the former and the first of the latter as one."""
    previous = next(pieces)
    for piece in pieces:
        yield previous
        previous = piece
    yield np.concatenate([previous, next(rest)])
    yield from rest
