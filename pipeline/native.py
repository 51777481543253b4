"""An exact encoder for byte-level BPE with Qwen2's split pattern; on Chinese it has not seen, the fastest.

Guaranteed are the ids of the package tokenizers. The inner loops are C (`native.c`, beside this), compiled once for each
user by the machine's compiler; without one, fastokens does the work. What they need to know of a tokenizer is made once,
from its `tokenizer.json`, kept in the user's cache and mapped by all processes.

1. A text is cut into words by the split pattern, with a class for each character instead of a regular expression:
   letter, number, space, newline, other. The classes are asked of the reference's own regular expressions.
2. A word is cut into segments, between any two characters of three bytes that no merge can ever join. What remains
   is mostly one or two characters: `，而人工智能` → `，` `而` `人工智能`. No merge joins `，` with `而`, or `而` with `人`;
   some join `人` with `工`, `工` with `智`, `智` with `能`. The joined pairs are a set of 2^20 bits, indexed by a hash:
   a pair that is in it by accident makes a segment longer, and the ids are the same.
3. The ids of a character alone are in a table, those of short segments in a cache; else they are merged by rank. Up to
   64 parts the lowest rank is looked for again after each merge, from there on by a heap: `n log n` steps.

Merging may begin with whole characters instead of bytes, `人 工 智 能` instead of twelve bytes. For a merge has a higher
rank than those that make its parts (`_hash_table` sees to that): before any merge that takes `人` has its turn, `人` is
made. It is different where a merge takes only a part of a character (`b4` + `이`), and that part is still alone when the
turn comes: `_joins` finds these pairs too, and segments with such a character begin with bytes.

NFC is the reference's. A document with a character that NFC may change is noticed by its class, and encoded by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import itertools
import mmap
import os
import platform
import re
import shlex
import subprocess
import tempfile
import threading
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
from blake3 import blake3

from pipeline.qwen2 import SPLIT_PATTERN
from shards.common.files import user_cache, write_atomically
from shards.common.text import printable
from shards.tokenizer_files import bytes_of_characters

Ids = npt.NDArray[np.uint32]
Offsets = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]

SOURCE = Path(__file__).with_suffix(".c")
_FLAGS = ("-O3", "-shared", "-fPIC")
# Classes of characters and sizes, as in the C source.
LETTER, NUMBER, SPACE, NEWLINE, OTHER, CHANGES, SPLITS, PARTIAL = (1 << bit for bit in range(8))
_ANY = 255
_CACHED_BYTES, _CACHED_IDS, _CACHE_BITS, _JOIN_BITS, _RANK_BITS = 16, 3, 16, 20, 22
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_NUM_POINTS = 0x110000
_HEADER_BYTES = 64
_VERSION = 1  # of the tables
_MOST_PAIRS = 10_000
_PLAIN = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges", "unk_token")
# What ends with a part of a character that goes on.
_CUT = re.compile(rb"([\xc0-\xff]|[\xe0-\xff][\x80-\xbf]|[\xf0-\xff][\x80-\xbf]{2})\Z")


class Unfit(Exception):
    """This encoder isn't for this tokenizer: the message says why."""


