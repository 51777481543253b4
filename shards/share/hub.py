"""Repositories on Hugging Face and ModelScope, by the hubs' own clients, which are imported when one is used.

The clients fetch, resume, retry and check. What is guaranteed here beyond that:

* A revision is looked up once (`resolve`, `pin_url`): listings, digests and contents are then those of one commit.
  ModelScope has no commits to ask for; there a file must have the SHA-256 of the listing that it was found in.
* A hub that doesn't answer within ten seconds is given up.
* Every failure is one line: `InputError`, or `TransientError` if the same may work later.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

from shards.common.errors import InputError, TransientError
from shards.common.text import printable
from shards.share.hub_errors import NoSuchFile, hub_errors, within

ANSWER_SECONDS = 10.0
HubName = Literal["hf", "ms"]
# No part of a name or path leads elsewhere: it begins with neither `.` nor `-`.
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}"
_NAME = re.compile(rf"(?:hf|ms):({_PART}/{_PART})(?:@({_PART}(?:/{_PART})*))?")
_URL = re.compile(
    rf"(?:hf|ms)://(?P<datasets>datasets/)?(?!(?:datasets|spaces|buckets)/)(?P<repository>{_PART}/{_PART})"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/@]+|[^/@]+))?(?:/(?P<path>.*))?"
)
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubReference:
    """A repository on a hub at a revision (branch, tag or commit; None: the hub's default), or a path in it."""

    hub: HubName
    repository: str  # ORG/NAME
    revision: str | None = None
    is_dataset: bool = False
    path: str = ""  # of a file or folder in it

    @property
    def kind(self) -> str:
        return "dataset" if self.is_dataset else "model"

    def at(self, path: str) -> HubReference:
        """What lies at `path` below this."""
        return dataclasses.replace(self, path=f"{self.path}/{path}" if self.path else path)

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        if not self.is_dataset and not self.path:
            return f"{self.hub}:{self.repository}{revision}"
        if self.revision and not self.revision.startswith("refs/"):
            revision = f"@{quote(self.revision, safe='')}"
        path = f"/{self.path}" if self.path else ""
        return f"{self.hub}://{'datasets/' if self.is_dataset else ''}{self.repository}{revision}{path}"


def is_reference(text: str) -> bool:
    """Whether `text` is meant as something on a hub: `hf:…` or `ms:…`, URLs included."""
    return text.startswith(("hf:", "ms:"))


def parse_reference(text: str) -> HubReference:
    """What `text` names: a model `hf:ORG/NAME[@REVISION]`, or a URL `hf://datasets/ORG/NAME[@REVISION][/PATH]`.

    Raises `InputError`.
    """
    hub: HubName = "ms" if text.startswith("ms:") else "hf"
    if (name := _NAME.fullmatch(text)) and ".." not in text:
        return HubReference(hub=hub, repository=name[1], revision=name[2])
    if (url := _URL.fullmatch(text)) and ".." not in text.split("/"):
        revision = unquote(url["revision"]) if url["revision"] else None
        where: Any = {"is_dataset": url["datasets"] is not None, "path": (url["path"] or "").strip("/")}
        return HubReference(hub=hub, repository=url["repository"], revision=revision, **where)
    raise InputError(
        f"{printable(text)!r}: expected hf:ORG/NAME or ms:ORG/NAME (then @REVISION, if need be), as in hf:Qwen/Qwen2-0.5B, "
        "or a URL such as hf://datasets/ORG/NAME/FOLDER"
    )


def resolve(reference: HubReference, *, prefer_cache: bool = False, seconds: float = ANSWER_SECONDS) -> HubReference:
    """The same with the commit that its revision means now; on ModelScope with the revision's name.

    With `prefer_cache` it is the commit of an earlier look, if there was one, and no network is needed then.
    Raises `InputError`: no such repository or revision, no permission, no answer in `seconds`.
    """
    if reference.hub == "ms":
        if not prefer_cache:
            with hub_errors(reference.hub, reference):
                within(seconds, lambda: model_scope_client().legacy.get_repo_info(reference.repository, reference.kind))
        return dataclasses.replace(reference, revision=reference.revision or "master")
    if reference.revision and _COMMIT.fullmatch(reference.revision):
        return reference
    import huggingface_hub

    options: Any = {"repo_type": reference.kind, "revision": reference.revision}
    api = huggingface_hub.HfApi()
    if prefer_cache:
        with contextlib.suppress(huggingface_hub.errors.RevisionResolutionError):
            cached = api.resolve_revision(reference.repository, **options, local_files_only=True)
            return dataclasses.replace(reference, revision=cached.resolved)

    def ask() -> str | None:
        if prefer_cache:  # remembers it for the next time
            return api.resolve_revision(reference.repository, **options).resolved
        return api.repo_info(reference.repository, **options, timeout=seconds).sha

    with hub_errors(reference.hub, reference):
        commit = within(seconds, ask)
    if not commit:
        raise InputError(
            f"{reference}: the server doesn't answer as Hugging Face's does (no commit); is HF_ENDPOINT right?"
        )
    return dataclasses.replace(reference, revision=commit)


def pin_url(url: str) -> str:
    """`hf://datasets/ORG/NAME/FILE` with the commit that it means now: what the URL shows doesn't change any more.

    Other URLs stay as they are. Raises `InputError`.
    """
    return str(resolve(parse_reference(url))) if url.startswith("hf://") and _URL.fullmatch(url) else url


def small_file(reference: HubReference, name: str) -> Path:
    """The file `name` of a repository, such as its `config.json`: from the hub's cache, else from the hub to the cache.

    Raises `InputError`: no such repository or file, no network, no permission; `NoSuchFile` if only the file is missing.
    """
    if reference.hub == "ms":
        return _model_scope_file(reference, name)
    import huggingface_hub

    found = resolve(reference, prefer_cache=True)
    known = huggingface_hub.try_to_load_from_cache(found.repository, name, revision=found.revision)
    if not isinstance(known, str | None):
        raise NoSuchFile(f"{reference}: no file {name} in this repository")
    with hub_errors(reference.hub, reference.at(name)):
        options: Any = {"revision": found.revision, "tqdm_class": _no_bar()}
        return Path(huggingface_hub.hf_hub_download(found.repository, name, **options))


def _model_scope_file(reference: HubReference, name: str) -> Path:
    from modelscope_hub import errors

    client = model_scope_client()
    options: Any = {"revision": reference.revision or "master"}
    with contextlib.suppress(errors.CacheNotFound, FileNotFoundError):
        return Path(client.download_file(reference.repository, "model", name, **options, local_files_only=True))
    found = list_files(resolve(reference)).get(name)
    if found is None:
        raise NoSuchFile(f"{reference}: no file {name} in this repository")
    options |= {"expected_sha256": found.sha256, "file_size": found.num_bytes}
    with hub_errors(reference.hub, reference.at(name)):
        return Path(client.download_file(reference.repository, "model", name, **options))


@dataclasses.dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it."""

    num_bytes: int
    sha256: str | None  # None: the hub doesn't say


def list_files(reference: HubReference) -> dict[str, HubFile]:
    """The files below a resolved reference, by their names relative to it. Raises `InputError`; `NoSuchFile`: no folder."""
    prefix = f"{reference.path}/" if reference.path else ""
    if reference.hub == "ms":
        entries = _model_scope_entries(reference)
        found = {entry["Path"]: HubFile(int(entry.get("Size") or 0), entry.get("Sha256") or None) for entry in entries}
    else:
        import huggingface_hub

        options: Any = {"revision": reference.revision, "repo_type": reference.kind, "recursive": True}
        with hub_errors(reference.hub, reference):
            tree = huggingface_hub.HfApi().list_repo_tree(reference.repository, reference.path or None, **options)
            files = [entry for entry in tree if isinstance(entry, huggingface_hub.hf_api.RepoFile)]
        found = {file.path: HubFile(file.size, file.lfs.sha256 if file.lfs else None) for file in files}
    return {path.removeprefix(prefix): file for path, file in sorted(found.items()) if path.startswith(prefix)}


def _model_scope_entries(reference: HubReference) -> list[dict[str, Any]]:
    """The files below a reference as ModelScope lists them, without those that would lead out of a directory."""
    with hub_errors(reference.hub, reference):
        entries = model_scope_client().legacy.list_repo_files(
            reference.repository, reference.kind, reference.revision, root=reference.path or None
        )
    return [
        entry
        for entry in entries
        if entry.get("Type") != "tree" and not {"", ".", ".."} & set(str(entry.get("Path", "")).split("/"))
    ]


def snapshot(reference: HubReference, directory: Path, patterns: list[str], *, shows_bars: bool = False) -> Path:
    """Fetch the files below a resolved reference that match `patterns`; what is there already isn't fetched again.

    They lie as in the repository below `directory`; where the reference itself lies is returned. Raises `InputError`.
    """
    wanted = [f"{reference.path}/{pattern}" if reference.path else pattern for pattern in patterns]
    options: Any = {"revision": reference.revision, "local_dir": directory, "allow_patterns": wanted}
    if reference.hub == "ms":
        options |= {"repo_type": reference.kind, "file_list": _model_scope_entries(reference)}
        with hub_errors(reference.hub, reference):
            model_scope_client().download_repo(reference.repository, **options)
    else:
        import huggingface_hub

        options |= {"repo_type": reference.kind, "tqdm_class": None if shows_bars else _no_bar()}
        with hub_errors(reference.hub, reference):
            huggingface_hub.snapshot_download(reference.repository, **options)
    return directory / reference.path


def download_file(reference: HubReference, part: Path, *, shows_bar: bool = False) -> str:
    """Fetch the one large file of a resolved reference on Hugging Face to `part`, going on after the bytes that `part` has.

    Returns its SHA-256. Raises `InputError`; if the bytes aren't those that the hub lists, `part` is removed before.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    listed = find_file(reference)
    with hub_errors(reference.hub, reference), open(part, "ab") as file:
        if file.tell() > listed.num_bytes:
            file.seek(0)
            file.truncate()
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}
        options: Any = {"headers": headers, "tqdm_class": None if shows_bar else _no_bar()}
        http_get(_file_url(reference), file, resume_size=file.tell(), expected_size=listed.num_bytes, **options)
        os.fsync(file.fileno())
    sha256 = file_sha256(part)
    if listed.sha256 not in (None, sha256):
        part.unlink()
        raise TransientError(
            f"{reference}: expected the SHA-256 {listed.sha256}, which the hub lists, found {sha256}; what came was thrown "
            "away; try again later, or another mirror"
        )
    return sha256


