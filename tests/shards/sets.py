"""Shard sets for the tests, made of ids: a token is a byte of UTF-8, and EOS is 256."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from blake3 import blake3

import shards
from shards.layout import SPLITS, SplitName
from shards.manifest import Packing, SourceEntry, canonical_json
from shards.reader import ShardSet
from shards.report.page import make_page
from shards.report.statistics import Statistics, compute
from shards.set_writer import DocumentBatch, NewSet, new_directories
from shards.tokenizer_files import (
    TokenizerFiles,
    bytes_of_characters,
    load_tokenizer,
    make_tokenizer_files,
    read_vocabulary,
)
from tests.conftest import directory_bytes, sample_records

EOS = 256
PACKINGS: tuple[Packing, ...] = ("concat", "best-fit")
TEXTS = [record["text"] for record in sample_records()]
# Short and long texts, some of them more than once, in more scripts than the sample has.
MIXED = [
    *TEXTS[:14],
    "Ещё один текст, по-русски.\nСтрока два\tс табуляцией.",
    "かな と カナ、한국어도 조금 있다. Ωμέγα! ½ ✓ 🙂",
    "重",
    *TEXTS[3:9],
    "重",
    "Latin with àccénts, digits 0123 ４５６, and more.",
    *TEXTS[:3],
    "重",
    TEXTS[0],
]
Documents = Sequence[Sequence[int]]  # ids, without EOS
Unit = Mapping[SplitName, Documents]


def tokenizer_files(
    name: str, vocabulary: dict[str, int], eos_id: int, *, byte_fallback: bool = False, decoder: Any = None
) -> TokenizerFiles:
    content = {
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [], "byte_fallback": byte_fallback},
        "added_tokens": [{"id": eos_id, "content": "</s>", "special": True}],
        "decoder": decoder,
    }
    return make_tokenizer_files(name, content, {}, where="tests")


def byte_tokenizer() -> TokenizerFiles:
    return tokenizer_files("bytes", dict(bytes_of_characters()), EOS, decoder={"type": "ByteLevel"})


def byte_fallback_tokenizer() -> TokenizerFiles:
    """`hello` and the three bytes of 你, as a vocabulary of SentencePiece's kind has them; EOS is 4."""
    vocabulary = {"hello": 0, "<0xE4>": 1, "<0xBD>": 2, "<0xA0>": 3}
    return tokenizer_files("fallback", vocabulary, 4, byte_fallback=True)


def write_tokenizer(directory: Path, tokenizer: TokenizerFiles) -> Path:
    for name, content in tokenizer.contents.items():
        (directory / name).write_bytes(content)
    return directory


def source(path: str = "corpus.json", num_bytes: int = 1000, num_records: int = 1) -> SourceEntry:
    return SourceEntry(
        path=path, format="json", num_bytes=num_bytes, digest="0" * 64, num_ranges=1, num_records=num_records
    )


def write_set(
    out: Path,
    units: Sequence[Unit],
    *,
    packing: Packing = "concat",
    block_tokens: int = 16,
    tokenizer: TokenizerFiles | None = None,
    rejected: Mapping[str, int] | None = None,
    examples: str = "",
    **manifest: Any,
) -> Path:
    """A set of the documents of `units`, each of which becomes the shards of its number."""
    tokenizer = tokenizer or byte_tokenizer()
    with new_directories([out]) as (directory,):
        new_set = NewSet(directory, block_tokens=block_tokens, packing=packing, tokenizer=tokenizer)
        for number, unit in enumerate(units):
            new_set.add_unit(number, _batches(unit, tokenizer.eos_id))
        lines = [f'{{"kind": "{kind}"}}\n' * number for kind, number in (rejected or {}).items()]
        if lines:
            (directory / "rejected.jsonl").write_text("".join(lines))
            manifest["rejected"] = rejected
        if examples:
            (directory / "left_out.jsonl").write_text(examples)
        new_set.finish(**{"sources": [], "settings": {"block_tokens": block_tokens}, **manifest})
    return out


def _batches(unit: Unit, eos_id: int) -> Iterator[DocumentBatch]:
    for name, documents in unit.items():
        for part in (documents[:3], documents[3:]):
            if part:
                tokens = np.array([token for document in part for token in [*document, eos_id]], dtype=np.uint32)
                yield name, tokens, np.array([len(document) + 1 for document in part])


def text_units(
    texts: Sequence[str],
    *,
    per_unit: int = 20,
    encode: Callable[[str], Sequence[int]] = lambda text: list(text.encode()),
) -> list[Unit]:
    """The texts in units of `per_unit`, each fifth of them in val."""
    units: list[Unit] = []
    for first in range(0, len(texts), per_unit):
        ids = [encode(text) for text in texts[first : first + per_unit]]
        units.append({"train": [own for number, own in enumerate(ids) if number % 5 != 1], "val": ids[1::5]})
    return units


def build_set(directory: Path, tokenizer_dir: Path, texts: Sequence[str], **options: Any) -> Path:
    """A set of `texts` by a real tokenizer, in blocks of 64 tokens."""
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    units = text_units(texts, encode=lambda text: tokenizer.encode(text, add_special_tokens=False).ids)
    own: dict[str, Any] = {"block_tokens": 64, "sources": [source(num_records=len(texts))], "settings": {"seed": 1}}
    return write_set(directory / "set", units, tokenizer=load_tokenizer(tokenizer_dir), **(own | options))


def documents_of(directory: Path, *splits: str) -> list[list[int]]:
    opened = shards.open(directory)
    return [document.tolist() for split in splits or SPLITS for document in opened[split].documents()]


def shard_files(directory: Path) -> dict[str, bytes]:
    """The shards, indexes and rejected records of a set."""
    suffixes = (".bin", ".idx", "rejected.jsonl")
    return {name: data for name, data in directory_bytes(directory).items() if name.endswith(suffixes)}


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def forge(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest, with the fingerprint that belongs to it: whoever changes one can do that."""
    path = directory / "manifest.json"
    content = json.loads(path.read_bytes())
    edit(content)
    content.pop("fingerprint", None)
    content["fingerprint"] = blake3(canonical_json(content)).hexdigest()
    path.write_text(json.dumps(content), encoding="utf-8")


def page_of(opened: Path | ShardSet, *, seed: int = 2333, statistics: Statistics | None = None) -> str:
    shard_set = opened if isinstance(opened, ShardSet) else shards.open(opened)
    vocabulary = read_vocabulary(shard_set.tokenizer_path)
    return make_page(shard_set.manifest, statistics or compute(shard_set, seed=seed), vocabulary).decode()
