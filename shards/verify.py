"""Verifying a shard set: everything that can be wrong with it, a line for each fault.

A set that passes holds exactly the bytes that were built: digests of every file, the index structure, ids below
the vocabulary, EOS exactly at the ends of documents, totals as in the manifest, no file that doesn't belong.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from shards.common.errors import InputError
from shards.common.files import regular_file_bytes
from shards.entries import SPLITS, ShardEntry, exact_sum
from shards.index import gaps
from shards.manifest import (
    MANIFEST_NAME,
    REJECTED_NAME,
    STAMPS_NAME,
    TOKENIZER_DIRECTORY,
    Manifest,
    read_manifest,
)
from shards.reader import check_shard_files, read_shard_index
from shards.tables import TABLE_NAMES
from shards.writer import BIN_SUFFIX, INDEX_SUFFIX

_CHUNK_TOKENS = 1 << 20


def verify(directory: Path, *, quick: bool = False, progress: Callable[[int], None] = lambda _: None) -> list[str]:
    """The faults found in the shard set, one line each; an empty list means that it is whole.

    `quick` looks at sizes and structure alone. `progress` is called with the number of bytes just verified.
    """
    try:
        manifest = read_manifest(directory)
    except InputError as error:
        return [str(error)]
    faults = [*_strange_files(directory, manifest), *_changed_files(directory, manifest)]
    if not faults:
        faults += _tail_faults(directory / MANIFEST_NAME, manifest)
    for shard in manifest.shards:
        try:
            check_shard_files(directory, shard, manifest.block_tokens)
            if not quick:
                faults += _shard_faults(directory, manifest, shard, progress)
        except InputError as error:
            faults.append(str(error))
    return faults


def _strange_files(directory: Path, manifest: Manifest) -> Iterator[str]:
    known = {MANIFEST_NAME, TOKENIZER_DIRECTORY, STAMPS_NAME}
    known |= {REJECTED_NAME} if manifest.rejected else set()
    known |= set(TABLE_NAMES.values()) if manifest.has_tables else set()
    strange = []
    with os.scandir(directory) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            is_shard = suffix in (BIN_SUFFIX, INDEX_SUFFIX) and manifest.shards.find(stem) is not None
            if not is_shard and entry.name not in known:
                strange.append(entry.name)
    for name in sorted(strange):
        yield f"{directory / name}: not a part of this set (the manifest doesn't list it); move it elsewhere"


def _changed_files(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Faults of the files whose digest the manifest has, but for the shards' own."""
    tokenizer = directory / TOKENIZER_DIRECTORY / "tokenizer.json"
    files: list[tuple[Path, str, str, Callable[[bytes], Any], str]] = [
        (tokenizer, "tokenizer", "sha256", hashlib.sha256, manifest.tokenizer.sha256)
    ]
    if manifest.rejected:
        files.append((directory / REJECTED_NAME, "file", "digest", blake3, manifest.rejected_digest))
    for path, name, kind, hasher, expected in files:
        try:
            regular_file_bytes(path)
        except InputError as error:
            yield str(error)
            continue
        digest = hasher(path.read_bytes()).hexdigest()
        if digest != expected:
            yield f"{path}: expected {kind} {expected}, found {digest}; the {name} was changed"


def _tail_faults(path: Path, manifest: Manifest) -> Iterator[str]:
    for split in SPLITS:
        shards, tails = manifest.shards.of_split(split), manifest.tails.of_split(split)
        num_pieces = exact_sum(tails.column("num_pieces"))
        # The last shard of a split holds what was left over in the units.
        if num_pieces != (shards[-1].num_pieces if tails and shards else 0):
            yield f"{path}: {split}: the tails list {num_pieces:,} pieces, the last shard has another number"
        num_blocks, num_tokens = (exact_sum(shards.column(name)) for name in ("num_blocks", "num_tokens"))
        num_fill = num_blocks * manifest.block_tokens - num_tokens
        if num_fill != manifest.splits[split].num_fill_tokens:
            found = manifest.splits[split].num_fill_tokens
            yield f"{path}: {split}: num_fill_tokens is {found:,}, the shards have {num_fill:,}"


def _shard_faults(
    directory: Path, manifest: Manifest, shard: ShardEntry, progress: Callable[[int], None]
) -> Iterator[str]:
    path = directory / (shard.name + BIN_SUFFIX)
    index_path = path.with_suffix(INDEX_SUFFIX)
    index_digest = blake3(index_path.read_bytes()).hexdigest()
    if index_digest != shard.index_digest:
        yield f"{index_path}: expected digest {shard.index_digest}, found {index_digest}; the file was changed"
    try:
        index = read_shard_index(directory, shard, manifest.block_tokens)
    except InputError as error:
        yield str(error)
        return
    num_open = shard.num_index_documents - shard.num_documents
    if not 0 <= num_open <= (1 if manifest.packing == "concat" else 0):
        yield f"{index_path}: {shard.num_index_documents:,} documents, of which {shard.num_documents:,} end here"
        return
    eos_id, vocab_size = manifest.tokenizer.eos_id, manifest.tokenizer.vocab_size
    # Where EOS must stand: at the end of each document that ends here, and in all of the filling.
    expected_eos = gaps(index, shard.num_blocks * manifest.block_tokens)
    if manifest.packing != "tutorial":
        ends = index.ends[index.boundaries[1 : shard.num_documents + 1] - 1] - 1
        expected_eos = np.sort(np.concatenate([ends, expected_eos]))
    parsed = manifest.settings.get("special_tokens") == "parse"  # then a document may hold EOS
    digest, start = blake3(), 0
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(_CHUNK_TOKENS * 4)
        while num_bytes := file.readinto(buffer):
            content = memoryview(buffer)[:num_bytes]
            digest.update(content)
            tokens = np.frombuffer(content[: num_bytes // 4 * 4], "<u4")
            first, behind = np.searchsorted(expected_eos, [start, start + len(tokens)])
            expected = expected_eos[first:behind] - start
            yield from _token_faults(
                path, tokens, start, expected, eos_id=eos_id, vocab_size=vocab_size, only_there=not parsed
            )
            start += len(tokens)
            progress(num_bytes)
    if digest.hexdigest() != shard.digest:
        yield f"{path}: expected digest {shard.digest}, found {digest.hexdigest()}; the file was changed"


def _token_faults(
    path: Path,
    tokens: npt.NDArray[np.uint32],
    start: int,
    expected: npt.NDArray[np.int64],
    *,
    eos_id: int,
    vocab_size: int,
    only_there: bool,
) -> Iterator[str]:
    """Faults of `tokens`, which begin at token `start` of the shard: the first of each kind.

    EOS must stand at the places `expected`, and nowhere else if `only_there`.
    """
    if len(tokens) and tokens.max() >= vocab_size:
        place = int(np.argmax(tokens >= vocab_size))
        yield (f"{path}: offset {(start + place) * 4:,}: expected ids below {vocab_size:,}, found {tokens[place]:,}")
    found = np.flatnonzero(tokens == eos_id) if only_there else expected[tokens[expected] == eos_id]
    if not np.array_equal(found, expected):
        place = int(np.setxor1d(found, expected)[0])
        kind = "EOS inside a document" if place in found else "no EOS at a document's end"
        yield f"{path}: offset {(start + place) * 4:,}: {kind}; expected EOS exactly where the index says"
