"""One unit of work: byte ranges of the corpus become shard files and a receipt, in a scratch directory.

`process_unit` is a function of the unit and of what the build decided, but for the number of its threads, which changes
no byte. Nothing in it knows of other workers, and no text leaves it but as tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.cleaning import Cleaner, Transform, needed_columns
from pipeline.encode import Documents, Encoder
from pipeline.plan import Unit
from pipeline.readers import open_range
from pipeline.readers.base import BadRecord, Batch, Incomplete, LineCounter, ReadOptions, locate, raise_bad
from pipeline.receipts import RangeReceipt, Receipt
from pipeline.settings import BuildSettings
from pipeline.sources import ByteRange, Source
from pipeline.tokenizers import ReferenceEncoder, load_encoder
from shards.common.errors import InputError
from shards.common.files import file_digest
from shards.layout import SPLITS, SplitName
from shards.packing import PACKERS, Ids, Lengths, Packer
from shards.writer import ShardWriter

# Called with the source bytes and the tokens that were just done, and the records that were just rejected.
Progress = Callable[[int, int, int], None]

REJECTED_PART = "rejected"  # in the scratch directory, if any record was rejected
_REJECTED_CONTENT_BYTES = 1 << 16
# A longer document is not compared with the reference, which takes some 200 bytes of memory a character.
_MAX_CHECKED_CHARS = 1 << 20
_MAX_FIRST_CHARS = 1 << 14  # of a unit, before the sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decisions:
    """What every worker of a build knows."""

    settings: BuildSettings
    encoder: str
    tokenizer_json: bytes
    eos_id: int
    begin_id: int | None
    check_every: int  # one character in so many is also encoded by the reference; 0 for none
    check_units: int  # in one unit of so many
    transform: Transform | None = None
    num_threads: int = 1  # that encode a unit, where there are fewer units than workers

    def load_encoder(self, name: str = "") -> Encoder:
        """The encoder, or the one called `name`. Loaded once: a forked worker has its parent's at once."""
        parses = self.settings.special_tokens == "parse"
        return load_encoder(name or self.encoder, self.tokenizer_json, parse_special=parses)


