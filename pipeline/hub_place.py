"""The place of a build in a data set on Hugging Face, where each change is a commit: built on this machine, put as one.

tokenize-once/uploads/NAME-DIGEST           in the user's cache: the finished set, until the hub has it
tokenize-once/uploads/NAME-DIGEST.partial   the build in progress, and all else as `pipeline.place` has it

DIGEST is the URL's. The manifest comes with the same commit as all other files: a reader sees a whole set or none. What
lies in the cache goes only when the hub lists each file of the commit with its digest.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import re
import shutil
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from blake3 import blake3

from pipeline.engine import signals_held_back, take_signals
from pipeline.place import Place
from pipeline.remote_place import fetch_manifest
from shards.common.errors import InputError, TransientError
from shards.common.files import user_cache
from shards.common.text import plural, size_text
from shards.hub import upload as hub
from shards.hub.hugging_face import endpoint
from shards.hub.remote import ConnectionFailed
from shards.manifest import MANIFEST_NAME, REJECTED_NAME, STAMPS_NAME, decode_table_entries, read_manifest
from shards.verify import verify

# Of the files of a folder the hub takes no more; a unit has up to four (two of train, two of val).
_MAX_FILES = 10_000
_FILES_OF_UNIT, _OTHER_FILES = 4, 16
# What a set may lie beside without being something else's folder.
_NEIGHBOURS = re.compile(r"\.git[a-z]*|README\.md|LICENSE(\.[a-z]+)?")
_OURS = re.compile(
    rf"{re.escape(MANIFEST_NAME)}|{re.escape(STAMPS_NAME)}|{re.escape(REJECTED_NAME)}|(shards|tails)\.table|"
    r"(train|val)-\d+\.(bin|idx)|tokenizer/[^/]+"
)


def is_of_set(name: str) -> bool:
    """Whether a set has files of this name: they go when another set takes its place."""
    return _OURS.fullmatch(name) is not None


class HubPlace:
    """Where a shard set is built for a data set's repository."""

    url = ""  # workers write to this machine's disk

    def __init__(
        self, url: str, *, notice: Callable[[str], None] = lambda _line: None, shows_bars: bool = False
    ) -> None:
        """`notice` is told in a line what takes time, and where things lie."""
        self._folder = hub.parse_folder(url)
        self._name, self._notice, self._shows_bars = url.rstrip("/"), notice, shows_bars
        digest = blake3(f"{endpoint()} {self._folder.at(self._folder.revision)}".encode()).hexdigest()[:16]
        last = (self._folder.path or self._folder.repository).rpartition("/")[2]
        self.staging = Place(
            user_cache().absolute() / "uploads" / f"{last}-{digest}", elsewhere="choose another place (XDG_CACHE_HOME)"
        )

    def __str__(self) -> str:
        return self._name

    @property
    def elsewhere(self) -> str:
        return self.staging.elsewhere

    @property
    def directory(self) -> Path:
        return self.staging.directory

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock on what lies in the cache, and have looked at the hub."""
        self._token = hub.find_token(self._folder)
        with self.staging.lock(), tempfile.TemporaryDirectory(prefix="tokenize-once-") as name:
            self._temporary = Path(name)
            with self._reached():
                self._state = hub.look(self._folder, self._token)
            yield

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except ConnectionFailed as error:
            raise TransientError(
                f"{self._folder.address}: can't be reached ({error}); the same command goes on when it can"
            ) from None

    @property
    def existing(self) -> Path:
        """Where `fetch_existing` puts what a finished set says of itself."""
        return self._temporary / "existing"

    def fetch_existing(self) -> None:
        """Get the manifest of the set that is there, with its tables. If it is the one that lies here, that goes."""
        fetch_manifest(self._folder.at(self._state.commit or self._folder.revision), self.existing)
        if self.staging.holds_set and (self.existing / MANIFEST_NAME).exists():
            here, there = (read_manifest(directory).fingerprint for directory in (self.staging.final, self.existing))
            if here == there:  # the hub had it when the build was killed, or its answer was lost
                self._remove_staged()

    @property
    def holds_set(self) -> bool:
        """Whether a finished set is there."""
        return MANIFEST_NAME in self._state.files

    @property
    def is_there(self) -> bool:
        """Whether a finished set is there, or something else."""
        return self.holds_set or any(not _NEIGHBOURS.fullmatch(name) for name in self._state.files)

    def finish_publishing(self, *, force: bool = False) -> None:
        """Do what is left to do of a run that was killed, in the cache."""
        shutil.rmtree(self._uploaded, ignore_errors=True)
        self.staging.finish_publishing(force=force)

    def discard_partial(self) -> None:
        """Remove an unfinished build."""
        self.staging.discard_partial()

    @property
    def holds_staged(self) -> bool:
        """Whether a whole set lies in the cache. A damaged one is removed: it is built anew."""
        if not self.staging.holds_set:
            return False
        try:
            is_whole = not verify(self.staging.final)
        except InputError:
            is_whole = False
        if not is_whole:
            self._notice(f"{self.staging.final}: was damaged since it was built, and is built anew")
            self._remove_staged()
        return is_whole

    def prepare(self, plan: dict[str, Any]) -> None:
        """As `Place.prepare`; and raises `InputError` if the set couldn't be put where it belongs."""
        self._check_may_write()
        self._notice(f"building in {self.staging.final}, then one commit to {self}")
        self.staging.prepare(plan)

    def check_files(self, num_units: int) -> None:
        """Raise `InputError` if a set of so many units has more files than the hub takes."""
        num_files = _FILES_OF_UNIT * num_units + _OTHER_FILES
        if num_files > _MAX_FILES:
            raise InputError(
                f"{self}: {plural(num_units, 'unit')} make up to {num_files:,} files, a folder on Hugging Face takes "
                f"{_MAX_FILES:,}; choose a larger --unit-bytes, or build to a directory or a bucket"
            )

    def publish(self) -> None:
        """Turn the build in progress into a finished set, in the cache. `upload` comes next."""
        self.staging.publish()

    def upload(self) -> None:
        """Put the finished set where it belongs, see that it is there, and remove it here."""
        directory = self.staging.final
        sizes = [path.stat().st_size for path in directory.rglob("*") if path.is_file()]
        self._notice(f"uploading {size_text(sum(sizes))} in {plural(len(sizes), 'file')} to {self}")
        kept = f"the set is kept in {directory}, the same command only uploads it"
        try:
            self._check_may_write()
            run = functools.partial(
                hub.upload,
                directory,
                self._folder,
                self._token,
                before=self._state,
                is_ours=is_of_set,
                mark=MANIFEST_NAME,
                title=f"Shard set {read_manifest(directory).fingerprint[:16]}",
                shows_bars=self._shows_bars,
            )
            commit = _in_process(run)
        except KeyboardInterrupt as stop:
            raise type(stop)(kept) from None
        except ConnectionFailed as error:
            raise TransientError(f"{self}: the upload failed ({error}); {kept}") from None
        except InputError as error:
            raise InputError(f"{error}; {kept}") from None
        self._notice(f"commit {commit}")
        self.existing.mkdir(exist_ok=True)
        content = (directory / MANIFEST_NAME).read_bytes()
        _fingerprint, tables = decode_table_entries(content, str(directory / MANIFEST_NAME))
        for name in (MANIFEST_NAME, *(table.file for table in tables)):
            shutil.copyfile(directory / name, self.existing / name)
        self._remove_staged()

    def _check_may_write(self) -> None:
        with self._reached():
            hub.check_may_write(self._folder, self._token)

    def _remove_staged(self) -> None:
        """Remove the finished set in the cache; a half-removed one never has its name."""
        shutil.rmtree(self._uploaded, ignore_errors=True)
        os.rename(self.staging.final, self._uploaded)
        shutil.rmtree(self._uploaded)

    @property
    def _uploaded(self) -> Path:
        final = self.staging.final
        return final.with_name(f".{final.name}.uploaded")


