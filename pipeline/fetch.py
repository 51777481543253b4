"""Published corpora by their names, from a hub: whole or absent, checked, and known as up to date the next time.

`out` is whole or absent. Beside it, `.NAME.fetched.json` says which commit it came from, and each file's size and SHA-256.
And `hf:NAME`, a data set by its name, as the files that it means at one commit.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shards.common.errors import InputError, TransientError
from shards.common.files import FileLock, check_room, flush_directory, flush_file, partial_of, write_atomically
from shards.common.server_errors import NoSuchFile, server_errors
from shards.common.text import nearest, printable, size_text
from shards.share.hub import (
    ANSWER_SECONDS,
    HubReference,
    download_file,
    file_sha256,
    find_file,
    list_files,
    parse_reference,
    resolve,
    snapshot,
)


class Corpus(NamedTuple):
    """A file on Hugging Face, and what is nearest to it on ModelScope: a directory of other files."""

    repository: str
    file: str
    nearest_repository: str
    nearest_folders: tuple[str, ...]  # where the files may lie; the first that is there
    nearest_name: str  # of the directory here
    nearest_words: str


CORPORA = {
    "wikipedia-zh": Corpus(
        repository="fjcanyue/wikipedia-zh-cn",
        file="wikipedia-zh-cn-20240820.json",
        nearest_repository="AI-ModelScope/wikipedia",
        nearest_folders=("20231101.zh", "data/20231101.zh"),
        nearest_name="wikipedia-zh-20231101",
        nearest_words="the dump of 1 November 2023 (parquet), not that of 20 August 2024",
    )
}
_NEAREST_PATTERN = "train-*.parquet"
_DATA_SET = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/([^:]+))?(?::(.+))?")


class Fetched(NamedTuple):
    """What is there now."""

    path: Path
    num_bytes: int
    sha256: str  # of the one file; empty for several, which have theirs in the stamp
    was_there: bool = True


def fetch(
    name: str,
    out: Path | None = None,
    *,
    origin: Literal["hf", "ms", "auto"] = "hf",
    directory: Path = Path("data"),
    force: bool = False,
    notice: Callable[[str], None] = lambda _line: None,
    shows_bars: bool = False,
) -> Fetched:
    """Fetch the corpus `name` to `out` (else to its own name in `directory`), unless it is there already.

    `hf` is the published file; `ms` is the nearest one on ModelScope, which is another; `auto` is `hf`, and `ms` if
    Hugging Face can't be reached, which it announces. Raises `InputError` within ten seconds if nothing can be reached.
    """
    if name not in CORPORA:
        raise InputError(
            f"{printable(name)!r}: no such corpus{nearest(name, CORPORA)} (there is {', '.join(CORPORA)}; any data set "
            "of the hub is a source of `build` as hf:ORG/NAME)"
        )
    corpus, origins = CORPORA[name], ("hf", "ms") if origin == "auto" else (origin,)
    for hub in origins:
        own_name, fetch_from = (corpus.file, _fetch_file) if hub == "hf" else (corpus.nearest_name, _fetch_folder)
        path = out or directory / own_name
        if path.is_dir() and path == out and not _stamp_path(out).exists():  # a directory that wasn't fetched
            path = out / own_name
        if not force and (known := _read_stamp(path)) is not None:
            return known
        try:
            with FileLock(path, "another process is fetching it; wait for that, or stop it"):
                return fetch_from(corpus, path, force, ANSWER_SECONDS / len(origins), notice, shows_bars)
        except TransientError as error:
            if hub == "ms":
                raise
            problem = f"{error}; or fetch https://hf-mirror.com/datasets/{corpus.repository} by hand"
            if origin == "hf":
                raise TransientError(f"{problem}; or another file, {corpus.nearest_words} (--from ms)") from None
            notice(f"{problem}. From ModelScope now, where there is ANOTHER file: {corpus.nearest_words}")
    raise AssertionError(origin)


def _fetch_file(
    corpus: Corpus, out: Path, force: bool, seconds: float, notice: Callable[[str], None], shows_bars: bool
) -> Fetched:
    """The published file. One that was put there by hand is compared."""
    reference = HubReference(hub="hf", repository=corpus.repository, is_dataset=True, path=corpus.file)
    reference = resolve(reference, seconds=seconds)
    listed = find_file(reference)
    if out.exists() and not force:
        if out.is_file() and out.stat().st_size == listed.num_bytes and listed.sha256 in (None, file_sha256(out)):
            return _write_stamp(out, [out], reference)
        raise InputError(f"{out}: is there, and isn't the hub's file; choose another --out, or replace it with --force")
    part = out.with_name(f".{out.name}.{(listed.sha256 or str(reference.revision))[:8]}.part")
    for older in set(out.parent.glob(f".{glob.escape(out.name)}.*.part")) - {part}:  # of another version
        older.unlink()
    kept = part.stat().st_size if part.exists() else 0
    check_room(out.parent, listed.num_bytes - kept, "choose another --out")
    notice(f"fetching {size_text(listed.num_bytes)}" + (f", {size_text(kept)} of it are here already" if kept else ""))
    try:
        download_file(reference, listed, part, shows_bar=shows_bars)
    except KeyboardInterrupt as stop:
        raise type(stop)(f"{size_text(part.stat().st_size)} are kept; the same command goes on from there") from None
    os.replace(part, out)
    flush_directory(out.parent)
    return _write_stamp(out, [out], reference)._replace(was_there=False)


def _fetch_folder(
    corpus: Corpus, out: Path, force: bool, seconds: float, notice: Callable[[str], None], shows_bars: bool
) -> Fetched:
    """The files on ModelScope, a directory."""
    if out.exists() and not (force and _stamp_path(out).exists()):
        raise InputError(f"{out}: is there, and not from an earlier fetch; move it elsewhere, or choose another --out")
    reference = resolve(HubReference(hub="ms", repository=corpus.nearest_repository, is_dataset=True), seconds=seconds)
    for folder in map(reference.at, corpus.nearest_folders):
        with contextlib.suppress(NoSuchFile):
            if list_files(folder):
                break
    else:
        raise InputError(f"{reference}: no files in {' or '.join(corpus.nearest_folders)}")
    notice(f"fetching {folder}")
    partial = partial_of(out)
    found = snapshot(folder, partial, [_NEAREST_PATTERN], shows_bars=shows_bars)
    for path in found.iterdir():
        flush_file(path)
    flush_directory(found)
    if out.exists():
        shutil.rmtree(out)
    os.rename(found, out)
    shutil.rmtree(partial)
    flush_directory(out.parent)
    return _write_stamp(out, sorted(out.iterdir()), folder)._replace(was_there=False)


def _stamp_path(out: Path) -> Path:
    return out.parent / f".{out.name}.fetched.json"  # `.` has no name


def _write_stamp(out: Path, paths: list[Path], reference: HubReference) -> Fetched:
    """Record what is there."""
    files = {}
    for path in paths:
        num_bytes, modified_ns = path.stat().st_size, path.stat().st_mtime_ns
        files[path.name] = {"num_bytes": num_bytes, "modified_ns": modified_ns, "sha256": file_sha256(path)}
    content = {"address": str(reference), "files": files}
    write_atomically(_stamp_path(out), (json.dumps(content, indent=2) + "\n").encode())
    known = _read_stamp(out)
    assert known is not None
    return known


def _read_stamp(out: Path) -> Fetched | None:
    """What is at `out`, if it is as it was fetched."""
    try:
        files: dict[str, Any] = json.loads(_stamp_path(out).read_bytes())["files"]
        for name, entry in files.items():
            status = (out / name if out.is_dir() else out).stat()
            if (status.st_size, status.st_mtime_ns) != (entry["num_bytes"], entry["modified_ns"]):
                return None
        sha256 = next(iter(files.values()))["sha256"] if out.is_file() else ""
        return Fetched(out, sum(entry["num_bytes"] for entry in files.values()), sha256)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return None


def data_files(name: str) -> list[str]:
    """The files of the data set `hf:ORG/NAME[@REVISION][/CONFIG][:SPLIT]` as URLs at one commit, in its order.

    Which they are is for the package `datasets` to say. Raises `InputError`.
    """
    match = _DATA_SET.fullmatch(name)
    if match is None:
        raise InputError(f"{printable(name)}: expected hf:ORG/NAME, hf:ORG/NAME/CONFIG or hf:ORG/NAME/CONFIG:SPLIT")
    repository, revision, config, split = match.groups()
    reference = resolve(HubReference(hub="hf", repository=repository, revision=revision, is_dataset=True))
    import datasets

    with server_errors(name):
        try:
            builder = datasets.load_dataset_builder(repository, config, revision=reference.revision)
        except (ValueError, RuntimeError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
            reason = printable(" ".join(str(error).split()))[:300]
            raise InputError(f"{name}: datasets can't say which files it means: {reason}") from None
    files = builder.config.data_files or {}
    if (split := split or "train") not in files:
        raise InputError(f"{name}: no split {split!r}{nearest(split, files)}; there is {', '.join(files) or 'none'}")
    return [str(parse_reference(str(url))) for url in files[split]]
