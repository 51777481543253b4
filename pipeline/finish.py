"""The end of a build: the rejected records joined, the tokenizer's files, the manifest."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from pipeline.plan import Plan, Unit
from pipeline.receipts import Receipt, rejected_name
from pipeline.sources import ByteRange, Source
from shards.common.errors import InputError, TransientError
from shards.common.files import atomic_writer, write_atomically
from shards.common.text import plural
from shards.layout import EXAMPLES_PER_SET, LEFT_OUT_NAME, REJECTED_NAME, STAMPS_NAME
from shards.manifest import EMPTY, Manifest, SourceEntry
from shards.set_writer import complete_set
from shards.tokenizer_files import TokenizerFiles
from shards.unread import UnreadEntry

# Of a line in a unit's part of `rejected.jsonl`: its byte range, and its line there. Within a string a quote has a `\\`.
_PLACE = re.compile(rb'\{"range": (\d+), (?:(.*?, "line": )(\d+))?')


def write_set(
    directory: Path,
    plan: Plan,
    units: Sequence[Unit],
    tokenizer: TokenizerFiles,
    receipts: Sequence[Receipt],
    read: Callable[[str], bytes | None],
    *,
    unread: Sequence[UnreadEntry] = (),
) -> Manifest:
    """Write all files of the set but its shards to `directory`, the manifest too. `receipts` are all, in the units' order;
    `read` reads the build's state. Raises `InputError` if there is no text in the corpus."""
    ranges = [
        pair
        for unit, receipt in zip(units, receipts, strict=True)
        for pair in zip(unit.ranges, receipt.ranges, strict=True)
    ]
    sources = source_entries(plan.sources, ((part, done.digest, done.num_records) for part, done in ranges))
    shards = [shard for receipt in receipts for shard in receipt.shards]
    rejected = sum((receipt.rejected for receipt in receipts), Counter[str]())
    left_out = sum((receipt.left_out for receipt in receipts), Counter[str]())
    num_records = sum(source.num_records for source in sources)
    num_added = sum(receipt.num_added for receipt in receipts)
    num_documents = sum(shard.num_documents for shard in shards)
    if num_records + num_added != num_documents + left_out.total() + rejected.total():
        raise AssertionError(f"{num_records=} {num_added=} {num_documents=} {left_out=} {rejected=}")
    if not num_documents:
        names = ", ".join(source.path for source in plan.sources[:3])
        why = ", ".join(f"{number:,} {reason}" for reason, number in (left_out | rejected).items() if reason != EMPTY)
        why = f" ({why})" if why else ""
        raise InputError(f"{names}: no text in {plural(num_records, 'record')}; nothing to build{why}")
    if rejected:
        with atomic_writer(directory / REJECTED_NAME) as file:
            for part in _rejected_parts(units, receipts, read):
                file.write(part)
    if examples := _examples(receipts):
        write_atomically(directory / LEFT_OUT_NAME, examples)
    write_atomically(directory / STAMPS_NAME, encode_stamps(plan.sources))
    return complete_set(
        directory,
        shards,
        block_tokens=plan.settings.block_tokens,
        packing=plan.settings.packing,
        tokenizer=tokenizer,
        settings=plan.settings.as_dict(),
        sources=sources,
        num_records=num_records,
        left_out=left_out,
        rejected=rejected,
        unread=unread,
    )


def _examples(receipts: Sequence[Receipt]) -> bytes:
    """`left_out.jsonl`: the first examples of each reason, in the corpus's order."""
    counts = Counter[str]()
    lines = []
    for receipt in receipts:
        for reason, texts in receipt.examples.items():
            for text in texts[: EXAMPLES_PER_SET - counts[reason]]:
                counts[reason] += 1
                lines.append(json.dumps({"reason": reason, "text": text}, ensure_ascii=False) + "\n")
    return "".join(lines).encode("utf-8", "backslashreplace")


def _rejected_parts(
    units: Sequence[Unit], receipts: Sequence[Receipt], read: Callable[[str], bytes | None]
) -> Iterator[bytes]:
    """The units' parts of `rejected.jsonl`, their lines counted from the beginning of each source."""
    num_newlines = Counter[Source]()  # of each source, before the unit
    for unit, receipt in zip(units, receipts, strict=True):
        if receipt.rejected:
            content = read(rejected_name(unit.number)) or b""
            if blake3(content).hexdigest() != receipt.rejected_digest:
                name = rejected_name(unit.number)
                raise TransientError(f"{name}: was changed while the set was built; repeat the command")
            for line in io.BytesIO(content):
                found = _PLACE.match(line)
                assert found is not None
                number, begin, own_line = found.groups()
                yield b"{" + (begin or b"")
                if own_line:
                    yield b"%d" % (int(own_line) + num_newlines[unit.ranges[int(number)].source])
                yield line[found.end() :]
        for byte_range, done in zip(unit.ranges, receipt.ranges, strict=True):
            num_newlines[byte_range.source] += done.num_newlines


def source_entries(sources: Sequence[Source], ranges: Iterable[tuple[ByteRange, str, int]]) -> list[SourceEntry]:
    """What the manifest says of the sources, from all of their byte ranges in order, with digest and number of records."""
    digests = {source: blake3() for source in sources}
    num_ranges, num_records = Counter[Source](), Counter[Source]()
    for byte_range, digest, number in ranges:
        digests[byte_range.source].update(bytes.fromhex(digest))
        num_ranges[byte_range.source] += 1
        num_records[byte_range.source] += number
    return [
        SourceEntry(
            path=source.name,
            format="+".join(part for part in (source.format, source.encoding, source.compression) if part),
            num_bytes=source.num_bytes,
            digest=digest.hexdigest(),
            version=source.version,
            num_ranges=num_ranges[source],
            num_records=num_records[source],
        )
        for source, digest in digests.items()
    ]


def encode_stamps(sources: Sequence[Source]) -> bytes:
    """Sizes and times of the sources, by which a rebuild sees at once that none has changed."""
    stamps = [{"path": s.path, "num_bytes": s.num_bytes, "modified_ns": s.modified_ns} for s in sources]
    return json.dumps(stamps, ensure_ascii=False).encode()
