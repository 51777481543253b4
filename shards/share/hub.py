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
import glob
import hashlib
import logging
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

from shards.common.errors import InputError, TransientError
from shards.common.server_errors import NoSuchFile, server_errors, within
from shards.common.text import printable
from shards.common.urls import listing

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

    def at(self, path: str) -> HubReference:
        """What lies at `path` below this."""
        return dataclasses.replace(self, path=f"{self.path}/{path}" if self.path else path)

    @property
    def keywords(self) -> dict[str, Any]:
        """Repository and revision as both clients call them."""
        revision = self.revision or ("master" if self.hub == "ms" else None)
        return {
            "repo_id": self.repository,
            "repo_type": "dataset" if self.is_dataset else "model",
            "revision": revision,
        }

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        if not self.is_dataset and not self.path:
            return f"{self.hub}:{self.repository}{revision}"
        if not revision.startswith("@refs/"):
            revision = quote(revision, safe="@")
        path = f"/{self.path}" if self.path else ""
        return f"{self.hub}://{'datasets/' if self.is_dataset else ''}{self.repository}{revision}{path}"


def is_reference(text: str) -> bool:
    """Whether `text` is meant as something on a hub, URLs included."""
    return text.startswith(("hf:", "ms:"))


def parse_reference(text: str) -> HubReference:
    """A model `hf:ORG/NAME[@REVISION]`, or a URL `hf://datasets/ORG/NAME[@REVISION][/PATH]`. Raises `InputError`."""
    hub: HubName = "ms" if text.startswith("ms:") else "hf"
    if (name := _NAME.fullmatch(text)) and ".." not in text:
        return HubReference(hub=hub, repository=name[1], revision=name[2])
    if (url := _URL.fullmatch(text)) and ".." not in text.split("/"):
        return HubReference(
            hub=hub,
            repository=url["repository"],
            revision=unquote(url["revision"]) if url["revision"] else None,
            is_dataset=url["datasets"] is not None,
            path=(url["path"] or "").strip("/"),
        )
    raise InputError(
        f"{printable(text)!r}: expected hf:ORG/NAME or ms:ORG/NAME (then @REVISION, if need be), as in hf:Qwen/Qwen2-0.5B, "
        "or a URL such as hf://datasets/ORG/NAME/FOLDER"
    )


def client(hub: HubName) -> Any:
    """`huggingface_hub.HfApi`, or `modelscope_hub.HubApi` for the environment as it is now (`modelscope` imports torch)."""
    if hub == "hf":
        import huggingface_hub

        return huggingface_hub.HfApi()
    import modelscope_hub
    from modelscope_hub.config import HubConfig

    logging.getLogger("modelscope_hub").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MODELSCOPE_DOMAIN, which still works
        return modelscope_hub.HubApi(HubConfig())


def resolve(reference: HubReference, *, seconds: float = ANSWER_SECONDS) -> HubReference:
    """The same with the commit that its revision means now; on ModelScope with the revision's name.

    Raises `InputError`: no such repository or revision, no permission, no answer in `seconds`.
    """
    api, where = client(reference.hub), reference.keywords
    if reference.hub == "hf" and _COMMIT.fullmatch(reference.revision or ""):
        return reference
    with server_errors(reference):
        if reference.hub == "ms":
            within(seconds, lambda: api.legacy.get_repo_info(reference.repository, where["repo_type"]))
            return dataclasses.replace(reference, revision=where["revision"])
        commit = within(seconds, lambda: api.repo_info(**where, timeout=seconds)).sha
    if not commit:
        raise InputError(f"{reference}: the server doesn't answer as a hub does (no commit); is HF_ENDPOINT right?")
    return dataclasses.replace(reference, revision=commit)


def pin_url(url: str) -> str:
    """`hf://datasets/ORG/NAME/FILE` with the commit that it means now; other URLs stay as they are. Raises `InputError`."""
    return str(resolve(parse_reference(url))) if url.startswith("hf://") and _URL.fullmatch(url) else url


def small_files(reference: HubReference, *names: str) -> Path:
    """The directory with the files `names` of a repository, those that it has: from the hub's cache, else fetched to it.

    Once there they are never asked for again. Raises `InputError`, `NoSuchFile` if the first isn't in the repository.
    """
    try:
        directory = _download(reference, names, local_files_only=True)
        if (directory / names[0]).is_file():
            return directory
    except Exception as error:
        if type(error).__name__ not in ("LocalEntryNotFoundError", "CacheNotFound"):
            raise
    resolve(reference)  # in ten seconds, or not at all
    with server_errors(reference):
        directory = _download(reference, names)
    if not (directory / names[0]).is_file():
        raise NoSuchFile(f"{reference}: no file {names[0]} in this repository")
    return directory


