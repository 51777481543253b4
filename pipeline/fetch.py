"""The published corpora by their names: fetched from a hub, checked, and known as up to date the next time.

`out` is whole or absent. Beside it, `.NAME.fetched.json` says where it came from and what it is.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from shards.hub import hugging_face, model_scope
from shards.hub.download import Progress, download
from shards.hub.remote import ANSWER_SECONDS, ConnectionFailed, RemoteFile, within

from shards.common.errors import InputError
from shards.common.files import flush_directory, write_atomically
from shards.common.text import nearest, printable

MIRROR = "https://hf-mirror.com"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus, and another one on ModelScope that is the nearest to it there."""

    repository: str  # on Hugging Face
    file: str
    nearest_repository: str  # on ModelScope
    nearest_directories: tuple[str, ...]  # where the files may lie; the first that is there
    nearest_files: str  # pattern of their names
    nearest_name: str  # of the directory here
    nearest_words: str
    search: str  # address to look for others


CORPORA = {
    "wikipedia-zh": Corpus(
        repository="fjcanyue/wikipedia-zh-cn",
        file="wikipedia-zh-cn-20240820.json",
        nearest_repository="AI-ModelScope/wikipedia",
        nearest_directories=("20231101.zh", "data/20231101.zh"),
        nearest_files=r"train-[0-9]{5}-of-[0-9]{5}\.parquet",
        nearest_name="wikipedia-zh-20231101",
        nearest_words="the dump of 1 November 2023 (parquet), not that of 20 August 2024",
        search="https://modelscope.cn/datasets?name=wikipedia",
    )
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fetched:
    """What is there now."""

    path: Path
    num_bytes: int
    address: str
    digest: str  # `sha256 …`, or empty where the hub listed none
    was_there: bool
    note: str = ""


def fetch(
    name: str,
    out: Path | None = None,
    *,
    origin: Literal["hf", "ms", "auto"] = "hf",
    directory: Path = Path("data"),
    force: bool = False,
    progress: Progress | None = None,
) -> Fetched:
    """Fetch the corpus `name` to `out` (else to its own name in `directory`), unless it is there already.

    `hf` is the published file; `ms` is the nearest one on ModelScope, which is another; `auto` is `hf`, and `ms` if
    Hugging Face can't be reached, which it announces. Raises `InputError` within ten seconds if nothing can be reached.
    """
    if name not in CORPORA:
        raise InputError(
            f"{printable(name)!r}: no such corpus{nearest(name, CORPORA)} (there is {', '.join(CORPORA)}; any data set "
            "of the hub is a source of `build` as hf:NAME)"
        )
    corpus, progress = CORPORA[name], progress or Progress()
    if origin == "ms":
        return _fetch_nearest(corpus, _place(out, directory, corpus.nearest_name), force, progress, ANSWER_SECONDS)
    # Ten seconds, also where one hub after the other doesn't answer.
    seconds = ANSWER_SECONDS / 2 if origin == "auto" else ANSWER_SECONDS
    try:
        return _fetch_published(corpus, _place(out, directory, corpus.file), force, progress, seconds)
    except ConnectionFailed as error:
        problem = f"{hugging_face.endpoint()} can't be reached ({error})"
        by_hand = _by_hand(corpus, _place(out, directory, corpus.file))
        if origin == "hf":
            raise InputError(
                f"{name}: {problem}; try a mirror (HF_ENDPOINT={MIRROR} make data), or from ModelScope another file, "
                f'{corpus.nearest_words} (make data ARGS="--from ms"); or {by_hand}'
            ) from None
    progress.notice(f"{problem}; from ModelScope instead, where there is ANOTHER file: {corpus.nearest_words}")
    try:
        return _fetch_nearest(corpus, _place(out, directory, corpus.nearest_name), force, progress, seconds, by_hand)
    except InputError as error:
        raise InputError(f"{name}: {problem}; {error}") from None


def _place(out: Path | None, directory: Path, own_name: str) -> Path:
    """Where it goes: `out`; in it, if that is a directory that is there and no set of files fetched before."""
    if out is None:
        return directory / own_name
    return out / own_name if out.is_dir() and not _stamp_path(out).exists() else out


def _by_hand(corpus: Corpus, out: Path) -> str:
    page = f"/datasets/{corpus.repository}"
    return (
        f"fetch {corpus.file} by hand from https://huggingface.co{page} or {MIRROR}{page} (others: {corpus.search}) "
        f"and put it to {out}"
    )


def _fetch_published(corpus: Corpus, out: Path, force: bool, progress: Progress, seconds: float) -> Fetched:
    """The one published file. Raises `InputError`, `ConnectionFailed`."""
    if not force and (known := _up_to_date(out)) is not None:
        return known
    is_there = out.exists()
    if is_there and not out.is_file():
        raise InputError(f"{out}: expected a file, or nothing; choose another --out")
    try:
        remote = hugging_face.find_file(corpus.repository, corpus.file, repository_type="dataset", seconds=seconds)
    except ConnectionFailed as error:
        if not is_there or force:
            raise
        note = f"not compared with the hub, which can't be reached ({error})"
        return Fetched(path=out, num_bytes=out.stat().st_size, address="", digest="", was_there=True, note=note)
    same = is_there and not force and _is_same(out, remote)
    if is_there and not force and not same:
        raise InputError(
            f"{out}: another file than the hub's is there ({out.stat().st_size:,} bytes, the hub's has "
            f"{remote.num_bytes or 0:,}); choose another --out, or replace it with --force"
        )
    if not same:
        download(remote, out, progress=progress)
    return _stamp(out, {out.name: remote}, remote.address, was_there=same)


def _fetch_nearest(
    corpus: Corpus, out: Path, force: bool, progress: Progress, seconds: float, by_hand: str = ""
) -> Fetched:
    """A directory of the files on ModelScope. Raises `InputError`."""
    if not force and (known := _up_to_date(out)) is not None:
        return known
    if out.exists() and not (force and _stamp_path(out).exists()):
        raise InputError(f"{out}: is there, and not from an earlier fetch; move it elsewhere, or choose another --out")
    address = f"{model_scope.endpoint()}/datasets/{corpus.nearest_repository}"
    try:
        files = within(seconds, lambda: _find_nearest(corpus, seconds))
    except ConnectionFailed as error:
        hint = by_hand or _by_hand(corpus, out.with_name(corpus.file))
        raise InputError(f"{address}: can't be reached ({error}); {hint}") from None
    if not files:
        raise InputError(f"{address}: no files {corpus.nearest_files} in {' or '.join(corpus.nearest_directories)}")
    partial = out.with_name(out.name + ".partial")
    fetched = {path.rpartition("/")[2]: remote for path, remote in files.items()}
    for number, (file_name, remote) in enumerate(fetched.items(), start=1):
        target = partial / file_name
        if target.exists() and _is_same(target, remote):
            continue
        progress.notice(f"{file_name} ({number} of {len(fetched)})")
        download(remote, target, progress=progress)
    for entry in partial.iterdir():  # left by an attempt at another version
        if entry.name not in fetched:
            entry.unlink()
    if out.exists():
        shutil.rmtree(out)
    os.rename(partial, out)
    flush_directory(out.parent)
    return _stamp(out, fetched, address, was_there=False)


def _find_nearest(corpus: Corpus, seconds: float) -> dict[str, RemoteFile]:
    problem: InputError | None = None
    for root in corpus.nearest_directories:
        pattern = root.replace(".", r"\.") + "/" + corpus.nearest_files
        try:
            files = model_scope.find_files(
                corpus.nearest_repository, pattern, root=root, repository_type="dataset", seconds=seconds
            )
        except InputError as error:  # no such directory is answered as no such repository
            problem = problem or error
            continue
        if files:
            return files
    if problem is not None:
        raise problem
    return {}


def _is_same(path: Path, remote: RemoteFile) -> bool:
    """Whether `path` is the hub's file, as far as the hub says what that is."""
    if remote.num_bytes is not None and path.stat().st_size != remote.num_bytes:
        return False
    if remote.digest is None:
        return remote.num_bytes is not None
    with open(path, "rb") as file:
        return remote.digest.matches_file(file)


def _stamp_path(out: Path) -> Path:
    return out.with_name(f".{out.name}.fetched.json")


def _files_of(out: Path) -> Callable[[str], Path]:
    return (lambda name: out / name) if out.is_dir() else (lambda _name: out)


def _stamp(out: Path, files: dict[str, RemoteFile], address: str, *, was_there: bool) -> Fetched:
    """Write down what was fetched."""
    path_of = _files_of(out)
    entries = {}
    for name, remote in files.items():
        status = path_of(name).stat()
        digest = f"{remote.digest.kind} {remote.digest.value}" if remote.digest else ""
        entries[name] = {"num_bytes": status.st_size, "modified_ns": status.st_mtime_ns, "digest": digest}
    content = {"address": address, "files": entries}
    write_atomically(_stamp_path(out), (json.dumps(content, indent=2) + "\n").encode())
    return _fetched(out, content, was_there=was_there)


def _up_to_date(out: Path) -> Fetched | None:
    """What is at `out`, if it is as it was fetched."""
    try:
        content = json.loads(_stamp_path(out).read_bytes())
        path_of = _files_of(out)
        for name, entry in content["files"].items():
            status = path_of(name).stat()
            if (status.st_size, status.st_mtime_ns) != (entry["num_bytes"], entry["modified_ns"]):
                return None
        return _fetched(out, content, was_there=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _fetched(out: Path, content: dict[str, Any], *, was_there: bool) -> Fetched:
    entries = list(content["files"].values())
    return Fetched(
        path=out,
        num_bytes=sum(entry["num_bytes"] for entry in entries),
        address=content["address"],
        digest=str(entries[0]["digest"]) if len(entries) == 1 else "",
        was_there=was_there,
    )
