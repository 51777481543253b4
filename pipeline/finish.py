"""The end of a build: join what the units left over, write the tokenizer's files, the rejected records, the manifest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3

from pipeline.receipts import Receipt, SplitReceipt, rejected_path
from pipeline.settings import BuildSettings
from pipeline.sources import Source
from pipeline.streams import file_digest
from pipeline.tokenizers import TOKENIZER_CONFIG_JSON, TOKENIZER_JSON, TokenizerFiles
from pipeline.units import Unit, plan_units
from shards.assemble import UnitPart, assemble_split
from shards.errors import InputError
from shards.files import atomic_writer, flush_directory, write_atomically
from shards.manifest import (
    FORMAT_VERSION,
    GENERATOR,
    MANIFEST_NAME,
    REJECTED_NAME,
    SPLITS,
    STAMPS_NAME,
    TOKENIZER_DIRECTORY,
    Manifest,
    RejectedEntry,
    ShardEntry,
    SourceEntry,
    SplitEntry,
    TailEntry,
    encode_manifest,
)


def write_set(
    directory: Path,
    sources: Sequence[Source],
    units: Sequence[Unit],
    settings: BuildSettings,
    tokenizer: TokenizerFiles,
    receipts: Sequence[Receipt],
) -> None:
    """Complete the set in `directory`, whose units are all done. Raises `InputError` if there is no text in it."""
    rejected = sum((Counter(receipt.rejected) for receipt in receipts), Counter())
    num_records = sum(stretch.num_records for receipt in receipts for stretch in receipt.stretches)
    num_empty = sum(receipt.num_empty for receipt in receipts)
    num_duplicates = sum(receipt.num_duplicates for receipt in receipts)
    num_documents = sum(split.num_documents for receipt in receipts for split in receipt.splits.values())
    if num_records != num_documents + num_empty + num_duplicates + rejected.total():
        raise AssertionError(
            f"{num_records} records are not {num_documents} documents, {num_empty} empty texts, {num_duplicates} "
            f"duplicates and {rejected.total()} rejected records"
        )
    if not num_documents:
        names = ", ".join(source.path for source in sources[:3])
        raise InputError(f"{names}: no text in {num_records:,} records; nothing to build")
    splits: dict[str, SplitEntry] = {}
    shards: list[ShardEntry] = []
    tails: list[TailEntry] = []
    for name in SPLITS:
        parts = [_unit_part(receipt.unit, receipt.splits[name]) for receipt in receipts]
        assembled = assemble_split(
            directory,
            name,
            parts,
            last_number=len(units),
            block_tokens=settings.block_tokens,
            eos_id=tokenizer.eos_id,
        )
        splits[name] = assembled.entry
        shards += assembled.shards
        tails += assembled.tails
    if not any(split.num_blocks for split in splits.values()):
        raise InputError(
            f"--packing {settings.packing}: no document has a whole block of {settings.block_tokens:,} tokens"
        )
    tokenizer_directory = directory / TOKENIZER_DIRECTORY
    tokenizer_directory.mkdir(exist_ok=True)
    write_atomically(tokenizer_directory / TOKENIZER_JSON, tokenizer.tokenizer_json)
    write_atomically(tokenizer_directory / TOKENIZER_CONFIG_JSON, tokenizer.tokenizer_config)
    write_atomically(directory / STAMPS_NAME, encode_stamps(sources))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        generator=GENERATOR,
        block_tokens=settings.block_tokens,
        dtype="uint32",
        packing=settings.packing,
        tokenizer=tokenizer.entry,
        settings=settings.as_dict(),
        sources=_source_entries(sources, units, receipts),
        splits=splits,
        shards=shards,
        tails=tails,
        num_records=num_records,
        num_empty=num_empty,
        num_duplicates=num_duplicates,
        rejected=[RejectedEntry(kind=kind, num_records=number) for kind, number in sorted(rejected.items())],
        rejected_digest=_join_rejected(directory, receipts),
    )
    flush_directory(directory)
    write_atomically(directory / MANIFEST_NAME, encode_manifest(manifest.with_fingerprint()))


def _unit_part(unit: int, split: SplitReceipt) -> UnitPart:
    return UnitPart(
        unit=unit,
        shard=split.shard,
        tail=split.tail,
        num_tokens=split.num_tokens,
        num_dropped_tokens=split.num_dropped_tokens,
        num_text_bytes=split.num_text_bytes,
        num_text_chars=split.num_text_chars,
    )


def _join_rejected(directory: Path, receipts: Sequence[Receipt]) -> str:
    """Write `rejected.jsonl` from the units' parts, if there are any; its digest."""
    parts = [rejected_path(directory, receipt.unit) for receipt in receipts if receipt.rejected]
    if not parts:
        return ""
    digest = blake3()
    with atomic_writer(directory / REJECTED_NAME) as file:
        for part in parts:
            content = part.read_bytes()
            file.write(content)
            digest.update(content)
    return digest.hexdigest()


def _source_entries(sources: Sequence[Source], units: Sequence[Unit], receipts: Sequence[Receipt]) -> list[SourceEntry]:
    done = [
        (stretch.source, receipt)
        for unit, whole in zip(units, receipts, strict=True)
        for stretch, receipt in zip(unit.stretches, whole.stretches, strict=True)
    ]
    digests: list[list[str]] = [[] for _ in sources]
    num_records = [0] * len(sources)
    for number, receipt in done:
        digests[number].append(receipt.digest)
        num_records[number] += receipt.num_records
    return [
        SourceEntry(
            path=source.name,
            format="+".join(part for part in (source.format, source.compression) if part),
            num_bytes=source.num_bytes,
            digest=combined_digest(own),
            num_stretches=len(own),
            num_records=number,
        )
        for source, own, number in zip(sources, digests, num_records, strict=True)
    ]


def combined_digest(digests: Sequence[str]) -> str:
    """A source's digest: BLAKE3 over the (binary) digests of its stretches."""
    return blake3(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


def source_digest(source: Source, unit_bytes: int) -> str:
    """The digest of a file as its stretches' receipts would give it."""
    if not source.is_splittable:
        return combined_digest([file_digest(source.path)])
    digests = []
    with Path(source.path).open("rb", buffering=0) as stream:
        for unit in plan_units([source], unit_bytes):
            left, digest = unit.num_bytes, blake3()
            while left and (chunk := stream.read(min(left, 1 << 22))):
                digest.update(chunk)
                left -= len(chunk)
            digests.append(digest.hexdigest())
    return combined_digest(digests)


def encode_stamps(sources: Sequence[Source]) -> bytes:
    stamps = [{"path": s.path, "num_bytes": s.num_bytes, "modified_ns": s.modified_ns} for s in sources]
    return json.dumps(stamps, ensure_ascii=False).encode()
