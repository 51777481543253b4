"""A shard set at a URL to a directory of this machine: whole or not there, and every file as the manifest says.

It grows in `NAME.partial/`, where a file that is there with its right size isn't fetched again; when the digest of each is
right, the directory is renamed. One process fetches, others that want the same set wait for it. Files come by the hub's own
client (`hf://datasets/…`, `ms://datasets/…`), or by fsspec (`s3://…`, `oss://…`, …).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from shards.common.errors import InputError, TransientError
from shards.common.files import (
    FileLock,
    check_room,
    file_digest,
    flush_directory,
    flush_file,
    partial_of,
    user_cache,
    write_atomically,
)
from shards.common.text import plural, size_text
from shards.layout import MANIFEST_NAME, TOKENIZER_DIRECTORY
from shards.manifest import FileEntry, Manifest, decode_manifest, read_manifest
from shards.share.remote import remote_to_read
from shards.verify import unknown_files


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
    source = remote_to_read(url)
    encoded = source.read(MANIFEST_NAME)
    if encoded is None:
        raise InputError(f"{source}: no {MANIFEST_NAME}, so no complete set is there; finish it, or check the URL")
    manifest = decode_manifest(encoded, f"{source}/{MANIFEST_NAME}")
    directory = out if out is not None else user_cache() / manifest.fingerprint[:32]
    if _holds(directory, manifest):
        return directory
    waiting = f"{url}: another process copies it; waiting for that"
    with FileLock(directory, "another process copies to it", wait=lambda: notice(waiting)):
        if _holds(directory, manifest):
            return directory
        if directory.exists() or directory.is_symlink():
            raise InputError(f"{directory}: exists and isn't this set; choose another --out, or move it elsewhere")
        partial = partial_of(directory)
        found = source.below(partial)
        found.mkdir(parents=True, exist_ok=True)
        files = list(manifest.files())
        sizes = {path: path.stat().st_size for path in found.rglob("*") if path.is_file()}
        missing = [file for file in files if sizes.get(found / file.name) != file.num_bytes]
        check_room(partial, sum(file.num_bytes for file in missing), "choose another directory (--out, XDG_CACHE_HOME)")
        size = size_text(sum(file.num_bytes for file in files))
        kept = f", {plural(len(files) - len(missing), 'file')} of it here already" if len(missing) < len(files) else ""
        notice(f"{source}: copying {size} to {directory}{kept}")
        source.fetch(missing, partial, progress, shows_bars=shows_bars)
        _check(found, files, str(source))
        for path in unknown_files(found, manifest):  # the hubs' clients' notes, an earlier attempt's files
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        flush_directory(found / TOKENIZER_DIRECTORY)
        write_atomically(found / MANIFEST_NAME, encoded)
        os.rename(found, directory)
        shutil.rmtree(partial, ignore_errors=True)
        flush_directory(directory.parent)
    return directory


def _holds(directory: Path, manifest: Manifest) -> bool:
    is_set = (directory / MANIFEST_NAME).is_file()
    return is_set and read_manifest(directory).fingerprint == manifest.fingerprint


def _check(directory: Path, files: list[FileEntry], where: str) -> None:
    """Flush the files. Raises `InputError` unless each is as the manifest says; those that aren't are removed."""
    wrong = []
    for file in files:
        path = directory / file.name
        if not path.is_file():
            raise InputError(f"{where}/{file.name}: no such file; the set is incomplete, build or push it again")
        if (digest := file_digest(path, all_cores=True)) != file.digest:
            path.unlink()
            wrong.append(f"{where}/{file.name}: expected digest {file.digest}, found {digest}")
            continue
        flush_file(path)
    if wrong:
        raise TransientError(
            f"{wrong[0]} ({plural(len(wrong), 'such file')}, thrown away); the same command fetches again"
        )
