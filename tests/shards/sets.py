"""Shard sets for the tests, made of ids: a token is a byte of UTF-8, and EOS is 256."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

import shards
from shards.layout import SPLITS, SplitName
from shards.manifest import Packing, RejectedEntry, canonical_json
from shards.set_writer import DocumentBatch, NewSet, new_directory
from shards.tokenizer_files import TokenizerFiles, bytes_of_characters, make_tokenizer_files
from tests.conftest import directory_bytes, sample_records

EOS = 256
PACKINGS: tuple[Packing, ...] = ("concat", "best-fit")
TEXTS = [record["text"] for record in sample_records()]
Documents = Sequence[Sequence[int]]  # ids, without EOS
Unit = Mapping[SplitName, Documents]


def byte_tokenizer(eos_id: int = EOS, **model: Any) -> TokenizerFiles:
    content = {
        "model": {"type": "BPE", "vocab": dict(bytes_of_characters()), "merges": [], **model},
        "added_tokens": [{"id": eos_id, "content": "</s>", "special": True}],
        "decoder": {"type": "ByteLevel"},
    }
    return make_tokenizer_files("bytes", content, {}, where="tests")


def write_set(
    out: Path,
    units: Sequence[Unit],
    *,
    packing: Packing = "concat",
    block_tokens: int = 16,
    tokenizer: TokenizerFiles | None = None,
    rejected: Mapping[str, int] | None = None,
    **manifest: Any,
) -> Path:
    """A set of the documents of `units`, each of which becomes the shards of its number."""
    tokenizer = tokenizer or byte_tokenizer()
    with new_directory(out) as directory:
        new_set = NewSet(directory, block_tokens=block_tokens, packing=packing, tokenizer=tokenizer)
        for number, unit in enumerate(units):
            new_set.add_unit(number, _batches(unit, tokenizer.eos_id))
        lines = [f'{{"kind": "{kind}"}}\n' * number for kind, number in (rejected or {}).items()]
        if lines:
            (directory / "rejected.jsonl").write_text("".join(lines))
            manifest["rejected"] = [RejectedEntry(kind=kind, num_records=n) for kind, n in (rejected or {}).items()]
        new_set.finish(**{"sources": [], "settings": {"block_tokens": block_tokens}, **manifest})
    return out


def _batches(unit: Unit, eos_id: int) -> Iterator[DocumentBatch]:
    for name, documents in unit.items():
        for part in (documents[:3], documents[3:]):
            if part:
                tokens = np.array([token for document in part for token in [*document, eos_id]], dtype=np.uint32)
                yield name, tokens, np.array([len(document) + 1 for document in part])


def text_units(texts: Sequence[str], *, per_unit: int = 25, val_every: int = 6) -> list[Unit]:
    """The texts in units of `per_unit`, each `val_every`th of them in val."""
    units: list[Unit] = []
    for first in range(0, len(texts), per_unit):
        ids = [list(text.encode()) for text in texts[first : first + per_unit]]
        train = [own for number, own in enumerate(ids) if number % val_every]
        units.append({"train": train, "val": ids[::val_every]})
    return units


def documents_of(directory: Path, *splits: str) -> list[list[int]]:
    opened = shards.open(directory)
    return [document.tolist() for split in splits or SPLITS for document in opened[split].documents()]


def shard_files(directory: Path) -> dict[str, bytes]:
    """The shards, indexes and rejected records of a set."""
    suffixes = (".bin", ".idx", "rejected.jsonl")
    return {name: data for name, data in directory_bytes(directory).items() if name.endswith(suffixes)}


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def flip_a_bit(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)


def forge(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest, with the fingerprint that belongs to it: whoever changes one can do that."""
    path = directory / "manifest.json"
    content = json.loads(path.read_bytes())
    edit(content)
    content.pop("fingerprint", None)
    content["fingerprint"] = blake3(canonical_json(content)).hexdigest()
    path.write_text(json.dumps(content), encoding="utf-8")
