"""A build from beginning to end: plan, do the missing units, join what they left over, publish.

The set depends on the corpus and the settings alone: not on the number of workers, nor on the order in which units
finish, nor on how often the build was killed and begun again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from pipeline.chain import Chain
from pipeline.engine import Job, Task, run_tasks
from pipeline.place import Place, make_plan, settings_differences
from pipeline.settings import BuildSettings
from pipeline.sources import Source, Unit, find_sources, plan_units
from pipeline.tokenizers import (
    TOKENIZER_CONFIG_JSON,
    TOKENIZER_JSON,
    TokenizerFiles,
    choose_encoder,
    load_tokenizer_files,
)
from pipeline.work import Receipt, UnitError, read_receipt, receipt_path
from shards.errors import InputError
from shards.files import flush_directory, write_atomically
from shards.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    SPLITS,
    STAMPS_NAME,
    TOKENIZER_DIRECTORY,
    Manifest,
    ShardEntry,
    SourceEntry,
    SplitEntry,
    SplitName,
    TailEntry,
    encode_manifest,
    read_manifest,
)
from shards.writer import ShardWriter, shard_name

GENERATOR = "tokenize-once 1"


class Reporter:
    """Hears how a build goes on. This one says nothing."""

    def started(self, num_bytes: int, num_bytes_done: int, num_workers: int) -> None: ...

    def progress(self, num_bytes: int, num_tokens: int) -> None: ...

    def finished(self) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What came of a build."""

    path: Path
    manifest: Manifest
    up_to_date: bool
    num_units_reused: int
    seconds: float


def build(
    source_names: Sequence[str],
    out: Path,
    *,
    tokenizer_name: str,
    settings: BuildSettings,
    num_workers: int,
    force: bool = False,
    reporter: Reporter | None = None,
) -> BuildResult:
    """Build the shard set `out` from the sources. Raises `InputError`; finished units are kept for the next run."""
    begin = time.monotonic()
    reporter = reporter or Reporter()
    if num_workers < 1:
        raise InputError(f"--workers: expected at least 1, found {num_workers}")
    sources = find_sources(source_names)
    tokenizer = load_tokenizer_files(tokenizer_name)
    plan = make_plan(settings, sources, tokenizer)
    place = Place(out)
    with place.lock():
        if force:
            place.discard()
        if out.exists() or out.is_symlink():
            manifest = _check_existing(out, plan, sources, settings)
            seconds = time.monotonic() - begin
            return BuildResult(path=out, manifest=manifest, up_to_date=True, num_units_reused=0, seconds=seconds)
        place.prepare(plan)
        if not (place.partial / MANIFEST_NAME).exists():
            num_reused = _do_units(place, sources, settings, tokenizer, num_workers, reporter)
        else:
            num_reused = len(plan_units(sources, settings.unit_bytes))
        place.publish()
    seconds = time.monotonic() - begin
    return BuildResult(
        path=out, manifest=read_manifest(out), up_to_date=False, num_units_reused=num_reused, seconds=seconds
    )


def _do_units(
    place: Place,
    sources: list[Source],
    settings: BuildSettings,
    tokenizer: TokenizerFiles,
    num_workers: int,
    reporter: Reporter,
) -> int:
    """Do the units without a receipt, then write all else; returns how many units were there already."""
    units = plan_units(sources, settings.unit_bytes)
    receipts = {unit.number: read_receipt(place.partial, unit.number, settings.block_tokens) for unit in units}
    missing = [unit for unit in units if receipts[unit.number] is None]
    job = Job(
        sources=tuple(sources),
        settings=settings,
        encoder=choose_encoder(tokenizer),
        tokenizer_json=tokenizer.tokenizer_json,
        eos_id=tokenizer.eos_id,
        directory=place.partial,
    )
    num_bytes = sum(unit.stop - unit.start for unit in units)
    num_missing_bytes = sum(unit.stop - unit.start for unit in missing)
    reporter.started(num_bytes, num_bytes - num_missing_bytes, min(num_workers, max(1, len(missing))))
    try:
        _run_all(job, units, num_workers, receipts, reporter.progress)
    except KeyboardInterrupt as stop:
        num_done = sum(receipt_path(place.partial, unit.number).exists() for unit in units)
        raise type(stop)(f"{num_done:,} of {len(units):,} units are kept; the same command goes on") from None
    finally:
        reporter.finished()
    _check_unchanged(sources)
    whole = [receipt for receipt in receipts.values() if receipt is not None]
    assert len(whole) == len(units)
    _finish(place, sources, units, settings, tokenizer, whole)
    return len(units) - len(missing)


