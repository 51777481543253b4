"""Sets for the tests of the report, and how its pages are made and read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

import shards
from shards.__main__ import make_parser
from shards.layout import SplitName
from shards.manifest import Packing, SourceEntry
from shards.reader import ShardSet
from shards.report.page import make_page
from shards.report.statistics import Statistics, compute
from shards.set_writer import DocumentBatch, NewSet, new_directory
from shards.tokenizer_files import load_tokenizer, read_vocabulary

SAMPLE = Path(__file__).parents[2] / "data" / "sample" / "wikipedia-zh-sample.json"
TEXTS = [record["text"] for record in json.loads(SAMPLE.read_text(encoding="utf-8"))]
# Short and long texts, some of them more than once, in more scripts than the sample has.
MIXED = [
    *TEXTS[:40],
    "Ещё один текст, по-русски.\nСтрока два\tс табуляцией.",
    "かな と カナ、한국어도 조금 있다. Ωμέγα! ½ ✓ 🙂",
    "重",
    *TEXTS[5:25],
    "重",
    "Latin with àccénts, digits 0123 ４５６, and more.",
    *TEXTS[:3],
    "重",
    TEXTS[0],
]


def source(path: str = "corpus.json", num_bytes: int = 1000, num_records: int = 1) -> SourceEntry:
    return SourceEntry(
        path=path, format="json", num_bytes=num_bytes, digest="0" * 64, num_ranges=1, num_records=num_records
    )


def build_set(
    directory: Path,
    tokenizer_dir: Path,
    texts: Sequence[str],
    *,
    packing: Packing = "concat",
    block_tokens: int = 64,
    unit_documents: int = 20,
    val_every: int = 5,
    **manifest: Any,
) -> Path:
    """A set of `texts`, each `val_every`th of them in the validation split (0: none)."""
    directory.mkdir(exist_ok=True, parents=True)
    files = load_tokenizer(tokenizer_dir)
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))

    def batch(number: int) -> DocumentBatch:
        ids = [*tokenizer.encode(texts[number], add_special_tokens=False).ids, files.eos_id]
        name: SplitName = "val" if val_every and number % val_every == 1 else "train"
        return name, np.array(ids, dtype=np.uint32), np.array([len(ids)])

    with new_directory(directory / "set") as partial:
        new_set = NewSet(partial, block_tokens=block_tokens, packing=packing, tokenizer=files)
        for unit, start in enumerate(range(0, len(texts), unit_documents)):
            new_set.add_unit(unit, map(batch, range(start, min(start + unit_documents, len(texts)))))
        new_set.finish(**{"sources": [source(num_records=len(texts))], "settings": {"seed": 1}, **manifest})
    return directory / "set"


def documents(directory: Path) -> list[list[int]]:
    """The ids of every document of the set, without EOS."""
    shard_set = shards.open(directory)
    return [document.tolist() for name in ("train", "val") for document in shard_set[name].documents()]


def report(*arguments: object) -> None:
    """`python -m shards report …`, in this process."""
    options = make_parser().parse_args(["report", *map(str, arguments)])
    assert options.run(options) == 0


def page_of(opened: Path | ShardSet, *, seed: int = 2333, statistics: Statistics | None = None) -> str:
    shard_set = opened if isinstance(opened, ShardSet) else shards.open(opened)
    vocabulary = read_vocabulary(shard_set.tokenizer_path)
    return make_page(shard_set.manifest, statistics or compute(shard_set, seed=seed), vocabulary).decode()
