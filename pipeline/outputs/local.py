"""A shard set in a directory.

    NAME/            the finished set
    .NAME.lock       held while a build runs; its content is the process's number
    NAME.partial/    the build in progress:
      plan.json      all that decides the set's bytes
      receipts/  dedup/
      scratch/       where workers write
      set/           the shards of finished units; renamed to NAME when it is complete

Publishing is one rename, of `set` to NAME; what else is in NAME.partial goes only after that. So at each instant a kill
loses no finished unit: before the rename all receipts are there, after it the set is. A file that is not a build's own is
never deleted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.outputs.base import STATE_FILES, Output
from pipeline.plan import PLAN_NAME
from pipeline.receipts import Receipt, rejected_name
from pipeline.worker import REJECTED_PART
from shards.common.errors import InputError
from shards.common.files import TEMPORARY_SUFFIX, FileLock, file_digest, flush_directory, partial_of, write_atomically
from shards.layout import BIN_SUFFIX, INDEX_SUFFIX, MANIFEST_NAME, SPLITS, STAMPS_NAME, TOKENIZER_DIRECTORY, shard_name
from shards.manifest import Manifest, read_manifest
from shards.verify import unknown_files, verify

# What lies below NAME.partial: what a build writes, and the set that it replaces.
_SET_FILE = r"((train|val)-\d+\.(bin|idx)|tokenizer/[^/]*|manifest\.json|(rejected|left_out)\.jsonl|\.sources\.json)"
_OWN_FILE = re.compile(
    rf"(plan\.json|{STATE_FILES}|(set|replaced)/{_SET_FILE}|scratch/tmp\w+/({REJECTED_PART}|{_SET_FILE}))(\.tmp)?"
)


@dataclasses.dataclass(frozen=True)
class LocalOutput(Output):
    """See `pipeline.outputs.base.Output`."""

    final: Path

    def __str__(self) -> str:
        return str(self.final)

    @property
    def partial(self) -> Path:
        return partial_of(self.final)

    @property
    def _set(self) -> Path:
        return self.partial / "set"

    @property
    def _replaced(self) -> Path:
        """Where an older set waits to be removed, while the new one takes its place."""
        return self.partial / "replaced"

    def lock(self) -> FileLock:
        return FileLock(self.final, "another build is writing here; wait for it, or stop it")

    def existing(self, *, force: bool = False) -> Manifest | None:
        if self._replaced.exists() and not self.final.exists():  # killed between the two renames
            os.rename(self._replaced if verify(self._set) else self._set, self.final)
        if not self.final.exists() and not self.final.is_symlink():
            return None
        if not self.final.is_dir() or not (self.final / MANIFEST_NAME).is_file():
            raise InputError(f"{self}: exists and is not a shard set; choose another --out, or move it elsewhere")
        try:
            manifest = read_manifest(self.final)
        except InputError:
            if force:
                return None
            raise
        is_left = (self.partial / PLAN_NAME).exists() or (self.partial.is_dir() and not any(self.partial.iterdir()))
        if is_left and not self._set.exists():
            self._remove_partial()  # of a build that was killed just after the set was published
        return manifest

    def same_sources(self, stamps: bytes) -> bool:
        with contextlib.suppress(OSError):
            return (self.final / STAMPS_NAME).read_bytes() == stamps
        return False

    def prepare(self, plan: bytes, *, replace: bool, force: bool = False) -> None:
        self._check_replaceable()
        self._check_partial()
        if replace:
            self._remove_partial()
        for name in ("receipts", "dedup", "set", "scratch"):
            (self.partial / name).mkdir(parents=True, exist_ok=True)
        for left in (self.partial / "scratch").iterdir():
            shutil.rmtree(left)
        if self.read(PLAN_NAME) is None:
            self.write(PLAN_NAME, plan)
        flush_directory(self.partial.parent)

    def begun_ns(self) -> int | None:
        with contextlib.suppress(FileNotFoundError):
            return (self.partial / PLAN_NAME).stat().st_mtime_ns
        return None

    def state_names(self) -> set[str]:
        paths = [path for pattern in (PLAN_NAME, "receipts/*", "dedup/*") for path in self.partial.glob(pattern)]
        return {path.relative_to(self.partial).as_posix() for path in paths if path.suffix != TEMPORARY_SUFFIX}

    def read(self, name: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return (self.partial / name).read_bytes()
        return None

    def write(self, name: str, content: bytes) -> None:
        write_atomically(self.partial / name, content)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self.partial / "scratch", ignore_cleanup_errors=True) as name:
            yield Path(name)

    def _add(self, files: list[Path], receipt: Receipt) -> dict[str, str]:
        names = {shard_name(split, receipt.unit) + suffix for split in SPLITS for suffix in (BIN_SUFFIX, INDEX_SUFFIX)}
        for name in names - receipt.file_digests().keys():  # of the same unit, when it began in the wrong place
            (self._set / name).unlink(missing_ok=True)
        for path in files:
            os.replace(path, self._set / path.name)
        flush_directory(self._set)
        return {}

    def holds(self, receipts: Sequence[Receipt]) -> list[bool]:
        def is_held(receipt: Receipt) -> bool:
            digests = {self._set / name: digest for name, digest in receipt.file_digests().items()}
            if receipt.rejected:
                digests[self.partial / rejected_name(receipt.unit)] = receipt.rejected_digest
            with contextlib.suppress(FileNotFoundError):
                return all(file_digest(path) == digest for path, digest in digests.items())
            return False

        return list(map(is_held, receipts))

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.partial).free

    def publish(self, directory: Path) -> None:
        self._check_replaceable()
        (self._set / TOKENIZER_DIRECTORY).mkdir(exist_ok=True)
        files = _files(directory)
        for name in sorted(files, key=lambda name: name == MANIFEST_NAME):  # the manifest last
            os.replace(files[name], self._set / name)
        flush_directory(self._set / TOKENIZER_DIRECTORY)
        flush_directory(self._set)
        if self.final.exists():
            os.rename(self.final, self._replaced)
        os.rename(self._set, self.final)
        flush_directory(self.final.parent)
        self._remove_partial()

    def _check_replaceable(self) -> None:
        """Raise `InputError` if what is there isn't a set, or has files that aren't its own."""
        if self.final.is_symlink():
            raise InputError(f"{self}: is a symbolic link, which --force doesn't replace; remove it")
        if not self.final.exists():
            return
        try:
            strange = unknown_files(self.final, read_manifest(self.final))
        except InputError:  # a damaged manifest, or one of another version: a set's files are known by their names
            strange = [path for name, path in _files(self.final).items() if not re.fullmatch(_SET_FILE, name)]
        if strange:
            raise InputError(f"{strange[0]}: not part of the set that --force would replace; move it elsewhere")

    def _check_partial(self) -> None:
        """Raise `InputError` for a file that isn't a build's own; without a plan, for all but the plan's temporary file."""
        own = _OWN_FILE if (self.partial / PLAN_NAME).exists() else re.compile(re.escape(PLAN_NAME + TEMPORARY_SUFFIX))
        for name, path in _files(self.partial).items():
            if not own.fullmatch(name):
                raise InputError(f"{path}: not part of an unfinished build; move it elsewhere")

    def _remove_partial(self) -> None:
        """Remove what a build has left, its plan last. Raises `InputError` if something else lies there."""
        self._check_partial()
        for path in sorted(self.partial.rglob("*"), reverse=True):
            if path.name != PLAN_NAME or path.parent != self.partial:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        (self.partial / PLAN_NAME).unlink(missing_ok=True)
        self.partial.rmdir()


def _files(directory: Path) -> dict[str, Path]:
    """All below `directory` that isn't one itself, in order, by its name there."""
    paths = sorted(path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(directory).as_posix(): path for path in paths}
