"""Reading a shard set: blocks by number, documents by number or one after another, without copying where possible.

train = shards.open("data/shards/sample")["train"]
train[0]                   # the first block: uint32, shape (block_tokens,), a read-only view of the file
train[np.array([7, 3])]    # uint32, shape (2, block_tokens), one copy
train.document(5)          # uint32, the ids of document 5, EOS left off
"""

from __future__ import annotations

import bisect
import collections
import functools
import itertools
import mmap
import operator
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError
from shards.common.files import regular_file_bytes
from shards.common.text import nearest
from shards.index import Index, index_bytes, read_index
from shards.layout import BIN_SUFFIX, INDEX_SUFFIX, TOKENIZER_DIRECTORY, SplitName, bin_bytes
from shards.manifest import Manifest, ShardEntry, read_manifest, sum_splits
from shards.order import epoch_order

Tokens = npt.NDArray[np.uint32]

_GOLDEN_RATIO = 0.618  # of a block: multiples of it lie evenly in a block, however many there are
_MAX_MAPPED = 4096  # a process may have some 65,000 maps, and each takes an open file


def open_shard_set(directory: str | os.PathLike[str]) -> ShardSet:
    """Open the shard set in `directory` after a check of its manifest and of its shards' sizes.

    Raises `InputError` with one line about the first fault. Reads no token; `shards.verify` reads them all.
    """
    path = Path(directory)
    manifest = read_manifest(path)
    for shard in manifest.shards:
        check_shard_sizes(path, shard, manifest.block_tokens)
    return ShardSet(path, manifest)


def check_shard_sizes(directory: Path, shard: ShardEntry, block_tokens: int) -> None:
    """Raise `InputError` unless both files of `shard` are there, regular, and of the right size."""
    stem = os.path.join(directory, shard.name)
    for path, expected in (
        (stem + BIN_SUFFIX, bin_bytes(shard.num_blocks, block_tokens)),
        (stem + INDEX_SUFFIX, index_bytes(shard.num_sequences, shard.num_documents)),
    ):
        found = regular_file_bytes(path)
        if found != expected:
            kind = "truncated" if found < expected else "too long"
            raise InputError(
                f"{path}: {kind}: the manifest says {expected:,} bytes, the file has {found:,}; build the set again"
            )


def read_shard_index(directory: Path, shard: ShardEntry, block_tokens: int) -> Index:
    """The index of a shard, checked against its entry in the manifest. Raises `InputError`."""
    return read_index(
        directory / (shard.name + INDEX_SUFFIX),
        num_sequences=shard.num_sequences,
        num_documents=shard.num_documents,
        num_tokens=shard.num_tokens,
        room_tokens=shard.num_blocks * block_tokens,
    )


