"""What a set that is there was made from, compared with what a build would make it from."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.finish import encode_stamps, source_digest
from pipeline.hub_place import HubPlace
from pipeline.place import Place, settings_differences
from pipeline.remote_place import RemotePlace
from pipeline.settings import BuildSettings
from pipeline.sources import Source
from shards.common.errors import InputError
from shards.common.files import write_atomically
from shards.manifest import MANIFEST_NAME, STAMPS_NAME, Manifest, read_manifest

AnyPlace = Place | RemotePlace | HubPlace


def is_staged(
    place: AnyPlace, plan: dict[str, Any], sources: Sequence[Source], settings: BuildSettings, *, force: bool
) -> bool:
    """Whether an earlier run has left this very set on the disk, and it has only to be uploaded.

    Raises `InputError` if it is another one, unless with `force`.
    """
    if not isinstance(place, HubPlace) or not place.holds_staged:
        return False
    differences = _differences(place.staging.final, plan, sources, settings)
    if differences and not force:
        raise InputError(
            f"{place.staging.final}: a set from other inputs waits to be uploaded ({'; '.join(differences)}); repeat the "
            "command it was built with, or begin anew with --force"
        )
    return not differences


def check_existing(place: AnyPlace, plan: dict[str, Any], sources: Sequence[Source], settings: BuildSettings) -> None:
    """Raise `InputError` unless the set that is there was made by this very build."""
    if not place.existing.is_dir() or not (place.existing / MANIFEST_NAME).is_file():
        raise InputError(f"{place}: exists and is no shard set; choose another --out, or move it elsewhere")
    if differences := _differences(place.existing, plan, sources, settings):
        raise InputError(
            f"{place}: a shard set from other inputs is there ({'; '.join(differences)}); "
            "choose another --out, or build it anew with --force"
        )


def _differences(
    directory: Path, plan: dict[str, Any], sources: Sequence[Source], settings: BuildSettings
) -> list[str]:
    """What differs between the set in `directory` and the one that this build would make, in words."""
    manifest = read_manifest(directory)
    before = {"settings": manifest.settings, "tokenizer": dataclasses.asdict(manifest.tokenizer)}
    differences = settings_differences(before, plan)
    if not differences and not _same_sources(directory, manifest, sources, settings):
        differences = ["the sources have changed"]
    return differences


def _same_sources(out: Path, manifest: Manifest, sources: Sequence[Source], settings: BuildSettings) -> bool:
    """Whether the set was built from these sources: by their times, else by their digests."""
    stamps = encode_stamps(sources)
    with contextlib.suppress(OSError):
        if (out / STAMPS_NAME).read_bytes() == stamps:
            return True
    recorded = [(entry.path, entry.num_bytes) for entry in manifest.sources]
    if recorded != [(source.name, source.num_bytes) for source in sources]:
        return False
    for entry, source in zip(manifest.sources, sources, strict=True):
        if source.format != "hub" and source_digest(source, settings.unit_bytes) != entry.digest:
            return False
    with contextlib.suppress(OSError):
        write_atomically(out / STAMPS_NAME, stamps)
    return True
