"""`--dedup exact`: of equal texts, only the first in the corpus is kept. `--dedup near` drops nearly equal ones, too.

Before anything is tokenized, a worker hashes each document of a unit: 16 bytes and, for `near`, a signature of 128. Then
`find_duplicates` looks for equal hashes in bounded memory: they are dealt out to buckets by their first bits, and each
bucket is sorted by itself. The outcome depends on the corpus alone.

A signature has 16 bands of 8 bytes. A document is a near-duplicate if, for one of its bands, the first document of the
corpus that has this band equals it in at least 103 of the 128 bytes: an estimated similarity of 0.8. (Exact duplicates are
left out before; the first document may itself be the near-duplicate of another.) As no other document with the band is
compared, a million with the same boilerplate take as long as any million.

The signature is that of MinHash. A text's n-grams are all five characters in a row, white space left out; a shorter text is
one n-gram. How alike two texts are is the share of the n-grams of either that both have (Jaccard). Each n-gram has a hash
of 64 bits, whose first 7 say in which of 128 bins it is, and each bin keeps its least hash. A bin b without any takes that
of the first bin that has one, of b ^ 1, b ^ 2, b ^ 3, …. The signature is the last byte of each bin.

So a bin is equal in two signatures with the probability of their similarity (and 1/256 of the rest): one permutation
hashing (Li, Owen and Zhang, 2012), with bins filled from others in a fixed order (Shrivastava, 2017). The share of equal
bytes differs from a similarity of 0.8 by 0.035 on the average (standard deviation), more for texts of few characters.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash
from blake3 import blake3

from pipeline.receipts import Receipt, decode_receipt, encode_receipt
from shards.common.errors import TransientError
from shards.manifest import DUPLICATE, NEAR_DUPLICATE

NUM_BINS = 128
NGRAM_CHARS = 5
_MULTIPLIER, _MIXER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)  # odd, of no pattern
_NOTHING, _EMPTY = np.uint64(2**64 - 1), np.uint16(256)
_BIN_SHIFT, _HALF = np.uint64(64 - 7), np.uint64(32)
_TEXTS_AT_ONCE, _CHARS_AT_ONCE = 512, 1 << 15

REASONS = (DUPLICATE, NEAR_DUPLICATE)
MIN_EQUAL_BYTES = 103
DOCUMENTS_AT_ONCE = 1 << 22
_PAIRS_AT_ONCE = 1 << 16
_HASH_BYTES, _HASH_WORDS = 16, 2
_ENTRIES = np.dtype([("high", "<u8"), ("low", "<u8"), ("place", "<u8")])  # the place among the documents of the corpus

# A unit's files in the state of a build, by its number (and the reason).
hashes_name, duplicates_name = "dedup/{:05}.hashes".format, "dedup/{:05}.{}s".format

Read = Callable[[str], bytes | None]  # a file of the build's state
Entries = npt.NDArray[np.void]
Words = npt.NDArray[np.uint64]  # the hash of each document in two, then its signature in 16
Marks = npt.NDArray[np.uint8]  # of each document: 0, or 1 + the place of the reason in REASONS to leave it out


def encode_hashes(receipt: Receipt, hashes: bytes) -> bytes:
    """What is kept of a unit: its receipt, in a line, and the hashes."""
    receipt.hashes_digest = blake3(hashes).hexdigest()
    return encode_receipt(receipt) + b"\n" + hashes


def read_hashes(read: Read, unit: int) -> tuple[Receipt, bytes] | None:
    """The two parts of what `encode_hashes` made of a unit; None where it isn't there or isn't whole."""
    line, _, hashes = (read(hashes_name(unit)) or b"").partition(b"\n")
    receipt = decode_receipt(line, unit)
    return (receipt, hashes) if receipt and receipt.hashes_digest == blake3(hashes).hexdigest() else None


def hash_texts(batches: Iterable[list[str]], *, near: bool = False) -> bytes:
    """The hash of each text, 16 bytes; with `near` it is followed by the text's signature."""
    parts = []
    for texts in batches:
        hashes = b"".join(xxhash.xxh3_128_digest(text.encode())[::-1] for text in texts)
        if near:
            rows = np.frombuffer(hashes, np.uint8).reshape(-1, _HASH_BYTES)
            hashes = np.hstack([rows, compute_signatures(texts)]).tobytes()
        parts.append(hashes)
    return b"".join(parts)