def _download(reference: HubReference, patterns: Iterable[str], *, shows_bars: bool = False, **options: Any) -> Path:
    """What matches, by the hub's client: to its cache, or to `local_dir`; the directory."""
    api = client(reference.hub)
    options |= {**reference.keywords, "allow_patterns": list(patterns)}
    if reference.hub == "hf":
        return Path(api.snapshot_download(**options, tqdm_class=None if shows_bars else _no_bar()))
    if not options.get("local_files_only"):
        options["file_list"] = _model_scope_entries(reference)
    return Path(api.download_repo(**options))


@dataclasses.dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it."""

    num_bytes: int
    sha256: str | None  # None: the hub doesn't say


def list_files(reference: HubReference) -> dict[str, HubFile]:
    """The files below a resolved reference (of a data set), by their names relative to it. Raises `InputError`."""
    if reference.hub == "hf":
        found = listing(str(reference)).items()
        return {name: HubFile(entry["size"], (entry.get("lfs") or {}).get("sha256")) for name, entry in found}
    prefix = f"{reference.path}/" if reference.path else ""
    return {
        entry["Path"].removeprefix(prefix): HubFile(int(entry.get("Size") or 0), entry.get("Sha256") or None)
        for entry in _model_scope_entries(reference)
        if entry["Path"].startswith(prefix)
    }


def _model_scope_entries(reference: HubReference) -> list[dict[str, Any]]:
    """The files below a reference as ModelScope lists them, without those that would lead out of a directory."""
    with server_errors(reference):
        entries = client("ms").legacy.list_repo_files(**reference.keywords, root=reference.path or None)
    files = [entry for entry in entries if entry.get("Type") != "tree"]
    return [entry for entry in files if not {"", ".", ".."} & set(str(entry.get("Path", "")).split("/"))]


def snapshot(reference: HubReference, directory: Path, patterns: list[str], *, shows_bars: bool = False) -> Path:
    """Fetch the files below a resolved reference that match `patterns`; what is there already isn't fetched again.

    They lie as in the repository below `directory`; where the reference itself lies is returned. Raises `InputError`.
    """
    with server_errors(reference):
        folder = dataclasses.replace(reference, path=glob.escape(reference.path))
        wanted = [folder.at(pattern).path for pattern in patterns]
        _download(reference, wanted, shows_bars=shows_bars, local_dir=directory)
    return directory / reference.path


def find_file(reference: HubReference) -> HubFile:
    """The one file of a resolved reference as it is listed. Raises `InputError`."""
    folder, _, name = reference.path.rpartition("/")
    with contextlib.suppress(KeyError):
        return list_files(dataclasses.replace(reference, path=folder))[name]
    raise NoSuchFile(f"{reference}: no such file in this repository")


def download_file(reference: HubReference, listed: HubFile, part: Path, *, shows_bar: bool = False) -> str:
    """Fetch the large file `listed` at a resolved reference on Hugging Face to `part`, going on after the bytes it has.

    Returns its SHA-256. Raises `InputError`; if the bytes aren't those that the hub lists, `part` is removed before.
    """
    import huggingface_hub
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    with server_errors(reference), open(part, "ab") as file:
        if file.tell() > listed.num_bytes:
            file.truncate(0)
            file.seek(0)
        http_get(
            huggingface_hub.hf_hub_url(**reference.keywords, filename=reference.path),
            file,
            resume_size=file.tell(),
            expected_size=listed.num_bytes,
            headers=build_hf_headers() | {"Accept-Encoding": "identity"},
            tqdm_class=None if shows_bar else _no_bar(),
        )
        os.fsync(file.fileno())
    sha256 = file_sha256(part)
    if listed.sha256 not in (None, sha256):
        part.unlink()
        wrong = f"expected the SHA-256 {listed.sha256}, which the hub lists, found {sha256}; it was thrown away"
        raise TransientError(f"{reference}: {wrong}; try again later, or another mirror")
    return sha256


def file_sha256(path: Path) -> str:
    """The digest by which hubs know a large file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_bar() -> Any:
    """For the clients, instead of their progress bars."""
    from tqdm import tqdm

    return functools.partial(tqdm, disable=True)