class NoCompiler(Unfit):
    """The C source can't be compiled here."""


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
    arrays, start = [], _HEADER_BYTES
    join = ("<u8", 2**_JOIN_BITS // 8)
    ids = (("<u4", 1024), ("<u4", made_bytes))
    for dtype, num_bytes in (("u1", _NUM_POINTS), join, *ids, ("<u8", merge_bytes)):
        arrays.append(np.frombuffer(content[start : start + num_bytes], dtype))
        start += num_bytes
    return Tables(*arrays, shift, orjson.loads(content[start : start + added_bytes]))


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
    character before it whose last byte b4 is still alone when this merge has its turn.
    """
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    starting, ending = defaultdict(list), defaultdict(list)
    for point in (*range(0x800, 0xD800), *range(0xE000, 0x10000)):
        encoded = chr(point).encode()
        for part, rank in _parts_taken(encoded, ranks).items():
            (starting if encoded.startswith(part) else ending)[part].append((rank, chr(point)))
    pairs: set[tuple[str, str]] = set()
    everywhere: set[str] = set()
    partial: set[str] = set()
    for rank, (left, right) in enumerate(merges):
        if right[0] & 0xC0 == 0x80 or _CUT.search(left):
            continue  # inside a character
        last, first = left.decode("utf-8", "ignore")[-1:], right.decode("utf-8", "ignore")[:1]
        lefts = [last] if last else [character for taken, character in ending[left] if taken > rank]
        rights = [first] if first else [character for taken, character in starting[right] if taken > rank]
        if not lefts or not rights or not all("\u0800" <= one <= "\uffff" for one in (last, first) if one):
            continue  # what lies beside another character is never split from it
        partial.update([] if last else lefts, [] if first else rights)
        if len(lefts) * len(rights) <= _MOST_PAIRS:
            pairs.update(itertools.product(lefts, rights))
        else:
            everywhere.update(rights)
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
    classes[[*map(ord, unsplitting)]] &= _ANY - SPLITS
    classes[[*map(ord, partial)]] |= PARTIAL
    # What NFC changes, alone or after the last mark in canonical order; and what may be the second part of a composition.
    lines = [f"\u0345{chr(point)}" for point in points if point != ord("\n")]
    normalized = normalizers.NFC().normalize_str("\n".join(lines)).split("\n")
    changed = {line[1] for line, after in zip(lines, normalized, strict=True) if line != after}
    decompositions = normalizers.NFD().normalize_str("\n".join(line[1] for line in lines)).split("\n")
    changed.update(*(decomposition[1:] for decomposition in decompositions))
    classes[[*map(ord, changed)]] |= CHANGES
    return classes


# ---- the compiled part ----


class _State(ctypes.Structure):
    """`struct encoder` of the C source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("classes", "joins", "merges", "made_ids", "byte_ids")),
        ("merge_shift", ctypes.c_uint64),
        *((name, ctypes.c_void_p) for name in ("characters", "cache")),
        ("num_steps", ctypes.c_uint64),
        ("work", ctypes.c_void_p),
        ("work_bytes", ctypes.c_uint64),
        ("failed", ctypes.c_uint32),
    )


