"""One unit of work: stretches of the corpus become shard files and a receipt.

Everything that a worker does is here, and nothing in it knows of other workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash
from blake3 import blake3

from pipeline.dedup import DropList
from pipeline.documents import DocumentEncoder
from pipeline.fields import TextOf
from pipeline.readers import open_stretch
from pipeline.receipts import (
    Receipt,
    SplitReceipt,
    StretchReceipt,
    encode_receipt,
    receipt_path,
    rejected_path,
)
from pipeline.records import BadRecord, Batch, Incomplete, LineCounter, ReadOptions, locate, raise_bad
from pipeline.settings import BuildSettings
from pipeline.sources import Source
from pipeline.tokenizers import Encoder
from pipeline.units import Unit
from shards.assemble import PACKERS
from shards.common.errors import InputError
from shards.common.files import atomic_writer, flush_directory, write_atomically
from shards.entries import SPLITS, SplitName, shard_name
from shards.packing import Ids, Lengths
from shards.writer import BIN_SUFFIX, INDEX_SUFFIX, ShardWriter

# Called with the source bytes and the tokens that were just done, and the records that were just rejected.
Progress = Callable[[int, int, int], None]

_REJECTED_CONTENT_BYTES = 1 << 16
# A longer document is not compared with the reference, which takes some 200 bytes of memory a character.
_MAX_CHECKED_CHARS = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker of a build knows."""

    sources: tuple[Source, ...]
    settings: BuildSettings
    encoder: str
    tokenizer_json: bytes
    eos_id: int
    directory: Path
    check_every: int  # one document in so many is also encoded by the reference; 0 for none
    num_units: int
    url: str = ""  # the set's URL, if it is built in a store; then `directory` is where the driver keeps the receipts
    carried: bool = False  # whether a worker's files come back as its result: it may not share the disk of `directory`


class UnitError(InputError):
    """Bad input in a unit. `firsts` is where its readers began; is `certain` unless one may be a false start."""

    def __init__(self, message: str, *, firsts: Sequence[int | None], certain: bool) -> None:
        super().__init__(message)
        self.firsts, self.certain = list(firsts), certain


class UnitRecords:
    """The texts of a unit's records, stretch after stretch; then what was read of each, and what was rejected."""

    def __init__(
        self,
        unit: Unit,
        sources: Sequence[Source],
        settings: BuildSettings,
        *,
        first: int | None = None,
        write_rejected: Callable[[bytes], None] | None = None,
    ) -> None:
        """`first` is the offset of the first record where that is known. `write_rejected` gets a line of `rejected.jsonl`
        for each rejected record, in their order."""
        self._unit, self._sources, self._settings, self._first = unit, sources, settings, first
        self._write_rejected = write_rejected
        self._text_of = TextOf(settings.text_field, settings.template)
        self._pending: list[BadRecord] = []
        self._lines: LineCounter | None = None
        self._source = sources[unit.stretches[0].source]
        self.rejected: Counter[str] = Counter()
        self.stretches: list[StretchReceipt] = []

    def batches(self) -> Iterator[tuple[list[str], Batch]]:
        """The texts of a batch of records, bad ones left out. Raises `UnitError`."""
        settings = self._settings
        options = ReadOptions(
            on_bad=self._note if settings.on_bad_record == "skip" else raise_bad,
            max_record_bytes=settings.max_record_bytes,
            document_separator=settings.document_separator,
            columns=self._text_of.columns,
        )
        for stretch in self._unit.stretches:
            self._source, self._lines = self._sources[stretch.source], None
            reader = open_stretch(self._source, stretch, options, first=self._first)
            num_rejected, num_good = self.rejected.total(), 0
            try:
                for batch in reader:
                    texts = self._text_of.texts(batch, options)
                    num_good += len(texts)
                    self._write_down()
                    yield texts, batch
                self._write_down()
            except BadRecord as error:
                certain = stretch.is_first or self._first is not None or self._source.format != "json-array"
                firsts = [*(done.first for done in self.stretches), reader.first]
                raise UnitError(str(locate(self._source, error)), firsts=firsts, certain=certain) from None
            finally:
                if self._lines is not None:
                    self._lines.close()
            self.stretches.append(
                StretchReceipt(
                    first=reader.first,
                    last=reader.last,
                    digest=reader.digest,
                    num_records=num_good + self.rejected.total() - num_rejected,
                )
            )

    def _note(self, error: BadRecord) -> None:
        """Write down a rejected record and go on."""
        if isinstance(error, Incomplete):
            raise error
        self.rejected[error.kind] += 1
        self._pending.append(error)

    def _write_down(self) -> None:
        """Put the bad records of a batch on record, in their order: lines are counted from front to back."""
        if self._write_rejected is not None:
            for error in sorted(self._pending, key=lambda error: error.offset):
                self._write_rejected(self._entry(error))
        self._pending.clear()

    def _entry(self, error: BadRecord) -> bytes:
        entry: dict[str, Any] = {"source": self._source.name, "reason": error.reason}
        if self._source.is_stream:
            self._lines = self._lines or LineCounter(self._source)
            entry |= {"line": self._lines.line(error.offset), "byte": error.offset}
        else:
            entry |= {"row": error.offset}
        entry["record"] = error.content[:_REJECTED_CONTENT_BYTES].decode("utf-8", "backslashreplace")
        return json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


