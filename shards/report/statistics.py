"""The numbers of a shard set: a pure function of the set and a seed.

Documents and blocks are counted exactly, from the indexes. Tokens, characters and duplicates are exact for sets of up to
half a billion tokens and four million documents, and come from a sample of larger ones; the page says how much was
counted. Memory doesn't grow with the text, apart from the index of the largest shard.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from shards.manifest import Manifest
from shards.order import epoch_order
from shards.reader import ShardSet, read_shard_index
from shards.report.documents import Documents
from shards.report.duplicates import DuplicateFinder, Duplicates
from shards.report.excerpts import Excerpt, segments
from shards.report.tokens import TokenCounter, TokenUse, sample_blocks
from shards.vocabulary import Vocabulary

MAX_COUNTED_TOKENS = 1 << 29
MAX_COMPARED_DOCUMENTS = 1 << 22
NUM_EXCERPTS = 10
NUM_MOST_FREQUENT = 40
_PROGRESS_TOKENS = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """What the page shows, beyond the manifest."""

    documents: Documents
    tokens: TokenUse
    scripts: dict[str, int]  # characters
    duplicates: Duplicates
    excerpts: tuple[Excerpt, ...]
    seed: int


def num_steps(manifest: Manifest) -> int:
    """What `progress` of `compute` adds up to, about."""
    return manifest.total("num_tokens") + min(manifest.total("num_blocks") * manifest.block_tokens, MAX_COUNTED_TOKENS)


def compute(shard_set: ShardSet, *, seed: int, progress: Callable[[int], None] = lambda _: None) -> Statistics:
    """Read the set once. Raises `InputError` where a file of it is damaged.

    `progress` is called with the number of steps just done, of `num_steps`.
    """
    manifest, size = shard_set.manifest, shard_set.block_tokens
    num_blocks = manifest.total("num_blocks")
    documents, tokens = Documents(size), TokenCounter(shard_set, Vocabulary(shard_set.tokenizer_path))
    duplicates = DuplicateFinder(manifest.total("num_documents"), max_documents=MAX_COMPARED_DOCUMENTS)
    share = min(1.0, MAX_COUNTED_TOKENS / max(1, num_blocks * size))
    # The first positions of an order of all blocks: as many different ones at random places.
    wanted = sorted(epoch_order(num_blocks, seed, 0, range(min(NUM_EXCERPTS, num_blocks))).tolist()) if num_blocks else []
    excerpts = []
    first_block = 0  # of a shard, counted through both splits
    for name in manifest.splits:
        split, first_of_split = shard_set[name], first_block
        for number, shard in enumerate(split.shards):
            index = read_shard_index(shard_set.path, shard, size)
            shard_tokens = split.shard_blocks(number).reshape(-1)
            documents.add(index, shard.num_blocks)
            for blocks in sample_blocks(shard.num_blocks, share, seed ^ first_block):
                for num_done in tokens.add(shard_tokens[blocks.start * size : blocks.stop * size]):
                    progress(num_done)
            num_waiting = 0
            for document in split.shard_documents(number):
                duplicates.add(document)
                num_waiting += len(document)
                if num_waiting >= _PROGRESS_TOKENS:
                    progress(num_waiting)
                    num_waiting = 0
            progress(num_waiting)
            for block in [block for block in wanted if first_block <= block < first_block + shard.num_blocks]:
                found = segments(index, shard_tokens, block - first_block, size)
                excerpts.append(Excerpt(split=name, block=block - first_of_split, segments=tuple(found)))
            first_block += shard.num_blocks
    return Statistics(
        documents=documents,
        tokens=tokens.tokens(NUM_MOST_FREQUENT),
        scripts=tokens.scripts(),
        duplicates=duplicates.result(),
        excerpts=tuple(excerpts),
        seed=seed,
    )