class ShardSet:
    """A complete shard set. `shard_set["train"]` and `shard_set["val"]` are its splits."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.description = str(path)
        self.fingerprint = manifest.fingerprint
        self.block_tokens = manifest.block_tokens
        self.vocab_size = manifest.tokenizer.vocab_size  # every id in the set is below this
        self.eos_id = manifest.tokenizer.eos_id
        self.begin_id = manifest.tokenizer.begin_id  # the first token of each document, if they have one
        self.tokenizer_path = path / TOKENIZER_DIRECTORY
        self._splits: dict[str, Split] = {}

    @property
    def sets(self) -> list[ShardSet]:
        """This one alone, as a mixture has several."""
        return [self]

    def __reduce__(self) -> tuple[Callable[[str], ShardSet], tuple[str]]:
        """Pickled and copied by its path: nothing that is mapped is copied."""
        return open_shard_set, (str(self.path.absolute()),)

    def __getitem__(self, name: str) -> Split:
        if name not in self._splits:
            self._splits[name] = Split(name, self.sets)
        return self._splits[name]


def check_alike(sets: Sequence[ShardSet], fields: Sequence[str], done: str) -> None:
    """Raise `InputError` unless these `fields` of all manifests have the values that those of the first set have."""
    first = sets[0]
    for other in sets[1:]:
        values = [(name, *(operator.attrgetter(name)(own.manifest) for own in (first, other))) for name in fields]
        differences = [f"{name} (expected {want}, found {found})" for name, want, found in values if want != found]
        if differences:
            raise InputError(
                f"{other.path}: can't be {done} with {first.path}, from which it differs in {', '.join(differences)}; "
                "build one of them anew, as the other is"
            )


class Split:
    """The blocks of one split of a set, or of several, numbered from 0 through the shards, mapped when first touched."""

    def __init__(self, name: str, sets: Sequence[ShardSet]) -> None:
        known = sets[0].manifest.splits
        if name not in known:
            raise KeyError(f"no split {name!r}: this set has {', '.join(known)}{nearest(name, known)}")
        self.name: SplitName = "train" if name == "train" else "val"
        self.block_tokens = sets[0].block_tokens
        self.shards = [shard for part in sets for shard in part.manifest.of_split(name)]
        self.directory = sets[0].path
        self._directories = [part.path for part in sets for _ in part.manifest.of_split(name)]
        self._sets = [str(part.path.absolute()) for part in sets]
        entry = sum_splits(self.shards, self.block_tokens)[name]
        self.num_documents = entry.num_documents
        self.num_tokens = entry.num_tokens
        # Those that a model is to predict: a begin token says nothing.
        self.num_predicted_tokens = entry.num_tokens - (entry.num_documents if sets[0].begin_id is not None else 0)
        self.num_padding_tokens = entry.num_padding_tokens
        self.num_text_bytes = entry.num_text_bytes
        self.num_text_chars = entry.num_text_chars
        # Where each shard's blocks and documents begin, and the numbers of all.
        self.first_blocks = [0, *itertools.accumulate(shard.num_blocks for shard in self.shards)]
        self._first_documents = [0, *itertools.accumulate(shard.num_documents for shard in self.shards)]
        self._block_bytes = bin_bytes(1, self.block_tokens)
        self._maps: list[memoryview | None] = [None] * len(self.shards)
        self._mapped: collections.deque[int] = collections.deque()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._max_mapped = _MAX_MAPPED if limit == resource.RLIM_INFINITY else min(_MAX_MAPPED, limit // 2)
        # Where the documents lie in the split's shard of a number. Raises `InputError`.
        self.shard_index = functools.lru_cache(maxsize=16)(self._read_index)

    def __reduce__(self) -> tuple[Callable[[str, list[str]], Split], tuple[str, list[str]]]:
        return _reopen_split, (self.name, self._sets)

    def __len__(self) -> int:
        """Number of blocks."""
        return self.first_blocks[-1]

    def shard_blocks(self, number: int) -> Tokens:
        """All blocks of the split's shard `number`, shape `(num_blocks, block_tokens)`, a read-only view.

        Raises `InputError` if the file has changed since the set was opened.
        """
        return np.frombuffer(self._maps[number] or self._map(number), "<u4").reshape(-1, self.block_tokens)

    def _map(self, number: int) -> memoryview:
        shard = self.shards[number]
        path = self._directories[number] / (shard.name + BIN_SUFFIX)
        if regular_file_bytes(path) != bin_bytes(shard.num_blocks, self.block_tokens):
            raise InputError(f"{path}: the file has changed since the set was opened")
        with open(path, "rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self._maps[number] = content
        self._mapped.append(number)
        if len(self._mapped) > self._max_mapped:
            self._maps[self._mapped.popleft()] = None  # views of it that are in use keep it mapped
        return content

    @overload
    def __getitem__(self, key: int | np.integer) -> Tokens: ...
    @overload
    def __getitem__(self, key: slice | npt.NDArray[np.integer] | list[int]) -> Tokens: ...
    def __getitem__(self, key: int | np.integer | slice | npt.NDArray[np.integer] | list[int]) -> Tokens:
        """Block `key` as a view, shape `(block_tokens,)`; a slice or an index array: `(n, block_tokens)`.

        A slice within one shard is a view too. Negative numbers count from the end. Raises `IndexError`.
        """
        if isinstance(key, slice):
            return self._slice(key)
        if isinstance(key, (int, np.integer)):
            return np.frombuffer(self._block(int(key)), "<u4")
        return self._gather(np.asarray(key))

    def shard_of(self, block: int) -> int:
        """The number of the split's shard that the block is in, -1 or the number of shards for none."""
        return bisect.bisect_right(self.first_blocks, block) - 1

    def _block(self, number: int) -> memoryview:
        """The bytes of a block."""
        if number < 0:
            number += len(self)
        shard = self.shard_of(number)
        if not 0 <= shard < len(self.shards):
            raise IndexError(f"block numbers must lie in 0 … {len(self) - 1:,} (split {self.name!r})")
        start = (number - self.first_blocks[shard]) * self._block_bytes
        return (self._maps[shard] or self._map(shard))[start : start + self._block_bytes]

    def _slice(self, key: slice) -> Tokens:
        start, stop, step = key.indices(len(self))
        if step == 1 and start < stop:
            shard = self.shard_of(start)
            if stop <= self.first_blocks[shard + 1]:
                first = self.first_blocks[shard]
                return self.shard_blocks(shard)[start - first : stop - first]
        return self._gather(np.arange(start, stop, step))

    def _gather(self, numbers: npt.NDArray[np.integer]) -> Tokens:
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
            raise IndexError(f"expected a 1-D array of block numbers, found {numbers.dtype} {numbers.shape}")
        blocks = np.empty((len(numbers), self.block_tokens), dtype=np.uint32)
        content = blocks.reshape(-1).view(np.uint8).data
        for start, number in zip(range(0, len(content), self._block_bytes), numbers.tolist(), strict=True):
            content[start : start + self._block_bytes] = self._block(number)
        return blocks

    def offset_blocks(self, numbers: npt.NDArray[np.integer]) -> Tokens:
        """Blocks as an order with the shuffle `offset` numbers them, shape `(n, block_tokens)`.

        Number e × len(self) + n is block n as epoch e cuts it: each shard is a ring of its tokens, and all blocks begin
        e × 0.618 blocks later on it. So every token comes once in an epoch, and with other neighbours in the next.
        """
        blocks = np.empty((len(numbers), self.block_tokens), dtype=np.uint32)
        step = round(self.block_tokens * _GOLDEN_RATIO)
        for block, virtual in zip(blocks, numbers.tolist(), strict=True):
            epoch, number = divmod(virtual, len(self))
            shard = self.shard_of(number)
            ring = self.shard_blocks(shard).reshape(-1)
            start = ((number - self.first_blocks[shard]) * self.block_tokens + epoch * step) % len(ring)
            part = ring[start : start + self.block_tokens]
            block[: len(part)], block[len(part) :] = part, ring[: self.block_tokens - len(part)]
        return blocks

    def epoch(self, seed: int, epoch: int, start: int = 0, stop: int | None = None) -> npt.NDArray[np.int64]:
        """The block numbers at positions `start` … `stop` − 1 of the epoch's order (`shards.epoch_order`)."""
        return epoch_order(len(self), seed, epoch, np.arange(start, len(self) if stop is None else stop))

    def _read_index(self, number: int) -> Index:
        return read_shard_index(self._directories[number], self.shards[number], self.block_tokens)

    def shard_documents(self, number: int) -> Iterator[Tokens]:
        """The documents in the split's shard `number`, EOS included; views, but for those in several sequences."""
        index, tokens = self.shard_index(number), self.shard_blocks(number).reshape(-1)
        sequences = map(slice, index.starts.tolist(), index.ends.tolist())
        for first, stop in itertools.pairwise(index.boundaries.tolist()):
            parts = [tokens[next(sequences)] for _ in range(first, stop)]
            yield parts[0] if len(parts) == 1 else np.concatenate(parts)

    def documents(self) -> Iterator[Tokens]:
        """Each document's ids without its EOS, in the corpus's order."""
        for number in range(len(self.shards)):
            for document in self.shard_documents(number):
                yield document[:-1]

    def document(self, number: int) -> Tokens:
        """The ids of document `number` without its EOS, found by the index. Raises `IndexError`."""
        if not -self.num_documents <= number < self.num_documents:
            raise IndexError(f"document {number:,}: split {self.name!r} has {self.num_documents:,} documents")
        number %= self.num_documents
        shard = bisect.bisect_right(self._first_documents, number) - 1
        index, tokens = self.shard_index(shard), self.shard_blocks(shard).reshape(-1)
        own = slice(*index.boundaries[number - self._first_documents[shard] :][:2])
        parts = map(slice, index.starts[own], index.ends[own])
        return np.concatenate([tokens[part] for part in parts])[:-1]


def _reopen_split(name: str, sets: list[str]) -> Split:
    return Split(name, list(map(open_shard_set, sets)))
