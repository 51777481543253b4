"""An exact encoder for byte-level BPE with Qwen2's split pattern; on Chinese it has not seen, the fastest.

Guaranteed are the ids of the package tokenizers. The inner loops are C (`native.c`, beside this), compiled once for each
user by the machine's compiler; without one, fastokens does the work. What they need to know of a tokenizer is made once,
from its `tokenizer.json`, and kept in the user's cache.

1. A text is cut into words by the split pattern, with a class for each character instead of a regular expression:
   letter, number, space, newline, other. The classes are asked of the reference's own regular expressions.
2. A word is cut into segments, between any two characters of three bytes that no merge can ever join. What remains
   is mostly one or two characters: `，而人工智能` → `，` `而` `人工智能`. No merge joins `，` with `而`, or `而` with `人`;
   some join `人` with `工`, `工` with `智`, `智` with `能`. The joined pairs are a set of 2^20 bits, indexed by a hash:
   a pair that is in it by accident makes a segment longer, and the ids are the same.
3. The ids of a character alone are in a table, those of 2^18 short segments in a cache; else they are merged by rank. Up
   to 64 parts the lowest rank is looked for again after each merge, from there on by a heap: `n log n` steps.

Merging may begin with whole characters instead of bytes, `人 工 智 能` instead of twelve bytes. For a merge has a higher
rank than those that make its parts (`_hash_table` sees to that): before any merge that takes `人` has its turn, `人` is
made. It is different where a merge takes only a part of a character (`b4` + `이`), and that part is still alone when the
turn comes: `_joins` finds these pairs too, and a segment with such a pair begins with bytes. What such a merge leaves may
join the next character in turn: that, too, is in the set. What a space (or a letter of another length) leaves isn't, as
the space may take a part of almost any character; after one, a word isn't cut before any of the few characters that
can follow a part of one (` 大行`: the space takes two bytes of 大, and the third joins 行).

NFC is the reference's. A document with a character that NFC may change is noticed by its class, and encoded by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import subprocess
import tempfile
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.encode import Counts, Documents, Encoder, Ids, Offsets
from pipeline.native_tables import ANY, CHANGES, VERSION, Tables, Unfit, make_tables, read_tables
from shards.common.files import user_cache, write_atomically
from shards.common.text import printable

SOURCE = Path(__file__).with_suffix(".c")
_FLAGS = ("-O3", "-shared", "-fPIC")
_POINTERS = ("classes", "joins", "merges", "made_ids", "byte_ids")  # to what is in `Tables`
_CACHED_BYTES, _CACHED_IDS, _CACHE_BITS = 16, 3, 18  # as in the C source


class NoCompiler(Unfit):
    """The C source can't be compiled here."""


