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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.chain import Chain
from pipeline.dedup import DEDUP_DIRECTORY, find_duplicates, read_hash_receipt
from pipeline.engine import Task, TaskKind, run_tasks
from pipeline.existing import AnyPlace, check_existing, is_staged
from pipeline.finish import stretch_digest, write_set
from pipeline.hub_place import HubPlace
from pipeline.place import PLAN_NAME, Place, make_plan
from pipeline.receipts import RECEIPTS_DIRECTORY, REJECTED_SUFFIX, StretchReceipt, read_receipt, receipt_path
from pipeline.remote_place import RemotePlace
from pipeline.settings import DEFAULT_CHECK_EVERY, BuildSettings
from pipeline.sources import Source, find_sources, removed
from pipeline.storage import file_statuses
from pipeline.tokenizers import choose_encoder, load_tokenizer_files
from pipeline.units import Stretch, Unit, plan_units
from pipeline.work import Job, Progress
from shards.common.errors import InputError
from shards.common.text import size_text
from shards.common.urls import is_url
from shards.manifest import Manifest, read_manifest
from shards.tokenizer_files import TokenizerFiles

# Bytes of the set for each byte of the source: Chinese with Qwen2's vocabulary needs 1.1; 1.5 leaves room for others.
_ESTIMATED_GROWTH = 1.5

Engine = Literal["local", "ray"]
Run = Callable[[Job, Sequence[Task], Progress], Any]


class Reporter:
    """Hears how a build goes on. This one says nothing."""

    def started(self, num_bytes: int, num_bytes_done: int, num_workers: int) -> None: ...

    def phase(self, name: str) -> None: ...

    def progress(self, num_bytes: int, num_tokens: int, num_rejected: int) -> None: ...

    def finished(self) -> None: ...

    def notice(self, line: str) -> None: ...

    @property
    def shows_bars(self) -> bool:
        """Whether others may show how far they are, too."""
        return False


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

    path: Path | str
    manifest: Manifest
    up_to_date: bool
    statistics: BuildStatistics
    seconds: float


def build(
    source_names: Sequence[str],
    out: Path | str,
    *,
    tokenizer_name: str,
    settings: BuildSettings,
    num_workers: int | None = None,
    check_every: int = DEFAULT_CHECK_EVERY,
    encoder: str = "auto",
    force: bool = False,
    engine: Engine = "local",
    ray_address: str | None = None,
    reporter: Reporter | None = None,
) -> BuildResult:
    """Build the shard set `out`, a directory or a URL, from the sources. Finished units are kept for the next run.

    Raises `InputError`. `num_workers` is by default the number of cores: of this machine, or with the engine `ray` of the
    cluster at `ray_address` (without one: of a cluster of this machine alone, for trying).

    One document in `check_every` (0: none) is also encoded by the reference tokenizer. `encoder` is `auto`,
    `fastokens` or `tokenizers`.
    """
    begin = time.monotonic()
    reporter = reporter or Reporter()
    if num_workers is not None and num_workers < 1:
        raise InputError(f"--workers: expected at least 1, found {num_workers}")
    place = _place(out, engine, reporter)
    sources = find_sources(source_names)
    tokenizer = load_tokenizer_files(tokenizer_name)
    plan = make_plan(settings, sources, tokenizer)
    statistics = BuildStatistics()
    with place.lock():
        place.finish_publishing(force=force)
        if force:
            place.discard_partial()
        if up_to_date := place.is_there and not (force and place.holds_set):
            place.fetch_existing()
            check_existing(place, plan, sources, settings)
        else:
            if not is_staged(place, plan, sources, settings, force=force):
                place.prepare(plan)
                if encoder == "auto":
                    encoder = choose_encoder(tokenizer, parse_special=settings.parses_special_tokens)
                units = plan_units(sources, settings.unit_bytes)
                if isinstance(place, HubPlace):
                    place.check_files(len(units))
                job = Job(
                    sources=tuple(sources),
                    settings=settings,
                    encoder=encoder,
                    tokenizer_json=tokenizer.tokenizer_json,
                    eos_id=tokenizer.eos_id,
                    directory=place.directory,
                    check_every=check_every,
                    num_units=len(units),
                    url=place.url,
                    carried=engine == "ray" and isinstance(place, HubPlace),
                )
                with _running(engine, ray_address, num_workers) as (run, num_running):
                    statistics = _do_units(job, units, tokenizer, place, run, num_running, reporter)
                place.publish()
            if isinstance(place, HubPlace):
                place.upload()
        manifest = read_manifest(place.existing)
    return BuildResult(
        path=out, manifest=manifest, up_to_date=up_to_date, statistics=statistics, seconds=time.monotonic() - begin
    )


def _place(out: Path | str, engine: Engine, reporter: Reporter) -> AnyPlace:
    if str(out).startswith("hf://"):
        return HubPlace(str(out), notice=reporter.notice, shows_bars=reporter.shows_bars)
    if is_url(str(out)):
        return RemotePlace(str(out))
    return Place(Path(out).absolute() if engine == "ray" else Path(out))


@contextlib.contextmanager
def _running(engine: Engine, address: str | None, num_workers: int | None) -> Iterator[tuple[Run, int]]:
    """What does tasks, and how many at a time."""
    if engine == "ray":
        from pipeline.ray_engine import num_cluster_cores, ray_cluster, run_tasks_on_ray

        with ray_cluster(address):
            yield functools.partial(_run_with, run_tasks_on_ray, num_workers or 0), num_workers or num_cluster_cores()
    else:
        number = num_workers or num_cores()
        yield functools.partial(_run_with, run_tasks, number), number