@functools.cache
def compiled() -> Any:
    """The C source's function `encode`, compiled once for all processes of this user. Raises `Unfit` without a compiler."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    command = [*compiler, *_FLAGS]
    digest = hashlib.sha256(b"\0".join([SOURCE.read_bytes(), *map(str.encode, [*command, platform.machine()])]))
    path = user_cache() / f"native-{digest.hexdigest()[:16]}.so"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as directory:
                made = Path(directory) / path.name
                subprocess.run([*command, str(SOURCE), "-o", str(made)], check=True, capture_output=True)
                os.replace(made, path)
        encode = ctypes.CDLL(str(path)).encode
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise NoCompiler(f"no C compiler that works: {printable(str(error))[:200]}") from None
    encode.restype = ctypes.c_int64
    encode.argtypes = [ctypes.c_void_p, ctypes.c_char_p, *[ctypes.c_void_p] * 2, ctypes.c_int64]
    encode.argtypes += [*[ctypes.c_void_p] * 2, ctypes.c_uint8]
    return encode


class NativeEncoder:
    """Encodes texts by the compiled part. Used by one thread at a time."""

    name = "native"

    def __init__(self, tables: Tables, *, parse_special: bool = False) -> None:
        self._tables, self._encode = tables, compiled()
        self._characters = np.zeros(2**16, np.uint32)
        cache = np.zeros((2**_CACHE_BITS + 1) * 32, np.uint8)
        self._cache = cache[-cache.ctypes.data % 32 :]
        pointers = {
            name: getattr(tables, name).ctypes.data for name in ("classes", "joins", "merges", "made_ids", "byte_ids")
        }
        self._state = _State(
            **pointers,
            merge_shift=tables.merge_shift,
            characters=self._characters.ctypes.data,
            cache=self._cache.ctypes.data,
        )
        self._lock = threading.Lock()
        self._added = {content: number for content, number, special in tables.added if parse_special or not special}
        # The longest first, as the reference does.
        self._cut = re.compile(f"({'|'.join(map(re.escape, sorted(self._added, key=len, reverse=True)))})")
        self._added_bytes = [*map(str.encode, self._added)]

    @property
    def num_steps(self) -> int:
        """Work done in merging so far."""
        return int(self._state.num_steps)

    def encode(self, texts: list[str]) -> tuple[Ids, Offsets]:
        """As `FastEncoder.encode`."""
        ids, counts, _contents = self.encode_closed(texts, 0)
        ends = np.cumsum(counts)
        return np.delete(ids, ends - 1), np.concatenate([[0], ends - np.arange(1, len(ends) + 1)]).astype(np.uint64)

    def encode_closed(self, texts: list[str], closing: int) -> tuple[Ids, Counts, list[bytes]]:
        """The ids of all texts, each followed by the id `closing`; how many each has, that one included; and UTF-8."""
        contents = list(map(str.encode, texts))
        joined = b"".join([*contents, bytes(_CACHED_BYTES)])
        if not any(token in joined for token in self._added_bytes):
            lengths = np.fromiter(map(len, contents), np.int64, len(contents))
            return *self._run(texts, joined, lengths, np.full(len(texts), closing, np.uint32)), contents
        # Pieces between added tokens are closed by these.
        cut = [self._cut.split(text) for text in texts]
        pieces = [piece for parts in cut for piece in parts[::2]]
        closings = [number for parts in cut for number in (*map(self._added.__getitem__, parts[1::2]), closing)]
        encoded = [*map(str.encode, pieces), bytes(_CACHED_BYTES)]
        lengths = np.fromiter(map(len, encoded[:-1]), np.int64, len(pieces))
        ids, counts = self._run(pieces, b"".join(encoded), lengths, np.array(closings, np.uint32))
        starts = np.cumsum([0, *(len(parts) // 2 + 1 for parts in cut)])[:-1]
        return ids, np.add.reduceat(counts, starts), contents

    def _run(
        self, texts: list[str], joined: bytes, lengths: Counts, closing: Ids, allowed: int = _ANY & ~CHANGES
    ) -> tuple[Ids, Counts]:
        ids, counts = np.empty(len(joined) + len(texts) + _CACHED_IDS, np.uint32), np.empty(len(texts), np.int64)
        ends = np.cumsum(lengths)
        with self._lock:
            num_ids = self._encode(
                ctypes.byref(self._state),
                joined,
                ends.ctypes.data,
                closing.ctypes.data,
                len(texts),
                ids.ctypes.data,
                counts.ctypes.data,
                allowed,
            )
        if num_ids < 0:
            raise MemoryError("no room for merging a long word")
        ids = ids[:num_ids]
        changed = np.flatnonzero(counts == 0)
        if not len(changed):
            return ids, counts
        places = np.cumsum(counts)[changed]
        normalized = [to_nfc(texts[number]) for number in changed]
        contents = [*map(str.encode, normalized), bytes(_CACHED_BYTES)]
        lengths = np.fromiter(map(len, contents[:-1]), np.int64, len(changed))
        others, counts[changed] = self._run(normalized, b"".join(contents), lengths, closing[changed], _ANY)
        between, inserted = np.split(ids, places), np.split(others, np.cumsum(counts[changed]))
        return np.concatenate([part for pair in zip(between, inserted, strict=True) for part in pair]), counts


@functools.cache
def _nfc() -> Any:
    from tokenizers.normalizers import NFC

    return NFC()


def to_nfc(text: str) -> str:
    """The text as the reference normalizes it. Almost all is normalized already, and that is seen faster here."""
    return text if unicodedata.is_normalized("NFC", text) else _nfc().normalize_str(text)


def load_native_encoder(
    tokenizer_json: bytes, *, parse_special: bool = False, agrees: Callable[[NativeEncoder], bool]
) -> NativeEncoder:
    """The encoder for a tokenizer. Its tables are made once for all processes of this user, and kept if `agrees` says so.

    Raises `Unfit`.
    """
    digest = hashlib.sha256(tokenizer_json)
    digest.update(f"{importlib.metadata.version('tokenizers')} {_VERSION}".encode())
    path = user_cache() / f"native-{digest.hexdigest()[:16]}.tables"
    tables = read_tables(path)
    if tables is not None:
        return NativeEncoder(tables, parse_special=parse_special)
    tables = make_tables(tokenizer_json)
    encoder = NativeEncoder(tables, parse_special=parse_special)
    if not agrees(encoder):
        raise Unfit("its ids differ from the reference's")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, tables.encode())
    return encoder
