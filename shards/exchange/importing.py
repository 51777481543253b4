"""Ids that another program has made become a shard set: checked, closed by EOS, split, packed.

Each document ends with one EOS, put there where it is missing; more than one at a document's end are one. A document of
nothing but EOS is empty and left out. The split is decided by a keyed hash of a document's ids, so equal documents are in
the same split, whatever file or type they come in. The result depends on the files, in their order, and the settings alone.
Memory: a batch of about a million tokens, what the packing needs, and the packing's few bytes a document.
"""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from shards.common.errors import InputError, choice
from shards.common.files import check_digest
from shards.common.text import in_utf8
from shards.exchange.token_files import Batch, Integers, TokenFile, file_bytes
from shards.layout import SPLITS
from shards.manifest import EMPTY, Manifest, Packing, SourceEntry
from shards.order import DEFAULT_SEED, check_seed
from shards.packing import Ids, Lengths
from shards.set_writer import DocumentBatch, NewSet, new_directories
from shards.tokenizer_files import load_tokenizer

EosInside = Literal["refuse", "keep", "split"]
UNIT_TOKENS = 1 << 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """What, together with the files, decides every byte of the set. Validated once, recorded in the manifest."""

    block_tokens: int = 512
    packing: Packing = "concat"
    val_fraction: float = 0.1
    seed: int = DEFAULT_SEED
    eos_inside: EosInside = "refuse"
    imported_from: str  # the format

    def __post_init__(self) -> None:
        if not 2 <= self.block_tokens <= 2**20:
            raise InputError(f"block_tokens: expected 2 to 1,048,576 tokens, found {self.block_tokens:,}")
        if not 0 <= self.val_fraction < 1:
            raise InputError(f"val_fraction: expected 0 or more and less than 1, found {self.val_fraction}")
        check_seed(self.seed)
        choice("packing", self.packing, typing.get_args(Packing))
        choice("eos_inside", self.eos_inside, typing.get_args(EosInside))


def import_files(
    files: Sequence[TokenFile],
    out: Path,
    *,
    tokenizer: Path,
    settings: ImportSettings,
    progress: Callable[[int], None] = lambda _: None,
) -> Manifest:
    """Make the shard set `out` of all documents in `files`. `progress` is called with the bytes just read of the files.

    Raises `InputError` if `out` exists, or a file can't be what it should be; then nothing is left.
    """
    own = load_tokenizer(tokenizer)
    eos_id, left_out, num_records = own.entry.eos_id, Counter[str](), Counter[Path]()

    def unit(batches: Iterator[Batch]) -> Iterator[DocumentBatch]:
        """The documents of as many batches as make a unit."""
        num_tokens = 0
        for path, first, found, lengths in batches:
            check_ids(path, first, found, lengths, own.entry.vocab_size)
            tokens = np.ascontiguousarray(found, dtype="<u4")
            starts, sizes, refused = find_bodies(tokens, lengths, eos_id, settings.eos_inside)
            if refused is not None:
                raise InputError(
                    f"{path}: document {first + refused:,}: EOS ({eos_id}) in its middle; choose "
                    "eos_inside split (each EOS ends a document) or keep (as it is)"
                )
            num_records[path] += len(sizes)
            left_out.update({EMPTY: int((sizes == 0).sum())})
            is_val = held_out(tokens, starts, sizes, settings)
            for name, chosen in zip(SPLITS, (~is_val & (sizes > 0), is_val & (sizes > 0)), strict=True):
                if chosen.any():
                    yield name, *closed(tokens, starts[chosen], sizes[chosen], eos_id)
            progress(found.nbytes)
            num_tokens += len(tokens)
            if num_tokens >= UNIT_TOKENS:
                return

    with new_directories([out]) as (directory,):
        # First, so that documents are taken only from files that are what a manifest beside them says.
        digests = [
            check_digest(file.path, file.shard.digest if file.shard else None, progress=progress) for file in files
        ]
        new_set = NewSet(directory, block_tokens=settings.block_tokens, packing=settings.packing, tokenizer=own)
        batches = itertools.chain.from_iterable(file.batches() for file in files)
        for number, batch in enumerate(batches):
            new_set.add_unit(number, unit(itertools.chain([batch], batches)))
        sources = [
            SourceEntry(
                path=in_utf8(file.path.name),
                format=settings.imported_from,
                num_bytes=file_bytes(file.path),
                digest=digest,
                num_ranges=1,
                num_records=num_records[file.path],
            )
            for file, digest in zip(files, digests, strict=True)
        ]
        recorded = dataclasses.asdict(settings)
        recorded["special_tokens"] = "parse" if settings.eos_inside == "keep" else "text"
        return new_set.finish(sources=sources, settings=recorded, left_out=+left_out)