def _run_all(
    job: Job,
    units: Sequence[Unit],
    num_workers: int,
    receipts: dict[int, Receipt | None],
    progress: Callable[[int, int], None],
) -> None:
    """Do the units without a receipt, and again those that took a false start, until the chain holds."""
    chain = Chain(units, job.sources)
    tasks = [Task(unit=unit) for unit in units if receipts[unit.number] is None]
    errors: dict[int, UnitError] = {}
    chain.advance(receipts)
    while True:
        with contextlib.closing(run_tasks(job, tasks, num_workers, progress)) as ended:
            for number, error in ended:
                if error is not None:
                    errors[number] = error
                else:
                    receipts[number] = read_receipt(job.directory, number, job.settings.block_tokens)
                    assert receipts[number] is not None
                chain.advance(receipts)
                front = chain.front
                if front is not None and front.number in errors and errors[front.number].first == chain.first:
                    raise errors[front.number]
        front = chain.front
        if front is None:
            return
        receipts[front.number] = None
        errors.pop(front.number, None)
        tasks = [Task(unit=front, first=chain.offset)]


def _check_unchanged(sources: Sequence[Source]) -> None:
    for source in sources:
        status = Path(source.path).stat()
        if (status.st_size, status.st_mtime_ns) != (source.num_bytes, source.modified_ns):
            raise InputError(
                f"{source.path}: the file was changed while it was read; build again with --force when it is complete"
            )


def _finish(
    place: Place,
    sources: list[Source],
    units: list[Unit],
    settings: BuildSettings,
    tokenizer: TokenizerFiles,
    receipts: list[Receipt],
) -> None:
    """Join the tails, write the tokenizer's files and, last, the manifest."""
    splits: dict[str, SplitEntry] = {}
    shards: list[ShardEntry] = []
    tails: list[TailEntry] = []
    names: tuple[SplitName, ...] = ("train", "val")
    for name in names:
        parts = [(receipt.unit, receipt.splits[name]) for receipt in receipts]
        members = [part.shard for _unit, part in parts if part.shard is not None]
        last, num_fill = _write_last_shard(place.partial, name, len(units), settings, tokenizer.eos_id, receipts)
        members += [last] if last is not None else []
        tails += [
            TailEntry(unit=unit, split=name, num_pieces=len(part.tail.piece_tokens), continues=part.tail.continues)
            for unit, part in parts
            if len(part.tail.piece_tokens)
        ]
        splits[name] = SplitEntry(
            num_documents=sum(part.num_documents for _unit, part in parts),
            num_tokens=sum(part.num_tokens for _unit, part in parts),
            num_blocks=sum(shard.num_blocks for shard in members),
            num_fill_tokens=num_fill,
            num_text_bytes=sum(part.num_text_bytes for _unit, part in parts),
            num_text_chars=sum(part.num_text_chars for _unit, part in parts),
        )
        shards += members
    num_records = sum(receipt.num_records for receipt in receipts)
    num_empty = sum(receipt.num_empty for receipt in receipts)
    if num_records != num_empty + sum(split.num_documents for split in splits.values()):
        raise AssertionError("the numbers of records, empty texts and documents don't add up")
    if num_records == num_empty:
        raise InputError(
            f"{', '.join(source.path for source in sources)}: no text in {num_records:,} records; nothing to build"
        )
    directory = place.partial / TOKENIZER_DIRECTORY
    directory.mkdir(exist_ok=True)
    write_atomically(directory / TOKENIZER_JSON, tokenizer.tokenizer_json)
    write_atomically(directory / TOKENIZER_CONFIG_JSON, tokenizer.tokenizer_config)
    write_atomically(place.partial / STAMPS_NAME, _encode_stamps(sources))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        generator=GENERATOR,
        block_tokens=settings.block_tokens,
        dtype="uint32",
        tokenizer=tokenizer.entry,
        settings=settings.as_dict(),
        sources=_source_entries(sources, units, receipts),
        splits=splits,
        shards=shards,
        tails=tails,
        num_records=num_records,
        num_empty=num_empty,
        rejected=[],
    )
    flush_directory(place.partial)
    write_atomically(place.partial / MANIFEST_NAME, encode_manifest(manifest.with_fingerprint()))


