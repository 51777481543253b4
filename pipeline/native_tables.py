"""What the native encoder knows of a tokenizer: derived from its `tokenizer.json`, and kept in a file.

`pipeline.native` has the algorithm. The file is a BLAKE3 digest of all that follows, four sizes, and the arrays.
"""

from __future__ import annotations

import itertools
import mmap
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
from blake3 import blake3

from pipeline.qwen2 import SPLIT_PATTERN
from shards.tokenizer_files import bytes_of_characters

Ids = npt.NDArray[np.uint32]

# Classes of characters and sizes, as in the C source.
LETTER, NUMBER, SPACE, NEWLINE, OTHER, CHANGES, SPLITS, PARTIAL = (1 << bit for bit in range(8))
ANY = 255
_JOIN_BITS, _RANK_BITS = 20, 22
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_NUM_POINTS = 0x110000
_HEADER_BYTES = 64
VERSION = 2  # of the tables
_MOST_PAIRS = 10_000
_ALWAYS = 2**32  # a rank above all
_PLAIN = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges", "unk_token")
# What ends with a part of a character that goes on.
_CUT = re.compile(rb"([\xc0-\xff]|[\xe0-\xff][\x80-\xbf]|[\xf0-\xff][\x80-\xbf]{2})\Z")


class Unfit(Exception):
    """This encoder isn't for this tokenizer: the message says why."""


class Tables(NamedTuple):
    """All that the encoder knows of a tokenizer."""

    classes: npt.NDArray[np.uint8]  # of each code point
    joins: npt.NDArray[np.uint64]  # a set of pairs of characters, 2^_JOIN_BITS bits
    byte_ids: Ids  # of the 256 bytes
    made_ids: Ids  # of each merge
    merges: npt.NDArray[np.uint64]  # hash table: left id << 43 | right id << 22 | rank
    merge_shift: int
    added: list[list[Any]]  # added tokens: content, id, is special

    def encode(self) -> bytes:
        """As a file: a digest of all that follows it, sizes, and the arrays one after another."""
        added = orjson.dumps(self.added)
        sizes = np.array([self.merge_shift, self.made_ids.nbytes, self.merges.nbytes, len(added)], "<u8").tobytes()
        content = b"".join([sizes, *(array.tobytes() for array in self[:5]), added])
        return blake3(content).digest() + content