def find_file(reference: HubReference, *, seconds: float = ANSWER_SECONDS) -> HubFile:
    """The one file of a resolved reference on Hugging Face, as it is listed. Raises `InputError`."""
    import huggingface_hub

    with hub_errors(reference.hub, reference):
        url = _file_url(reference)
        found = within(seconds, lambda: huggingface_hub.get_hf_file_metadata(url, timeout=seconds))
    if found.size is None or not found.etag:
        raise InputError(
            f"{reference}: the server doesn't answer as Hugging Face's does (no size or digest); is HF_ENDPOINT right, or "
            "a proxy in between?"
        )
    return HubFile(found.size, found.etag if len(found.etag) == 64 else None)  # git's own digest of what is small


def _file_url(reference: HubReference) -> str:
    import huggingface_hub

    repository, path, revision = reference.repository, reference.path, reference.revision
    return huggingface_hub.hf_hub_url(repository, path, repo_type=reference.kind, revision=revision)


def file_sha256(path: Path) -> str:
    """The digest by which hubs know a large file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_bar() -> Any:
    """For the clients, instead of their progress bars."""
    from tqdm import tqdm

    return functools.partial(tqdm, disable=True)


def model_scope_client() -> Any:
    """A `modelscope_hub.HubApi` for the environment as it is now. (`modelscope` itself imports torch.)"""
    import modelscope_hub
    from modelscope_hub.config import HubConfig

    logging.getLogger("modelscope_hub").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MODELSCOPE_DOMAIN, which still works
        return modelscope_hub.HubApi(HubConfig())
