"""The lock files: which packages at which versions, and which of them a training or a build needs."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.lock", "requirements-dev.lock")


def read_lock(name: str) -> dict[str, str]:
    """The versions of a lock file by its names. Raises `ValueError` for a line that pins nothing."""
    versions = {}
    for line in (REPOSITORY / name).read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s*]+)", line)
        if match is None:
            raise ValueError(f"{name}: expected NAME==VERSION, found {line!r}")
        versions[match[1]] = match[2]
    return versions


def locked_versions() -> dict[str, str]:
    """Of all lock files."""
    return {name: version for lock in LOCKS for name, version in read_lock(lock).items()}


def requirements(group: str | None = None) -> list[Requirement]:
    """What pyproject.toml asks for: to run (None), or for an extra."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] if group is None else project["optional-dependencies"][group]
    return [Requirement(line) for line in lines]


def needed(asked: Iterable[Requirement]) -> set[str]:
    """The canonical names of the packages asked for and of all that these ask for, as installed here."""
    found: set[str] = set()
    seen = set()
    waiting = [(canonicalize_name(one.name), frozenset(one.extras)) for one in asked]
    while waiting:
        name, extras = one = waiting.pop()
        found.add(name)
        if one in seen:
            continue
        seen.add(one)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found
