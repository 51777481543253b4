"""Parts of shard sets: subsets and splits, without tokenizing.

What a build guarantees holds here too: the result is there whole or not at all, depends on its inputs alone, loses
nothing, and passes `shards.verify`. A shard is checked against its digest before documents are taken from it.

Documents stay whole and keep their side (train or val), their order and their unit of the corpus, within which they are
packed anew. So a part that takes everything has the shards of the old set, byte for byte.

Which documents a part takes is a range of ranks. A document's rank is its number in its split or, with a seed, that number
sent through the keyed bijection of `shards.order`: so parts have exactly the sizes asked for, a smaller part lies within a
larger one of the same seed, and no list of documents is kept. Shares are rounded up: of 10 documents, 1/3 takes the ranks
0 … 3, and the shares 1/3, 1/3, 1/3 are the ranks 0 … 3, 4 … 6 and 7 … 9.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError
from shards.entries import SPLITS, SplitName
from shards.manifest import Manifest, SourceEntry
from shards.merge import check_outside, check_shard, new_set_like, special_tokens
from shards.new_set import DocumentBatch, new_directory
from shards.order import DEFAULT_SEED, check_seed, epoch_order
from shards.reader import ShardSet, Split, Tokens, open_shard_set
from shards.writer import set_bytes

_BATCH_TOKENS = 1 << 20
_NUM_STRETCHES = 1 << 16
_PARTS_AT_ONCE = 8  # each has a vocabulary in memory, some 20 MB with Qwen2's
_MAX_PARTS = 500  # each has an open directory

Progress = Callable[[int], None]  # called with the number of documents just packed
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A new set of documents of an old one: the ranks that it takes of each split, and what its settings record."""

    out: Path
    ranks: dict[SplitName, range]
    settings: dict[str, Any]

    @property
    def num_documents(self) -> int:
        return sum(map(len, self.ranks.values()))