def read_tables(path: Path) -> Tables | None:
    """The tables in a file, which is mapped; none if there is no such file, or it isn't what was written."""
    try:
        with path.open("rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError):
        return None
    if len(content) < _HEADER_BYTES or blake3(content[32:]).digest() != content[:32]:
        return None
    shift, made_bytes, merge_bytes, added_bytes = np.frombuffer(content, "<u8", 4, 32).tolist()
    arrays: list[Any] = []
    start = _HEADER_BYTES
    join = ("<u8", 2**_JOIN_BITS // 8)
    ids = (("<u4", 1024), ("<u4", made_bytes))
    for dtype, num_bytes in (("u1", _NUM_POINTS), join, *ids, ("<u8", merge_bytes)):
        arrays.append(np.frombuffer(content[start : start + num_bytes], dtype))
        start += num_bytes
    added: list[list[Any]] = orjson.loads(content[start : start + added_bytes])
    classes, joins, byte_ids, made_ids, merges = arrays
    return Tables(classes, joins, byte_ids, made_ids, merges, shift, added)


def make_tables(tokenizer_json: bytes) -> Tables:
    """Raises `Unfit` for a tokenizer of another kind."""
    content = orjson.loads(tokenizer_json)
    try:
        model, added = content["model"], content.get("added_tokens") or []
        steps = content["pre_tokenizer"]["pretokenizers"]
        kinds = [step["type"] for step in steps]
        fits = (
            model["type"] == "BPE"
            and not any(model.get(key) for key in _PLAIN)
            and content["normalizer"] == {"type": "NFC"}
            and kinds == ["Split", "ByteLevel"]
            and steps[0]["pattern"] == {"Regex": SPLIT_PATTERN}
            and (steps[0]["behavior"], steps[0]["invert"]) == ("Isolated", False)
            and (steps[1]["add_prefix_space"], steps[1]["use_regex"]) == (False, False)
            and not any(
                token.get(flag) for token in added for flag in ("single_word", "lstrip", "rstrip", "normalized")
            )
        )
        if not fits:
            raise Unfit("it has another split pattern, or other steps")
        vocabulary = model["vocab"]
        byte_of = bytes_of_characters()
        byte_ids = np.zeros(256, np.uint32)
        for character, byte in byte_of.items():
            byte_ids[byte] = vocabulary[character]
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        numbers = np.array([[vocabulary[a], vocabulary[b], vocabulary[a + b]] for a, b in pairs], np.uint64)
        pieces = [(bytes(map(byte_of.__getitem__, a)), bytes(map(byte_of.__getitem__, b))) for a, b in pairs]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise Unfit(f"it isn't a byte-level BPE with all bytes ({error!r})") from None
    numbers = numbers.reshape(-1, 3)
    merges, shift = _hash_table(numbers, byte_ids)
    special = [[token["content"], token["id"], bool(token.get("special"))] for token in added]
    joins, unsplitting, partial = _joins(pieces)
    return Tables(
        _classes(unsplitting, partial), joins, byte_ids, numbers[:, 2].astype(np.uint32), merges, shift, special
    )


def _hash_table(numbers: npt.NDArray[np.uint64], byte_ids: Ids) -> tuple[npt.NDArray[np.uint64], int]:
    """Open addressing for rows of left, right and new id in the order of their ranks; what the hash is shifted by.

    A key lies at its hash, or after all keys of lower or equal hash: in the order of the hashes, at
    max(hash, place of the one before + 1).
    """
    # Before a merge has its turn, its parts are made: what the docstring says of characters follows from it.
    made = np.full(2**21, len(numbers))
    made[byte_ids] = -1
    ranks = np.arange(len(numbers))
    if numbers.max(initial=0) >= len(made) - 1 or len(numbers) >= 2**_RANK_BITS - 1:
        raise Unfit("its vocabulary is too large")
    made[numbers[:, 2]] = ranks
    if (made[numbers[:, :2]].max(axis=1, initial=-1) >= ranks).any():
        raise Unfit("a merge has parts that are made later")
    keys = numbers[:, 0] << np.uint64(21) | numbers[:, 1]
    if len(np.unique(keys)) != len(keys):
        raise Unfit("two merges join the same pair")
    bits = max(8, (len(keys) * 3 // 2).bit_length())
    hashes = (keys * _MULTIPLIER >> np.uint64(64 - bits)).astype(np.int64)
    order = np.argsort(hashes, kind="stable")
    places = np.maximum.accumulate(hashes[order] - ranks) + ranks
    table = np.full(max(2**bits, int(places.max(initial=0)) + 1) + 1, 2**64 - 1, np.uint64)
    table[places] = (keys << np.uint64(_RANK_BITS) | ranks.astype(np.uint64))[order]
    return table, 64 - bits


def _joins(merges: Sequence[tuple[bytes, bytes]]) -> tuple[npt.NDArray[np.uint64], set[str], set[str]]:
    """The pairs of characters of three bytes that a merge may join; of these characters, those that aren't in the set
    for they are in too many pairs; and those of which a merge may take a part.

    A part of a character waits for as long as no merge of its own has taken it. `b4` + `이` may only join the 이 with a
    character before it whose last byte b4 is still alone when this merge has its turn; or whose first byte went elsewhere.
    """
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    starting, ending = defaultdict(list), defaultdict(list)
    for point in (*range(0x800, 0xD800), *range(0xE000, 0x10000)):
        encoded = chr(point).encode()
        taken = _parts_taken(encoded, ranks)
        for length in (1, 2):
            starting[encoded[:length]].append((taken.get(encoded[:length], -1), chr(point)))
            ending[encoded[-length:]].append((taken.get(encoded[-length:], -1), chr(point)))
    pairs: set[tuple[str, str]] = set()
    everywhere: set[str] = set()
    partial: set[str] = set()
    in_part = []  # merges that take a part of a character: rank, left and right, each a character or such with that part
    for rank, (left, right) in enumerate(merges):
        if right[0] & 0xC0 == 0x80 or _CUT.search(left):
            continue  # inside a character
        last, first = left.decode("utf-8", "ignore")[-1:], right.decode("utf-8", "ignore")[:1]
        if not first and right[0] >> 4 != 0xE:
            first = "\0"  # a part of a character that isn't of three bytes: as good as any
        if last and not "\u0800" <= last <= "\uffff":
            continue  # after such a character a word isn't split at all
        if last and first:
            pairs.add((last, first))
        else:
            lefts, rights = (
                [(_ALWAYS, last)] if last else ending[left],
                [(_ALWAYS, first)] if first else starting[right],
            )
            in_part.append((rank, lefts, rights, not last, not first))
    # What lost a part at one end may keep one at the other: until there are no more of these.
    num_before = -1
    while num_before < len(partial):
        num_before = len(partial)
        for rank, lefts, rights, is_left_cut, is_right_cut in in_part:
            some = [one for taken, one in lefts if taken > rank or one in partial]
            others = [one for taken, one in rights if taken > rank or one in partial]
            if not some or not others:
                continue
            partial.update(some if is_left_cut else [], others if is_right_cut else [])
            if len(some) * len(others) <= _MOST_PAIRS:
                pairs.update(itertools.product(some, others))
            else:
                everywhere.update(others)
    points = np.array([[ord(left), ord(right)] for left, right in pairs], np.uint64).reshape(-1, 2)
    bits = np.zeros(2**_JOIN_BITS, np.uint8)
    bits[(points[:, 0] << np.uint64(32) | points[:, 1]) * _MULTIPLIER >> np.uint64(64 - _JOIN_BITS)] = 1
    return np.packbits(bits, bitorder="little").view("<u8"), everywhere, partial


def _parts_taken(character: bytes, ranks: dict[tuple[bytes, bytes], int]) -> dict[bytes, int]:
    """The parts at either end of a character of three bytes, with the rank of the merge inside it that takes each."""
    a, b, c = character[:1], character[1:2], character[2:]
    never = len(ranks)
    first, second = ranks.get((a, b), never), ranks.get((b, c), never)
    if first < second:
        whole = ranks.get((a + b, c), never)
        return {a: first, a + b: whole, c: whole}
    whole = ranks.get((a, b + c), never) if second < never else never
    return {a: whole, b + c: whole, c: second}


def _classes(unsplitting: set[str], partial: set[str]) -> npt.NDArray[np.uint8]:
    """The classes of all code points, by the very code that the reference splits and normalizes with."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    classes = np.full(_NUM_POINTS, OTHER, np.uint8)
    # The other planes have no letter, number, space or mark: they are unassigned, or for private use.
    points = np.r_[0:0xD800, 0xE000:0x40000, 0xE0000:0xF0000]
    for pattern, bit in ((r"\p{L}+", LETTER), (r"\p{N}+", NUMBER), (r"\s+", SPACE)):
        split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
        for chunk in np.split(points, range(1024, len(points), 1024)):  # its time is quadratic in a text's length
            for _piece, (start, stop) in split.pre_tokenize_str("".join(map(chr, chunk))):
                classes[chunk[start:stop]] = bit
    classes[[ord("\r"), ord("\n")]] |= NEWLINE
    classes[0x800:0x10000] |= SPLITS
    classes[[*map(ord, unsplitting)]] &= ANY - SPLITS
    classes[[*map(ord, partial)]] |= PARTIAL
    # What NFC changes, alone or after the last mark in canonical order; and what may be the second part of a composition.
    lines = [f"\u0345{chr(point)}" for point in points if point != ord("\n")]
    normalized = normalizers.NFC().normalize_str("\n".join(lines)).split("\n")
    changed = {line[1] for line, after in zip(lines, normalized, strict=True) if line != after}
    decompositions = normalizers.NFD().normalize_str("\n".join(line[1] for line in lines)).split("\n")
    changed.update(*(decomposition[1:] for decomposition in decompositions))
    classes[[*map(ord, changed)]] |= CHANGES
    return classes
