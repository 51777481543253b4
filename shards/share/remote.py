"""Where a shared set lies: a folder of a data set's repository on a hub, or the files below a URL of an object store."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from shards.common.errors import InputError
from shards.common.server_errors import server_errors, within
from shards.common.urls import file_system, in_parallel, is_url, join, listing, read_bytes, remove
from shards.layout import BIN_SUFFIX, INDEX_SUFFIX, LEFT_OUT_NAME, MANIFEST_NAME, REJECTED_NAME, TOKENIZER_DIRECTORY
from shards.manifest import FileEntry
from shards.share import hub
from shards.share.hub import HubReference

CARD_NAME = "README.md"
CARD_MARK = "<!-- written by tokenize-once; a card without this line is left as it is -->"
# What a hub is asked for: one pattern a file would make the clients compare each with each.
_SET_PATTERNS = [
    *[f"{split}-*{suffix}" for split in ("train", "val") for suffix in (BIN_SUFFIX, INDEX_SUFFIX)],
    *(f"{TOKENIZER_DIRECTORY}/*", REJECTED_NAME, LEFT_OUT_NAME),
]
_FILES_AT_ONCE = 8
Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class HubFolder:
    """A folder of a repository, at a branch or a commit. Files are named relative to it; everything raises `InputError`."""

    reference: HubReference

    def __str__(self) -> str:
        return str(self.reference)

    def read(self, name: str) -> bytes | None:
        """A small file; None: it isn't there."""
        at = hub.resolve(self.reference)
        if at.hub == "hf":
            return read_bytes(str(at.at(name)))
        with tempfile.TemporaryDirectory() as temporary:
            path = hub.snapshot(at, Path(temporary), [name]) / name
            return path.read_bytes() if path.is_file() else None

    def sizes(self) -> dict[str, int]:
        """The bytes of each file that is there."""
        return {name: file.num_bytes for name, file in hub.list_files(hub.resolve(self.reference)).items()}

    def below(self, directory: Path) -> Path:
        """Where the files lie in a `directory` to which they are fetched."""
        return directory / self.reference.path

    def fetch(self, files: list[FileEntry], directory: Path, progress: Progress, *, shows_bars: bool) -> None:
        """Fetch what is missing of a set, which the client knows itself; with `shows_bars` it shows its own bars."""
        hub.snapshot(self.reference, directory, _SET_PATTERNS, shows_bars=shows_bars)

    def put(self, directory: Path, names: Collection[str]) -> None:
        """Put the files `names` of the set in `directory`, all but its manifest."""
        self._upload(directory, _SET_PATTERNS, "Files of a shard set")

    def put_manifest(self, directory: Path, card: str) -> None:
        """With the data card, unless somebody wrote one."""
        with tempfile.TemporaryDirectory() as temporary:
            shutil.copyfile(directory / MANIFEST_NAME, Path(temporary) / MANIFEST_NAME)
            there = self.read(CARD_NAME)
            if there is None or CARD_MARK.encode() in there:
                (Path(temporary) / CARD_NAME).write_text(card, encoding="utf-8")
            self._upload(Path(temporary), ["*"], "Manifest of a shard set")

    def _upload(self, directory: Path, patterns: list[str], message: str) -> None:
        # With a cache, notes on what has arrived would be a file in `directory`.
        options: dict[str, Any] = {"use_cache": False} if self.reference.hub == "ms" else {}
        options |= {**self.reference.keywords, "path_in_repo": self.reference.path, "commit_message": message}
        with server_errors(self):
            hub.client(self.reference.hub).upload_folder(folder_path=directory, allow_patterns=patterns, **options)

    def remove(self, names: Collection[str]) -> None:
        if not names:
            return
        paths = [self.reference.at(name).path for name in sorted(names)]
        options = {**self.reference.keywords, "commit_message": "Files of a shard set that is replaced"}
        with server_errors(self):
            if self.reference.hub == "ms":
                hub.client("ms").delete_files(**options, file_paths=paths)
            else:
                from huggingface_hub import CommitOperationDelete

                hub.client("hf").create_commit(**options, operations=[CommitOperationDelete(path) for path in paths])


@dataclasses.dataclass(frozen=True)
class StoreFolder:
    """The files below a URL of an object store, as `HubFolder`."""

    url: str

    def __str__(self) -> str:
        return self.url

    def read(self, name: str) -> bytes | None:
        return read_bytes(join(self.url, name))

    def sizes(self) -> dict[str, int]:
        return {name: int(entry["size"]) for name, entry in listing(self.url).items()}

    def below(self, directory: Path) -> Path:
        return directory

    def fetch(self, files: list[FileEntry], directory: Path, progress: Progress, *, shows_bars: bool) -> None:
        """Fetch `files`. One that isn't there is passed over."""
        (directory / TOKENIZER_DIRECTORY).mkdir(exist_ok=True)

        def fetch_one(file: FileEntry) -> None:
            system, path = file_system(join(self.url, file.name))
            with server_errors(join(self.url, file.name)), contextlib.suppress(FileNotFoundError):
                system.get_file(path, str(directory / file.name))
            progress(file.num_bytes)

        in_parallel(fetch_one, files, _FILES_AT_ONCE)

    def put(self, directory: Path, names: Collection[str]) -> None:
        def put_one(name: str) -> None:
            system, path = file_system(join(self.url, name))
            with server_errors(join(self.url, name), writes=True):
                system.put_file(str(directory / name), path)

        in_parallel(put_one, names, _FILES_AT_ONCE)

    def put_manifest(self, directory: Path, card: str) -> None:
        self.put(directory, [MANIFEST_NAME])

    def remove(self, names: Collection[str]) -> None:
        remove(*[join(self.url, name) for name in names])


def _store(url: str) -> StoreFolder:
    if not is_url(url):
        examples = "hf://datasets/USER/NAME/FOLDER, s3://bucket/name or file:///shared/name"
        raise InputError(f"{url}: expected a URL such as {examples}")
    return StoreFolder(url.rstrip("/"))


def remote_to_read(url: str) -> HubFolder | StoreFolder:
    """What `url` shows now, at one commit. Raises `InputError`."""
    return HubFolder(hub.resolve(hub.parse_reference(url))) if hub.is_reference(url) else _store(url)


def remote_to_write(url: str) -> HubFolder | StoreFolder:
    """A data set on a hub, at a branch, or the files below a URL; a repository that isn't there is made, a private one."""
    if not hub.is_reference(url):
        return _store(url)
    reference = hub.parse_reference(url)
    if not reference.is_dataset:
        raise InputError(f"{reference}: expected a data set, such as {reference.hub}://datasets/USER/NAME/FOLDER")
    api, repository = hub.client(reference.hub), {"repo_id": reference.repository, "repo_type": "dataset"}
    with server_errors(reference):
        if reference.hub == "hf":
            within(hub.ANSWER_SECONDS, lambda: api.create_repo(**repository, private=True, exist_ok=True))
        else:
            from modelscope_hub.errors import AlreadyExistsError

            with contextlib.suppress(AlreadyExistsError):
                within(hub.ANSWER_SECONDS, lambda: api.create_repo(**repository, visibility="private"))
    return HubFolder(reference)
