"""The numbers of a shard set: a pure function of the set and a seed.

Documents and blocks are counted exactly, from the indexes. Tokens, characters and duplicates are exact for sets of up to
half a billion tokens and four million documents, and come from a sample of larger ones; the page says how much was
counted. Memory doesn't grow with the text, apart from the index of the largest shard.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import json
from collections.abc import Callable

import numpy as np
from blake3 import blake3

from shards.common.files import regular_file_bytes
from shards.common.text import percent, plural
from shards.layout import EXAMPLE_CHARS, EXAMPLES_PER_SET, LEFT_OUT_NAME
from shards.manifest import Manifest
from shards.order import epoch_order
from shards.reader import ShardSet, Tokens
from shards.report.documents import Documents
from shards.report.tokens import TokenCounter, sample_blocks
from shards.show import Segment, segments
from shards.tokenizer_files import read_vocabulary

MAX_COUNTED_TOKENS = 1 << 29
MAX_COMPARED_DOCUMENTS = 1 << 22
NUM_EXCERPTS = 10
MAX_SHOWN_TOKENS = 1024  # of an excerpt
MAX_EXAMPLES_BYTES = 1 << 20  # of what was left out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Excerpt:
    """One block."""

    split: str
    block: int  # in the split
    segments: tuple[Segment, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duplicates:
    """What the comparison found."""

    num_compared: int
    num_duplicates: int  # documents that equal an earlier one
    num_repeated: int  # different documents that occur more than once
    most_copies: int  # of one document, the first included


class DuplicateFinder:
    """Hashes documents, one after another: how many have exactly the tokens of an earlier one, by a 64-bit hash.

    Of a set with more than `max_documents` documents only those whose hash is small are compared: equal documents are in
    that sample together or not at all, so the share of duplicates is that of the whole set, but for chance. Two different
    ones of four million documents have the same hash with a chance below one in a million.
    """

    def __init__(self, num_documents: int, *, max_documents: int) -> None:
        self._limit = 2**64 * min(max_documents, num_documents) // max(1, num_documents)
        self._hashes = array.array("Q")

    def add(self, document: Tokens) -> None:
        value = int.from_bytes(blake3(document.view(np.uint8).data).digest(8), "little")
        if value < self._limit:
            self._hashes.append(value)

    def result(self) -> Duplicates:
        _, copies = np.unique(np.array(self._hashes, dtype=np.uint64), return_counts=True)
        return Duplicates(
            num_compared=len(self._hashes),
            num_duplicates=len(self._hashes) - len(copies),
            num_repeated=int((copies > 1).sum()),
            most_copies=int(copies.max(initial=0)),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """What the page shows, beyond the manifest."""

    documents: Documents
    tokens: TokenCounter
    duplicates: Duplicates
    excerpts: tuple[Excerpt, ...]
    examples: dict[str, list[str]]  # beginnings of what was left out, by reason
    seed: int


def compute(shard_set: ShardSet, *, seed: int, progress: Callable[[int], None] = lambda _: None) -> Statistics:
    """Read the set once. Raises `InputError` where a file of it is damaged.

    `progress` is called after each shard, with the number of its blocks.
    """
    manifest, size = shard_set.manifest, shard_set.block_tokens
    num_blocks = manifest.total("num_blocks")
    documents, tokens = Documents(size), TokenCounter(shard_set, read_vocabulary(shard_set.tokenizer_path))
    duplicates = DuplicateFinder(manifest.total("num_documents"), max_documents=MAX_COMPARED_DOCUMENTS)
    share = min(1.0, MAX_COUNTED_TOKENS / (num_blocks * size))
    # The first positions of an order of all blocks: as many different ones at random places.
    chosen = epoch_order(num_blocks, seed, 0, range(min(NUM_EXCERPTS, num_blocks)))
    excerpts, first_block = [], 0  # the shard's first block, counted through both splits
    for name in manifest.splits:
        split = shard_set[name]
        for number, shard in enumerate(split.shards):
            index, shard_blocks = split.shard_index(number), split.shard_blocks(number)
            documents.add(index, shard.num_blocks)
            for sample in sample_blocks(shard.num_blocks, share, seed ^ first_block):
                tokens.add(shard_blocks[sample.start : sample.stop])
            for document in split.shard_documents(number):
                duplicates.add(document)
            for block in sorted(block - first_block for block in chosen.tolist()):
                if 0 <= block < shard.num_blocks:
                    found = tuple(segments(index, shard_blocks, block, MAX_SHOWN_TOKENS))
                    excerpts.append(Excerpt(split=name, block=split.first_block(number) + block, segments=found))
            first_block += shard.num_blocks
            progress(shard.num_blocks)
    return Statistics(
        documents=documents,
        tokens=tokens,
        duplicates=duplicates.result(),
        excerpts=tuple(excerpts),
        examples=read_examples(shard_set),
        seed=seed,
    )


def read_examples(shard_set: ShardSet) -> dict[str, list[str]]:
    """What `left_out.jsonl` begins with, by reason. Lines that are no examples are passed over: the file may be a
    stranger's."""
    path, manifest = shard_set.path / LEFT_OUT_NAME, shard_set.manifest
    examples: dict[str, list[str]] = {}
    if path.name in [file.name for file in manifest.other_files] and regular_file_bytes(path):
        with path.open("rb") as file:
            lines = file.read(MAX_EXAMPLES_BYTES).splitlines()
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                entry = json.loads(line)
                reason, text = entry["reason"], entry["text"]
                texts = examples.setdefault(reason, []) if reason in manifest.left_out else []
                if isinstance(text, str) and len(texts) < EXAMPLES_PER_SET:
                    texts.append(text[:EXAMPLE_CHARS])
    return {reason: texts for reason, texts in examples.items() if texts}


def summary(manifest: Manifest, statistics: Statistics) -> list[str]:
    """The main numbers, a line each."""
    lengths, use, found = statistics.documents.lengths, statistics.tokens, statistics.duplicates
    short = percent(lengths.between(0, manifest.block_tokens - 1).num_documents, lengths.num_documents)
    lost, total = lengths.num_lost_tokens, lengths.num_tokens
    is_sample = use.num_counted_blocks < manifest.total("num_blocks")
    rows = {
        "documents": f"{lengths.num_documents:,}, median {plural(lengths.quantile(50), 'token')}; "
        f"{short} are shorter than a block",
        "tutorial": f"would drop {lost:,} of {total:,} tokens ({percent(lost, total)})",
        "vocabulary": f"{len(use.ranking):,} of {manifest.tokenizer.vocab_size - 1:,} entries occur"
        + (f" in a sample of {plural(use.num_counted_blocks, 'block')}" if is_sample else ""),
        "duplicates": f"{found.num_duplicates:,} of {plural(found.num_compared, 'document')} compared",
    }
    return [f"  {name:11} {row}" for name, row in rows.items()]
