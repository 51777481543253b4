"""Names of repositories on a hub: `hf:ORG/NAME` or `ms:ORG/NAME`, with `@REVISION` where one is meant."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from shards.common.errors import InputError
from shards.common.text import printable

HubName = Literal["hf", "ms"]
HUB_TITLES: dict[HubName, str] = {"hf": "Hugging Face", "ms": "ModelScope"}

# Letters, digits, `_`, `.` and `-`, beginning with a letter or a digit: no part of a path that leads elsewhere.
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(rf"{_PART}(?:/{_PART})*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubReference:
    """A repository on a hub, at a revision (a branch, tag or commit; None: the hub's default)."""

    hub: HubName
    repository: str  # ORG/NAME
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.hub}:{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_reference(text: str) -> bool:
    """Whether `text` is meant as the name of a repository on a hub."""
    return text.startswith(tuple(f"{hub}:" for hub in HUB_TITLES))


def parse_reference(text: str) -> HubReference:
    """The repository that `text` names. Raises `InputError` if it is no `hf:` or `ms:` with `ORG/NAME[@REVISION]`."""
    for hub in HUB_TITLES:
        if text.startswith(f"{hub}:"):
            repository, at, revision = text.removeprefix(f"{hub}:").partition("@")
            if not _REPOSITORY.fullmatch(repository) or (at and not _REVISION.fullmatch(revision)) or ".." in text:
                break
            return HubReference(hub=hub, repository=repository, revision=revision or None)
    raise InputError(
        f"{printable(text)!r}: expected hf:ORG/NAME or ms:ORG/NAME (then @REVISION, if need be), as in hf:Qwen/Qwen2-0.5B"
    )
