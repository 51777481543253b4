"""`--dedup exact`: of equal texts, only the first in the corpus is kept.

Before anything is tokenized, a worker hashes each document of a unit (128 bits). Then `find_duplicates` looks for equal
hashes in bounded memory: they are dealt out to buckets by their first bits, and each bucket is sorted by itself. The
outcome depends on the corpus alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from blake3 import blake3

from pipeline.receipts import RangeReceipt, Receipt, decode_receipt, encode_receipt

DOCUMENTS_AT_ONCE = 1 << 22
_HASHES = np.dtype([("high", "<u8"), ("low", "<u8")])
_ENTRIES = np.dtype([("high", "<u8"), ("low", "<u8"), ("unit", "<u4"), ("document", "<u4")])


def hashes_name(unit: int) -> str:
    return f"dedup/{unit:05}.hashes"


def duplicates_name(unit: int) -> str:
    return f"dedup/{unit:05}.duplicates"


def encode_hashes(unit: int, ranges: list[RangeReceipt], hashes: bytes) -> bytes:
    """What is kept of a unit: its receipt, in a line, and the hashes."""
    return encode_receipt(Receipt(unit=unit, ranges=ranges, hashes_digest=blake3(hashes).hexdigest())) + b"\n" + hashes


def decode_hashes(encoded: bytes | None, unit: int) -> tuple[Receipt, bytes] | None:
    """The two parts of what `encode_hashes` made; None for anything that isn't whole."""
    line, _, hashes = (encoded or b"").partition(b"\n")
    receipt = decode_receipt(line, unit)
    return (receipt, hashes) if receipt and receipt.hashes_digest == blake3(hashes).hexdigest() else None


def hash_texts(batches: Iterable[list[str]]) -> bytes:
    """The hash of each text, 16 bytes."""
    return b"".join(xxhash.xxh3_128_digest(text.encode())[::-1] for texts in batches for text in texts)


def decode_duplicates(content: bytes | None) -> frozenset[int]:
    """The numbers of a unit's documents that `find_duplicates` found."""
    return frozenset(np.frombuffer(content or b"", "<u4").tolist())


def find_duplicates(num_units: int, read_hashes: Callable[[int], bytes], write: Callable[[int, bytes], None]) -> None:
    """Call `write` with the number of each unit that has documents whose text occurs earlier in the corpus, and their
    numbers within the unit (uint32, little-endian, ascending).

    `read_hashes` gives what `hash_texts` made of a unit. Up to 4 million documents are sorted in memory, 100 MB; more are
    dealt out to 256 files first, each of which is sorted once.
    """
    with tempfile.TemporaryDirectory(prefix="tokenize-once-") as name:
        buckets, found = Path(name) / "buckets", Path(name) / "found"
        buckets.mkdir()
        found.mkdir()
        pending: list[npt.NDArray[np.void]] = []
        for unit in range(num_units):
            pending.append(_entries(unit, read_hashes(unit)))
            if sum(map(len, pending)) >= DOCUMENTS_AT_ONCE:
                _deal_out(pending, buckets)
                pending = []
        if any(buckets.iterdir()):
            _deal_out(pending, buckets)
            pending = []
        elif pending:
            _find_in(np.concatenate(pending), found)
        for path in sorted(buckets.iterdir()):
            _find_in(np.fromfile(path, _ENTRIES), found)
            path.unlink()
        for path in sorted(found.iterdir()):
            write(int(path.name), np.sort(np.fromfile(path, "<u4")).tobytes())


def _entries(unit: int, content: bytes) -> npt.NDArray[np.void]:
    """The hashes of a unit, with unit and document number."""
    hashes = np.frombuffer(content, _HASHES)
    entries = np.empty(len(hashes), dtype=_ENTRIES)
    entries["high"], entries["low"] = hashes["high"], hashes["low"]
    entries["unit"], entries["document"] = unit, np.arange(len(hashes))
    return entries


def _deal_out(parts: list[npt.NDArray[np.void]], buckets: Path) -> None:
    """Append entries to the files of 256 buckets, by the first 8 bits of their hashes."""
    if parts:
        entries = np.concatenate(parts)
        _append_groups(entries, (entries["high"] >> np.uint64(56)).astype(np.int64), buckets)


def _find_in(entries: npt.NDArray[np.void], found: Path) -> None:
    """Append the numbers of all documents but the first of each hash to the files of their units."""
    entries = entries[np.lexsort((entries["document"], entries["unit"], entries["low"], entries["high"]))]
    same = (entries["high"][1:] == entries["high"][:-1]) & (entries["low"][1:] == entries["low"][:-1])
    duplicates = entries[1:][same]
    _append_groups(duplicates["document"].astype("<u4"), duplicates["unit"].astype(np.int64), found)


def _append_groups(values: npt.NDArray[Any], keys: npt.NDArray[np.int64], directory: Path) -> None:
    """Append the values of each key to the file of that name."""
    order = np.argsort(keys, kind="stable")
    names, starts = np.unique(keys[order], return_index=True)
    for key, group in zip(names.tolist(), np.split(values[order], starts[1:]), strict=True) if len(names) else ():
        with (directory / str(key)).open("ab") as file:
            file.write(group.tobytes())