class _RejectedFile(contextlib.ExitStack):
    """A unit's part of `rejected.jsonl`; there is none if nothing is written."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._digest = path, blake3()
        self._file: BinaryIO | None = None

    def write(self, entry: bytes) -> None:
        if self._file is None:
            self._file = self.enter_context(atomic_writer(self._path))
        self._file.write(entry)
        self._digest.update(entry)

    def hexdigest(self) -> str:
        """The digest of the file, empty if there is none."""
        return self._digest.hexdigest() if self._file is not None else ""


def process_unit(
    unit: Unit,
    job: Job,
    encoder: DocumentEncoder,
    reference: Callable[[], Encoder],
    *,
    first: int | None = None,
    progress: Progress = lambda _bytes, _tokens, _rejected: None,
) -> None:
    """Read, tokenize, pack and write one unit and its receipt. Raises `UnitError` for bad input."""
    _clear(job.directory, unit.number)
    drops = DropList(job.directory, unit.number) if job.settings.dedup == "exact" else None
    num_empty = num_duplicates = 0
    check = _Check(job, unit, encoder, reference)
    with contextlib.ExitStack() as stack:
        rejected = stack.enter_context(_RejectedFile(rejected_path(job.directory, unit.number)))
        records = UnitRecords(unit, job.sources, job.settings, first=first, write_rejected=rejected.write)
        splits = {name: _SplitBuilder(name, unit, job, stack) for name in SPLITS}
        num_rejected = 0
        for texts, batch in records.batches():
            num_rejected, num_rejected_before = records.rejected.total(), num_rejected
            if not all(texts):
                documents = [text for text in texts if text]
                num_empty += len(texts) - len(documents)
                texts = documents
            if drops is not None:
                kept = drops.keep(texts)
                num_duplicates += len(texts) - len(kept)
                texts = kept
            num_tokens = _add_documents(texts, encoder, job, splits, check) if texts else 0
            progress(batch.num_bytes, num_tokens, num_rejected - num_rejected_before)
        receipts: dict[str, SplitReceipt] = {name: builder.receipt() for name, builder in splits.items()}
    receipt = Receipt(
        unit=unit.number,
        stretches=records.stretches,
        num_empty=num_empty,
        num_duplicates=num_duplicates,
        num_checked=check.num_checked,
        rejected=dict(sorted(records.rejected.items())),
        rejected_digest=rejected.hexdigest(),
        splits=receipts,
    )
    flush_directory(job.directory)
    write_atomically(receipt_path(job.directory, unit.number), encode_receipt(receipt))


def _clear(directory: Path, unit: int) -> None:
    """Remove what an earlier attempt at the unit has left: it was killed, or took a false start."""
    names = [shard_name(split, unit) + suffix for split in SPLITS for suffix in (BIN_SUFFIX, INDEX_SUFFIX)]
    for path in (receipt_path(directory, unit), rejected_path(directory, unit), *(directory / name for name in names)):
        path.unlink(missing_ok=True)


class _Check:
    """Encodes a sample of the documents by the reference tokenizer too; one difference ends the build."""

    def __init__(self, job: Job, unit: Unit, encoder: DocumentEncoder, reference: Callable[[], Encoder]) -> None:
        self._every, self._reference = job.check_every, reference
        if encoder.encoder.is_reference:
            self._every = 0
        # The first documents of each unit, 100 in all (and 100 of the first unit alone), then one in so many.
        self._num_first = 100 if unit.number == 0 else max(4, -(-100 // job.num_units))
        self._num_closing = int(job.settings.closes_documents)
        self._seen = 0
        self.num_checked = 0

    def sample(self, texts: list[str], ids: Ids, ends: Lengths) -> None:
        """`ids` are the encoded texts, EOS included, the last token of each before its place in `ends`."""
        if not self._every:
            return
        num_first = max(0, min(len(texts), self._num_first - self._seen))
        others = range(-self._seen % self._every, len(texts), self._every)
        numbers = [*range(num_first), *(number for number in others if number >= num_first)]
        self._seen += len(texts)
        numbers = [number for number in numbers if len(texts[number]) <= _MAX_CHECKED_CHARS]
        if not numbers:
            return
        self.num_checked += len(numbers)
        expected, offsets = self._reference().encode([texts[number] for number in numbers])
        bounds = offsets.tolist()
        for place, number in enumerate(numbers):
            found = ids[ends[number - 1] if number else 0 : ends[number] - self._num_closing]
            right = expected[bounds[place] : bounds[place + 1]]
            if not np.array_equal(found, right):
                raise InputError(_difference(texts[number], found, right))


def _difference(text: str, found: Any, expected: Any) -> str:
    length = min(len(found), len(expected))
    same = found[:length] == expected[:length]
    place = length if same.all() else int(np.argmin(same))
    return (
        f"the fast encoder differs from the reference tokenizer at token {place:,} of this text "
        f"(found {found[place : place + 3].tolist()}, expected {expected[place : place + 3].tolist()}); "
        f"please report it, and build with --encoder tokenizers: {text[:2000]!r}"
    )


class _SplitBuilder:
    """The packer of one split with the counts of its documents."""

    def __init__(self, split: SplitName, unit: Unit, job: Job, stack: contextlib.ExitStack) -> None:
        """The packer is closed with `stack`."""
        settings = job.settings
        self._block_tokens, self._num_closing = settings.block_tokens, int(settings.closes_documents)
        writer = ShardWriter(job.directory, split, unit.number, block_tokens=settings.block_tokens)
        self._packer = PACKERS[settings.packing](stack.enter_context(writer), job.eos_id)
        self._num_documents = self._num_tokens = self._num_text_bytes = self._num_text_chars = 0
        self._num_short = self._num_tail = 0

    def add(self, tokens: Ids, counts: Lengths, *, num_text_bytes: int, num_text_chars: int) -> None:
        self._packer.add(tokens, counts)
        self._num_text_bytes += num_text_bytes
        self._num_text_chars += num_text_chars
        self._num_documents += len(counts)
        self._num_tokens += len(tokens)
        lengths = counts - self._num_closing
        self._num_short += int((lengths < self._block_tokens).sum())
        self._num_tail += int((lengths % self._block_tokens).sum())

    def receipt(self) -> SplitReceipt:
        packed = self._packer.finish()
        return SplitReceipt(
            num_documents=self._num_documents,
            num_tokens=self._num_tokens - packed.num_dropped_tokens,
            num_text_bytes=self._num_text_bytes,
            num_text_chars=self._num_text_chars,
            num_short_documents=self._num_short,
            num_tail_tokens=self._num_tail,
            num_dropped_tokens=packed.num_dropped_tokens,
            shard=packed.shard,
            tail=packed.tail,
        )


def _add_documents(
    texts: list[str], encoder: DocumentEncoder, job: Job, splits: Mapping[SplitName, _SplitBuilder], check: _Check
) -> int:
    """Tokenize `texts`, close each with EOS and hand them to the split that each belongs to."""
    settings = job.settings
    ids, counts, contents, num_bytes, num_chars = encoder.encode(texts)
    ends = np.cumsum(counts)
    check.sample(texts, ids, ends)
    hashes = np.fromiter(
        map(xxhash.xxh3_64_intdigest, contents, itertools.repeat(settings.seed)), np.uint64, len(texts)
    )
    is_val = hashes < np.uint64(val_threshold(settings.val_fraction))
    num_val_chars = sum(map(len, itertools.compress(texts, is_val.tolist())))
    choices: tuple[tuple[SplitName, npt.NDArray[np.bool_], int], ...] = (
        ("train", ~is_val, num_chars - num_val_chars),
        ("val", is_val, num_val_chars),
    )
    for name, chosen, num_chosen_chars in choices:
        if chosen.any():
            splits[name].add(
                _chosen_tokens(ids, ends, chosen),
                counts[chosen],
                num_text_bytes=int(num_bytes[chosen].sum()),
                num_text_chars=num_chosen_chars,
            )
    return len(ids)


def _chosen_tokens(ids: Ids, ends: Lengths, chosen: npt.NDArray[np.bool_]) -> Ids:
    """The tokens of the chosen documents, which end at `ends`. Documents that lie together are taken together."""
    changes = np.flatnonzero(np.diff(chosen, prepend=False, append=False))  # first, behind the last, first, …
    bounds = np.concatenate([[0], ends])[changes].tolist()
    runs = list(map(ids.__getitem__, map(slice, bounds[::2], bounds[1::2])))
    return runs[0] if len(runs) == 1 else np.concatenate(runs)


def val_threshold(val_fraction: float) -> int:
    """Texts whose 64-bit hash is below this are held out."""
    return int(val_fraction * 2.0**64)