def check_ids(path: Path, first: int, tokens: Integers, lengths: Lengths, vocab_size: int) -> None:
    """Raise `InputError` for the first id that can't be the tokenizer's."""
    if len(tokens) and not (tokens.min() >= 0 and tokens.max() < vocab_size):
        position = int(np.argmax((tokens >= vocab_size) | (tokens < 0)))
        number = first + int(np.searchsorted(np.cumsum(lengths), position, side="right"))
        raise InputError(
            f"{path}: document {number:,}: expected ids from 0 to {vocab_size - 1:,}, found "
            f"{int(tokens[position]):,}; is this the tokenizer that made them?"
        )


def held_out(tokens: Ids, starts: Lengths, sizes: Lengths, settings: ImportSettings) -> npt.NDArray[np.bool_]:
    """Which documents are val: those whose hash, 64 bits of BLAKE3 keyed by the seed, is below the fraction of 2**64."""
    content, key = tokens.view(np.uint8).data, settings.seed.to_bytes(32, "little")
    bounds = zip((starts * 4).tolist(), ((starts + sizes) * 4).tolist(), strict=True)
    hashes = b"".join(blake3(content[start:stop], key=key).digest(length=8) for start, stop in bounds)
    return np.frombuffer(hashes, "<u8") < np.uint64(int(settings.val_fraction * 2.0**64))


def find_bodies(
    tokens: Ids, lengths: Lengths, eos_id: int, eos_inside: EosInside
) -> tuple[Lengths, Lengths, int | None]:
    """Where documents of `lengths` begin in `tokens`, and their sizes without the EOS at their ends; 0 if empty.

    With `keep` one EOS is taken off at most, so that a document that ends with two keeps one inside; with `split` each EOS
    ends a document. The third value is the number of the first document with EOS in its middle, where that is refused.

    >>> find_bodies(np.array([5, 9, 9, 6, 9], dtype=np.uint32), np.array([3, 1, 1]), 9, "refuse")[1].tolist()
    [1, 1, 0]
    """
    is_eos = tokens == eos_id
    ends = np.cumsum(lengths)
    if eos_inside == "split":
        # Documents of no token stay, at the same ends.
        ends = np.sort(np.concatenate([ends, np.setdiff1d(np.flatnonzero(is_eos) + 1, ends)]))
        lengths = np.diff(ends, prepend=0)
    starts = ends - lengths
    if eos_inside == "keep":
        closing = np.append(is_eos, False)[ends - 1] & (lengths > 0)
        return starts, lengths - closing, None
    # The end of each document's last token that isn't EOS; there is a sentinel before the first token.
    others = np.concatenate([[-1], np.flatnonzero(~is_eos)])
    sizes = np.maximum(others[np.searchsorted(others, ends) - 1] + 1 - starts, 0)
    num_eos_before = np.concatenate([[0], np.cumsum(is_eos)])
    has_inside = num_eos_before[starts + sizes] > num_eos_before[starts]
    return starts, sizes, int(np.argmax(has_inside)) if has_inside.any() else None


def closed(tokens: Ids, starts: Lengths, sizes: Lengths, eos_id: int) -> tuple[Ids, Lengths]:
    """Documents with EOS after each: all their tokens, and the tokens in each.

    >>> closed(np.array([5, 6, 7], dtype=np.uint32), np.array([0, 2]), np.array([1, 1]), 9)[0].tolist()
    [5, 9, 7, 9]
    """
    ends = np.cumsum(sizes)
    # Where each token comes from: a document's tokens count up from its start.
    origins = np.arange(ends[-1]) + np.repeat(starts - (ends - sizes), sizes)
    return np.insert(tokens[origins], ends, eos_id), sizes + 1
