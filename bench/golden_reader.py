"""Run by `bench.golden` in the checkout that is looked at: what the sets below a directory hold, as JSON.

Uses what `shards` promises to others, and of `manifest.json` the fields that say how much a set holds.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import shards

COUNTS = ("num_records", "block_tokens", "packing")
SPLIT_COUNTS = ("num_documents", "num_tokens", "num_text_bytes", "num_text_chars")
SHUFFLES: tuple[shards.Shuffle, ...] = ("global", "window", "none")


def digest(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:24]


def numbers(array: npt.ArrayLike) -> str:
    """A digest of all, their number, and the first ones."""
    flat = np.asarray(array).astype("<i8").reshape(-1)
    return f"{digest([flat.tobytes()])} of {len(flat):,}: {flat[:12].tolist()}"


def split_documents(split: shards.Split) -> dict[str, Any]:
    documents = [np.asarray(document).astype("<u4") for document in split.documents()]
    digests = [hashlib.sha256(document.tobytes()).digest() for document in documents]
    return {
        "number": len(documents),
        "in order": digest(digests),
        "any order": digest(sorted(digests)),
        "lengths": numbers([len(document) for document in documents]),
        "first": [str(document[:12].tolist()) for document in documents[:3]],
    }


def _left_out_by_fields(manifest: dict[str, Any]) -> dict[str, int]:
    """As older manifests have it."""
    counts = {"duplicate": manifest.get("num_duplicates", 0), "empty": manifest.get("num_empty", 0)}
    return {reason: number for reason, number in counts.items() if number}


def _as_counts(rejected: Any) -> dict[str, int]:
    """Older manifests have a list of entries."""
    return rejected if isinstance(rejected, dict) else {entry["kind"]: entry["num_records"] for entry in rejected}


def set_counts(manifest: dict[str, Any]) -> dict[str, Any]:
    return {
        **{key: manifest[key] for key in COUNTS},
        "left_out": manifest.get("left_out") or _left_out_by_fields(manifest),
        "rejected": _as_counts(manifest["rejected"]),
        "splits": {name: {key: split[key] for key in SPLIT_COUNTS} for name, split in manifest["splits"].items()},
        # Not those of imported shards, whose number is the old set's own affair.
        "sources": [
            f"{entry['path']}: {entry['num_records']}"
            for entry in manifest["sources"]
            if not entry["path"].endswith(".bin")
        ],
    }


def orders(work: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for size, seed, epoch in itertools.product((1, 2, 3, 5, 64, 1000, 4097, 100_003), (0, 2333, 2**64 - 1), (0, 1, 7)):
        found[f"epoch_order {size} {seed} {epoch}"] = numbers(shards.epoch_order(size, seed, epoch, range(size)))
    for size, seed, epoch in itertools.product((1, 4095, 4096, 4097, 10_000, 50_001), (0, 2333), (0, 3)):
        found[f"window_order {size} {seed} {epoch}"] = numbers(shards.window_order(size, seed, epoch, range(size)))
    mixtures = [((10,), (1000,)), ((100, 37), (700, 300)), ((5, 9000, 300), (1, 900, 99)), ((2, 2), (500, 500))]
    for (sizes, shares), shuffle in itertools.product(mixtures, SHUFFLES):
        run = shards.RunOrder(sizes, 42, shuffle, shares)
        found[f"RunOrder {sizes} {shuffle}"] = [numbers(run.blocks(0, 3000)), numbers(run.blocks(12_345, 12_400))]
    for world_size, steps in ((1, 1), (2, 3), (8, 2)):
        dealt = [
            shards.rank_positions(7, rank=rank, world_size=world_size, micro_batch_blocks=4, accumulation_steps=steps)
            for rank in range(world_size)
        ]
        found[f"rank_positions {world_size} {steps}"] = numbers(dealt)
    # Each made of one unit and packed by concat, so that the numbers of blocks follow from the documents alone.
    parts = [str(work / "sets" / name) for name in ("array", "lines", "special-text")]
    for weights in ((":0.7", ":0.2", ":0.1"), (":1", ":1", ":1"), (":1epochs", ":4epochs", ":0.5epochs"), ("", "", "")):
        mixture = shards.open_data(",".join(map("".join, zip(parts, weights, strict=True))))
        run = shards.run_order(mixture, seed=9)
        found[f"mixture {weights}"] = {
            "description": mixture.description.replace(str(work), "W"),
            "blocks in an epoch": shards.epoch_blocks(mixture),
            "blocks": numbers(run.blocks(0, 2500)),
            "tokens": numbers(mixture["train"][run.blocks(990, 1010)]),
        }
    return found


def main(work: Path) -> None:
    found: dict[str, dict[str, Any]] = {kind: {} for kind in ("documents", "counts", "order", "messages")}
    for path in sorted(path.parent for path in (work / "sets").glob("*/manifest.json")):
        try:
            read_set(path, found)
        except Exception as error:  # the others are worth reading all the same
            found["documents"][path.name] = f"can't be read: {error!r}".replace(str(work), "W")
    found["order"] = orders(work)
    json.dump(found, sys.stdout, ensure_ascii=False)


def read_set(path: Path, found: dict[str, dict[str, Any]]) -> None:
    shard_set, manifest = shards.open(path), json.loads((path / "manifest.json").read_bytes())
    counts = found["counts"][path.name] = set_counts(manifest)
    for name in manifest["splits"]:
        found["documents"][f"{path.name}, {name}"] = split_documents(shard_set[name])
    if (path / "rejected.jsonl").exists():
        rejected = [json.loads(line) for line in (path / "rejected.jsonl").read_text("utf-8").splitlines()]
        found["messages"][f"{path.name}: reasons"] = [entry.pop("reason") for entry in rejected]
        starts = [entry | {"record": entry["record"][:12]} for entry in rejected]
        counts["rejected records"] = [json.dumps(entry, sort_keys=True) for entry in starts]


main(Path(sys.argv[1]))
