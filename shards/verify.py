"""Verifying a shard set: everything that can be wrong with it, a line for each fault.

A set that passes holds exactly the bytes that were built: the digest of every file, the structure of each index, ids below
the vocabulary, EOS exactly at the ends of documents and in the padding, totals as in the manifest, and no other file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError
from shards.common.files import file_digest, regular_file_bytes
from shards.common.text import printable
from shards.index import padding_positions
from shards.layout import BIN_SUFFIX, INDEX_SUFFIX, MANIFEST_NAME, STAMPS_NAME, TOKENIZER_DIRECTORY
from shards.manifest import Manifest, ShardEntry, read_manifest
from shards.reader import check_shard_sizes, read_shard_index


def verify(directory: Path, *, quick: bool = False, progress: Callable[[int], None] = lambda _: None) -> list[str]:
    """The faults found in the shard set, one line each; an empty list means that it is whole.

    `quick` looks at sizes, names and the small files alone. `progress` is called with the number of bytes just verified.
    """
    try:
        manifest = read_manifest(directory)
    except InputError as error:
        return [str(error)]
    reason = "not part of this set (the manifest doesn't list it); move it elsewhere"
    faults = [f"{printable(str(path))}: {reason}" for path in unknown_files(directory, manifest)]
    faults += _other_file_faults(directory, manifest)
    for shard in manifest.shards:
        try:
            check_shard_sizes(directory, shard, manifest.block_tokens)
            if not quick:
                faults += _shard_faults(directory, manifest, shard, progress)
        except InputError as error:
            faults.append(str(error))
    return faults


def unknown_files(directory: Path, manifest: Manifest) -> list[Path]:
    """What lies in the set's directory and isn't part of the set."""
    known = {MANIFEST_NAME, STAMPS_NAME, TOKENIZER_DIRECTORY, *(file.name for file in manifest.files())}
    found = [path.relative_to(directory) for path in (directory, directory / TOKENIZER_DIRECTORY) if path.is_dir()]
    entries = [entry for parent in found for entry in (directory / parent).iterdir()]
    return sorted(entry for entry in entries if entry.relative_to(directory).as_posix() not in known)


def _other_file_faults(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Faults of the tokenizer's files and of rejected.jsonl."""
    for file in manifest.other_files:
        path = directory / file.name
        try:
            num_bytes = regular_file_bytes(path)
            digest = file_digest(path)
        except InputError as error:
            yield str(error)
            continue
        if num_bytes != file.num_bytes or digest != file.digest:
            yield f"{path}: expected digest {file.digest}, found {digest}; the file was changed"
        elif file.name == f"{TOKENIZER_DIRECTORY}/tokenizer.json":
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            if sha256 != manifest.tokenizer.sha256:
                yield f"{path}: expected sha256 {manifest.tokenizer.sha256}, found {sha256}; the file was changed"


def _shard_faults(
    directory: Path, manifest: Manifest, shard: ShardEntry, progress: Callable[[int], None]
) -> Iterator[str]:
    path = directory / (shard.name + BIN_SUFFIX)
    index_path = path.with_suffix(INDEX_SUFFIX)
    index_digest = file_digest(index_path)
    if index_digest != shard.index_digest:
        yield f"{index_path}: expected digest {shard.index_digest}, found {index_digest}; the file was changed"
    try:
        index = read_shard_index(directory, shard, manifest.block_tokens)
    except InputError as error:
        yield str(error)
        return
    # Where EOS must stand: at the end of each document, and in all of the padding.
    padding = padding_positions(index, shard.num_blocks * manifest.block_tokens)
    expected_eos = np.sort(np.concatenate([index.ends[index.boundaries[1:] - 1] - 1, padding]))
    begins = np.sort(index.starts[index.boundaries[: 0 if manifest.tokenizer.begin_id is None else -1]])
    faults, start = list[str](), 0

    def look(content: memoryview) -> None:
        nonlocal start
        tokens = np.frombuffer(content[: len(content) // 4 * 4], "<u4")
        stop = start + len(tokens)
        eos_here, begins_here = (own[slice(*own.searchsorted([start, stop]))] - start for own in (expected_eos, begins))
        for position, fault in _token_faults(tokens, eos_here, begins_here, manifest):
            faults.append(f"{path}: offset {(start + position) * 4:,}: {fault}")
        start = stop

    digest = file_digest(path, write=look, progress=progress)
    yield from faults
    if digest != shard.digest:
        yield f"{path}: expected digest {shard.digest}, found {digest}; the file was changed"


def _token_faults(
    tokens: npt.NDArray[np.uint32], expected: npt.NDArray[np.int64], begins: npt.NDArray[np.int64], manifest: Manifest
) -> Iterator[tuple[int, str]]:
    """Where there are faults of `tokens`, the first of each kind, and what they are. EOS must stand at `expected`,
    the begin token at `begins`."""
    eos_id, vocab_size = manifest.tokenizer.eos_id, manifest.tokenizer.vocab_size
    if len(tokens) and tokens.max() >= vocab_size:
        position = int(np.argmax(tokens >= vocab_size))
        yield position, f"expected ids below {vocab_size:,}, found {tokens[position]:,}"
    only_there = manifest.settings.get("special_tokens") != "parse"  # else a document may hold EOS
    found = np.flatnonzero(tokens == eos_id) if only_there else expected[tokens[expected] == eos_id]
    if not np.array_equal(found, expected):
        position = int(np.setxor1d(found, expected)[0])
        kind = "EOS inside a document" if position in found else "no EOS at a document's end"
        yield position, f"{kind}; expected EOS exactly where the index says"
    wrong = begins[tokens[begins] != manifest.tokenizer.begin_id]
    if len(wrong):
        yield int(wrong[0]), f"expected the begin token {manifest.tokenizer.begin_id}, found {tokens[wrong[0]]:,}"
