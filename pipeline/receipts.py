"""Receipts: what a finished unit leaves for the build. Written last, so a receipt means that its files are in the output.

A receipt begins with a digest of the rest of it, and holds those of the unit's files: a run that continues an earlier one
uses no unit of which a byte was changed.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from blake3 import blake3

from shards.layout import BIN_SUFFIX, INDEX_SUFFIX, SPLITS, shard_name
from shards.manifest import ShardEntry

_SEAL = (b'{"digest": "', b'", ')
_HEX_DIGITS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class RangeReceipt:
    """What was read of one byte range; see `pipeline.readers.base.RangeReader`."""

    first: int | None  # offset of the first record that begins in it
    last: int | None  # offset after its last record
    digest: str
    num_records: int  # documents, empty, duplicate and rejected ones
    num_newlines: int  # in the range, counted where bad records are skipped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a finished unit leaves."""

    unit: int
    ranges: list[RangeReceipt]
    shards: list[ShardEntry]
    num_empty: int
    num_duplicates: int
    num_checked: int  # documents that were also encoded by the reference tokenizer
    num_short_documents: int  # with fewer tokens than a block, EOS not counted here and below
    num_remainder_tokens: int  # what cutting each document by itself would leave over: the tutorial's loss
    rejected: dict[str, int]  # by kind
    rejected_digest: str  # of the unit's part of `rejected.jsonl`; empty if there is none
    versions: dict[str, str] = dataclasses.field(
        default_factory=dict
    )  # of the files, where the output is an object store

    def file_digests(self) -> dict[str, str]:
        """The unit's shard files and their digests."""
        bins = {shard.name + BIN_SUFFIX: shard.digest for shard in self.shards}
        return bins | {shard.name + INDEX_SUFFIX: shard.index_digest for shard in self.shards}


def unit_file_names(unit: int) -> list[str]:
    """All shard files that a unit can have."""
    return [shard_name(split, unit) + suffix for split in SPLITS for suffix in (BIN_SUFFIX, INDEX_SUFFIX)]


def receipt_name(unit: int) -> str:
    return f"receipts/{unit:05}.json"


def rejected_name(unit: int) -> str:
    """The unit's part of `rejected.jsonl`; its lines are counted from the beginning of their byte range."""
    return f"receipts/{unit:05}.rejected"


def seal(content: dict[str, Any]) -> bytes:
    """`content` as JSON, with the BLAKE3 digest of its other bytes as the first field."""
    body = json.dumps(content).encode()
    return blake3(body).hexdigest().encode().join(_SEAL) + body[1:]


def unseal(raw: bytes) -> dict[str, Any]:
    """The content of what `seal` has made. Raises `ValueError` if a byte was changed."""
    begin = len(_SEAL[0])
    digest, end = raw[begin : begin + _HEX_DIGITS], begin + _HEX_DIGITS + len(_SEAL[1])
    body = b"{" + raw[end:]
    if raw[:end] != digest.join(_SEAL) or blake3(body).hexdigest().encode() != digest:
        raise ValueError("was changed")
    content: dict[str, Any] = json.loads(body)
    return content


def encode_receipt(receipt: Receipt) -> bytes:
    return seal(dataclasses.asdict(receipt))


def decode_receipt(raw: bytes | None, unit: int) -> Receipt | None:
    """The receipt of a unit, or None if there is none that is whole and of this version."""
    try:
        content = unseal(raw or b"")
        content["ranges"] = [RangeReceipt(**entry) for entry in content["ranges"]]
        content["shards"] = [ShardEntry(**entry) for entry in content["shards"]]
        receipt = Receipt(**content)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return receipt if receipt.unit == unit else None
