"""`--dedup exact`: of equal texts, only the first in the corpus is kept.

Before anything is tokenized, each unit writes the 128-bit hashes of its documents (`write_hashes`). Then `find_duplicates`
looks for equal ones in bounded memory: the hashes are dealt out to buckets by their first bits, and each bucket is sorted
by itself. What each unit has to drop is written to a file of its own, which its worker reads. The outcome depends on the
corpus alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash
from blake3 import blake3

from pipeline.receipts import StretchReceipt, raise_if_refused, sealed, unsealed
from shards.common.files import file_digest, flush_directory, write_atomically

DEDUP_DIRECTORY = "dedup"
DOCUMENTS_PER_BUCKET = 1 << 22
_HASHES = np.dtype([("high", "<u8"), ("low", "<u8")])
_ENTRIES = np.dtype([("high", "<u8"), ("low", "<u8"), ("unit", "<u4"), ("document", "<u4")])


def hashes_path(directory: Path, unit: int) -> Path:
    return directory / DEDUP_DIRECTORY / f"{unit:05}.hashes"


def drops_path(directory: Path, unit: int) -> Path:
    return directory / DEDUP_DIRECTORY / f"{unit:05}.drops"


@dataclasses.dataclass(frozen=True)
class HashReceipt:
    """Says that a unit's hashes are written, and where its stretches begin and end."""

    stretches: list[StretchReceipt]
    digest: str  # of the file of hashes


def hash_receipt_path(directory: Path, unit: int) -> Path:
    return directory / DEDUP_DIRECTORY / f"{unit:05}.json"


def write_hashes(directory: Path, unit: int, batches: Iterable[list[str]], stretches: Sequence[StretchReceipt]) -> None:
    """Write the hash of each text of a unit, empty ones left out; then the receipt, with what `stretches` holds by then."""
    digests = b"".join(xxhash.xxh3_128_digest(text.encode())[::-1] for texts in batches for text in texts if text)
    write_atomically(hashes_path(directory, unit), digests)
    receipt = HashReceipt(list(stretches), blake3(digests).hexdigest())
    write_atomically(hash_receipt_path(directory, unit), sealed(dataclasses.asdict(receipt)))


def read_hash_receipt(
    directory: Path, unit: int, *, check_files: bool = True, check_digests: bool = False
) -> HashReceipt | None:
    """The receipt of a unit whose hashes are there, or None. `check_files` is off where those lie in a store."""
    try:
        content = unsealed(hash_receipt_path(directory, unit).read_bytes())
        receipt = HashReceipt([StretchReceipt(**stretch) for stretch in content["stretches"]], content["digest"])
        path = hashes_path(directory, unit)
        if check_files and (file_digest(path) != receipt.digest if check_digests else not path.exists()):
            return None
    except OSError as error:
        raise_if_refused(error)
        return None
    except (ValueError, TypeError, KeyError):
        return None
    return receipt


def find_duplicates(directory: Path, num_units: int, *, check_digests: bool = True) -> None:
    """Write, for each unit, the numbers of its documents whose text occurs earlier in the corpus.

    `check_digests` is off where an earlier run's findings lie in a store.
    """
    done = directory / DEDUP_DIRECTORY / "done"
    if done.exists() and (not check_digests or done.read_bytes() == _digest_of_drops(directory)):
        return
    buckets = directory / DEDUP_DIRECTORY / "buckets"
    shutil.rmtree(buckets, ignore_errors=True)
    for path in (directory / DEDUP_DIRECTORY).glob("*.drops"):
        path.unlink()
    num_documents = sum(hashes_path(directory, unit).stat().st_size // _HASHES.itemsize for unit in range(num_units))
    num_bits = max(0, (num_documents // DOCUMENTS_PER_BUCKET).bit_length())
    buckets.mkdir()
    for unit in range(num_units):
        _deal_out(directory, unit, buckets, num_bits)
    for path in sorted(buckets.iterdir()):
        duplicates = _duplicates_in(np.fromfile(path, _ENTRIES))
        for unit in np.unique(duplicates["unit"]).tolist():
            with drops_path(directory, unit).open("ab") as file:
                file.write(duplicates["document"][duplicates["unit"] == unit].astype("<u4").tobytes())
        path.unlink()
    flush_directory(directory / DEDUP_DIRECTORY)
    write_atomically(done, _digest_of_drops(directory))
    shutil.rmtree(buckets)


def _digest_of_drops(directory: Path) -> bytes:
    """One digest of all that is to be dropped."""
    found = blake3()
    for path in sorted((directory / DEDUP_DIRECTORY).glob("*.drops")):
        found.update(f"{path.name} {file_digest(path)}\n".encode())
    return found.hexdigest().encode()


def _deal_out(directory: Path, unit: int, buckets: Path, num_bits: int) -> None:
    """Append a unit's hashes, with unit and number, to the buckets."""
    hashes = np.fromfile(hashes_path(directory, unit), _HASHES)
    entries = np.empty(len(hashes), dtype=_ENTRIES)
    entries["high"], entries["low"] = hashes["high"], hashes["low"]
    entries["unit"], entries["document"] = unit, np.arange(len(hashes))
    bucket = (hashes["high"] >> np.uint64(64 - num_bits)) if num_bits else np.zeros(len(hashes), np.uint64)
    for number in np.unique(bucket).tolist():
        with (buckets / f"{number:06}").open("ab") as file:
            file.write(entries[bucket == number].tobytes())


def _duplicates_in(entries: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """All entries but the first of each hash, in the corpus's order within a hash."""
    order = np.lexsort((entries["document"], entries["unit"], entries["low"], entries["high"]))
    entries = entries[order]
    same = (entries["high"][1:] == entries["high"][:-1]) & (entries["low"][1:] == entries["low"][:-1])
    duplicates: npt.NDArray[np.void] = entries[1:][same]
    return duplicates


class DropList:
    """Which documents of a unit are duplicates."""

    def __init__(self, directory: Path, unit: int) -> None:
        self._drops: set[int] = set()
        with contextlib.suppress(FileNotFoundError):
            self._drops = set(np.fromfile(drops_path(directory, unit), "<u4").tolist())
        self._seen = 0

    def keep(self, texts: list[str]) -> list[str]:
        """The next texts of the unit (empty ones left out) without the duplicates."""
        begin = self._seen
        self._seen += len(texts)
        if not self._drops:
            return texts
        return [text for number, text in enumerate(texts, begin) if number not in self._drops]