def _write_last_shard(
    directory: Path,
    split: SplitName,
    number: int,
    settings: BuildSettings,
    eos_id: int,
    receipts: Sequence[Receipt],
) -> tuple[ShardEntry | None, int]:
    """Join the units' tails, fill up the very last block with EOS; the shard and the number of EOS filled in."""
    all_tails = [receipt.splits[split].tail for receipt in receipts]
    num_tokens = sum(len(tail.tokens) for tail in all_tails)
    if not num_tokens:
        return None, 0
    num_fill = -num_tokens % settings.block_tokens
    pieces = np.concatenate([tail.piece_tokens for tail in all_tails])
    with ShardWriter(directory, shard_name(split, number), split=split, block_tokens=settings.block_tokens) as writer:
        for tail in all_tails:
            writer.write(tail.tokens)
        writer.write(np.full(num_fill, eos_id, dtype=np.uint32))
        return writer.finish(pieces, num_documents=len(pieces), num_fill_tokens=num_fill), num_fill


def _source_entries(sources: Sequence[Source], units: Sequence[Unit], receipts: Sequence[Receipt]) -> list[SourceEntry]:
    entries = []
    for number, source in enumerate(sources):
        own = [receipts[unit.number] for unit in units if unit.source == number]
        entries.append(
            SourceEntry(
                path=source.name,
                format=source.format,
                num_bytes=source.num_bytes,
                digest=combined_digest([receipt.digest for receipt in own]),
                num_units=len(own),
                num_records=sum(receipt.num_records for receipt in own),
            )
        )
    return entries


def combined_digest(unit_digests: Sequence[str]) -> str:
    """A source's digest: BLAKE3 over the (binary) digests of its units."""
    return blake3(b"".join(bytes.fromhex(digest) for digest in unit_digests)).hexdigest()


def source_digest(source: Source, unit_bytes: int) -> str:
    """The digest of a source as its units' receipts would give it."""
    digests = []
    with open(source.path, "rb", buffering=0) as file:
        for start in range(0, source.num_bytes, unit_bytes):
            left = min(unit_bytes, source.num_bytes - start)
            digest = blake3()
            while left and (chunk := file.read(min(left, 1 << 22))):
                digest.update(chunk)
                left -= len(chunk)
            digests.append(digest.hexdigest())
    return combined_digest(digests)


def _encode_stamps(sources: Sequence[Source]) -> bytes:
    stamps = [{"path": s.path, "num_bytes": s.num_bytes, "modified_ns": s.modified_ns} for s in sources]
    return json.dumps(stamps, ensure_ascii=False).encode()


def _check_existing(out: Path, plan: dict[str, Any], sources: Sequence[Source], settings: BuildSettings) -> Manifest:
    """The manifest of the set at `out` if this very build made it. Raises `InputError` otherwise."""
    if not out.is_dir() or not (out / MANIFEST_NAME).is_file():
        raise InputError(f"{out}: exists and is no shard set; choose another --out, or move it elsewhere")
    manifest = read_manifest(out)
    before = {"settings": manifest.settings, "tokenizer": dataclasses.asdict(manifest.tokenizer)}
    differences = settings_differences(before, plan)
    if not differences and not _same_sources(out, manifest, sources, settings):
        differences = ["the sources have changed"]
    if differences:
        raise InputError(
            f"{out}: a shard set from other inputs is there ({'; '.join(differences)}); "
            "choose another --out, or build it anew with --force"
        )
    return manifest


def _same_sources(out: Path, manifest: Manifest, sources: Sequence[Source], settings: BuildSettings) -> bool:
    """Whether the set was built from these sources: by their times, else by their digests."""
    stamps = _encode_stamps(sources)
    with contextlib.suppress(OSError):
        if (out / STAMPS_NAME).read_bytes() == stamps:
            return True
    recorded = [(entry.path, entry.num_bytes) for entry in manifest.sources]
    if recorded != [(source.name, source.num_bytes) for source in sources]:
        return False
    for entry, source in zip(manifest.sources, sources, strict=True):
        if source_digest(source, settings.unit_bytes) != entry.digest:
            return False
    with contextlib.suppress(OSError):
        write_atomically(out / STAMPS_NAME, stamps)
    return True


assert set(SPLITS) == {"train", "val"}
