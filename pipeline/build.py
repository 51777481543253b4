"""A build from beginning to end: plan, do the missing units, join what they left over, publish.

The set depends on the corpus and the settings alone: not on the number of workers, nor on the order in which units
finish, nor on how often the build was killed and begun again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.chain import Chain
from pipeline.dedup import DEDUP_DIRECTORY, HashReceipt, find_duplicates, read_hash_receipt
from pipeline.engine import Task, TaskKind, run_tasks
from pipeline.finish import encode_stamps, source_digest, write_set
from pipeline.place import Place, make_plan, settings_differences
from pipeline.receipts import Receipt, read_receipt, receipt_path
from pipeline.settings import DEFAULT_CHECK_EVERY, BuildSettings
from pipeline.sources import Source, find_sources
from pipeline.tokenizers import TokenizerFiles, choose_encoder, load_tokenizer_files
from pipeline.units import Unit, plan_units
from pipeline.work import Job, Progress, UnitError
from shards.errors import InputError
from shards.files import write_atomically
from shards.manifest import MANIFEST_NAME, STAMPS_NAME, Manifest, read_manifest

# Bytes of the set for each byte of the source: Chinese with Qwen2's vocabulary needs 1.1; 1.5 leaves room for others.
_ESTIMATED_GROWTH = 1.5

R = TypeVar("R", Receipt, HashReceipt)


class Reporter:
    """Hears how a build goes on. This one says nothing."""

    def started(self, num_bytes: int, num_bytes_done: int, num_workers: int) -> None: ...

    def phase(self, name: str) -> None: ...

    def progress(self, num_bytes: int, num_tokens: int, num_rejected: int) -> None: ...

    def finished(self) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildStatistics:
    """What a person wants to know of a build beyond the manifest."""

    num_units_reused: int = 0
    num_short_documents: int = 0
    num_tail_tokens: int = 0
    num_checked: int = 0
    encoder: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What came of a build."""

    path: Path
    manifest: Manifest
    up_to_date: bool
    statistics: BuildStatistics
    seconds: float


def build(
    source_names: Sequence[str],
    out: Path,
    *,
    tokenizer_name: str,
    settings: BuildSettings,
    num_workers: int,
    check_every: int = DEFAULT_CHECK_EVERY,
    encoder: str = "auto",
    force: bool = False,
    reporter: Reporter | None = None,
) -> BuildResult:
    """Build the shard set `out` from the sources. Raises `InputError`; finished units are kept for the next run.

    One document in `check_every` (0: none) is also encoded by the reference tokenizer. `encoder` is `auto`,
    `fastokens` or `tokenizers`.
    """
    begin = time.monotonic()
    reporter = reporter or Reporter()
    if num_workers < 1:
        raise InputError(f"--workers: expected at least 1, found {num_workers}")
    sources = find_sources(source_names)
    tokenizer = load_tokenizer_files(tokenizer_name)
    plan = make_plan(settings, sources, tokenizer)
    place = Place(out)
    statistics = BuildStatistics()
    with place.lock():
        place.finish_publishing()
        if force:
            place.discard_partial()
        is_there = out.exists() or out.is_symlink()
        if up_to_date := is_there and not (force and place.holds_set):
            _check_existing(out, plan, sources, settings)
        else:
            place.prepare(plan)
            if not (place.partial / MANIFEST_NAME).exists():
                if encoder == "auto":
                    encoder = choose_encoder(tokenizer, parse_special=settings.parses_special_tokens)
                units = plan_units(sources, settings.unit_bytes)
                job = Job(
                    sources=tuple(sources),
                    settings=settings,
                    encoder=encoder,
                    tokenizer_json=tokenizer.tokenizer_json,
                    eos_id=tokenizer.eos_id,
                    directory=place.partial,
                    check_every=check_every,
                    num_units=len(units),
                )
                statistics = _do_units(job, units, tokenizer, num_workers, reporter)
            place.publish()
    return BuildResult(
        path=out,
        manifest=read_manifest(out),
        up_to_date=up_to_date,
        statistics=statistics,
        seconds=time.monotonic() - begin,
    )


