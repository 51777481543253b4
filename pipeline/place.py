"""The place of a build: the finished set, the directory in which it grows, and the lock on both.

NAME/           the finished shard set
NAME.partial/   the build in progress: plan.json, receipts/, the shards so far
NAME.lock       held while a build runs; its content is the process's number
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.dedup import DEDUP_DIRECTORY
from pipeline.receipts import RECEIPTS_DIRECTORY
from pipeline.settings import BuildSettings
from pipeline.sources import Source
from shards.common.errors import InputError
from shards.common.files import TEMPORARY_SUFFIX, flush_directory, write_atomically
from shards.manifest import MANIFEST_NAME
from shards.tokenizer_files import TokenizerFiles
from shards.verify import verify

PLAN_NAME = "plan.json"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a shard set is built."""

    final: Path
    elsewhere: str = "choose another --out"  # what to do where it can't be built
    url = ""  # as `pipeline.remote_place.RemotePlace` has one

    def __str__(self) -> str:
        return str(self.final)

    @property
    def directory(self) -> Path:
        """Where the set grows."""
        return self.partial

    @property
    def existing(self) -> Path:
        """Where a finished set lies."""
        return self.final

    @property
    def is_there(self) -> bool:
        """Whether a finished set is there, or something else."""
        return self.final.exists() or self.final.is_symlink()

    def fetch_existing(self) -> None:
        """Nothing to get: it is here."""

    @property
    def partial(self) -> Path:
        return self.final.with_name(self.final.name + ".partial")

    @property
    def lock_path(self) -> Path:
        return self.final.with_name(self.final.name + ".lock")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock, or raise `InputError` naming the process that holds it. A dead process holds nothing."""
        while True:
            try:
                self.final.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise InputError(f"{self.final.parent}: can't write here: {error.strerror}; {self.elsewhere}") from None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 100).decode("utf-8", "replace").strip() or "unknown"
                os.close(descriptor)
                raise InputError(
                    f"{self.final}: another build (process {holder}) is writing here; wait for it, or stop it"
                ) from None
            if self._is_locked_file(descriptor):
                break
            os.close(descriptor)  # its holder has just removed it: take the new one
        try:
            os.truncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.lock_path)
            os.close(descriptor)

    def _is_locked_file(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.lock_path))
        except FileNotFoundError:
            return False

    def prepare(self, plan: dict[str, Any]) -> None:
        """Make the partial directory for `plan`, or find it there. Raises `InputError` if work of another plan is in it."""
        path = self.partial / PLAN_NAME
        if path.exists():
            try:
                differences = plan_differences(json.loads(path.read_bytes()), plan)
            except (ValueError, KeyError, TypeError, AttributeError):
                differences = [f"{PLAN_NAME} was damaged"]
            if differences and self._is_untouched():
                path.unlink()
            elif differences:
                raise InputError(
                    f"{self.partial}: an unfinished build with other inputs ({'; '.join(differences)}); "
                    "repeat the command it was begun with, or begin anew with --force"
                )
        elif self.partial.exists() and not self._is_untouched():
            raise InputError(f"{self.partial}: not an unfinished build (no {PLAN_NAME}); move it elsewhere")
        (self.partial / RECEIPTS_DIRECTORY).mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_atomically(path, json.dumps(plan, indent=2, ensure_ascii=False).encode())
        for left_over in self.partial.glob(f"*{TEMPORARY_SUFFIX}"):
            left_over.unlink()

    def _is_untouched(self) -> bool:
        """Whether a build stopped here before its first unit was done, so that beginning anew loses nothing."""
        for entry in self.partial.iterdir():
            if entry.name == RECEIPTS_DIRECTORY and entry.is_dir() and not any(entry.iterdir()):
                continue
            if entry.name != PLAN_NAME and not entry.name.endswith(TEMPORARY_SUFFIX):
                return False
        return True

    @property
    def holds_set(self) -> bool:
        """Whether a finished set is there, which a build may replace."""
        return not self.final.is_symlink() and (self.final / MANIFEST_NAME).is_file()

    def discard_partial(self) -> None:
        """Remove an unfinished build, and nothing that is none."""
        if (self.partial / PLAN_NAME).exists():
            shutil.rmtree(self.partial)

    def publish(self) -> None:
        """Turn the partial directory, which is complete, into the finished set; an older one goes only then.

        The plan goes last of what isn't the set's: a partial directory with a manifest and no plan is a set.
        """
        for name in (RECEIPTS_DIRECTORY, DEDUP_DIRECTORY):
            shutil.rmtree(self.partial / name, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.partial / PLAN_NAME)
        flush_directory(self.partial)
        shutil.rmtree(self._replaced, ignore_errors=True)
        if self.holds_set:
            os.rename(self.final, self._replaced)
        os.rename(self.partial, self.final)
        flush_directory(self.final.parent)
        shutil.rmtree(self._replaced, ignore_errors=True)

    def finish_publishing(self, *, force: bool = False) -> None:
        """Do what is left to do of a `publish` that was killed.

        Raises `InputError` if the set was damaged since. With `force` it is removed then.
        """
        if (self.partial / MANIFEST_NAME).exists() and not (self.partial / PLAN_NAME).exists():
            for name in (RECEIPTS_DIRECTORY, DEDUP_DIRECTORY):
                shutil.rmtree(self.partial / name, ignore_errors=True)
            faults = verify(self.partial)
            if not faults:
                self.publish()
            elif force:
                shutil.rmtree(self.partial)
            else:
                raise InputError(
                    f"{faults[0]}; the set was damaged before it was in its place: begin anew with --force"
                )
        elif self.holds_set:
            shutil.rmtree(self._replaced, ignore_errors=True)

    @property
    def _replaced(self) -> Path:
        """Where an older set waits to be removed, while the new one takes its place."""
        return self.final.with_name(f".{self.final.name}.replaced")


def make_plan(settings: BuildSettings, sources: Sequence[Source], tokenizer: TokenizerFiles) -> dict[str, Any]:
    """All that decides the bytes of a set, and the sources' times."""
    return {
        "settings": settings.as_dict(),
        "tokenizer": dataclasses.asdict(tokenizer.entry),
        "sources": [dataclasses.asdict(source) for source in sources],
    }


def plan_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs, in words: `seed was 2333, now 7`."""
    differences = [
        f"--{name.replace('_', '-')} was {before['settings'].get(name)}, now {value}"
        for name, value in now["settings"].items()
        if before["settings"].get(name) != value
    ]
    if before["tokenizer"] != now["tokenizer"]:
        differences.append(f"the tokenizer was {before['tokenizer']['name']}, now {now['tokenizer']['name']}")
    if [source["path"] for source in before["sources"]] != [source["path"] for source in now["sources"]]:
        differences.append("the list of sources differs")
    else:
        changed = [new["path"] for old, new in zip(before["sources"], now["sources"], strict=True) if old != new]
        differences += [f"{path} has changed" for path in changed]
    return differences


def settings_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """As `plan_differences`, for two plans without their sources."""
    return plan_differences({**before, "sources": []}, {**now, "sources": []})
