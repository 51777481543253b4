"""Receipts: what a finished unit leaves for the build. Written last, so a receipt means that its files are in the output.

A receipt begins with a digest of the rest of it, and holds those of the unit's files: a run that continues an earlier one
uses no unit of which a byte was changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from blake3 import blake3

from shards.layout import BIN_SUFFIX, EXAMPLE_CHARS, INDEX_SUFFIX
from shards.manifest import ShardEntry

EXAMPLES_PER_UNIT = 3  # of each reason
# A unit's files in the state of a build, by its number: its receipt, and its part of `rejected.jsonl`, the lines in which
# are counted from the beginning of their byte range.
receipt_name, rejected_name = "receipts/{:05}.json".format, "receipts/{:05}.rejected".format


@dataclasses.dataclass(frozen=True, kw_only=True)
class RangeReceipt:
    """What was read of one byte range; see `pipeline.readers.base.RangeReader`."""

    first: int | None  # offset of the first record that begins in it
    last: int | None  # offset after its last record
    digest: str
    num_records: int  # documents, left out and rejected ones
    num_newlines: int  # in the range, counted where bad records are skipped


@dataclasses.dataclass(kw_only=True)
class Receipt:
    """What a finished unit leaves; filled in while it is done.

    Each record is one document, or left out once, or rejected; where a transform makes several texts of a record,
    `num_added` counts those beyond the first: records + added = documents + left out + rejected.
    """

    unit: int
    ranges: list[RangeReceipt] = dataclasses.field(default_factory=list)
    shards: list[ShardEntry] = dataclasses.field(default_factory=list)
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)  # good records in no shard, by reason
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # the first left out, by reason, shortened
    num_added: int = 0
    num_checked: int = 0  # documents that were also encoded by the reference tokenizer
    num_short_documents: int = 0  # with fewer tokens than a block, EOS not counted here and below
    num_remainder_tokens: int = 0  # what cutting each document by itself would leave over: the tutorial's loss
    rejected: Counter[str] = dataclasses.field(default_factory=Counter)  # by kind
    rejected_digest: str = ""  # of the unit's part of `rejected.jsonl`; empty if there is none
    hashes_digest: str = ""  # where the unit's documents were only hashed
    versions: dict[str, str] = dataclasses.field(default_factory=dict)  # of the files in an object store

    def leave_out(self, reason: str, value: Any) -> None:
        """Count a text, or a record, and keep the first ones as examples, those that JSON can spell."""
        self.left_out[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES_PER_UNIT:
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
                examples.append(text[:EXAMPLE_CHARS])

    def file_digests(self) -> dict[str, str]:
        """The unit's shard files and their digests."""
        bins = {shard.name + BIN_SUFFIX: shard.digest for shard in self.shards}
        return bins | {shard.name + INDEX_SUFFIX: shard.index_digest for shard in self.shards}


def read_receipt(read: Callable[[str], bytes | None], unit: int) -> Receipt | None:
    """The receipt of a unit, of the state of a build that `read` reads; None where it isn't there or isn't whole."""
    return decode_receipt(read(receipt_name(unit)), unit)


def encode_receipt(receipt: Receipt) -> bytes:
    return _sealed(json.dumps(vars(receipt), default=dataclasses.asdict).encode())


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
        content |= {name: Counter(content[name]) for name in ("left_out", "rejected")}
        receipt = Receipt(**content)
    except (ValueError, KeyError, TypeError):
        return None
    return receipt if receipt.unit == unit else None
