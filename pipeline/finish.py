"""The end of a build: join what the units left over, write the tokenizer's files, the rejected records, the manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from blake3 import blake3

from pipeline.receipts import Receipt, rejected_path
from pipeline.settings import BuildSettings
from pipeline.sources import Source
from pipeline.streams import HashedFile, file_digest
from pipeline.units import Stretch, Unit, plan_units
from shards.assemble import SplitAssembler, join_splits
from shards.common.errors import InputError
from shards.common.files import atomic_writer, write_atomically
from shards.entries import SPLITS
from shards.manifest import (
    GENERATOR,
    REJECTED_NAME,
    STAMPS_NAME,
    TOKENIZER_DIRECTORY,
    Manifest,
    RejectedEntry,
    SourceEntry,
    SplitEntry,
    format_version,
    write_manifest,
)
from shards.tokenizer_files import TokenizerFiles
from shards.writer import ShardWriter


@dataclasses.dataclass(kw_only=True)
class Totals:
    """Sums over the receipts of a build."""

    num_records: int = 0
    num_documents: int = 0
    num_empty: int = 0
    num_duplicates: int = 0
    num_checked: int = 0
    num_short_documents: int = 0
    num_tail_tokens: int = 0
    rejected: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, receipt: Receipt) -> None:
        self.num_records += sum(stretch.num_records for stretch in receipt.stretches)
        self.num_empty += receipt.num_empty
        self.num_duplicates += receipt.num_duplicates
        self.num_checked += receipt.num_checked
        self.rejected.update(receipt.rejected)
        for split in receipt.splits.values():
            self.num_documents += split.num_documents
            self.num_short_documents += split.num_short_documents
            self.num_tail_tokens += split.num_tail_tokens

    def check(self) -> None:
        """No record may be without account."""
        counted = self.num_documents + self.num_empty + self.num_duplicates + self.rejected.total()
        if self.num_records != counted:
            raise AssertionError(
                f"{self.num_records} records are not {self.num_documents} documents, {self.num_empty} empty texts, "
                f"{self.num_duplicates} duplicates and {self.rejected.total()} rejected records"
            )


def write_set(
    directory: Path,
    sources: Sequence[Source],
    units: Sequence[Unit],
    settings: BuildSettings,
    tokenizer: TokenizerFiles,
    receipts: Iterable[Receipt],
) -> Totals:
    """Complete the set in `directory`, whose units are all done. Raises `InputError` if there is no text in it.

    The receipts are gone through once, and none is kept.
    """
    totals = Totals()
    entries = _SourceEntries(sources)
    with_rejected: list[int] = []
    with contextlib.ExitStack() as stack:
        assemblers = {
            name: SplitAssembler(
                stack.enter_context(ShardWriter(directory, name, len(units), block_tokens=settings.block_tokens)),
                tokenizer.eos_id,
            )
            for name in SPLITS
        }
        for unit, receipt in zip(units, receipts, strict=True):
            totals.add(receipt)
            entries.add(unit, receipt)
            if receipt.rejected:
                with_rejected.append(unit.number)
            for name in SPLITS:
                assemblers[name].add(unit.number, receipt.splits[name])
        totals.check()
        if not totals.num_documents:
            names = ", ".join(source.path for source in sources[:3])
            raise InputError(f"{names}: no text in {totals.num_records:,} records; nothing to build")
        assembled = {name: assemblers[name].finish() for name in SPLITS}
    splits: dict[str, SplitEntry] = {name: assembled[name].entry for name in SPLITS}
    if not any(split.num_blocks for split in splits.values()):
        raise InputError(
            f"--packing {settings.packing}: no document has a whole block of {settings.block_tokens:,} tokens"
        )
    tokenizer_directory = directory / TOKENIZER_DIRECTORY
    tokenizer_directory.mkdir(exist_ok=True)
    for file_name, content in tokenizer.contents.items():
        write_atomically(tokenizer_directory / file_name, content)
    write_atomically(directory / STAMPS_NAME, encode_stamps(sources))
    shards, tails = join_splits(directory, assembled.values())
    manifest = Manifest(
        format_version=format_version(shards, tails),
        generator=GENERATOR,
        block_tokens=settings.block_tokens,
        dtype="uint32",
        packing=settings.packing,
        tokenizer=tokenizer.entry,
        settings=settings.as_dict(),
        sources=entries.finish(),
        splits=splits,
        shards=shards,
        tails=tails,
        num_records=totals.num_records,
        num_empty=totals.num_empty,
        num_duplicates=totals.num_duplicates,
        rejected=[RejectedEntry(kind=kind, num_records=number) for kind, number in sorted(totals.rejected.items())],
        rejected_digest=_join_rejected(directory, with_rejected),
    )
    write_manifest(directory, manifest.with_fingerprint())
    return totals


def _join_rejected(directory: Path, units: Sequence[int]) -> str:
    """Write `rejected.jsonl` from the parts of `units`, if there are any; its digest."""
    if not units:
        return ""
    digest = blake3()
    with atomic_writer(directory / REJECTED_NAME) as file:
        for unit in units:
            with rejected_path(directory, unit).open("rb") as part:
                while content := part.read(1 << 20):
                    file.write(content)
                    digest.update(content)
    return digest.hexdigest()


class _SourceEntries:
    """What the manifest says of the sources, from the receipts in the units' order, which is the sources' order."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._entries: list[SourceEntry] = []
        self._begin_source()

    def _begin_source(self) -> None:
        self._digest, self._num_stretches, self._num_records = blake3(), 0, 0

    def add(self, unit: Unit, receipt: Receipt) -> None:
        for stretch, done in zip(unit.stretches, receipt.stretches, strict=True):
            while len(self._entries) < stretch.source:
                self._end_source()
            self._digest.update(bytes.fromhex(done.digest))
            self._num_stretches += 1
            self._num_records += done.num_records

    def _end_source(self) -> None:
        source = self._sources[len(self._entries)]
        self._entries.append(
            SourceEntry(
                path=source.name,
                format="+".join(part for part in (source.format, source.compression) if part),
                num_bytes=source.num_bytes,
                digest=self._digest.hexdigest(),  # as `source_digest`
                num_stretches=self._num_stretches,
                num_records=self._num_records,
            )
        )
        self._begin_source()

    def finish(self) -> list[SourceEntry]:
        while len(self._entries) < len(self._sources):
            self._end_source()
        return self._entries


def source_digest(source: Source, unit_bytes: int) -> str:
    """The digest of a file as its stretches' receipts would give it: BLAKE3 over the (binary) digests of the stretches."""
    if source.is_splittable:
        stretches = (stretch for unit in plan_units([source], unit_bytes) for stretch in unit.stretches)
        digests = [stretch_digest(source, stretch) for stretch in stretches]
    else:
        digests = [file_digest(source.path)]
    return blake3(b"".join(map(bytes.fromhex, digests))).hexdigest()


def stretch_digest(source: Source, stretch: Stretch) -> str:
    """The digest of a stretch of a file as its receipt has it."""
    if not source.is_splittable:
        return file_digest(source.path) if stretch.is_first else ""
    with HashedFile(source.path, start=stretch.start, stop=stretch.stop) as file:
        return file.hexdigest()


def encode_stamps(sources: Sequence[Source]) -> bytes:
    stamps = [{"path": s.path, "num_bytes": s.num_bytes, "modified_ns": s.modified_ns} for s in sources]
    return json.dumps(stamps, ensure_ascii=False).encode()