class _State(ctypes.Structure):
    """`struct encoder` of the C source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("merge_shift", ctypes.c_uint64),
        *((name, ctypes.c_void_p) for name in ("characters", "cache")),
        ("num_steps", ctypes.c_uint64),
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


class _Own(threading.local):
    """What each thread has for itself: made when it encodes for the first time."""

    def __init__(self, tables: Tables) -> None:
        self._characters = np.zeros(2**16, np.uint32)
        cache = np.zeros((2**_CACHE_BITS + 1) * 32, np.uint8)
        self._cache = cache[-cache.ctypes.data % 32 :]
        pointers = {name: getattr(tables, name).ctypes.data for name in _POINTERS}
        self.state = _State(
            **pointers,
            merge_shift=int(tables.merge_shift),
            characters=self._characters.ctypes.data,
            cache=self._cache.ctypes.data,
        )


class NativeEncoder(Encoder):
    """Encodes texts by the compiled part, which releases the GIL, on any number of threads."""

    name = "native"
    uses_threads = True

    def __init__(self, tables: Tables, *, parse_special: bool = False) -> None:
        self._tables, self._own, self._encode = tables, _Own(tables), compiled()
        self._added = {content: number for content, number, special in tables.added if parse_special or not special}
        # The longest first, as the reference does.
        self._cut = re.compile(f"({'|'.join(map(re.escape, sorted(self._added, key=len, reverse=True)))})")
        self._added_bytes = [*map(str.encode, self._added)]

    def encode(self, texts: list[str]) -> tuple[Ids, Offsets]:
        ids, counts, _contents = self.encode_closed(texts, 0)
        ends = np.cumsum(counts)
        return np.delete(ids, ends - 1), np.concatenate([[0], ends - np.arange(1, len(ends) + 1)]).astype(np.uint64)

    def encode_closed(self, texts: list[str], closing: int) -> Documents:
        contents = list(map(str.encode, texts))
        joined = _joined(contents)
        if not any(token in joined for token in self._added_bytes):
            return Documents(*self._run(texts, contents, joined, np.full(len(texts), closing, np.uint32)), contents)
        # Pieces between added tokens are closed by these.
        cut = [self._cut.split(text) for text in texts]
        pieces = [piece for parts in cut for piece in parts[::2]]
        closings = [number for parts in cut for number in (*map(self._added.__getitem__, parts[1::2]), closing)]
        encoded = list(map(str.encode, pieces))
        ids, counts = self._run(pieces, encoded, _joined(encoded), np.array(closings, np.uint32))
        starts = np.cumsum([0, *(len(parts) // 2 + 1 for parts in cut)])[:-1]
        return Documents(ids, np.add.reduceat(counts, starts), contents)

    def _run(
        self, texts: list[str], contents: list[bytes], joined: bytes, closing: Ids, allowed: int = ANY & ~CHANGES
    ) -> tuple[Ids, Counts]:
        """The ids of the texts, whose UTF-8 is `contents`, each closed by its own id; and how many each has."""
        num_texts, ends = len(texts), np.cumsum(np.fromiter(map(len, contents), np.int64, len(texts)))
        ids, counts = np.empty(len(joined) + num_texts + _CACHED_IDS, np.uint32), np.empty(num_texts, np.int64)
        pointers = (array.ctypes.data for array in (ends, closing))
        found = (array.ctypes.data for array in (ids, counts))
        num_ids = self._encode(ctypes.byref(self._own.state), joined, *pointers, num_texts, *found, allowed)
        if num_ids < 0:
            raise MemoryError("no room for merging a long word")
        ids = ids[:num_ids]
        changed = np.flatnonzero(counts == 0)
        if not len(changed):
            return ids, counts
        places = np.cumsum(counts)[changed]
        normalized = [to_nfc(texts[number]) for number in changed]
        encoded = list(map(str.encode, normalized))
        others, counts[changed] = self._run(normalized, encoded, _joined(encoded), closing[changed], ANY)
        between, inserted = np.split(ids, places), np.split(others, np.cumsum(counts[changed]))
        return np.concatenate([part for pair in zip(between, inserted, strict=True) for part in pair]), counts


def _joined(contents: list[bytes]) -> bytes:
    """As the C source takes them: it reads a little beyond the last."""
    return b"".join([*contents, bytes(_CACHED_BYTES)])


@functools.cache
def _nfc() -> Any:
    from tokenizers.normalizers import NFC

    return NFC()


def to_nfc(text: str) -> str:
    """The text as the reference normalizes it. Almost all is normalized already, and that is seen faster here."""
    return text if unicodedata.is_normalized("NFC", text) else _nfc().normalize_str(text)


def tables_path(tokenizer_json: bytes) -> Path:
    """Where the tables of a tokenizer are kept."""
    package = importlib.util.find_spec("tokenizers")  # which classes characters: by version, told by its directory
    assert package and package.origin
    versions = sorted(path.name for path in Path(package.origin).parent.parent.glob("tokenizers-*.dist-info"))
    digest = hashlib.sha256(tokenizer_json + f"{versions} {VERSION}".encode())
    return user_cache() / f"native-{digest.hexdigest()[:16]}.npz"


def load_native_encoder(
    tokenizer_json: bytes, *, parse_special: bool = False, agrees: Callable[[NativeEncoder], bool]
) -> NativeEncoder:
    """The encoder for a tokenizer. Its tables are made once for all processes of this user, and kept if `agrees` says so.

    Raises `Unfit`.
    """
    path = tables_path(tokenizer_json)
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
