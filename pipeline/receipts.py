"""Receipts: what a finished unit leaves behind. Written last, so a receipt means that its files are on the disk, whole.

A receipt begins with a digest of the rest of it, and holds those of the unit's files: a run that goes on with what an
earlier one has left takes no unit of which a byte was changed.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from shards.assemble import UnitPart
from shards.common.errors import machine_error
from shards.common.files import file_digest
from shards.entries import SPLITS, ShardEntry
from shards.packing import Tail
from shards.writer import BIN_SUFFIX, INDEX_SUFFIX, bin_bytes

RECEIPTS_DIRECTORY = "receipts"
REJECTED_SUFFIX = ".rejected"
# In a receipt that lies in a store: the names of the unit's files, their bytes, and the store's word for their versions.
FILES_KEY = "files"
_SEAL = (b'{"digest": "', b'", ')
_HEX_DIGITS = 64


def sealed(content: dict[str, Any]) -> bytes:
    """`content` as JSON, with the BLAKE3 digest of its other bytes as the first field."""
    body = json.dumps(content).encode()
    return blake3(body).hexdigest().encode().join(_SEAL) + body[1:]


def unsealed(raw: bytes) -> dict[str, Any]:
    """The content of what `sealed` has made. Raises `ValueError` if a byte was changed."""
    begin = len(_SEAL[0])
    digest, end = raw[begin : begin + _HEX_DIGITS], begin + _HEX_DIGITS + len(_SEAL[1])
    body = b"{" + raw[end:]
    if raw[:end] != digest.join(_SEAL) or blake3(body).hexdigest().encode() != digest:
        raise ValueError("was changed")
    content: dict[str, Any] = json.loads(body)
    return content


@dataclasses.dataclass(frozen=True, kw_only=True)
class StretchReceipt:
    """What was read of one stretch; see `pipeline.records.StretchReader`."""

    first: int | None
    last: int | None
    digest: str
    num_records: int  # documents, empty, duplicate and rejected ones


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitReceipt(UnitPart):
    """What a unit adds to one split, and what it tells of its documents."""

    num_documents: int
    num_short_documents: int  # with fewer tokens than a block, EOS not counted here and below
    num_tail_tokens: int  # what cutting each document by itself would leave over: the tutorial's loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a finished unit leaves behind."""

    unit: int
    stretches: list[StretchReceipt]
    num_empty: int
    num_duplicates: int
    num_checked: int  # documents that were also encoded by the reference tokenizer
    rejected: dict[str, int]  # by kind
    rejected_digest: str  # of the unit's part of `rejected.jsonl`; empty if there is none
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
    return sealed(content)


def read_receipt(
    directory: Path, unit: int, block_tokens: int, *, check_files: bool = True, check_digests: bool = False
) -> Receipt | None:
    """The receipt of a finished unit, or None if the unit has to be done (again).

    `check_files` is off where the unit's files lie in a store (`pipeline.remote_place` has checked them). `check_digests`
    reads them all, at gigabytes a second.
    """
    try:
        content = unsealed(receipt_path(directory, unit).read_bytes())
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
        whole = not check_files or _files_are_whole(directory, receipt, block_tokens, check_digests)
    except OSError as error:
        raise_if_refused(error)
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return receipt if whole and receipt.unit == unit else None


def raise_if_refused(error: OSError) -> None:
    """Raises `error` if the system refused to read a file, which may be all right; one that isn't there is made again."""
    if machine_error(error) is not None:
        raise error


def _files_are_whole(directory: Path, receipt: Receipt, block_tokens: int, check_digests: bool) -> bool:
    """Whether a unit's files are there and, with `check_digests`, as the receipt says. Raises `OSError`."""
    digests: dict[Path, str] = {}
    for split in receipt.splits.values():
        if split.shard is not None:
            path = directory / (split.shard.name + BIN_SUFFIX)
            if path.stat().st_size != bin_bytes(split.shard.num_blocks, block_tokens):
                return False
            digests |= {path: split.shard.digest, path.with_suffix(INDEX_SUFFIX): split.shard.index_digest}
    if receipt.rejected:
        digests[rejected_path(directory, receipt.unit)] = receipt.rejected_digest
    if check_digests:
        return all(file_digest(path) == digest for path, digest in digests.items())
    return all(path.exists() for path in digests)
