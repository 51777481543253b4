"""Builds for the tests: small units, a small tokenizer, and ways to look at what came of them and to break off."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import shards
from pipeline import build as build_module
from pipeline.build import BuildResult, Reporter, build
from pipeline.settings import BuildSettings
from shards.common.urls import join, listing, read_bytes
from shards.tokenizer_files import read_vocabulary
from tests.conftest import directory_bytes, sample_records

TEXTS = [record["text"] for record in sample_records()]
_SETTINGS = {field.name for field in dataclasses.fields(BuildSettings)}


class Killed(BaseException):
    """Nothing that is written down cleans up after this."""


@dataclasses.dataclass(frozen=True)
class Builder:
    """Builds with small units; fields of `BuildSettings` and options of `build` alike are named arguments."""

    tokenizer_dir: Path

    def __call__(self, sources: Path | str | Sequence[Path | str], out: Path | str, **options: Any) -> BuildResult:
        settings = {name: options.pop(name) for name in _SETTINGS & options.keys()}
        return build(
            [str(sources)] if isinstance(sources, Path | str) else list(map(str, sources)),
            out,
            settings=BuildSettings(**{"block_tokens": 64, "unit_bytes": 20_000, **settings}),
            **{"tokenizer_name": str(self.tokenizer_dir), "num_workers": 1, **options},
        )


def texts_in(directory: Path, *splits: Any) -> list[str]:
    """The texts of all documents, as the shards have them."""
    shard_set = shards.open(directory)
    vocabulary = read_vocabulary(shard_set.tokenizer_path)
    return [
        vocabulary.text(document) for name in splits or ("train", "val") for document in shard_set[name].documents()
    ]


def stored(out: str) -> dict[str, bytes]:
    """All files below a URL or a directory with their content."""
    if "://" not in out:
        return directory_bytes(Path(out))
    return {name: read_bytes(join(out, name)) or b"" for name in listing(out)}


@contextlib.contextmanager
def killed_at(number: int, calls: Sequence[tuple[object, str]]) -> Iterator[list[str]]:
    """Raise `Killed` in place of call `number` of these functions, counted together, and of every one after it.

    Yields the names of those that were called.
    """
    seen: list[str] = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            seen.append(function.__name__)
            if len(seen) > number:
                raise Killed
            return function(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in calls:
            patch.setattr(owner, name, counted(getattr(owner, name)))
        yield seen


@contextlib.contextmanager
def killed_before_publishing() -> Iterator[None]:
    """A build within is killed when all of its units are done."""

    with killed_at(0, [(build_module, "write_set")]), pytest.raises(Killed):
        yield


class Heard(Reporter):
    """Keeps what it is notified of."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.counts: list[tuple[int, int, int]] = []

    def notice(self, line: str) -> None:
        self.notices.append(line)

    def progress(self, num_bytes: int, num_tokens: int, num_rejected: int) -> None:
        self.counts.append((num_bytes, num_tokens, num_rejected))