class _RejectedLog:
    """The records of a unit that can't be used: counted by kind and, with a `path`, written down in their order.

    A line there has the number of its byte range in the unit, and lines are counted from the beginning of that: so it is
    until the parts of all units are joined. No file is made if nothing is written.
    """

    def __init__(self, counts: Counter[str], path: Path | None) -> None:
        self._counts, self._path = counts, path
        self._pending: list[BadRecord] = []

    def note(self, error: BadRecord) -> None:
        """Note a record and go on. A file that ends inside a record is not what it should be, which is never skipped."""
        if isinstance(error, Incomplete):
            raise error
        self._counts[error.kind] += 1
        self._pending.append(error.with_traceback(None))  # whose frames would be kept

    def flush(self, number: int, source: Source, lines: LineCounter) -> None:
        """Write down what was noted in byte range `number` of the unit: lines are counted from front to back."""
        pending, self._pending = sorted(self._pending, key=lambda error: error.offset), []
        if not pending or self._path is None:
            return
        with self._path.open("ab") as file:
            for error in pending:
                place: dict[str, int] = {"row": error.offset}
                if source.is_stream:
                    place = dict(zip(("line", "byte"), lines.place(error.offset), strict=True))
                record = error.content[:_REJECTED_CONTENT_BYTES].decode("utf-8", "backslashreplace")
                entry = {"range": number, "source": source.name, "reason": error.reason, **place, "record": record}
                file.write(json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")


def read_texts(
    ranges: Sequence[ByteRange],
    settings: BuildSettings,
    receipt: Receipt,
    *,
    transform: Transform | None = None,
    first: int | None = None,
    rejected: Path | None = None,
) -> Iterator[tuple[list[str], Batch]]:
    """The documents of each batch of records, and the batch; byte range after byte range. What was read, and what becomes
    no document, is added to `receipt`; bad records are written to `rejected`.

    `transform` is the one that `settings` names, `first` the offset of the first record where that is known. Raises
    `InputError`.
    """
    log = _RejectedLog(receipt.rejected, rejected)
    cleaner = Cleaner(settings, transform, receipt)
    skips = settings.on_bad_record == "skip"
    options = ReadOptions(
        on_bad=log.note if skips else raise_bad,
        max_record_bytes=settings.max_record_bytes,
        document_separator=settings.document_separator,
        text_field=settings.text_field,
        columns=needed_columns(settings),
        counts_lines=skips,
    )
    for number, byte_range in enumerate(ranges):
        source = byte_range.source
        reader = open_range(byte_range, options, first=None if number else first)
        num_records = -receipt.rejected.total()
        with contextlib.closing(LineCounter(source, byte_range.start if source.is_splittable else 0)) as lines:
            try:
                for batch in reader:
                    num_rejected = receipt.rejected.total()
                    texts = cleaner.documents(batch, options)
                    num_records += len(batch.values) - (receipt.rejected.total() - num_rejected)
                    log.flush(number, source, lines)
                    yield texts, batch
                log.flush(number, source, lines)
            except BadRecord as error:
                raise locate(source, error) from None
        receipt.ranges.append(
            RangeReceipt(
                first=reader.first,
                last=reader.last,
                digest=reader.digest,
                num_records=num_records + receipt.rejected.total(),
                num_newlines=reader.num_newlines,
            )
        )


def range_digest(byte_range: ByteRange, settings: BuildSettings) -> str:
    """The digest that reading a byte range would give (`RangeReceipt.digest`)."""
    options = ReadOptions(on_bad=raise_bad, columns=needed_columns(settings))
    return open_range(byte_range, options).compute_digest()


def process_unit(
    unit: Unit,
    decisions: Decisions,
    scratch: Path,
    *,
    first: int | None,
    duplicates: Mapping[int, str],
    progress: Progress,
) -> Receipt:
    """Read, tokenize, pack and write one unit to the empty directory `scratch`. Raises `InputError` for bad input.

    `duplicates` are the numbers of its documents (empty ones not counted) that are left out, with the reason.
    """
    settings, path = decisions.settings, scratch / REJECTED_PART
    receipt, num_rejected = Receipt(unit=unit.number), 0
    check = _ReferenceCheck(decisions, unit, receipt)
    with contextlib.ExitStack() as stack:
        packers: dict[SplitName, Packer] = {}
        for name in SPLITS:
            writer = ShardWriter(scratch, name, unit.number, block_tokens=settings.block_tokens)
            packers[name] = PACKERS[settings.packing](stack.enter_context(writer), decisions.eos_id)
        batches = read_texts(unit.ranges, settings, receipt, transform=decisions.transform, first=first, rejected=path)
        if duplicates:
            batches = _without(duplicates, batches, receipt)
        encoded = stack.enter_context(contextlib.closing(_encoded(batches, decisions)))
        for texts, num_bytes, documents in encoded:
            _add_documents(texts, documents, decisions, packers, check, receipt)
            num_rejected, num_rejected_before = receipt.rejected.total(), num_rejected
            progress(num_bytes, len(documents.ids), num_rejected - num_rejected_before)
        receipt.shards += filter(None, [packer.finish() for packer in packers.values()])
    receipt.rejected_digest = file_digest(path) if receipt.rejected else ""
    return receipt


def _without(
    duplicates: Mapping[int, str], batches: Iterable[tuple[list[str], Batch]], receipt: Receipt
) -> Iterator[tuple[list[str], Batch]]:
    """The batches without the texts that `duplicates` numbers, which are counted in the receipt by their reasons."""
    num_seen = 0
    for texts, batch in batches:
        reasons = [duplicates.get(number) for number in range(num_seen, num_seen + len(texts))]
        num_seen += len(texts)
        receipt.left_out.update(filter(None, reasons))
        yield [text for text, reason in zip(texts, reasons, strict=True) if not reason], batch


def _encoded(
    batches: Iterable[tuple[list[str], Batch]], decisions: Decisions
) -> Generator[tuple[list[str], int, Documents], None, None]:
    """The texts of each batch, its bytes in the source and its documents, in order.

    Several threads encode beside the one that reads, which is ahead by two batches for each. What it raises comes after
    the batches before it, as with one.
    """
    encoder, eos_id = decisions.load_encoder(), decisions.eos_id
    num_threads = decisions.num_threads if encoder.uses_threads else 1
    if num_threads == 1:
        for texts, batch in batches:
            yield texts, batch.num_bytes, encoder.encode_closed(texts, eos_id)
        return

    def begun() -> Iterator[tuple[list[str], int, Future[Documents]]]:
        try:
            for texts, batch in batches:
                yield texts, batch.num_bytes, pool.submit(encoder.encode_closed, texts, eos_id)
        except Exception as error:
            failed: Future[Documents] = Future()
            failed.set_exception(error)
            yield [], 0, failed

    with ThreadPoolExecutor(num_threads) as pool:
        ahead = begun()
        pending = deque(itertools.islice(ahead, 2 * num_threads))
        while pending:
            texts, num_bytes, documents = pending.popleft()
            yield texts, num_bytes, documents.result()
            pending.extend(itertools.islice(ahead, 1))


class _ReferenceCheck:
    """Encodes a sample of a unit's documents by the reference tokenizer too; one difference ends the build.

    The sample is the first documents, up to 16 Ki characters, and from there on one as soon as those since the last are
    `check_every` times as long as that. Only the first of `check_units` units is looked at, that much closer: a worker
    that never checks doesn't load the reference, which takes longer than encoding 30 MB.
    """

    def __init__(self, decisions: Decisions, unit: Unit, receipt: Receipt) -> None:
        self._decisions, self._receipt = decisions, receipt
        is_fast = decisions.load_encoder().name != ReferenceEncoder.name
        self._is_on = is_fast and decisions.check_every > 0 and unit.number % decisions.check_units == 0
        self._every = max(1, decisions.check_every // decisions.check_units)
        self._allowed_chars = float(_MAX_FIRST_CHARS)

    def check(self, texts: list[str], ids: Ids, ends: Lengths) -> None:
        """`ids` are the encoded texts, EOS included, the last token of each before its position in `ends`."""
        chosen = []
        for number, length in enumerate(map(len, texts) if self._is_on else ()):
            if self._allowed_chars > 0 and length <= _MAX_CHECKED_CHARS:
                self._allowed_chars -= length
                chosen.append(number)
            self._allowed_chars += length / self._every
        if not chosen:
            return
        self._receipt.num_checked += len(chosen)
        reference = self._decisions.load_encoder(ReferenceEncoder.name)
        expected, offsets = reference.encode([texts[number] for number in chosen])
        for number, right in zip(chosen, np.split(expected, offsets[1:-1].astype(np.int64)), strict=True):
            found = ids[ends[number - 1] if number else 0 : ends[number] - 1]
            if not np.array_equal(found, right):
                raise InputError(_difference(texts[number], found, right))


def _difference(text: str, found: Any, expected: Any) -> str:
    length = min(len(found), len(expected))
    same = found[:length] == expected[:length]
    place = length if same.all() else int(np.argmin(same))
    return (
        f"the fast encoder differs from the reference tokenizer at token {place:,} of this text "
        f"(found {found[place : place + 3].tolist()}, expected {expected[place : place + 3].tolist()}); "
        f"please report it, and build with the encoder `tokenizers`: {text[:2000]!r}"
    )


def _add_documents(
    texts: list[str],
    documents: Documents,
    decisions: Decisions,
    packers: Mapping[SplitName, Packer],
    check: _ReferenceCheck,
    receipt: Receipt,
) -> None:
    """Hand the documents of `texts` to the split that each belongs to."""
    settings = decisions.settings
    ids, counts, contents = documents
    ends = np.cumsum(counts)
    num_bytes = np.fromiter(map(len, contents), np.int64, len(texts))
    check.check(texts, ids, ends)
    receipt.num_short_documents += int((counts <= settings.block_tokens).sum())
    receipt.num_remainder_tokens += int(((counts - 1) % settings.block_tokens).sum())
    if decisions.begin_id is not None:
        ids, counts = np.insert(ids, ends - counts, decisions.begin_id), counts + 1
        ends = np.cumsum(counts)
    hashes = np.fromiter(
        map(xxhash.xxh3_64_intdigest, contents, itertools.repeat(settings.seed)), np.uint64, len(texts)
    )
    is_val = hashes < np.uint64(settings.val_fraction * 2.0**64)
    num_val_chars = sum(map(len, itertools.compress(texts, is_val.tolist())))
    choices: tuple[tuple[SplitName, npt.NDArray[np.bool_], int], ...] = (
        ("train", ~is_val, sum(map(len, texts)) - num_val_chars),
        ("val", is_val, num_val_chars),
    )
    for name, chosen, num_chosen_chars in choices:
        if chosen.any():
            packers[name].add(
                _chosen_tokens(ids, ends, chosen),
                counts[chosen],
                num_text_bytes=int(num_bytes[chosen].sum()),
                num_text_chars=num_chosen_chars,
            )


def _chosen_tokens(ids: Ids, ends: Lengths, chosen: npt.NDArray[np.bool_]) -> Ids:
    """The tokens of the chosen documents, which end at `ends`. Documents that lie together are taken together."""
    changes = np.flatnonzero(np.diff(chosen, prepend=False, append=False))  # first, stop, first, stop, …
    bounds = np.concatenate([[0], ends])[changes].tolist()
    runs = list(map(ids.__getitem__, map(slice, bounds[::2], bounds[1::2])))
    return runs[0] if len(runs) == 1 else np.concatenate(runs)
