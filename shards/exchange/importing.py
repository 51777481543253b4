"""Ids that another program has made become a shard set: checked, closed by EOS, split, packed.

One EOS stands behind each document, put there where it is missing; more than one at a document's end are one. A document of
nothing but EOS is empty and left out. The split is decided by a keyed hash of a document's ids, so equal documents fall on
the same side, whatever file or type they come in. The result depends on the files, in their order, and the settings alone.
Memory: a batch of about a million tokens, what the packing needs, and the packing's few bytes a document.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from shards.common.errors import InputError, choice
from shards.common.files import file_digest
from shards.entries import SplitName
from shards.exchange.token_files import Batch, TokenFile, arrange, read_batches
from shards.manifest import Manifest, SourceEntry
from shards.new_set import DocumentBatch, NewSet, new_directory
from shards.order import DEFAULT_SEED, check_seed
from shards.packing import Ids, Lengths
from shards.tokenizer_files import load_tokenizer

Packing = Literal["concat", "best-fit"]
EosInside = Literal["refuse", "keep", "split"]
UNIT_TOKENS = 1 << 24
# A piece's length is an int32 in the index.
_MAX_DOCUMENT_TOKENS = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """What, together with the files, decides every byte of the set. Validated once, recorded in the manifest."""

    source_format: str
    block_tokens: int = 512
    packing: Packing = "concat"
    val_fraction: float = 0.1
    seed: int = DEFAULT_SEED
    eos_inside: EosInside = "refuse"

    def __post_init__(self) -> None:
        if not 2 <= self.block_tokens <= 2**20:
            raise InputError(f"--block-tokens: expected 2 to 1,048,576 tokens, found {self.block_tokens:,}")
        if not 0 <= self.val_fraction < 1:
            raise InputError(f"--val-fraction: expected 0 or more and less than 1, found {self.val_fraction}")
        check_seed(self.seed)
        choice("--packing", self.packing, typing.get_args(Packing))
        choice("--eos-inside", self.eos_inside, typing.get_args(EosInside))


@dataclasses.dataclass(frozen=True)
class Bodies:
    """Where the documents of a batch lie in its tokens, without their EOS; none is empty."""

    starts: Lengths
    sizes: Lengths
    num_empty: int  # documents that are left out
    refused: int | None = None  # the number of the first document with an EOS in its middle, where that is refused


def import_files(
    files: Sequence[TokenFile],
    out: Path,
    *,
    tokenizer: Path,
    settings: ImportSettings,
    advance: Callable[[int], None] = lambda _: None,
) -> Manifest:
    """Make the shard set `out` of all documents in `files`. `advance` is told the bytes read, twice over the files.

    Raises `InputError` if `out` exists, or a file can't be what it should be; then nothing is left behind.
    """
    own = load_tokenizer(tokenizer)
    runs = arrange(files)
    with new_directory(out) as directory:
        new_set = NewSet(directory, block_tokens=settings.block_tokens, packing=settings.packing, tokenizer=own)
        importer = Importer(settings, eos_id=own.entry.eos_id, vocab_size=own.entry.vocab_size)
        batches = read_batches(runs, advance)
        for batch in batches:
            new_set.add_unit(importer.unit(batch, batches))
        sources = [
            SourceEntry(
                path=file.path.name,
                format=settings.source_format,
                num_bytes=file.num_bytes,
                digest=_digest(file, advance),
                num_stretches=1,
                num_records=importer.num_records.get(file.path, 0),
            )
            for file in files
        ]
        recorded = {
            "imported_from": settings.source_format,
            **{
                name: getattr(settings, name)
                for name in ("block_tokens", "packing", "val_fraction", "seed", "eos_inside")
            },
            "special_tokens": "parse" if settings.eos_inside == "keep" else "text",
        }
        return new_set.finish(sources=sources, settings=recorded, num_empty=importer.num_empty)


class Importer:
    """Turns batches as they come from a file into batches as a set takes them, and counts."""

    def __init__(self, settings: ImportSettings, *, eos_id: int, vocab_size: int) -> None:
        self._settings, self._eos_id, self._vocab_size = settings, eos_id, vocab_size
        self._key = settings.seed.to_bytes(32, "little")
        self._threshold = int(settings.val_fraction * 2.0**64)
        self.num_empty = 0
        self.num_records: dict[Path, int] = {}  # documents that end in each file, empty ones too

    def unit(self, first: Batch, rest: Iterator[Batch]) -> Iterator[DocumentBatch]:
        """The documents of `first`, and of as many batches more as make a unit."""
        num_tokens, batch = 0, first
        while True:
            yield from self.documents(batch)
            num_tokens += len(batch.tokens)
            if num_tokens >= UNIT_TOKENS or (following := next(rest, None)) is None:
                return
            batch = following

    def documents(self, batch: Batch) -> Iterator[DocumentBatch]:
        """The documents of a batch, closed, for each split. Raises `InputError` for ids that can't be the tokenizer's."""
        tokens = self._checked(batch)
        bodies = find_bodies(tokens, batch.lengths, self._eos_id, self._settings.eos_inside)
        if bodies.refused is not None:
            raise InputError(
                f"{batch.file.path}: document {batch.first + bodies.refused:,}: EOS ({self._eos_id}) in its middle; choose "
                "--eos-inside split (each EOS ends a document) or keep (as it is)"
            )
        self.num_empty += bodies.num_empty
        num_records = len(bodies.starts) + bodies.num_empty
        self.num_records[batch.file.path] = self.num_records.get(batch.file.path, 0) + num_records
        if len(bodies.sizes) and bodies.sizes.max() >= _MAX_DOCUMENT_TOKENS:
            raise InputError(
                f"{batch.file.path}: a document of {bodies.sizes.max():,} tokens; expected fewer than 2**31 - 1"
            )
        is_val = self._is_val(tokens, bodies)
        choices: tuple[tuple[SplitName, npt.NDArray[np.bool_]], ...] = (("train", ~is_val), ("val", is_val))
        for name, chosen in choices:
            if chosen.any():
                yield name, *closed(tokens, bodies.starts[chosen], bodies.sizes[chosen], self._eos_id)

    def _checked(self, batch: Batch) -> Ids:
        tokens = batch.tokens
        if len(tokens) and (tokens.max() >= self._vocab_size or tokens.min() < 0):
            place = int(np.argmax((tokens >= self._vocab_size) | (tokens < 0)))
            self._refuse_id(batch, place)
        return np.ascontiguousarray(tokens, dtype=np.uint32)

    def _refuse_id(self, batch: Batch, place: int) -> NoReturn:
        ends = np.cumsum(batch.lengths)
        number = int(np.searchsorted(ends, place, side="right"))
        token = place - int(ends[number] - batch.lengths[number])
        raise InputError(
            f"{batch.file.path}: document {batch.first + number:,}, token {token:,}: expected an id from 0 to "
            f"{self._vocab_size - 1:,}, found {int(batch.tokens[place]):,}; is --tokenizer what made the ids?"
        )

    def _is_val(self, tokens: Ids, bodies: Bodies) -> npt.NDArray[np.bool_]:
        """Which documents are held out: those whose hash, 64 bits of BLAKE3 keyed by the seed, is below the threshold."""
        content = np.ascontiguousarray(tokens, dtype="<u4").view(np.uint8).data
        bounds = zip((bodies.starts * 4).tolist(), ((bodies.starts + bodies.sizes) * 4).tolist(), strict=True)
        hashes = b"".join(blake3(content[start:end], key=self._key).digest(length=8) for start, end in bounds)
        return np.frombuffer(hashes, "<u8") < np.uint64(self._threshold)


def find_bodies(tokens: Ids, lengths: Lengths, eos_id: int, eos_inside: EosInside) -> Bodies:
    """The documents of `lengths` in `tokens`, without the EOS at their ends.

    With `keep` one EOS is taken off at most, so that a document that ends with two keeps one inside; with `split` each EOS
    ends a document.

    >>> find_bodies(np.array([5, 9, 9, 6, 9], dtype=np.uint32), np.array([3, 1, 1]), 9, "refuse").sizes.tolist()
    [1, 1]
    """
    is_eos = tokens == eos_id
    ends = np.cumsum(lengths)
    num_empty, refused = 0, None
    if eos_inside == "split":
        num_empty = int((lengths == 0).sum())
        ends = np.union1d(ends[lengths > 0], np.flatnonzero(is_eos) + 1)
        lengths = np.diff(ends, prepend=0)
    starts = ends - lengths
    if eos_inside == "keep":
        closing = np.zeros(len(lengths), dtype=np.int64)
        closing[lengths > 0] = is_eos[ends[lengths > 0] - 1]
        sizes = lengths - closing
    else:
        # Behind the last token of each that isn't EOS; there is a sentinel before the first token.
        others = np.concatenate([[-1], np.flatnonzero(~is_eos)])
        sizes = np.maximum(others[np.searchsorted(others, ends) - 1] + 1 - starts, 0)
        eos_before = np.concatenate([[0], np.cumsum(is_eos)])
        inside = eos_before[starts + sizes] > eos_before[starts]
        if inside.any():
            refused = int(np.argmax(inside))
    filled = sizes > 0
    return Bodies(starts[filled], sizes[filled], num_empty + int((~filled).sum()), refused)


def closed(tokens: Ids, starts: Lengths, sizes: Lengths, eos_id: int) -> tuple[Ids, Lengths]:
    """Documents with EOS behind each: all their tokens, and the tokens in each.

    >>> closed(np.array([5, 6, 7], dtype=np.uint32), np.array([0, 2]), np.array([1, 1]), 9)[0].tolist()
    [5, 9, 7, 9]
    """
    lengths = sizes + 1
    ends = np.cumsum(lengths)
    # Where each token of the result lies: a document's begin counts up from its start.
    places = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
    places[ends - 1] = 0
    result = tokens[places]
    result[ends - 1] = eos_id
    return result, lengths


def _digest(file: TokenFile, advance: Callable[[int], None]) -> str:
    """BLAKE3 of the tokens' file. Raises `InputError` if a manifest beside it knows it otherwise."""
    result = file_digest(file.path, progress=advance)
    if file.shard is not None and result != file.shard.entry.digest:
        raise InputError(
            f"{file.path}: expected digest {file.shard.entry.digest}, found {result}; the file was changed"
        )
    return result
