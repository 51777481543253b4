"""The place of a build in a store: what `pipeline.place` is on a disk, where there are neither renames nor locks.

NAME/           the shards as they are done; then the set's other files; `manifest.json` last: with it the set is there
NAME.partial/   plan.json, and the receipts of finished units; removed when the manifest is there

Nothing needs a lock. All that is put follows from the plan, so two builds with one plan put the same bytes; a build with
another plan is refused when it begins, and before the manifest is put the plan and all files are looked at once more.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.dedup import DEDUP_DIRECTORY
from pipeline.place import PLAN_NAME, plan_differences
from pipeline.receipts import FILES_KEY, RECEIPTS_DIRECTORY, REJECTED_SUFFIX, unsealed
from pipeline.remote_unit import partial_url, put_files
from shards.common.errors import InputError, TransientError
from shards.common.urls import (
    exists,
    file_system,
    join,
    listing,
    read_bytes,
    remove,
    storage_errors,
    version,
    write_bytes,
)
from shards.manifest import MANIFEST_NAME, STAMPS_NAME, decode_table_entries

_FILES_AT_ONCE = 512


class RemotePlace:
    """Where a shard set is built in a store. `directory` is on this machine's disk: it mirrors the receipts."""

    elsewhere = "choose another --out"  # as `Place` has one

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._partial = partial_url(self.url)
        self._plan = b""

    def __str__(self) -> str:
        return self.url

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Have the directory on this machine; nothing in the store is locked."""
        with tempfile.TemporaryDirectory(prefix="tokenize-once-") as name:
            self.directory = Path(name)
            yield

    @property
    def existing(self) -> Path:
        """Where `fetch_existing` puts what a finished set says of itself."""
        return self.directory / "existing"

    def fetch_existing(self) -> None:
        """Get the manifest of the set that is there, with its tables. Without one, `existing` is an empty directory."""
        fetch_manifest(self.url, self.existing)

    @property
    def holds_set(self) -> bool:
        """Whether a finished set is there."""
        return exists(join(self.url, MANIFEST_NAME))

    @property
    def is_there(self) -> bool:
        """Whether a finished set is there, or something else that isn't this build's."""
        return self.holds_set or (bool(listing(self.url)) and read_bytes(join(self._partial, PLAN_NAME)) is None)

    def finish_publishing(self, *, force: bool = False) -> None:
        """Remove the receipts of a set whose manifest is there: the build was killed between the two."""
        if self.holds_set:
            remove(*(join(self._partial, name) for name in listing(self._partial)))

    def discard_partial(self) -> None:
        """Remove an unfinished build, and nothing that is none."""
        if not self.holds_set and read_bytes(join(self._partial, PLAN_NAME)) is not None:
            remove(*(join(self._partial, name) for name in listing(self._partial)))
            remove(*(join(self.url, name) for name in listing(self.url)))

    def prepare(self, plan: dict[str, Any]) -> None:
        """Put the plan, or find it there; then get all receipts whose files are there, unchanged.

        An older set goes when the plan of the new one is there, its manifest first. Raises `InputError` if another plan is
        there.
        """
        self._plan = json.dumps(plan, indent=2, ensure_ascii=False).encode()
        plan_url = join(self._partial, PLAN_NAME)
        before = read_bytes(plan_url)
        if before is None:
            if listing(self._partial):
                raise InputError(f"{self._partial}: not an unfinished build (no {PLAN_NAME}); move it elsewhere")
            self._put_plan(plan_url)
            before = read_bytes(plan_url) or b"{}"
        differences = plan_differences(json.loads(before), plan)
        if differences:
            raise InputError(
                f"{self._partial}: an unfinished build with other inputs ({'; '.join(differences)}); "
                "repeat the command it was begun with, or begin anew with --force"
            )
        if self.holds_set:
            remove(join(self.url, MANIFEST_NAME))
            remove(*(join(self.url, name) for name in listing(self.url)))
        for name in (RECEIPTS_DIRECTORY, DEDUP_DIRECTORY):
            (self.directory / name).mkdir(exist_ok=True)
        self._fetch_receipts()

    def _put_plan(self, url: str) -> None:
        """Put the plan where there is none. Of two builds that begin at once, one puts it and both read it back."""
        system, path = file_system(url)
        with storage_errors(url, writes=True), contextlib.suppress(FileExistsError):
            try:
                system.pipe_file(path, self._plan, mode="create")
            except (NotImplementedError, TypeError):  # a store without conditional writes
                system.pipe_file(path, self._plan)

    def _fetch_receipts(self) -> None:
        there = {name: (int(entry["size"]), version(entry)) for name, entry in listing(self.url).items()}
        names = [name for name in listing(self._partial) if not name.endswith(".drops") and name != PLAN_NAME]
        kept = set(names)
        for name, content in self._read(names):
            if name.startswith(RECEIPTS_DIRECTORY) and name.endswith(".json"):
                try:
                    receipt = unsealed(content)
                except ValueError:  # not as it was written: the unit is done again
                    continue
                rejected = name.removesuffix(".json") + REJECTED_SUFFIX
                if any(there.get(file) != tuple(entry) for file, entry in receipt[FILES_KEY].items()) or (
                    receipt["rejected"] and rejected not in kept
                ):
                    continue
            (self.directory / name).write_bytes(content)

    def _read(self, names: list[str]) -> Iterator[tuple[str, bytes]]:
        """The contents of files in the partial place, many at once; those that have vanished are left out."""
        system, path = file_system(self._partial)
        for start in range(0, len(names), _FILES_AT_ONCE):
            paths = {f"{path}/{name}": name for name in names[start : start + _FILES_AT_ONCE]}
            with storage_errors(self._partial):
                contents = system.cat(list(paths), on_error="return")
                for found, content in contents.items():
                    if isinstance(content, FileNotFoundError):
                        continue
                    if isinstance(content, Exception):
                        raise content
                    yield paths[found], content

    def fetch(self, directory: str, suffix: str) -> None:
        """Get the files of `directory` in the partial place whose names end with `suffix`, unless they are here."""
        wanted = [
            name
            for name in listing(join(self._partial, directory))
            if name.endswith(suffix) and not (self.directory / directory / name).exists()
        ]
        for name, content in self._read([f"{directory}/{name}" for name in wanted]):
            (self.directory / name).write_bytes(content)

    def put_dedup(self) -> None:
        """Put what `find_duplicates` has found; its mark last."""
        local = self.directory / DEDUP_DIRECTORY
        target = join(self._partial, DEDUP_DIRECTORY)
        put_files({path: join(target, path.name) for path in sorted(local.glob("*.drops"))})
        put_files({local / "done": join(target, "done")})

    def publish(self) -> None:
        """Put the rest of the set, look at all of it, put the manifest, and remove what isn't the set's."""
        shutil.rmtree(self.existing, ignore_errors=True)
        manifest = (self.directory / MANIFEST_NAME).read_bytes()
        others = {
            path: join(self.url, path.relative_to(self.directory).as_posix())
            for path in self._own_files()
            if path.name != MANIFEST_NAME
        }
        put_files(others)
        there = listing(self.url)
        expected: dict[str, tuple[int, str | None]] = {
            path.relative_to(self.directory).as_posix(): (path.stat().st_size, None) for path in others
        }
        for name, size, found in self._receipt_files():
            expected[name] = (size, found)
        for name, (num_bytes, right) in expected.items():
            entry = there.get(name, {})
            if entry.get("size") != num_bytes or (right is not None and version(entry) != right):
                raise TransientError(f"{join(self.url, name)}: was changed while the set was built; repeat the command")
        if read_bytes(join(self._partial, PLAN_NAME)) is None:
            raise InputError(f"{self._partial}: was removed by another build while this one ran; repeat the command")
        for name in there.keys() - expected.keys():
            remove(join(self.url, name))
        write_bytes(join(self.url, MANIFEST_NAME), manifest)
        remove(*(join(self._partial, name) for name in listing(self._partial)))
        self.fetch_existing()

    def _own_files(self) -> list[Path]:
        inner = {RECEIPTS_DIRECTORY, DEDUP_DIRECTORY}
        return [
            path
            for path in sorted(self.directory.rglob("*"))
            if path.is_file() and path.relative_to(self.directory).parts[0] not in inner
        ]

    def _receipt_files(self) -> Iterable[tuple[str, int, str]]:
        for path in sorted((self.directory / RECEIPTS_DIRECTORY).glob("*.json")):
            for name, (num_bytes, right) in unsealed(path.read_bytes())[FILES_KEY].items():
                yield name, num_bytes, right


def fetch_manifest(url: str, directory: Path) -> None:
    """Copy what the set at `url` says of itself to `directory`: its manifest, with its tables. Nothing if none is there."""
    directory.mkdir(exist_ok=True)
    names = [MANIFEST_NAME, STAMPS_NAME]
    for name in names:
        content = read_bytes(join(url, name))
        if content is not None:
            (directory / name).write_bytes(content)
            if name == MANIFEST_NAME:
                _fingerprint, tables = decode_table_entries(content, join(url, name))
                names += [table.file for table in tables]