def read_duplicates(read: Read, unit: int) -> dict[int, str]:
    """The numbers of a unit's documents that `find_duplicates` found, and the reason for each."""
    return {
        number: reason
        for reason in REASONS
        for number in np.frombuffer(read(duplicates_name(unit, reason)) or b"", "<u4").tolist()
    }


def find_duplicates(num_units: int, read: Read, write: Callable[[str, bytes], None], *, near: bool = False) -> None:
    """Call `write` for each unit and reason with `duplicates_name` and the numbers, within the unit, of the documents to
    leave out (uint32, little-endian, ascending): those whose text occurs earlier in the corpus, and near-duplicates.
    `read` reads what `encode_hashes` made.

    Up to 4 million documents are sorted in memory, 200 MB; more are dealt out to 256 files first, each of which is sorted
    once. All this takes 41 bytes of disk a document, with `near` 169, of which 17 or 145 are mapped: memory that the system
    may take back.
    """
    with tempfile.TemporaryDirectory(prefix="tokenize-once-") as name:
        scratch, starts = Path(name), [0]
        with (scratch / "hashes").open("wb") as hashes, (scratch / "marks").open("wb") as marked:
            for unit in range(num_units):
                hashed = read_hashes(read, unit)
                if hashed is None:
                    raise TransientError(f"{hashes_name(unit)} is gone; repeat the command")
                content = hashed[1]
                count = len(content) // (_HASH_BYTES + NUM_BINS * near)
                starts.append(starts[-1] + count)
                hashes.write(content)
                marked.write(bytes(count))
        if not starts[-1]:
            return
        words = np.memmap(scratch / "hashes", "<u8", "r").reshape(starts[-1], -1)
        marks = np.memmap(scratch / "marks", np.uint8, "r+")
        for entries in _sorted(words[:, :_HASH_WORDS], marks, scratch):
            marks[entries["place"][_firsts(entries) != np.arange(len(entries))]] = 1
        for band in range(_HASH_WORDS, words.shape[1]):
            for entries in _sorted(words[:, [band]], marks, scratch):
                marks[_near_duplicates(entries, words)] = 2
        for unit, (start, stop) in enumerate(itertools.pairwise(starts)):
            for mark, reason in enumerate(REASONS, 1):
                if len(found := np.flatnonzero(marks[start:stop] == mark)):
                    write(duplicates_name(unit, reason), found.astype("<u4").tobytes())


def _sorted(keys: Words, marks: Marks, scratch: Path) -> Iterator[Entries]:
    """The documents but exact duplicates that may share a key (shape (documents, 1 or 2)) with another, sorted by keys, in
    parts: all that have one key are in the same part, in the corpus's order."""
    for start in range(0, len(keys), DOCUMENTS_AT_ONCE):
        places = start + np.flatnonzero(marks[start : start + DOCUMENTS_AT_ONCE] != 1)
        entries = np.empty(len(places), _ENTRIES)
        entries["high"], entries["low"], entries["place"] = keys[places, 0], keys[places, -1], places
        if len(keys) <= DOCUMENTS_AT_ONCE:
            yield _in_order(entries)
            return
        if len(entries):
            _deal_out(entries, scratch)
    for path in sorted(scratch.glob("bucket-*")):
        yield _in_order(np.fromfile(path, _ENTRIES))
        path.unlink()


def _in_order(entries: Entries) -> Entries:
    """Sorted by key; most entries whose key no other has, and so most of all, are dropped before, which is faster."""
    ordered = np.sort(entries["high"])
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(repeated):
        return entries[:0]
    found = repeated[np.searchsorted(repeated, entries["high"]).clip(max=len(repeated) - 1)]
    entries = entries[found == entries["high"]]
    return entries[np.lexsort((entries["low"], entries["high"]))]  # which is stable