def _run_with(function: Any, num_workers: int, job: Job, tasks: Sequence[Task], progress: Progress) -> Any:
    return function(job, tasks, num_workers, progress)


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _do_units(
    job: Job,
    units: list[Unit],
    tokenizer: TokenizerFiles,
    place: AnyPlace,
    run: Run,
    num_workers: int,
    reporter: Reporter,
) -> BuildStatistics:
    """Do the units without a receipt, then write all else."""
    check_files = not job.url
    read = functools.partial(
        read_receipt, job.directory, block_tokens=job.settings.block_tokens, check_files=check_files
    )
    if any((job.directory / RECEIPTS_DIRECTORY).iterdir()):
        reporter.phase("checking what an earlier run has left")
    # Once for the units and once for their hashes: each stretch is read once.
    check = functools.partial(_check_stretches, job, _rewritten(job), functools.cache(stretch_digest))
    built = Chain(units, job.sources, read, check)
    missing = built.missing()
    num_bytes = sum(unit.num_bytes for unit in units)
    num_missing_bytes = sum(unit.num_bytes for unit in missing)
    if not job.url:
        _check_room(job.directory, num_missing_bytes, place)
    reporter.started(num_bytes, num_bytes - num_missing_bytes, min(num_workers, max(1, len(missing))))
    try:
        if job.settings.dedup == "exact":
            reporter.phase("looking for duplicates")
            (job.directory / DEDUP_DIRECTORY).mkdir(exist_ok=True)
            read_hashes = functools.partial(read_hash_receipt, job.directory, check_files=check_files)
            _run_all(job, Chain(units, job.sources, read_hashes, check), run, kind="hash")
            if isinstance(place, RemotePlace):
                place.fetch(DEDUP_DIRECTORY, ".hashes")
            find_duplicates(job.directory, len(units), check_digests=check_files)
            if isinstance(place, RemotePlace):
                place.put_dedup()
            reporter.phase("tokenizing")
        _run_all(job, built, run, kind="build", progress=reporter.progress)
    except KeyboardInterrupt as stop:
        num_done = sum(receipt_path(job.directory, unit.number).exists() for unit in units)
        raise type(stop)(f"{num_done:,} of {len(units):,} units are kept; the same command goes on") from None
    finally:
        reporter.finished()
    _check_unchanged(job.sources)
    if isinstance(place, RemotePlace):
        place.fetch(RECEIPTS_DIRECTORY, REJECTED_SUFFIX)
    whole = (receipt for receipt in (read(unit.number) for unit in units) if receipt is not None)
    totals = write_set(job.directory, job.sources, units, job.settings, tokenizer, whole)
    return BuildStatistics(
        num_units_reused=len(units) - len(missing),
        num_short_documents=totals.num_short_documents,
        num_tail_tokens=totals.num_tail_tokens,
        num_checked=totals.num_checked,
        encoder=job.encoder,
    )


def _run_all(
    job: Job,
    chain: Chain,
    run: Run,
    *,
    kind: TaskKind,
    progress: Progress = lambda _bytes, _tokens, _rejected: None,
) -> None:
    """Do the units that aren't done, and again those that took a false start, until the chain holds."""
    tasks = [Task(unit=unit, kind=kind) for unit in chain.missing()]
    while True:
        with contextlib.closing(run(job, tasks, progress)) as ended:
            for number, error in ended:
                chain.end(number, error)
        again = chain.false_start()
        if again is None:
            return
        tasks = [Task(unit=again[0], kind=kind, first=again[1])]


def _check_room(directory: Path, num_bytes: int, place: AnyPlace) -> None:
    """Raise `InputError` if the disk has clearly less room than what is missing will take."""
    expected, free = int(num_bytes * _ESTIMATED_GROWTH), shutil.disk_usage(directory).free
    if free < expected:
        raise InputError(
            f"{directory}: about {size_text(expected)} are needed, {size_text(free)} are free; make room or "
            f"{place.elsewhere}"
        )


def _check_unchanged(sources: Sequence[Source]) -> None:
    files = [source for source in sources if source.format != "hub"]
    try:
        statuses = file_statuses([source.path for source in files])
    except FileNotFoundError:
        raise InputError(removed(files) or "a source was removed while it was read") from None
    for source, status in zip(files, statuses, strict=True):
        if status != (source.num_bytes, source.modified_ns):
            raise InputError(
                f"{source.path}: the file was changed while it was read; build again with --force when it is complete"
            )


def _rewritten(job: Job) -> set[int]:
    """The numbers of the sources that were written or replaced since the build began, by a time that nobody can set. They
    may have been copied or have other rights, and the same content."""
    try:
        begin = (job.directory / PLAN_NAME).stat().st_mtime_ns
    except FileNotFoundError:  # the set is built in a store
        return set()
    files = (
        (number, source.path)
        for number, source in enumerate(job.sources)
        if source.format != "hub" and not is_url(source.path)
    )
    rewritten = set()
    for number, path in files:
        with contextlib.suppress(FileNotFoundError):  # which is told where it is read
            if os.stat(path).st_ctime_ns > begin:
                rewritten.add(number)
    return rewritten


def _check_stretches(
    job: Job,
    rewritten: set[int],
    digest_of: Callable[[Source, Stretch], str],
    unit: Unit,
    receipts: list[StretchReceipt],
) -> None:
    """Raise `InputError` if a source has other bytes than those that the unit was made of. Size and time are the same."""
    for stretch, receipt in zip(unit.stretches, receipts, strict=True):
        source = job.sources[stretch.source]
        if stretch.source in rewritten and digest_of(source, stretch) != receipt.digest:
            raise InputError(
                f"{job.directory}: an unfinished build with other inputs ({source.path} has changed); begin anew with "
                "--force"
            )
