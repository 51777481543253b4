"""Sets for the tests of merging and splitting, and what they are compared by."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import shards
from pipeline import build as build_module
from pipeline import engine
from pipeline.settings import BuildSettings
from shards.manifest import read_manifest
from tests.conftest import directory_bytes, sample_records

PACKINGS = ["concat", "best-fit", "tutorial"]
TEXTS = [record["text"] for record in sample_records()]
Corpora = Mapping[str, Sequence[Any]]


def build_set(out: Path, corpora: Corpora | Sequence[Any], tokenizer_dir: Path, **options: Any) -> Path:
    """Build `out` of one source for each of `corpora`, by name; a source's items are texts or whole records.

    Each is filled up with spaces to a whole number of units, so that no unit holds parts of two.
    """
    settings = BuildSettings(**{"block_tokens": 64, "val_fraction": 0.2, "unit_bytes": 20_000, **options})
    out.parent.mkdir(parents=True, exist_ok=True)
    sources = []
    for name, records in (corpora if isinstance(corpora, Mapping) else {"corpus": corpora}).items():
        items = [{"text": record} if isinstance(record, str) else record for record in records]
        lines = "".join(json.dumps(item) + "\n" for item in items)
        path = out.parent / f"{name}.jsonl"
        path.write_text(lines + " " * (-len(lines) % settings.unit_bytes), encoding="ascii")
        sources.append(str(path))
    build_module.build(sources, out, tokenizer_name=str(tokenizer_dir), settings=settings, num_workers=1, check_every=0)
    return out


def build_packings(directory: Path, tokenizer_dir: Path) -> dict[str, Path]:
    """The sample in each packing. For fixtures of a module, which `inline_engine` can't be asked by."""

    def run_inline(job: Any, tasks: Any, num_workers: int, progress: Any) -> Iterator[tuple[int, None]]:
        for task in tasks:
            engine.run_task(job, task, progress)
            yield task.unit.number, None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "run_tasks", run_inline)
        return {name: build_set(directory / name, TEXTS, tokenizer_dir, packing=name) for name in PACKINGS}


def documents(directory: Path, split: str) -> list[bytes]:
    return [document.tobytes() for document in shards.open(directory)[split].documents()]


def content(directory: Path) -> dict[str, bytes]:
    """The shards, indexes and rejected records of a set."""
    suffixes = (".bin", ".idx", "rejected.jsonl")
    return {name: data for name, data in directory_bytes(directory).items() if name.endswith(suffixes)}


def without_origin(directory: Path) -> dict[str, Any]:
    """The manifest without what says how the set was made."""
    manifest = dataclasses.asdict(read_manifest(directory))
    return {key: value for key, value in manifest.items() if key not in ("settings", "fingerprint")}


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def is_part_in_order(part: list[bytes], whole: list[bytes]) -> bool:
    rest = iter(whole)
    return all(document in rest for document in part)


def flip_a_bit(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
