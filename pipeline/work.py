"""One unit of work: a stretch of a source becomes shard files and a receipt.

Everything that a worker does is here, and nothing in it knows of other workers. Receipts are written last, so a
receipt means that the unit's files are on the disk, whole.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pipeline.packing import Packer, Tail
from pipeline.readers import open_unit
from pipeline.records import BadRecord, locate, texts_of
from pipeline.settings import BuildSettings
from pipeline.sources import Source, Unit
from pipeline.tokenizers import Encoder
from shards.errors import InputError
from shards.files import flush_directory, write_atomically
from shards.manifest import SPLITS, ShardEntry, SplitName
from shards.writer import BIN_SUFFIX, INDEX_SUFFIX, bin_bytes

RECEIPTS_DIRECTORY = "receipts"

# Called with the source bytes and the tokens that were just done.
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitReceipt:
    """What a unit adds to one split."""

    num_documents: int
    num_tokens: int
    num_text_bytes: int
    num_text_chars: int
    shard: ShardEntry | None
    tail: Tail


@dataclasses.dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a finished unit leaves behind."""

    unit: int
    first: int | None  # see `pipeline.records.UnitReader`
    last: int | None
    digest: str  # of the unit's stretch of the source
    num_records: int
    num_empty: int
    splits: dict[str, SplitReceipt]


class UnitError(InputError):
    """Bad input in a unit. `first` is where its reader began; is `certain` unless that may be a false start."""

    def __init__(self, message: str, *, first: int | None, certain: bool) -> None:
        super().__init__(message)
        self.first, self.certain = first, certain


def process_unit(
    unit: Unit,
    source: Source,
    settings: BuildSettings,
    encoder: Encoder,
    eos_id: int,
    directory: Path,
    *,
    first: int | None = None,
    progress: Progress = lambda _bytes, _tokens: None,
) -> Receipt:
    """Read, tokenize, pack and write one unit into `directory`, and its receipt. Raises `UnitError`."""
    reader = open_unit(source, unit, first=first)
    num_records = num_empty = 0
    with (
        _SplitBuilder("train", unit, settings, directory) as train,
        _SplitBuilder("val", unit, settings, directory) as val,
    ):
        try:
            for batch in reader:
                texts = texts_of(batch, settings.text_field)
                num_records += len(texts)
                if not all(texts):
                    texts = [text for text in texts if text]
                    num_empty += len(batch.values) - len(texts)
                num_tokens = _add_documents(texts, encoder, eos_id, settings, train, val)
                progress(len(batch.content), num_tokens)
        except BadRecord as error:
            certain = unit.start == 0 or first is not None or source.format == "json-lines"
            raise UnitError(str(locate(source, error)), first=reader.first, certain=certain) from None
        splits = {"train": train.receipt(), "val": val.receipt()}
    receipt = Receipt(
        unit=unit.number,
        first=reader.first,
        last=reader.last,
        digest=reader.digest,
        num_records=num_records,
        num_empty=num_empty,
        splits=splits,
    )
    flush_directory(directory)
    write_atomically(receipt_path(directory, unit.number), encode_receipt(receipt))
    return receipt


class _SplitBuilder(Packer):
    """A packer with the counts of its documents."""

    def __init__(self, split: SplitName, unit: Unit, settings: BuildSettings, directory: Path) -> None:
        super().__init__(directory, unit.number, split=split, block_tokens=settings.block_tokens)
        self.num_documents = self.num_tokens = self.num_text_bytes = self.num_text_chars = 0

    def receipt(self) -> SplitReceipt:
        shard, tail = self.finish()
        return SplitReceipt(
            num_documents=self.num_documents,
            num_tokens=self.num_tokens,
            num_text_bytes=self.num_text_bytes,
            num_text_chars=self.num_text_chars,
            shard=shard,
            tail=tail,
        )


def _add_documents(
    texts: list[str],
    encoder: Encoder,
    eos_id: int,
    settings: BuildSettings,
    train: _SplitBuilder,
    val: _SplitBuilder,
) -> int:
    """Tokenize `texts`, close each with EOS and hand them to the split that each belongs to."""
    ids, offsets = encoder.encode(texts)
    eos = np.array([eos_id], dtype="<u4").tobytes()
    view = ids.view(np.uint8).data
    ends = (offsets * 4).tolist()
    threshold = val_threshold(settings.val_fraction)
    seed = settings.seed
    # Behind the encoder: each text carries its UTF-8 by now, so encode() is a copy.
    contents = [text.encode() for text in texts]
    hashes = [xxhash.xxh3_64_intdigest(content, seed) for content in contents]
    for builder, chosen in (
        (train, [number for number, value in enumerate(hashes) if value >= threshold]),
        (val, [number for number, value in enumerate(hashes) if value < threshold]),
    ):
        if not chosen:
            continue
        parts: list[Any] = []
        for number in chosen:
            parts.append(view[ends[number] : ends[number + 1]])
            parts.append(eos)
        tokens = np.frombuffer(b"".join(parts), "<u4")
        counts = (offsets[1:] - offsets[:-1]).astype(np.int64)[chosen] + 1
        builder.add(tokens, counts)
        builder.num_documents += len(chosen)
        builder.num_tokens += len(tokens)
        builder.num_text_bytes += sum(len(contents[number]) for number in chosen)
        builder.num_text_chars += sum(len(texts[number]) for number in chosen)
    return len(ids) + len(texts)


def val_threshold(val_fraction: float) -> int:
    """Texts whose 64-bit hash is below this are held out."""
    return int(val_fraction * 2.0**64)


def receipt_path(directory: Path, unit: int) -> Path:
    return directory / RECEIPTS_DIRECTORY / f"{unit:05}.json"


def encode_receipt(receipt: Receipt) -> bytes:
    content = dataclasses.asdict(receipt)
    for split in content["splits"].values():
        tail = split["tail"]
        tail["tokens"] = base64.b64encode(tail["tokens"].astype("<u4").tobytes()).decode()
        tail["piece_tokens"] = tail["piece_tokens"].tolist()
    return json.dumps(content).encode()


def read_receipt(directory: Path, unit: int, block_tokens: int) -> Receipt | None:
    """The receipt of a finished unit, or None if the unit has to be done (again)."""
    try:
        content = json.loads(receipt_path(directory, unit).read_bytes())
        for split in content["splits"].values():
            tail = split["tail"]
            split["tail"] = Tail(
                tokens=np.frombuffer(base64.b64decode(tail["tokens"]), "<u4"),
                piece_tokens=np.array(tail["piece_tokens"], dtype=np.int64),
                continues=tail["continues"],
            )
            if split["shard"] is not None:
                split["shard"] = ShardEntry(**split["shard"])
        content["splits"] = {name: SplitReceipt(**content["splits"][name]) for name in SPLITS}
        receipt = Receipt(**content)
        shards = [split.shard for split in receipt.splits.values() if split.shard is not None]
        whole = all(
            (directory / (shard.name + BIN_SUFFIX)).stat().st_size == bin_bytes(shard.num_blocks, block_tokens)
            and (directory / (shard.name + INDEX_SUFFIX)).exists()
            for shard in shards
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return receipt if whole and receipt.unit == unit else None