def subset(
    path: Path,
    out: Path,
    *,
    num_documents: int | None = None,
    num_tokens: int | None = None,
    fraction: Fraction | None = None,
    seed: int | None = None,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Make the set `out` of some documents of the set at `path`. Raises `InputError`.

    One of these says what is taken of train: `num_documents`; so many documents that they hold `num_tokens` (EOS included)
    or a little more; a `fraction` of the documents. Of val the same share is taken. Without `seed` these are the first
    documents in the corpus's order, with it pseudo-random ones.
    """
    if seed is not None:
        check_seed(seed)
    shard_set = open_shard_set(path)
    train = shard_set["train"]
    if not train.num_documents:
        raise InputError(f"{path}: train is empty, and a subset is counted by the documents of train")
    asked = {"documents": num_documents, "tokens": num_tokens, "fraction": fraction}
    ((name, value),) = ((name, value) for name, value in asked.items() if value is not None)
    most = {"documents": train.num_documents, "tokens": train.num_tokens, "fraction": 1}[name]
    if not 0 < value <= most:
        least = "more than 0" if name == "fraction" else "at least 1"
        raise InputError(f"--{name}: expected {least} and at most {most:,}, what train of {path} has; found {value}")
    if num_tokens is not None:
        num_documents = _num_documents_with(train, num_tokens, seed)
    if fraction is None:
        fraction = Fraction(num_documents or 0, train.num_documents)
    part = Part(
        out=out,
        ranks=_shares(shard_set, Fraction(0), fraction),
        settings={"command": "subset", name: str(value) if name == "fraction" else value, "seed": seed},
    )
    return _write_parts(shard_set, [part], seed, progress)[0]


def split(
    path: Path,
    outs: Sequence[Path],
    fractions: Sequence[Fraction],
    *,
    seed: int = DEFAULT_SEED,
    progress: Progress = lambda _: None,
) -> list[Manifest]:
    """Deal the documents of the set at `path` out to the sets `outs`, a share of `fractions` to each. Raises `InputError`.

    Which document goes where is pseudo-random; each is in exactly one of the new sets.
    """
    check_seed(seed)
    if not fractions or min(fractions) <= 0 or sum(fractions) != 1:
        found = ", ".join(map(str, fractions))
        raise InputError(
            f"--fractions: expected shares above 0 that are 1 together, found {found} (together {sum(fractions)})"
        )
    if len(fractions) > _MAX_PARTS:
        raise InputError(f"--parts: expected at most {_MAX_PARTS}, found {len(fractions):,}")
    shard_set = open_shard_set(path)
    shown = [str(fraction) for fraction in fractions]
    ends = list(itertools.accumulate(fractions))
    parts = [
        Part(
            out=out,
            ranks=_shares(shard_set, end - fraction, end),
            settings={"command": "split", "fractions": shown, "part": number, "seed": seed},
        )
        for number, (out, fraction, end) in enumerate(zip(outs, fractions, ends, strict=True))
    ]
    return _write_parts(shard_set, parts, seed, progress)


def _shares(shard_set: ShardSet, begin: Fraction, end: Fraction) -> dict[SplitName, range]:
    """The ranks from `begin` to `end`, as shares of all, rounded up: what has any share of few documents has one."""
    sizes = {name: shard_set[name].num_documents for name in SPLITS}
    return {name: range(math.ceil(begin * size), math.ceil(end * size)) for name, size in sizes.items()}


def _unit_numbers(split: Split) -> dict[int, range]:
    """The numbers of each unit's documents in the split."""
    sizes = split.units()
    ends = itertools.accumulate(sizes.values())
    return {unit: range(end - size, end) for (unit, size), end in zip(sizes.items(), ends, strict=True)}


def _ranks(split: Split, numbers: range, seed: int | None) -> Ints:
    """The ranks of the documents `numbers` of a split."""
    documents = np.arange(numbers.start, numbers.stop)
    if seed is None:
        return documents
    return epoch_order(split.num_documents, seed, SPLITS.index(split.name), documents)


def _num_documents_with(split: Split, num_tokens: int, seed: int | None) -> int:
    """How many documents, by their ranks, it takes to hold `num_tokens`. Memory does not grow with the split.

    Two passes over the indexes: one for the tokens in each of 65,536 stretches of ranks, one for the documents of the
    stretch in which the number is reached.
    """
    width = -(-split.num_documents // _NUM_STRETCHES)
    sums = np.zeros(_NUM_STRETCHES, dtype=np.int64)
    for ranks, lengths in _unit_lengths(split, seed):
        np.add.at(sums, ranks // width, lengths)
    ends = np.cumsum(sums)
    stretch = int(np.searchsorted(ends, num_tokens))
    inner = np.zeros(width, dtype=np.int64)
    for ranks, lengths in _unit_lengths(split, seed):
        inside = ranks // width == stretch
        inner[ranks[inside] % width] = lengths[inside]
    missing = num_tokens - int(ends[stretch] - sums[stretch])
    return stretch * width + int(np.searchsorted(np.cumsum(inner), missing)) + 1


def _unit_lengths(split: Split, seed: int | None) -> Iterator[tuple[Ints, Ints]]:
    """For each unit of the split, its documents' ranks and tokens."""
    for unit, numbers in _unit_numbers(split).items():
        lengths = map(len, split.unit_documents(unit))
        yield _ranks(split, numbers, seed), np.fromiter(lengths, dtype=np.int64, count=len(numbers))


def _write_parts(shard_set: ShardSet, parts: Sequence[Part], seed: int | None, progress: Progress) -> list[Manifest]:
    """Write all of `parts`, unit after unit. The new sets appear together, when all of them are whole."""
    for part in parts:
        if not part.num_documents:
            raise InputError(
                f"{part.out}: would be empty, since {shard_set.path} has too few documents; make fewer or larger parts"
            )
    check_outside([shard_set], [part.out for part in parts])
    manifests: list[Manifest] = []
    checked: set[str] = set()
    with _held_signals() as hold, contextlib.ExitStack() as stack:
        directories = [stack.enter_context(new_directory(part.out)) for part in parts]
        for first in range(0, len(parts), _PARTS_AT_ONCE):
            group = slice(first, first + _PARTS_AT_ONCE)
            new_sets = [new_set_like(shard_set, directory) for directory in directories[group]]
            for unit, ranks in _units(shard_set, seed):
                for part, new_set in zip(parts[group], new_sets, strict=True):
                    masks = {name: _inside(own, part.ranks[name]) for name, own in ranks.items()}
                    chosen = {name: mask for name, mask in masks.items() if mask.any()}
                    if chosen:
                        _check_unit(shard_set, unit, chosen, checked)
                        new_set.add_unit(_batches(shard_set, unit, chosen, progress))
            manifests += [
                new_set.finish(sources=[_source(shard_set, part)], settings=_settings(shard_set, part))
                for part, new_set in zip(parts[group], new_sets, strict=True)
            ]
        hold()
    return manifests


def _units(shard_set: ShardSet, seed: int | None) -> Iterator[tuple[int, dict[SplitName, Ints]]]:
    """For each unit, the ranks of its documents in the splits that have any."""
    numbers = {name: _unit_numbers(shard_set[name]) for name in SPLITS}
    for unit in sorted({unit for of_split in numbers.values() for unit in of_split}):
        yield unit, {name: _ranks(shard_set[name], of[unit], seed) for name, of in numbers.items() if unit in of}


def _inside(ranks: Ints, chosen: range) -> Bools:
    mask: Bools = (ranks >= chosen.start) & (ranks < chosen.stop)
    return mask


def _check_unit(shard_set: ShardSet, unit: int, splits: Mapping[SplitName, object], checked: set[str]) -> None:
    """Check the digests of the shards with the unit's documents in `splits`, but for those that are `checked` already."""
    for name in splits:
        for shard in shard_set[name].unit_shards(unit):
            if shard.name not in checked:
                check_shard(shard_set.path, shard)
                checked.add(shard.name)


def _batches(
    shard_set: ShardSet, unit: int, chosen: Mapping[SplitName, Bools], progress: Progress
) -> Iterator[DocumentBatch]:
    """The chosen documents of a unit, some megabytes at a time."""
    for name, mask in chosen.items():
        documents: list[Tokens] = []
        num_tokens = 0
        for document in itertools.compress(shard_set[name].unit_documents(unit), mask.tobytes()):
            documents.append(document)
            num_tokens += len(document)
            if num_tokens >= _BATCH_TOKENS:
                yield _batch(name, documents)
                progress(len(documents))
                documents, num_tokens = [], 0
        if documents:
            yield _batch(name, documents)
            progress(len(documents))


def _batch(name: SplitName, documents: Sequence[Tokens]) -> DocumentBatch:
    return name, np.concatenate(documents), np.array([len(document) for document in documents], dtype=np.int64)


def _source(shard_set: ShardSet, part: Part) -> SourceEntry:
    manifest = shard_set.manifest
    return SourceEntry(
        path=os.path.basename(os.path.abspath(shard_set.path)),
        format="shard-set",
        num_bytes=set_bytes(manifest),
        digest=manifest.fingerprint,
        num_stretches=1,
        num_records=part.num_documents,
    )


def _settings(shard_set: ShardSet, part: Part) -> dict[str, Any]:
    manifest = shard_set.manifest
    return {**part.settings, "set": manifest.fingerprint, "settings": manifest.settings, **special_tokens([manifest])}


@contextlib.contextmanager
def _held_signals() -> Iterator[Callable[[], None]]:
    """A function: from its call to the end of the block, Ctrl-C and SIGTERM wait.

    Several sets get their names one after another: an interruption in between would leave some of them behind. A mask of
    the signals would not do, since another thread of the process (NumPy has some) may receive them.
    """
    handlers: dict[signal.Signals, Any] = {}
    waiting: list[int] = []

    def hold() -> None:
        if threading.current_thread() is threading.main_thread():  # no other thread is interrupted
            for number in (signal.SIGINT, signal.SIGTERM):
                handlers[number] = signal.signal(number, lambda number, _frame: waiting.append(number))

    try:
        yield hold
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for first in waiting[:1]:
            signal.raise_signal(first)
