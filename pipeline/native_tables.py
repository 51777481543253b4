"""What the native encoder knows of a tokenizer: derived from its `tokenizer.json`, and kept in an `.npz`.

`pipeline.native` has the algorithm.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import orjson

from pipeline.qwen2 import FLAGS, SPLIT_PATTERN
from shards.tokenizer_files import bytes_of_characters

Ids = npt.NDArray[np.uint32]
Points = npt.NDArray[np.int64]

# Classes of characters and sizes, as in the C source.
LETTER, NUMBER, SPACE, NEWLINE, OTHER, CHANGES, SPLITS, FOLLOWS = (1 << bit for bit in range(8))
_IN_PART = 1 << 21  # with the left character of a pair
ANY = 255
_JOIN_BITS, _RANK_BITS = 20, 22
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_NUM_POINTS = 0x110000
VERSION = 5  # of the tables
_MOST_PAIRS = 4096
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
    merge_shift: npt.NDArray[np.int64]  # what its hash is shifted by, shape ()
    added: list[list[Any]]  # added tokens: content, id, is special

    def encode(self) -> bytes:
        """As a file."""
        added = np.frombuffer(orjson.dumps(self.added), np.uint8)
        np.savez(content := io.BytesIO(), *self[:-1], added)
        return content.getvalue()


def read_tables(path: Path) -> Tables | None:
    """The tables in a file; none if there is no such file, or it isn't what was written."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            *arrays, added = file.values()
        return Tables._make([*arrays, orjson.loads(added.tobytes())])
    except (OSError, ValueError, TypeError, EOFError, BadZipFile):
        return None


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
            and not any(token.get(flag) for token in added for flag in FLAGS)
        )
        if not fits:
            raise Unfit("it has another split pattern, or other steps")
        vocabulary = model["vocab"]
        byte_of = bytes_of_characters()
        byte_ids = np.zeros(256, np.uint32)
        for character, byte in byte_of.items():
            byte_ids[byte] = vocabulary[character]
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        flat = (vocabulary[piece] for left, right in pairs for piece in (left, right, left + right))
        numbers = np.fromiter(flat, np.uint64, 3 * len(pairs)).reshape(-1, 3)
        high = {character for character, byte in byte_of.items() if byte >= 0x80}
        merges = [
            (rank, bytes(map(byte_of.__getitem__, left)), bytes(map(byte_of.__getitem__, right)))
            for rank, (left, right) in enumerate(pairs)
            if left[-1] in high or right[0] in high
        ]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise Unfit(f"it isn't a byte-level BPE with all bytes ({error!r})") from None
    table, shift = _hash_table(numbers, byte_ids)
    special = [[token["content"], token["id"], bool(token.get("special"))] for token in added]
    joins, unsplitting, following = _joins(merges)
    classes = _classes(unsplitting, following)
    return Tables(classes, joins, byte_ids, numbers[:, 2].astype(np.uint32), table, np.array(shift), special)


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
    if not np.diff(np.sort(keys)).all():
        raise Unfit("two merges join the same pair")
    bits = max(8, (len(keys) * 3 // 2).bit_length())
    hashes = (keys * _MULTIPLIER >> np.uint64(64 - bits)).astype(np.int64)
    order = np.argsort(hashes, kind="stable")
    places = np.maximum.accumulate(hashes[order] - ranks) + ranks
    table = np.full(max(2**bits, int(places.max(initial=0)) + 1) + 1, 2**64 - 1, np.uint64)
    table[places] = (keys << np.uint64(_RANK_BITS) | ranks.astype(np.uint64))[order]
    return table, 64 - bits


class _Side(NamedTuple):
    """What a merge takes on one side: a whole character, or a part of any of these."""

    points: Points
    until: Points  # the rank of the merge of its own that takes that part of the character
    is_part: bool

    def waiting(self, rank: int, broken: npt.NDArray[np.bool_]) -> Points:
        """The characters that have this part when a merge of this rank has its turn; `broken` may at any time."""
        return self.points[(self.until > rank) | broken[self.points]]


def _joins(merges: Sequence[tuple[int, bytes, bytes]]) -> tuple[npt.NDArray[np.uint64], Points, Points]:
    """The set of the pairs of characters of three bytes that a merge may join, where no other character is before them; of
    these pairs, those that it may join by a part of one are in the set again, with `_IN_PART`. Of these characters, those
    that are in too many pairs for the set; and those that may be joined with a part of any character before it.

    A part of a character waits for as long as no merge of its own has taken it. `b4` + `이` may only join the 이 with a
    character before it whose last byte b4 is still alone when this merge has its turn; or whose first byte went elsewhere.
    """
    points = np.arange(2**16)
    encoded = (points >> 12 | 0xE0) << 16 | (points >> 6 & 63 | 0x80) << 8 | points & 63 | 0x80
    is_valid = (points >= 0x800) & (points >> 11 != 0xD800 >> 11)
    starting, ending = _parts(merges, encoded)

    def side(whole: str, part: bytes, until: Sequence[Points]) -> _Side:
        if whole:
            return _Side(np.array([ord(whole)]), np.array([_ALWAYS]), is_part=False)
        length = len(part)
        parts = encoded >> (24 - 8 * length) if until is starting else encoded & ((1 << 8 * length) - 1)
        found = np.flatnonzero(is_valid & (parts == int.from_bytes(part)))
        return _Side(found, until[length - 1][found], is_part=True)

    keys, in_part = [], []
    for rank, left, right in merges:
        if right[0] & 0xC0 == 0x80 or _CUT.search(left):
            continue  # inside a character
        last, first = left.decode("utf-8", "ignore")[-1:], right.decode("utf-8", "ignore")[:1]
        if not first and right[0] >> 4 != 0xE:
            first = "\0"  # a part of a character that isn't of three bytes: as good as any
        if last and first:
            keys.append(np.array([ord(last) << 32 | ord(first)]))
        elif (not last and len(left) < 3) or "\u0800" <= last <= "\uffff":
            in_part.append((rank, side(last, left, ending), side(first, right, starting)))
    # What lost a part at one end may keep one at the other: until there are no more of these.
    none = np.zeros(_NUM_POINTS, bool)
    broken, num_before = none.copy(), -1
    while num_before < (num_before := int(np.count_nonzero(broken))):
        for rank, lefts, rights in in_part:
            some, others = lefts.waiting(rank, broken), rights.waiting(rank, broken)
            if len(some) and len(others):
                broken[some] |= lefts.is_part
                broken[others] |= rights.is_part
    none_yet = np.empty(0, np.int64)
    everywhere = [none_yet]
    following = [none_yet, *(rights.points for _rank, lefts, rights in in_part if lefts.is_part)]
    for flag, broken_by_others in ((0, broken), (_IN_PART, none)):
        for rank, lefts, rights in in_part:
            some, others = lefts.waiting(rank, broken_by_others), rights.waiting(rank, broken_by_others)
            if len(some) * len(others) > _MOST_PAIRS:
                everywhere.append(others)
            else:
                keys.append(((some | flag)[:, None] << 32 | others).ravel())
    bits = np.zeros(2**_JOIN_BITS, np.uint8)
    bits[np.concatenate([[0], *keys]).astype(np.uint64) * _MULTIPLIER >> np.uint64(64 - _JOIN_BITS)] = 1
    return np.packbits(bits, bitorder="little").view("<u8"), np.concatenate(everywhere), np.concatenate(following)


def _parts(merges: Sequence[tuple[int, bytes, bytes]], encoded: Points) -> tuple[list[Points], list[Points]]:
    """Of all characters of three bytes a b c: the ranks of the merges inside it that take a and a b, or c and b c."""
    two, three = np.full(2**16, _ALWAYS), {1: np.full(2**16, _ALWAYS), 2: np.full(2**16, _ALWAYS)}
    for rank, left, right in merges:
        both = left + right
        if len(both) == 2:
            two[int.from_bytes(both)] = rank
        elif len(both) == 3:
            point = (both[0] & 15) << 12 | (both[1] & 63) << 6 | both[2] & 63
            if encoded[point] == int.from_bytes(both):
                three[len(left)][point] = rank
    first, second = two[encoded >> 8], two[encoded & 0xFFFF]
    is_first = first < second  # then `a b` is made, else `b c` if anything
    last = np.where(second < _ALWAYS, three[1], _ALWAYS)
    starting = [np.where(is_first, first, last), np.where(is_first, three[2], -1)]
    return starting, [np.where(is_first, three[2], second), np.where(is_first | (second == _ALWAYS), -1, last)]


def _classes(unsplitting: Points, following: Points) -> npt.NDArray[np.uint8]:
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
    classes[unsplitting] &= ANY - SPLITS
    classes[following] |= FOLLOWS
    # What NFC changes, alone or after the last mark in canonical order; and what may be the second part of a composition.
    lines = [f"\u0345{chr(point)}" for point in points if point != ord("\n")]
    normalized = normalizers.NFC().normalize_str("\n".join(lines)).split("\n")
    changed = {line[1] for line, after in zip(lines, normalized, strict=True) if line != after}
    decompositions = normalizers.NFD().normalize_str("\n".join(line[1] for line in lines)).split("\n")
    changed.update(*(decomposition[1:] for decomposition in decompositions))
    classes[[*map(ord, changed)]] |= CHANGES
    return classes
