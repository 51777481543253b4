"""A shard set at a URL to a directory of this machine: whole or not there, and every file as the manifest says.

It grows in `NAME.partial/`, where a file that is there with its right size isn't fetched again; when the digest of each is
right, the directory is renamed. One process fetches, others that want the same set wait for it. Files come by the hub's own
client (`hf://datasets/…`, `ms://datasets/…`), or by fsspec (`s3://…`, `oss://…`, …).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from shards.common.errors import InputError, TransientError
from shards.common.files import (
    TEMPORARY_SUFFIX,
    FileLock,
    check_room,
    file_digest,
    flush_directory,
    user_cache,
    write_atomically,
)
from shards.common.text import plural, size_text
from shards.common.urls import file_system, join, read_bytes, storage_errors
from shards.layout import BIN_SUFFIX, INDEX_SUFFIX, MANIFEST_NAME, REJECTED_NAME, SPLITS, TOKENIZER_DIRECTORY
from shards.manifest import FileEntry, Manifest, decode_manifest, read_manifest
from shards.share.hub import HubReference, is_reference, parse_reference, resolve, snapshot
from shards.verify import unknown_files

_FILES_AT_ONCE = 8
# What a folder of a repository is asked for: one pattern a file would make the clients compare each with each.
SET_PATTERNS = [
    *[f"{split}-*{suffix}" for split in SPLITS for suffix in (BIN_SUFFIX, INDEX_SUFFIX)],
    f"{TOKENIZER_DIRECTORY}/*",
    REJECTED_NAME,
]


def pull(
    url: str,
    out: Path | None = None,
    *,
    notice: Callable[[str], None] = lambda _line: None,
    progress: Callable[[int], None] = lambda _num_bytes: None,
    shows_bars: bool = False,
) -> Path:
    """Copy the set at `url` to `out`, by default to its directory in the cache. Returns where it lies.

    A set that is there already isn't copied again. `notice` is called with a line about what takes time, `progress` with
    the bytes of each file that has come from an object store; with `shows_bars` the hubs' clients show theirs. Raises
    `InputError` if there is no set, it is damaged, or it can't fit on the disk.
    """
    source = resolve(parse_reference(url)) if is_reference(url) else url.rstrip("/")
    encoded = read_small(source, MANIFEST_NAME)
    if encoded is None:
        raise InputError(
            f"{source}: no {MANIFEST_NAME}, so no complete set is there; finish its build, or check the URL"
        )
    manifest = decode_manifest(encoded, f"{source}/{MANIFEST_NAME}")
    directory = out if out is not None else user_cache() / manifest.fingerprint[:32]
    if _holds(directory, manifest):
        return directory

    def wait() -> None:
        notice(f"{url}: another process copies it; waiting for that")

    with FileLock(directory, "another process copies to it", wait=wait):
        if _holds(directory, manifest):
            return directory
        if directory.exists() or directory.is_symlink():
            raise InputError(f"{directory}: exists and isn't this set; choose another --out, or move it elsewhere")
        partial = directory.with_name(directory.name + ".partial")
        found = partial / source.path if isinstance(source, HubReference) else partial
        found.mkdir(parents=True, exist_ok=True)
        files = list(manifest.files())
        missing = [file for file in files if not _has_size(found / file.name, file)]
        check_room(partial, sum(file.num_bytes for file in missing), "choose another directory (--out, XDG_CACHE_HOME)")
        size = size_text(sum(file.num_bytes for file in files))
        kept = f", {plural(len(files) - len(missing), 'file')} of it here already" if len(missing) < len(files) else ""
        notice(f"{source}: copying {size} to {directory}{kept}")
        if isinstance(source, HubReference):
            snapshot(source, partial, SET_PATTERNS, shows_bars=shows_bars)
        else:
            _fetch(source, found, missing, progress)
        _check(found, files, str(source))
        for path in unknown_files(found, manifest):  # the hubs' clients' notes, an earlier attempt's files
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        flush_directory(found / TOKENIZER_DIRECTORY)
        write_atomically(found / MANIFEST_NAME, encoded)
        os.rename(found, directory)
        shutil.rmtree(partial, ignore_errors=True)
        flush_directory(directory.parent)
    return directory


def read_small(source: HubReference | str, name: str) -> bytes | None:
    """A small file at a resolved reference or a URL; None: it isn't there. Raises `InputError`."""
    if isinstance(source, str) or source.hub == "hf":
        return read_bytes(join(str(source), name))
    with tempfile.TemporaryDirectory() as temporary:
        path = snapshot(source, Path(temporary), [name]) / name
        return path.read_bytes() if path.is_file() else None


def _holds(directory: Path, manifest: Manifest) -> bool:
    if not (directory / MANIFEST_NAME).is_file():
        return False
    return read_manifest(directory).fingerprint == manifest.fingerprint


def _has_size(path: Path, file: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == file.num_bytes


def _fetch(url: str, directory: Path, files: list[FileEntry], progress: Callable[[int], None]) -> None:
    """Copy files from an object store, several at a time; each gets its name when it has all its bytes."""
    (directory / TOKENIZER_DIRECTORY).mkdir(exist_ok=True)

    def fetch_one(file: FileEntry) -> int:
        source, path = join(url, file.name), directory / file.name
        temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        system, name = file_system(source)
        try:
            with storage_errors(source):
                system.get_file(name, str(temporary))
        except FileNotFoundError:
            raise InputError(f"{source}: no such file; the set is incomplete, build it again") from None
        os.replace(temporary, path)
        return file.num_bytes

    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        running = [pool.submit(fetch_one, file) for file in files]
        try:
            for done in as_completed(running):
                progress(done.result())
        finally:
            pool.shutdown(cancel_futures=True)


def _check(directory: Path, files: list[FileEntry], where: str) -> None:
    """Raise `InputError` unless each file is as the manifest says; those that aren't are removed, and so fetched again."""
    wrong = []
    for file in files:
        path = directory / file.name
        if not path.is_file():
            raise InputError(f"{where}/{file.name}: no such file; the set is incomplete, build or push it again")
        if (digest := file_digest(path, all_cores=True)) != file.digest:
            path.unlink()
            wrong.append(f"{where}/{file.name}: expected digest {file.digest}, found {digest}")
    if wrong:
        raise TransientError(
            f"{wrong[0]} ({plural(len(wrong), 'such file')}, thrown away); the same command fetches again, else build the "
            "set again"
        )
