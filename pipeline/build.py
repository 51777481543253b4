"""A build from beginning to end: plan, do the missing units, publish.

The set depends on the corpus and the settings alone: not on the number of workers, nor on the engine, nor on the order in
which units finish, nor on how often the build was killed and started again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pipeline.cleaning import read_transform
from pipeline.dedup import find_duplicates, read_hashes
from pipeline.engines.base import Engine
from pipeline.engines.local import LocalEngine, end_if_worker
from pipeline.finish import encode_stamps, source_entries, write_set
from pipeline.outputs.base import Output
from pipeline.outputs.local import LocalOutput
from pipeline.plan import PLAN_NAME, Plan, Unit, decode_plan, make_plan, plan_differences, settings_differences
from pipeline.receipts import Receipt, read_receipt, receipt_name
from pipeline.schedule import build_unit, hash_unit, run_all
from pipeline.settings import DEFAULT_CHECK_EVERY, BuildSettings
from pipeline.sources import Source, check_unchanged, find_corpus
from pipeline.tokenizers import choose_encoder, load_tokenizer_files
from pipeline.worker import Decisions, range_digest
from shards.common.errors import InputError
from shards.common.text import size_text
from shards.common.urls import is_url
from shards.manifest import Manifest
from shards.tokenizer_files import with_begin_token
from shards.unread import unread_text

# Bytes of the set for each byte of the source: Chinese with Qwen2's vocabulary needs 1.1. Far less can't be.
_EXPECTED_GROWTH, _LEAST_GROWTH = 1.1, 0.05
_CHECK_BYTES = 64 << 20  # documents of one unit in so many bytes are compared with the reference


class Reporter:
    """Is notified of how a build goes. This one says nothing."""

    def started(self, num_bytes: int, num_bytes_done: int, num_workers: int) -> None: ...

    def phase(self, name: str) -> None: ...

    def progress(self, num_bytes: int, num_tokens: int, num_rejected: int) -> None: ...

    def finished(self) -> None: ...

    def notice(self, line: str) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What came of a build, and what a person wants to know of it beyond the manifest."""

    out: str
    manifest: Manifest
    up_to_date: bool = False
    seconds: float
    num_units_reused: int = 0
    num_short_documents: int = 0
    num_remainder_tokens: int = 0
    num_checked: int = 0
    encoder: str = ""


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
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    reporter: Reporter | None = None,
) -> BuildResult:
    """Build the shard set `out`, a directory or a URL, from the sources. Finished units are kept for the next run.

    Raises `InputError`. `num_workers` is by default the number of cores: of this machine, or with the engine `ray` of the
    cluster at `ray_address` (without one: of a cluster of this machine alone, for trying).

    One part in `check_every` (0: none) of the text is also encoded by the reference tokenizer. `encoder` is `auto`,
    `native`, `fastokens` or `tokenizers`.
    """
    end_if_worker()
    begin = time.monotonic()
    reporter = reporter or Reporter()
    if num_workers is not None and num_workers < 1:
        raise InputError(f"num_workers: expected at least 1, found {num_workers}")
    output = open_output(os.path.abspath(out) if engine == "ray" and not is_url(str(out)) else out)
    corpus = find_corpus(source_names, settings.encoding)
    if corpus.unread:
        reporter.notice(unread_text(corpus.unread))
    tokenizer = load_tokenizer_files(tokenizer_name)
    if settings.begin_token:
        tokenizer = with_begin_token(tokenizer, settings.begin_token)
    transform = read_transform(settings.transform) if settings.transform else None
    if transform:
        settings = dataclasses.replace(settings, transform=str(transform))
    plan = make_plan(settings, tokenizer.entry, corpus.sources)
    with output.lock():
        manifest = output.existing(force=force)
        if manifest is not None and not force:
            _check_existing(output, manifest, plan)
            return BuildResult(out=str(out), manifest=manifest, up_to_date=True, seconds=time.monotonic() - begin)
        units = plan.units()
        num_bytes = sum(unit.num_bytes for unit in units)
        _prepare(output, plan, units, force=force, reporter=reporter)
        encoder = choose_encoder(
            tokenizer,
            wanted=encoder,
            parse_special=settings.special_tokens == "parse",
            num_bytes=num_bytes,
            notice=reporter.notice,
        )
        decisions = Decisions(
            settings=plan.settings,
            encoder=encoder,
            tokenizer_json=tokenizer.tokenizer_json,
            eos_id=tokenizer.eos_id,
            begin_id=tokenizer.entry.begin_id,
            check_every=check_every,
            check_units=min(check_every, max(1, len(units) * _CHECK_BYTES // max(1, num_bytes))) or 1,
            transform=transform,
        )
        with _engine(engine, ray_address, num_workers, plan.sources, output) as runner:
            receipts, num_reused = _do_units(output, decisions, units, runner, reporter)
        if not any(receipt.shards for receipt in receipts):
            output.prepare(plan.encode(), replace=True)  # nothing to keep: the next build may have other inputs
        check_unchanged(plan.sources)
        with output.scratch() as directory:
            manifest = write_set(directory, plan, units, tokenizer, receipts, output.read, unread=corpus.unread)
            output.publish(directory)
    return BuildResult(
        out=str(out),
        manifest=manifest,
        seconds=time.monotonic() - begin,
        num_units_reused=num_reused,
        num_short_documents=sum(receipt.num_short_documents for receipt in receipts),
        num_remainder_tokens=sum(receipt.num_remainder_tokens for receipt in receipts),
        num_checked=sum(receipt.num_checked for receipt in receipts),
        encoder=encoder,
    )


def open_output(out: Path | str) -> Output:
    """The output at a path or URL."""
    if is_url(str(out)):
        from pipeline.outputs.object_store import ObjectStoreOutput

        if str(out).startswith(("hf://", "ms://")):
            raise InputError(f"{out}: build in a directory, then `python -m shards push DIRECTORY {out}`")
        return ObjectStoreOutput(str(out).rstrip("/"))
    return LocalOutput(Path(out))


def _engine(
    name: str, address: str | None, num_workers: int | None, sources: Sequence[Source], output: Output
) -> contextlib.AbstractContextManager[Engine]:
    if name == "ray":
        from pipeline.engines.ray import ray_engine

        return ray_engine(address, num_workers)
    # pyarrow and the clients of object stores start threads.
    may_fork = not is_url(str(output)) and all(source.is_stream and not is_url(source.path) for source in sources)
    return contextlib.nullcontext(LocalEngine(num_workers, may_fork=may_fork))


def _check_existing(output: Output, manifest: Manifest, plan: Plan) -> None:
    """Raise `InputError` unless the set that is there was made by this very build."""
    differences = settings_differences(manifest.settings, manifest.tokenizer, plan.settings, plan.tokenizer)
    recorded = [(entry.path, entry.num_bytes, entry.version) for entry in manifest.sources]
    has_changed = recorded != [(source.name, source.num_bytes, source.version) for source in plan.sources]
    if has_changed:  # and so has the size of units that follows from them
        differences = [line for line in differences if not line.startswith("unit_bytes")]
    elif not differences and not output.same_sources(encode_stamps(plan.sources)):
        ranges = [byte_range for unit in plan.units() for byte_range in unit.ranges]
        found = source_entries(plan.sources, ((part, range_digest(part, plan.settings), 0) for part in ranges))
        has_changed = [entry.digest for entry in found] != [entry.digest for entry in manifest.sources]
    if has_changed:
        differences.append("the sources have changed")
    if differences:
        raise InputError(
            f"{output}: a shard set from other inputs is there ({'; '.join(differences)}); choose another --out "
            "(make: SHARDS=DIR), or build it anew with --force"
        )


def _prepare(output: Output, plan: Plan, units: Sequence[Unit], *, force: bool, reporter: Reporter) -> None:
    """Have the plan in the output, and what an earlier run has left if that was begun with the same plan.

    Raises `InputError` if work of another plan is there; with `force` that goes.
    """
    encoded, differences = output.read(PLAN_NAME), []
    if encoded is not None:
        begun = output.state_names() - {PLAN_NAME}
        if begun:
            reporter.phase("checking what an earlier run has left")
        try:
            before = decode_plan(encoded)
            differences = plan_differences(before, plan)
        except (ValueError, TypeError, KeyError):
            differences = [f"{PLAN_NAME} is damaged, or of an older version"]
        differences = differences or _changed_sources(output, before, plan, units)
        if differences and begun and not force:
            raise InputError(
                f"{output}: an unfinished build with other inputs ({'; '.join(differences)}); repeat the command "
                "it was begun with, or begin anew with --force"
            )
    output.prepare(plan.encode(), replace=bool(differences), force=force)


def _changed_sources(output: Output, before: Plan, plan: Plan, units: Sequence[Unit]) -> list[str]:
    """The sources that have other bytes than those that finished units were made of. They are read again where their times
    can't tell: another one, or one after the plan was written (`before` is that plan)."""
    begun_ns, known = output.begun_ns(), set(before.sources)
    suspects = {source for source in plan.sources if source not in known or _changed_after(source, begun_ns)}
    digest_of = functools.cache(functools.partial(range_digest, settings=plan.settings))
    for unit in units if suspects else ():
        hashed = read_hashes(output.read, unit.number)
        for receipt in filter(None, (read_receipt(output.read, unit.number), hashed and hashed[0])):
            for byte_range, read in zip(unit.ranges, receipt.ranges, strict=True):
                if byte_range.source in suspects and digest_of(byte_range) != read.digest:
                    return [f"{byte_range.source.path} has changed"]
    return []


def _do_units(
    output: Output, decisions: Decisions, units: list[Unit], engine: Engine, reporter: Reporter
) -> tuple[list[Receipt], int]:
    """Do the units without a receipt. All receipts in the units' order, and how many there were before."""
    receipts = _read_receipts(output, units)
    num_reused = len(receipts)
    num_bytes = sum(unit.num_bytes for unit in units)
    num_missing_bytes = sum(unit.num_bytes for unit in units if unit.number not in receipts)
    _check_room(output, num_missing_bytes, reporter)
    num_busy = min(engine.num_workers, max(1, len(units) - num_reused))
    reporter.started(num_bytes, num_bytes - num_missing_bytes, num_busy)
    decisions = dataclasses.replace(decisions, num_threads=min(engine.num_workers // num_busy, engine.max_threads))
    decisions.load_encoder()  # forked workers share it
    try:
        if decisions.settings.dedup != "off":
            reporter.phase("looking for duplicates")
            done = {unit.number: hashed[0] for unit in units if (hashed := read_hashes(output.read, unit.number))}
            run_all(functools.partial(hash_unit, output, decisions), units, engine, done, lambda *_counts: None)
            find_duplicates(len(units), output.read, output.write, near=decisions.settings.dedup == "near")
            reporter.phase("tokenizing")
        run_all(functools.partial(build_unit, output, decisions), units, engine, receipts, reporter.progress)
    except KeyboardInterrupt as stop:
        raise type(stop)(f"{len(receipts):,} of {len(units):,} units are kept; the same command continues") from None
    finally:
        reporter.finished()
    return [receipts[unit.number] for unit in units], num_reused


def _read_receipts(output: Output, units: Sequence[Unit]) -> dict[int, Receipt]:
    """The receipts of finished units whose files are all there, unchanged, by the units' numbers."""
    found, names = [], output.state_names()
    for unit in units:
        if receipt_name(unit.number) in names:
            receipt = read_receipt(output.read, unit.number)
            if receipt is not None and len(receipt.ranges) == len(unit.ranges):
                found.append(receipt)
    held = output.holds(found)
    return {receipt.unit: receipt for receipt, is_held in zip(found, held, strict=True) if is_held}


def _check_room(output: Output, num_bytes: int, reporter: Reporter) -> None:
    """Say so if the output has less room than the missing units will probably take; raise `InputError` if it can't do."""
    free, expected = output.free_bytes(), int(num_bytes * _EXPECTED_GROWTH)
    if free is None or free >= expected:
        return
    line = f"{output}: about {size_text(expected)} are needed, {size_text(free)} are free"
    if free < num_bytes * _LEAST_GROWTH:
        raise InputError(f"{line}; make room, or choose another --out")
    reporter.notice(f"{line}; if that is not enough, finished units are kept, and the same command continues")


def _changed_after(source: Source, time_ns: int | None) -> bool:
    """Whether a file was written or replaced since, by a time that nobody can set. It may have the same content still."""
    with contextlib.suppress(FileNotFoundError):  # reported where it is read
        return time_ns is not None and not is_url(source.path) and os.stat(source.path).st_ctime_ns > time_ns
    return False
