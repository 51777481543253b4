"""Receipts: what a finished unit leaves for the build. Written last, so a receipt means that its files are in the output.

A receipt begins with a digest of the rest of it, and holds those of the unit's files: a run that continues an earlier one
uses no unit of which a byte was changed.
"""

from __future__ import annotations

import dataclasses
import json

from blake3 import blake3

from shards.layout import BIN_SUFFIX, INDEX_SUFFIX
from shards.manifest import ShardEntry


@dataclasses.dataclass(frozen=True, kw_only=True)
class RangeReceipt:
    """What was read of one byte range; see `pipeline.readers.base.RangeReader`."""

    first: int | None  # offset of the first record that begins in it
    last: int | None  # offset after its last record
    digest: str
    num_records: int  # documents, left out and rejected ones
    num_newlines: int  # in the range, counted where bad records are skipped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a finished unit leaves."""

    unit: int
    ranges: list[RangeReceipt]
    shards: list[ShardEntry] = dataclasses.field(default_factory=list)
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)  # good records in no shard, by reason
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # of what was left out, by reason
    num_added: int = 0  # documents beyond the first that a record made
    num_checked: int = 0  # documents that were also encoded by the reference tokenizer
    num_short_documents: int = 0  # with fewer tokens than a block, EOS not counted here and below
    num_remainder_tokens: int = 0  # what cutting each document by itself would leave over: the tutorial's loss
    rejected: dict[str, int] = dataclasses.field(default_factory=dict)  # by kind
    rejected_digest: str = ""  # of the unit's part of `rejected.jsonl`; empty if there is none
    hashes_digest: str = ""  # where the unit's documents were only hashed
    versions: dict[str, str] = dataclasses.field(default_factory=dict)  # of the files in an object store

    def file_digests(self) -> dict[str, str]:
        """The unit's shard files and their digests."""
        bins = {shard.name + BIN_SUFFIX: shard.digest for shard in self.shards}
        return bins | {shard.name + INDEX_SUFFIX: shard.index_digest for shard in self.shards}


def receipt_name(unit: int) -> str:
    return f"receipts/{unit:05}.json"


def rejected_name(unit: int) -> str:
    """The unit's part of `rejected.jsonl`; its lines are counted from the beginning of their byte range."""
    return f"receipts/{unit:05}.rejected"


def encode_receipt(receipt: Receipt) -> bytes:
    return _sealed(json.dumps(dataclasses.asdict(receipt)).encode())


def _sealed(body: bytes) -> bytes:
    """The JSON object `body` with the digest of its bytes as the first field."""
    return b'{"digest": "' + blake3(body).hexdigest().encode() + b'", ' + body[1:]


def decode_receipt(raw: bytes | None, unit: int) -> Receipt | None:
    """The receipt of a unit, or None if there is none that is whole and of this version."""
    body = b"{" + (raw or b"")[len(_sealed(b"{")) :]
    if _sealed(body) != raw:
        return None
    try:
        content = json.loads(body)
        content["ranges"] = [RangeReceipt(**entry) for entry in content["ranges"]]
        content["shards"] = [ShardEntry(**entry) for entry in content["shards"]]
        receipt = Receipt(**content)
    except (ValueError, KeyError, TypeError):
        return None
    return receipt if receipt.unit == unit else None