def _in_process(run: Callable[[], str]) -> str:
    """The result of `run`, in a process of its own: the client's threads would keep this one from ending at Ctrl-C.

    Raises what `run` raises of `InputError` and `ConnectionFailed`, and `RuntimeError` for a fault of ours.
    """
    context: Any = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_upload_main, args=(theirs, run), daemon=True)
    try:
        with signals_held_back(spawns=True):  # it has no answer to them before it runs our code
            process.start()
        theirs.close()
        try:
            kind, text = ours.recv()
        except (EOFError, ConnectionResetError):
            process.join()
            raise ConnectionFailed(f"its process died with exit code {process.exitcode}") from None
    finally:
        ours.close()
        if process.pid is not None:
            process.kill()
            process.join()
    if kind == "input":
        raise InputError(text)
    if kind == "connection":
        raise ConnectionFailed(text)
    if kind == "fault":
        raise RuntimeError(f"the upload failed:\n{text}")
    return str(text)


def _upload_main(pipe: Connection, run: Callable[[], str]) -> None:
    take_signals()
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    try:
        outcome = "done", run()
    except InputError as error:
        outcome = "input", str(error)
    except ConnectionFailed as error:
        outcome = "connection", str(error)
    except BaseException:
        outcome = "fault", traceback.format_exc()
    with contextlib.suppress(BrokenPipeError):
        pipe.send(outcome)


def _end_with_parent(pipe: Connection) -> None:
    """Nothing is committed for a parent that is gone: nobody would know."""
    with contextlib.suppress(EOFError, OSError):
        pipe.recv()
    os._exit(1)
