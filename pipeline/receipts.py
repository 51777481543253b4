"""Receipts: what a finished unit leaves behind. Written last, so a receipt means that its files are on the disk, whole."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import numpy as np

from shards.entries import SPLITS, ShardEntry
from shards.packing import Tail
from shards.writer import BIN_SUFFIX, INDEX_SUFFIX, bin_bytes

RECEIPTS_DIRECTORY = "receipts"
REJECTED_SUFFIX = ".rejected"
# In a receipt that lies in a store: the names of the unit's files, their bytes, and the store's word for their versions.
FILES_KEY = "files"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StretchReceipt:
    """What was read of one stretch; see `pipeline.records.StretchReader`."""

    first: int | None
    last: int | None
    digest: str
    num_records: int  # documents, empty, duplicate and rejected ones


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitReceipt:
    """What a unit adds to one split."""

    num_documents: int
    num_tokens: int
    num_text_bytes: int
    num_text_chars: int
    num_short_documents: int  # with fewer tokens than a block
    num_tail_tokens: int  # what cutting each document by itself would leave over: the tutorial's loss
    num_dropped_tokens: int
    shard: ShardEntry | None
    tail: Tail


@dataclasses.dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a finished unit leaves behind."""

    unit: int
    stretches: list[StretchReceipt]
    num_empty: int
    num_duplicates: int
    num_checked: int  # documents that were also encoded by the reference tokenizer
    rejected: dict[str, int]  # by kind
    splits: dict[str, SplitReceipt]


def receipt_path(directory: Path, unit: int) -> Path:
    return directory / RECEIPTS_DIRECTORY / f"{unit:05}.json"


def rejected_path(directory: Path, unit: int) -> Path:
    """The unit's part of `rejected.jsonl`."""
    return receipt_path(directory, unit).with_suffix(REJECTED_SUFFIX)


def encode_receipt(receipt: Receipt) -> bytes:
    content = dataclasses.asdict(receipt)
    for split in content["splits"].values():
        tail = split["tail"]
        tail["tokens"] = base64.b64encode(tail["tokens"].astype("<u4").tobytes()).decode()
        tail["piece_tokens"] = tail["piece_tokens"].tolist()
    return json.dumps(content).encode()


def read_receipt(directory: Path, unit: int, block_tokens: int, *, check_files: bool = True) -> Receipt | None:
    """The receipt of a finished unit, or None if the unit has to be done (again).

    `check_files` is off where the unit's files lie in a store (`pipeline.remote_place` has checked them).
    """
    try:
        content = json.loads(receipt_path(directory, unit).read_bytes())
        content.pop(FILES_KEY, None)
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
        content["stretches"] = [StretchReceipt(**stretch) for stretch in content["stretches"]]
        receipt = Receipt(**content)
        shards = [split.shard for split in receipt.splits.values() if split.shard is not None]
        whole = not check_files or all(
            (directory / (shard.name + BIN_SUFFIX)).stat().st_size == bin_bytes(shard.num_blocks, block_tokens)
            and (directory / (shard.name + INDEX_SUFFIX)).exists()
            for shard in shards
        )
        whole = whole and (not check_files or not receipt.rejected or rejected_path(directory, unit).exists())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return receipt if whole and receipt.unit == unit else None
