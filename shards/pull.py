"""A set at a URL to a directory of this machine: in parallel, each file checked against the manifest, resumed file by file.

A file gets its name when its digest is right, the directory when all its files are there: what has its name is whole. One
process copies, others that want the same set wait for it. Needs the package fsspec (`shards.common.urls`).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from blake3 import blake3

from shards.common.errors import InputError, TransientError
from shards.common.files import TEMPORARY_SUFFIX, flush_directory, user_cache, write_atomically
from shards.common.text import printable, size_text
from shards.common.urls import file_system, join, listing, read_bytes, storage_errors
from shards.index import index_bytes
from shards.manifest import (
    MANIFEST_NAME,
    REJECTED_NAME,
    TOKENIZER_DIRECTORY,
    Manifest,
    decode_manifest,
    decode_table_entries,
    read_manifest,
)
from shards.writer import BIN_SUFFIX, INDEX_SUFFIX, bin_bytes, set_bytes

_FILES_AT_ONCE = 8
_FILES_QUEUED = 64
_READ_BYTES = 8 << 20
_TRIES = 2

Notice = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class _File:
    """A file of the set: its name, its bytes, and what its digest must be (BLAKE3, or SHA-256; None: not known)."""

    name: str
    num_bytes: int
    digest: str | None = None
    sha256: bool = False


def pull(
    url: str,
    out: Path | None = None,
    *,
    notice: Notice = lambda _line: None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Path:
    """Copy the set at `url` to `out`, by default to its place in the cache; where it lies then.

    A set that is there already isn't copied again. `notice` is told in a line what takes time, `progress` the bytes done
    and in all. Raises `InputError` if there is no set, it is damaged, or there is no room.
    """
    url = url.rstrip("/")
    content = read_bytes(join(url, MANIFEST_NAME))
    if content is None:
        raise InputError(f"{url}: no {MANIFEST_NAME}, so no complete set is there; finish its build, or check the URL")
    path = join(url, MANIFEST_NAME)
    fingerprint, tables = decode_table_entries(content, path)
    manifest = None if tables else decode_manifest(content, path)
    directory = out if out is not None else user_cache() / fingerprint[:32]
    if _holds(directory, fingerprint):
        return directory
    with _lock(directory, url, notice):
        if _holds(directory, fingerprint):
            return directory
        if directory.exists() or directory.is_symlink():
            raise InputError(
                f"{directory}: exists and is another set, or none; choose another --out, or move it elsewhere"
            )
        partial = directory.with_name(directory.name + ".partial")
        (partial / TOKENIZER_DIRECTORY).mkdir(parents=True, exist_ok=True)
        for file in (table_files := [_File(table.file, table.num_bytes, table.digest) for table in tables]):
            if not _is_there(partial, file) or blake3().update_mmap(partial / file.name).hexdigest() != file.digest:
                _check_room(partial, file.num_bytes)
                _copy(url, partial, file)
        manifest = manifest or decode_manifest(content, path, partial)
        others = [*table_files, *_tokenizer_files(url, manifest), *_rejected_file(url, manifest)]
        _copy_all(url, partial, manifest, others, notice, progress)
        flush_directory(partial / TOKENIZER_DIRECTORY)
        write_atomically(partial / MANIFEST_NAME, content)
        os.rename(partial, directory)
        flush_directory(directory.parent)
    return directory


def _holds(directory: Path, fingerprint: str) -> bool:
    """Whether `directory` is a copy of the set."""
    if not (directory / MANIFEST_NAME).is_file():
        return False
    return read_manifest(directory).fingerprint == fingerprint


@contextlib.contextmanager
def _lock(directory: Path, url: str, notice: Notice) -> Iterator[None]:
    """Be the one process that copies to `directory`; a process that died holds nothing. The lock file stays."""
    path = directory.with_name(f".{directory.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InputError(
            f"{path.parent}: can't write here: {error.strerror}; choose another place (XDG_CACHE_HOME, or --out)"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notice(f"{url}: another process copies it; waiting for that")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _shard_files(manifest: Manifest) -> Iterator[_File]:
    for shard in manifest.shards:
        num_bytes = bin_bytes(shard.num_blocks, manifest.block_tokens)
        yield _File(shard.name + BIN_SUFFIX, num_bytes, shard.digest)
        index = index_bytes(shard.num_pieces, shard.num_index_documents)
        yield _File(shard.name + INDEX_SUFFIX, index, shard.index_digest)


def _rejected_file(url: str, manifest: Manifest) -> Iterator[_File]:
    if manifest.rejected:
        content = read_bytes(join(url, REJECTED_NAME))
        yield _File(REJECTED_NAME, len(content or b""), manifest.rejected_digest)


def _tokenizer_files(url: str, manifest: Manifest) -> Iterator[_File]:
    for name, entry in sorted(listing(join(url, TOKENIZER_DIRECTORY)).items()):
        if "/" in name or "\\" in name or name in ("", ".", ".."):
            raise InputError(f"{url}: {printable(name)!r} is no name of a tokenizer's file; the set is damaged")
        is_main = name == "tokenizer.json"
        digest = manifest.tokenizer.sha256 if is_main else None
        yield _File(f"{TOKENIZER_DIRECTORY}/{name}", int(entry["size"]), digest, sha256=is_main)


def _copy_all(
    url: str,
    partial: Path,
    manifest: Manifest,
    others: list[_File],
    notice: Notice,
    progress: Callable[[int, int], None],
) -> None:
    """Copy the set's shards, and `others`: its other files. Never holds a list of all shards' files."""
    _remove_others(partial, manifest, {file.name for file in others})
    total = sum(file.num_bytes for file in others) + set_bytes(manifest, with_indexes=True)
    num_missing_bytes = sum(file.num_bytes for file in _missing(partial, manifest, others))
    _check_room(partial, num_missing_bytes)
    done = total - num_missing_bytes
    kept = f", {size_text(done)} of it are here already" if done else ""
    notice(f"{url}: copying {size_text(total)} to {partial.with_suffix('')}{kept}")
    missing = _missing(partial, manifest, others)
    pool = ThreadPoolExecutor(_FILES_AT_ONCE)
    try:
        running: collections.deque[Future[int]] = collections.deque()
        while True:
            for file in itertools.islice(missing, _FILES_QUEUED - len(running)):
                running.append(pool.submit(_copy, url, partial, file))
            if not running:
                return
            done += running.popleft().result()
            progress(done, total)
    finally:
        pool.shutdown(cancel_futures=True)


def _missing(partial: Path, manifest: Manifest, others: list[_File]) -> Iterator[_File]:
    files = itertools.chain(others, _shard_files(manifest))
    return (file for file in files if not _is_there(partial, file))


def _remove_others(partial: Path, manifest: Manifest, names: set[str]) -> None:
    """Remove what isn't one of the set's files: an earlier attempt was killed within one, or copied another set."""
    for path in partial.rglob("*"):
        is_shard = path.parent == partial and path.suffix in (BIN_SUFFIX, INDEX_SUFFIX)
        is_ours = is_shard and manifest.shards.find(path.stem) is not None
        if not is_ours and path.is_file() and path.relative_to(partial).as_posix() not in names:
            path.unlink()


def _check_room(partial: Path, num_bytes: int) -> None:
    """Raise `InputError` if the disk hasn't room for so much more."""
    free = shutil.disk_usage(partial).free
    if free < num_bytes:
        raise InputError(
            f"{partial}: {size_text(num_bytes)} are to be copied, {size_text(free)} are free; make room, "
            "or choose another place (XDG_CACHE_HOME, or --out)"
        )