def _deal_out(entries: Entries, scratch: Path) -> None:
    """Append entries to the files of 256 buckets, by the first 8 bits of their keys."""
    buckets = (entries["high"] >> np.uint64(56)).astype(np.uint8)
    order = np.argsort(buckets, kind="stable")
    numbers, starts = np.unique(buckets[order], return_index=True)
    for number, part in zip(numbers.tolist(), np.split(entries[order], starts[1:]), strict=True):
        with (scratch / f"bucket-{number:03}").open("ab") as file:
            file.write(part.tobytes())


def _firsts(entries: Entries) -> npt.NDArray[np.int64]:
    """For each of sorted entries, the index of the first with the same key."""
    is_first = np.ones(len(entries), np.bool_)
    is_first[1:] = (entries["high"][1:] != entries["high"][:-1]) | (entries["low"][1:] != entries["low"][:-1])
    firsts: npt.NDArray[np.int64] = np.flatnonzero(is_first)[np.cumsum(is_first) - 1]
    return firsts


def _near_duplicates(entries: Entries, words: Words) -> npt.NDArray[np.uint64]:
    """The places of the documents whose signature is nearly that of the first one with the same key."""
    firsts = _firsts(entries)
    others = np.flatnonzero(firsts != np.arange(len(entries)))
    places, first_places = entries["place"][others], entries["place"][firsts[others]]
    is_near = np.empty(len(others), np.bool_)
    for start in range(0, len(others), _PAIRS_AT_ONCE):
        pairs = slice(start, start + _PAIRS_AT_ONCE)
        one, other = (words[side[pairs], _HASH_WORDS:].view(np.uint8) for side in (places, first_places))
        is_near[pairs] = (one == other).sum(axis=1) >= MIN_EQUAL_BYTES
    return places[is_near]


def compute_signatures(texts: list[str]) -> npt.NDArray[np.uint8]:
    """The signature of each text, shape (texts, 128). Memory beyond that: a few megabytes, and the longest text again."""
    parts = [_signatures(texts[start : start + _TEXTS_AT_ONCE]) for start in range(0, len(texts), _TEXTS_AT_ONCE)]
    return np.concatenate([np.empty((0, NUM_BINS), np.uint8), *parts])


def _signatures(texts: list[str]) -> npt.NDArray[np.uint8]:
    shortened = ["".join(text.split()).ljust(NGRAM_CHARS, "\0") for text in texts]
    ends = np.cumsum(np.fromiter(map(len, shortened), np.int64, len(shortened)))
    joined = "".join(shortened)
    bins = np.full(len(texts) * NUM_BINS, _NOTHING)
    for start in range(0, len(joined), _CHARS_AT_ONCE):
        hashes = _ngram_hashes(joined[start : start + _CHARS_AT_ONCE + NGRAM_CHARS - 1])
        places = np.arange(start, start + len(hashes))
        owners = np.repeat(np.arange(len(texts)), np.diff(ends.clip(start, start + len(hashes)), prepend=start))
        whole = places + NGRAM_CHARS <= ends[owners]  # an n-gram doesn't go on in the next text
        hashes = hashes[whole]
        np.minimum.at(bins, owners[whole] * NUM_BINS + (hashes >> _BIN_SHIFT).astype(np.int64), hashes)
    values = np.where(bins == _NOTHING, _EMPTY, bins.astype(np.uint8)).reshape(-1, NUM_BINS)
    return _filled(np.ascontiguousarray(values.T)).T.astype(np.uint8)


def _ngram_hashes(text: str) -> npt.NDArray[np.uint64]:
    """The hash of the n-gram that begins at each character: a polynomial of its code points modulo 2^64, then mixed."""
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint64)
    length = max(0, len(codes) - NGRAM_CHARS + 1)
    hashes = codes[:length]
    for place in range(1, NGRAM_CHARS):
        hashes = hashes * _MULTIPLIER + codes[place : place + length]
    hashes = (hashes ^ (hashes >> _HALF)) * _MIXER
    return hashes ^ (hashes >> _HALF)


def _filled(values: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """Give empty bins (shape (128, texts)) a value of others. After the step of 2^i, each has looked at those whose numbers
    differ from its own in the last i + 1 bits."""
    for step in 2 ** np.arange(7):
        pairs = values.reshape(NUM_BINS // (2 * step), 2, -1)
        values = np.where(pairs == _EMPTY, pairs[:, ::-1], pairs)
    return values.reshape(NUM_BINS, -1)
