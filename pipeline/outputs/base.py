"""An output is where a shard set grows and is published: a directory, or a prefix in an object store.

It holds two things: the set, which appears at once when it is complete, and the state of the build (`plan.json`, receipts,
duplicates), small files by name. Workers commit finished units to it, so it is picklable.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from pipeline.receipts import Receipt, encode_receipt, receipt_name, rejected_name
from pipeline.worker import REJECTED_PART
from shards.manifest import Manifest

# Of the state, all but the plan, as a regular expression.
STATE_FILES = r"receipts/\d+\.(json|rejected)|dedup/\d+\.(hashes|(near-)?duplicates)"


class Output(abc.ABC):
    """Every method raises `InputError` for what a person has to mend, and `TransientError` for what may pass."""

    def lock(self) -> AbstractContextManager[object]:
        """Be the one build that writes here, if the output can know of others."""
        return contextlib.nullcontext()

    @abc.abstractmethod
    def existing(self, *, force: bool = False) -> Manifest | None:
        """The manifest of the complete set that is there; a publishing that was interrupted is finished first.

        Raises `InputError` if something else is there, or a set whose manifest can't be read: with `force` that is None.
        """

    @abc.abstractmethod
    def same_sources(self, stamps: bytes) -> bool:
        """Whether the sources of the set that is there had these sizes and times."""

    @abc.abstractmethod
    def prepare(self, plan: bytes, *, replace: bool, force: bool = False) -> None:
        """Have `plan.json` there. With `replace`, an unfinished build goes first; with `force`, a set may be replaced."""

    def begun_ns(self) -> int | None:
        """When `plan.json` was written, where that can be compared with the times of local files."""
        return None

    @abc.abstractmethod
    def state_names(self) -> set[str]:
        """The names of all files of the build's state."""

    @abc.abstractmethod
    def read(self, name: str) -> bytes | None:
        """A file of the build's state, or None if it isn't there."""

    @abc.abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a file of the build's state: whole or not at all, and on the disk when this returns."""

    @abc.abstractmethod
    def scratch(self) -> AbstractContextManager[Path]:
        """An empty directory for a worker, on the disk that commits come from."""

    def commit(self, scratch: Path, receipt: Receipt) -> bytes:
        """Move a unit's files from `scratch` to the output, then write its receipt; the receipt's bytes."""
        files = sorted(scratch.iterdir())
        if (part := scratch / REJECTED_PART) in files:
            files.remove(part)
            self.write(rejected_name(receipt.unit), part.read_bytes())
        content = encode_receipt(dataclasses.replace(receipt, versions=self._add(files, receipt)))
        self.write(receipt_name(receipt.unit), content)
        return content

    @abc.abstractmethod
    def _add(self, files: list[Path], receipt: Receipt) -> dict[str, str]:
        """Move a unit's shard files to the output, and remove others of it; their versions, where the output has such."""

    @abc.abstractmethod
    def holds(self, receipts: Sequence[Receipt]) -> list[bool]:
        """For each receipt, whether all files of its unit are there, unchanged."""

    def free_bytes(self) -> int | None:
        """The room that is left, where that is known."""
        return None

    @abc.abstractmethod
    def publish(self, directory: Path) -> None:
        """Add the files in `directory` (manifest, tokenizer, …), which completes the set, and remove the build's state.

        At each instant of this, a kill loses no finished unit.
        """
