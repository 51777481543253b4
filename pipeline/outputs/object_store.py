"""A shard set in an object store, where there are neither renames nor locks.

    URL/            the shards as units are finished; then the set's other files; `manifest.json` last
    URL.partial/    plan.json, receipts/, dedup/, replaced.json; removed when the manifest is there

What counts is the order: a unit's files first, each whole or absent, its receipt last; with the manifest the set is there.
Nothing needs a lock. All that is put follows from the plan, so two builds with one plan put the same bytes; a build with
another plan is refused when it begins, and before the manifest is put the plan and all files are looked at once more. Only
files that a plan, receipt or manifest names are ever removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from pipeline.outputs.base import STATE_FILES, Output
from pipeline.plan import PLAN_NAME
from pipeline.receipts import Receipt, decode_receipt, read_receipt, rejected_name
from shards.common.errors import InputError, TransientError
from shards.common.server_errors import server_errors
from shards.common.urls import file_system, join, listing, read_bytes, remove, version, write_bytes
from shards.layout import MANIFEST_NAME, STAMPS_NAME
from shards.manifest import Manifest, decode_manifest

_REPLACED_NAME = "replaced.json"  # the manifest of a set whose files are being removed
_STATE_FILE = re.compile(rf"(plan|replaced)\.json|{STATE_FILES}")
_RECEIPT = re.compile(r"receipts/(\d+)\.json")
_SEALED = re.compile(r"(?:receipts|dedup)/(\d+)\.(?:json|hashes)")  # these begin with a receipt


@dataclasses.dataclass(frozen=True)
class ObjectStoreOutput(Output):
    """See `pipeline.outputs.base.Output`."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def partial(self) -> str:
        return f"{self.url}.partial"

    def existing(self, *, force: bool = False) -> Manifest | None:
        where = join(self.url, MANIFEST_NAME)
        content = read_bytes(where)
        has_plan = self.read(PLAN_NAME) is not None
        if content is None:
            if not has_plan and listing(self.url):
                raise InputError(f"{self}: files are there that are not a shard set; choose another --out")
            return None
        try:
            manifest = decode_manifest(content, where)
        except InputError:
            if force:
                return None
            raise
        if has_plan or self._is_left():  # the build was killed between its last two steps
            self._remove_state()
        return manifest

    def _is_left(self) -> bool:
        """Whether there is what a build has added after another one had published the set and removed the plan."""
        for name in listing(self.partial):
            if match := _SEALED.fullmatch(name):
                line = (self.read(name) or b"").partition(b"\n")[0]
                if decode_receipt(line, int(match[1])):
                    return True
        return False

    def same_sources(self, stamps: bytes) -> bool:
        return read_bytes(join(self.url, STAMPS_NAME)) == stamps

    def prepare(self, plan: bytes, *, replace: bool, force: bool = False) -> None:
        if replace:
            self._remove_unfinished()
        if self.read(PLAN_NAME) is None:
            if names := listing(self.partial):
                where = join(self.partial, min(names))
                raise InputError(f"{where}: not of an unfinished build (no {PLAN_NAME}); move it elsewhere")
            self._create_plan(plan)
        if not force and read_bytes(join(self.url, MANIFEST_NAME)) is not None:
            self._remove_state()
            raise InputError(f"{self}: another build has finished here meanwhile; repeat the command")
        self._remove_set()

    def _create_plan(self, plan: bytes) -> None:
        """Put the plan where there is none. Of two builds that begin at once, one puts it, and the other sees another's."""
        system, path = file_system(join(self.partial, PLAN_NAME))
        with server_errors(self.partial, writes=True), contextlib.suppress(FileExistsError):
            try:
                system.pipe_file(path, plan, mode="create")
            except (NotImplementedError, TypeError):  # no conditional writes
                system.pipe_file(path, plan)
        if self.read(PLAN_NAME) != plan:
            raise InputError(f"{self}: another build with other inputs began at the same time; choose another --out")

    def state_names(self) -> set[str]:
        return set(listing(self.partial))

    def read(self, name: str) -> bytes | None:
        return read_bytes(join(self.partial, name))

    def write(self, name: str, content: bytes) -> None:
        write_bytes(join(self.partial, name), content)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="tokenize-once-") as name:
            yield Path(name)

    def _add(self, files: list[Path], receipt: Receipt) -> dict[str, str]:
        self._remove_shards(receipt.unit, kept=receipt.file_digests())  # it may have begun in the wrong place before
        return _put({path: join(self.url, path.name) for path in files})

    def holds(self, receipts: Sequence[Receipt]) -> list[bool]:
        there, state = listing(self.url), listing(self.partial)
        found = {name: version(entry) for name, entry in there.items()}
        return [
            all(found.get(name) == receipt.versions.get(name, "") for name in receipt.file_digests())
            and (not receipt.rejected or rejected_name(receipt.unit) in state)
            for receipt in receipts
        ]

    def publish(self, directory: Path) -> None:
        names = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
        _put({directory / name: join(self.url, name) for name in names if name != MANIFEST_NAME})
        content = (directory / MANIFEST_NAME).read_bytes()
        there = listing(self.url)
        for file in decode_manifest(content, MANIFEST_NAME).files():
            if there.get(file.name, {}).get("size") != file.num_bytes:
                where = join(self.url, file.name)
                raise TransientError(f"{where}: was changed while the set was built; repeat the command")
        if self.read(PLAN_NAME) is None:
            raise InputError(f"{self.partial}: was removed by another build while this one ran; repeat the command")
        write_bytes(join(self.url, MANIFEST_NAME), content)
        self._remove_state()

    def _remove_state(self) -> None:
        """Remove the state of a build, its plan last."""
        names = [name for name in listing(self.partial) if _STATE_FILE.fullmatch(name)]
        remove(*(join(self.partial, name) for name in names if name != PLAN_NAME))
        remove(join(self.partial, PLAN_NAME))

    def _remove_unfinished(self) -> None:
        """Remove what an unfinished build has left: what a set that it was to replace has left, shards, its state."""
        if self.read(PLAN_NAME) is not None and read_bytes(join(self.url, MANIFEST_NAME)) is None:
            self._remove_replaced()
            for name in listing(self.partial):
                if match := _RECEIPT.fullmatch(name):
                    self._remove_shards(int(match[1]))
            self._remove_state()

    def _remove_shards(self, unit: int, *, kept: Collection[str] = ()) -> None:
        """Remove the files that a unit's receipt names, but for those that are `kept`."""
        receipt = read_receipt(self.read, unit)
        names = receipt.file_digests() if receipt else {}
        remove(*(join(self.url, name) for name in names if name not in kept))

    def _remove_set(self) -> None:
        """Remove the set that is there, its manifest first: from then on it isn't complete."""
        where = join(self.url, MANIFEST_NAME)
        content = read_bytes(where)
        if content is not None:
            self.write(_REPLACED_NAME, content)
            remove(where)
        self._remove_replaced()

    def _remove_replaced(self) -> None:
        where = join(self.partial, _REPLACED_NAME)
        content = read_bytes(where)
        if content is not None:
            names = [STAMPS_NAME]
            with contextlib.suppress(InputError):  # where it can't be read, which files were its isn't known: they stay
                names += [file.name for file in decode_manifest(content, where).files()]
            remove(*(join(self.url, name) for name in names))
            remove(where)


def _put(files: dict[Path, str]) -> dict[str, str]:
    """Put each file to its URL, several at once; the version of each by name, as the object store lists it afterwards.

    Raises `TransientError` if a size isn't that of the file.
    """
    if not files:
        return {}
    system, _path = file_system(next(iter(files.values())))
    targets = [file_system(url)[1] for url in files.values()]
    versions = {}
    with server_errors(next(iter(files.values())).rpartition("/")[0], writes=True):
        system.put([str(path) for path in files], targets)
        system.invalidate_cache()
        for path, target in zip(files, targets, strict=True):
            entry = system.info(target)
            if (size := int(entry["size"])) != path.stat().st_size:
                raise TransientError(f"{files[path]}: {path.stat().st_size:,} bytes were put, {size:,} are there")
            versions[path.name] = version(entry)
    return versions