def _do_units(
    job: Job, units: list[Unit], tokenizer: TokenizerFiles, num_workers: int, reporter: Reporter
) -> BuildStatistics:
    """Do the units without a receipt, then write all else."""
    read = functools.partial(read_receipt, job.directory, block_tokens=job.settings.block_tokens)
    receipts = {unit.number: read(unit.number) for unit in units}
    missing = [unit for unit in units if receipts[unit.number] is None]
    num_bytes = sum(unit.num_bytes for unit in units)
    num_missing_bytes = sum(unit.num_bytes for unit in missing)
    _check_room(job.directory, num_missing_bytes)
    reporter.started(num_bytes, num_bytes - num_missing_bytes, min(num_workers, max(1, len(missing))))
    try:
        if job.settings.dedup == "exact":
            reporter.phase("looking for duplicates")
            (job.directory / DEDUP_DIRECTORY).mkdir(exist_ok=True)
            read_hashes = functools.partial(read_hash_receipt, job.directory)
            hashed = {unit.number: read_hashes(unit.number) for unit in units}
            _run_all(job, units, num_workers, hashed, kind="hash", read=read_hashes)
            find_duplicates(job.directory, len(units))
            reporter.phase("tokenizing")
        whole = _run_all(job, units, num_workers, receipts, kind="build", read=read, progress=reporter.progress)
    except KeyboardInterrupt as stop:
        num_done = sum(receipt_path(job.directory, unit.number).exists() for unit in units)
        raise type(stop)(f"{num_done:,} of {len(units):,} units are kept; the same command goes on") from None
    finally:
        reporter.finished()
    _check_unchanged(job.sources)
    write_set(job.directory, job.sources, units, job.settings, tokenizer, whole)
    splits = [split for receipt in whole for split in receipt.splits.values()]
    return BuildStatistics(
        num_units_reused=len(units) - len(missing),
        num_short_documents=sum(split.num_short_documents for split in splits),
        num_tail_tokens=sum(split.num_tail_tokens for split in splits),
        num_checked=sum(receipt.num_checked for receipt in whole),
        encoder=job.encoder,
    )


def _run_all(
    job: Job,
    units: Sequence[Unit],
    num_workers: int,
    receipts: dict[int, R | None],
    *,
    kind: TaskKind,
    read: Callable[[int], R | None],
    progress: Progress = lambda _bytes, _tokens, _rejected: None,
) -> list[R]:
    """Do the units without a receipt in `receipts`, and again those that took a false start, until the chain holds.

    `read(number)` is the receipt of a unit that is done. Returns all receipts.
    """
    chain = Chain(units, job.sources)
    tasks = [Task(unit=unit, kind=kind) for unit in units if receipts[unit.number] is None]
    errors: dict[int, UnitError] = {}
    chain.advance(receipts)
    while True:
        with contextlib.closing(run_tasks(job, tasks, num_workers, progress)) as ended:
            for number, error in ended:
                if error is not None:
                    errors[number] = error
                else:
                    receipts[number] = read(number)
                    assert receipts[number] is not None
                chain.advance(receipts)
                front = chain.front
                if front is not None and front.number in errors and chain.is_right(errors[front.number].firsts):
                    raise errors[front.number]
        front = chain.front
        if front is None:
            return [receipt for receipt in receipts.values() if receipt is not None]
        receipts[front.number] = None
        errors.pop(front.number, None)
        tasks = [Task(unit=front, kind=kind, first=chain.offset)]


def _check_room(directory: Path, num_bytes: int) -> None:
    """Raise `InputError` if the disk has clearly less room than what is missing will take."""
    expected, free = int(num_bytes * _ESTIMATED_GROWTH), shutil.disk_usage(directory).free
    if free < expected:
        raise InputError(
            f"{directory}: about {expected / 1e9:,.1f} GB are needed, {free / 1e9:,.1f} GB are free; make room or choose "
            "another --out"
        )


def _check_unchanged(sources: Sequence[Source]) -> None:
    for source in sources:
        if source.format == "hub":
            continue
        status = os.stat(source.path)
        if (status.st_size, status.st_mtime_ns) != (source.num_bytes, source.modified_ns):
            raise InputError(
                f"{source.path}: the file was changed while it was read; build again with --force when it is complete"
            )


def _check_existing(out: Path, plan: dict[str, Any], sources: Sequence[Source], settings: BuildSettings) -> None:
    """Raise `InputError` unless the set at `out` was made by this very build."""
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


def _same_sources(out: Path, manifest: Manifest, sources: Sequence[Source], settings: BuildSettings) -> bool:
    """Whether the set was built from these sources: by their times, else by their digests."""
    stamps = encode_stamps(sources)
    with contextlib.suppress(OSError):
        if (out / STAMPS_NAME).read_bytes() == stamps:
            return True
    recorded = [(entry.path, entry.num_bytes) for entry in manifest.sources]
    if recorded != [(source.name, source.num_bytes) for source in sources]:
        return False
    for entry, source in zip(manifest.sources, sources, strict=True):
        if source.format != "hub" and source_digest(source, settings.unit_bytes) != entry.digest:
            return False
    with contextlib.suppress(OSError):
        write_atomically(out / STAMPS_NAME, stamps)
    return True