def _is_there(partial: Path, file: _File) -> bool:
    """Whether an earlier attempt has copied it: it has its name only since its digest was found right."""
    path = partial / file.name
    return path.is_file() and path.stat().st_size == file.num_bytes


def _copy(url: str, partial: Path, file: _File) -> int:
    """Copy one file, or raise `InputError`; the bytes copied."""
    source, path = join(url, file.name), partial / file.name
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    system, name = file_system(source)
    reason = ""
    for _ in range(_TRIES):
        digest: Any = hashlib.sha256() if file.sha256 else blake3()
        num_bytes = 0
        try:
            with storage_errors(source), open(temporary, "wb", buffering=0) as target:
                with system.open(name, "rb", block_size=_READ_BYTES, cache_type="readahead") as stream:
                    while content := stream.read(_READ_BYTES):
                        digest.update(content)
                        num_bytes += len(content)
                        target.write(content)
                os.fsync(target.fileno())
        except FileNotFoundError:
            raise InputError(f"{source}: no such file; the set is incomplete, build it again") from None
        if num_bytes != file.num_bytes:
            reason = f"expected {file.num_bytes:,} bytes, found {num_bytes:,}"
        elif file.digest is not None and digest.hexdigest() != file.digest:
            reason = f"expected digest {file.digest}, found {digest.hexdigest()}"
        else:
            os.replace(temporary, path)
            return num_bytes
    temporary.unlink()
    raise TransientError(f"{source}: {reason}; the file was changed or damaged, build the set again")
