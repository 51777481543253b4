"""A shard set of this machine to a hub or an object store: verified before, its manifest put last.

So whoever sees the manifest sees a whole set. A hub gets a data card (`README.md`) too. Another set that is there is
replaced with `force` alone: its manifest goes first, and of its files those that the new one lacks; nothing else does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shards.common.errors import InputError
from shards.common.text import plural, size_text
from shards.common.urls import file_system, is_url, join, listing, remove, storage_errors, write_bytes
from shards.layout import MANIFEST_NAME
from shards.manifest import Manifest, decode_manifest, read_manifest
from shards.share.card import CARD_NAME, data_card, is_ours
from shards.share.hub import (
    ANSWER_SECONDS,
    HubReference,
    is_reference,
    list_files,
    model_scope_client,
    parse_reference,
    resolve,
)
from shards.share.hub_errors import NoSuchFile, hub_errors, within
from shards.share.pull import SET_PATTERNS, read_small
from shards.verify import verify

_FILES_AT_ONCE = 8


def push(directory: Path, url: str, *, force: bool = False, notice: Callable[[str], None] = lambda _line: None) -> bool:
    """Copy the set in `directory` to `url`: `hf://datasets/USER/NAME[/FOLDER]`, `ms://…`, `s3://bucket/name`, ….

    Of a hub only data sets are written to; a repository that isn't there is made, a private one. Returns whether there was
    anything to do. Raises `InputError`: a damaged set, another one there, no permission.
    """
    if not is_url(url):
        raise InputError(f"{url}: expected a URL such as hf://datasets/USER/NAME/FOLDER or s3://bucket/name")
    manifest = read_manifest(directory)
    target = _HubTarget(parse_reference(url)) if is_reference(url) else _ObjectStoreTarget(url.rstrip("/"))
    encoded = target.read(MANIFEST_NAME)
    old = decode_manifest(encoded, f"{target}/{MANIFEST_NAME}") if encoded is not None else None
    if old is not None and old.fingerprint == manifest.fingerprint:
        return False
    if old is not None and not force:
        raise InputError(f"{target}: another shard set is there; choose another URL, or replace it with --force")
    files = {file.name: file.num_bytes for file in manifest.files()}
    notice(f"{target}: putting {size_text(sum(files.values()))} in {plural(len(files) + 1, 'file')}, verified first")
    if faults := verify(directory):
        raise InputError(faults[0])
    if old is not None:
        target.remove([MANIFEST_NAME])
    target.put(directory, manifest)
    sizes = target.sizes()
    for name, num_bytes in files.items():
        if sizes.get(name) != num_bytes:
            raise InputError(
                f"{target}/{name}: expected {num_bytes:,} bytes there after it was put, found "
                f"{sizes.get(name, 'no such file')}; does a .gitignore there hide it, or does another process write there?"
            )
    if old is not None:
        target.remove({file.name for file in old.files()} & sizes.keys() - files.keys())
    target.put_manifest(directory, manifest)
    return True


class _HubTarget:
    """A folder of a data set's repository, at a branch."""

    def __init__(self, reference: HubReference) -> None:
        if not reference.is_dataset:
            raise InputError(f"{reference}: expected a data set, such as {reference.hub}://datasets/USER/NAME/FOLDER")
        branch = reference.revision or {"hf": "main", "ms": "master"}[reference.hub]
        self._name = str(reference)
        self._at = dataclasses.replace(reference, revision=branch)
        repository: dict[str, Any] = {"repo_id": reference.repository, "repo_type": "dataset"}
        with hub_errors(reference.hub, reference):
            if reference.hub == "hf":
                from huggingface_hub import HfApi

                within(ANSWER_SECONDS, lambda: HfApi().create_repo(**repository, private=True, exist_ok=True))
            else:
                from modelscope_hub import errors

                client = model_scope_client()
                with contextlib.suppress(errors.AlreadyExistsError):
                    within(ANSWER_SECONDS, lambda: client.create_repo(**repository, visibility="private"))

    def __str__(self) -> str:
        return self._name

    def read(self, name: str) -> bytes | None:
        return read_small(resolve(self._at), name)

    def put(self, directory: Path, manifest: Manifest) -> None:
        self._upload(directory, SET_PATTERNS, f"Shard set {manifest.fingerprint[:16]}: files")

    def put_manifest(self, directory: Path, manifest: Manifest) -> None:
        """With the data card, unless somebody wrote one."""
        with tempfile.TemporaryDirectory() as temporary:
            shutil.copyfile(directory / MANIFEST_NAME, Path(temporary) / MANIFEST_NAME)
            card = self.read(CARD_NAME)
            if card is None or is_ours(card):
                (Path(temporary) / CARD_NAME).write_text(data_card(manifest, str(self)), encoding="utf-8")
            self._upload(Path(temporary), ["*"], f"Shard set {manifest.fingerprint[:16]}: manifest")

    def _upload(self, directory: Path, patterns: list[str], message: str) -> None:
        options: dict[str, Any] = {
            "repo_id": self._at.repository,
            "repo_type": "dataset",
            "folder_path": directory,
            "path_in_repo": self._at.path,
            "revision": self._at.revision,
            "allow_patterns": patterns,
            "commit_message": message,
        }
        with hub_errors(self._at.hub, self):
            if self._at.hub == "hf":
                from huggingface_hub import HfApi

                HfApi().upload_folder(**options)
            else:  # without its notes on what has arrived: they would be a file in `directory`
                model_scope_client().upload_folder(**options, use_cache=False)

    def sizes(self) -> dict[str, int]:
        with contextlib.suppress(NoSuchFile):
            return {name: file.num_bytes for name, file in list_files(resolve(self._at)).items()}
        return {}

    def remove(self, names: Collection[str]) -> None:
        if not names:
            return
        paths = [self._at.at(name).path for name in sorted(names)]
        options: dict[str, Any] = {"repo_id": self._at.repository, "repo_type": "dataset"}
        options |= {"revision": self._at.revision, "commit_message": "Files of a shard set that is replaced"}
        with hub_errors(self._at.hub, self):
            if self._at.hub == "hf":
                from huggingface_hub import CommitOperationDelete, HfApi

                HfApi().create_commit(**options, operations=[CommitOperationDelete(path) for path in paths])
            else:
                model_scope_client().delete_files(**options, file_paths=paths)


class _ObjectStoreTarget:
    """The files below a URL."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __str__(self) -> str:
        return self._url

    def read(self, name: str) -> bytes | None:
        return read_small(self._url, name)

    def put(self, directory: Path, manifest: Manifest) -> None:
        def put_one(name: str) -> None:
            url = join(self._url, name)
            system, path = file_system(url)
            with storage_errors(url, writes=True):
                system.put_file(str(directory / name), path)

        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            for _ in pool.map(put_one, [file.name for file in manifest.files()]):
                pass

    def put_manifest(self, directory: Path, manifest: Manifest) -> None:
        write_bytes(join(self._url, MANIFEST_NAME), (directory / MANIFEST_NAME).read_bytes())

    def sizes(self) -> dict[str, int]:
        return {name: int(entry["size"]) for name, entry in listing(self._url).items()}

    def remove(self, names: Collection[str]) -> None:
        remove(*[join(self._url, name) for name in names])
