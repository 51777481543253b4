"""The numbers of a shard set: a pure function of the set and a seed.

Lengths, filling and sharing of blocks are exact, from the indexes. Tokens, characters and duplicates are exact for sets of
up to half a billion tokens, and come from a sample of larger ones; each says how much was looked at. Memory doesn't grow
with the text, apart from the index of the largest shard and 16 bytes for each of at most four million documents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from shards.manifest import Manifest, SplitEntry
from shards.order import epoch_order
from shards.reader import ShardSet
from shards.report.documents import Filling, FillingCounter, LengthCounter, Lengths, parts
from shards.report.duplicates import DuplicateFinder, Duplicates
from shards.report.excerpts import Excerpt, excerpt
from shards.report.tokens import CharacterUse, TokenCounter, TokenUse, overlaps, sample_stretches
from shards.vocabulary import Vocabulary

MAX_COUNTED_TOKENS = 1 << 29
MAX_COMPARED_TOKENS = 1 << 30
MAX_COMPARED_DOCUMENTS = 1 << 22
NUM_EXCERPTS = 10
NUM_MOST_FREQUENT = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """What the page shows, beyond the manifest."""

    lengths: Lengths
    filling: Filling
    tokens: TokenUse
    characters: CharacterUse
    duplicates: Duplicates
    excerpts: tuple[Excerpt, ...]
    seed: int


def num_text_tokens(manifest: Manifest, split: SplitEntry) -> int:
    """Tokens of a split's texts: without EOS, and with those that the packing left out."""
    return split.num_tokens - split.num_documents * manifest.num_closing_tokens + split.num_dropped_tokens


def num_steps(manifest: Manifest) -> int:
    """What `progress` of `compute` adds up to, at most."""
    room = manifest.total("num_blocks") * manifest.block_tokens
    return manifest.total("num_tokens") + min(room, MAX_COUNTED_TOKENS)


def compute(shard_set: ShardSet, *, seed: int, progress: Callable[[int], None] = lambda _: None) -> Statistics:
    """Read the set once. Raises `InputError` where a file of it is damaged.

    `progress` is called with the number of steps just done, of `num_steps`.
    """
    manifest, size = shard_set.manifest, shard_set.block_tokens
    num_blocks = manifest.total("num_blocks")
    lengths = LengthCounter(size, manifest.num_closing_tokens)
    filling = FillingCounter(size)
    tokens = TokenCounter(shard_set, Vocabulary(shard_set.tokenizer_path), num_blocks)
    duplicates = DuplicateFinder(
        manifest, max_documents=MAX_COMPARED_DOCUMENTS, max_tokens=MAX_COMPARED_TOKENS, seed=seed
    )
    stretches = sample_stretches(num_blocks, size, max_tokens=MAX_COUNTED_TOKENS, seed=seed)
    # The first positions of an order of all blocks: as many different ones at random places.
    wanted = epoch_order(num_blocks, seed, 0, range(min(NUM_EXCERPTS, num_blocks))).tolist() if num_blocks else []
    excerpts: dict[int, Excerpt] = {}
    for part in parts(shard_set):
        lengths.add(part)
        filling.add(part)
        for blocks in overlaps(stretches, part.first_block, part.num_blocks):
            for num_done in tokens.add(part.tokens[blocks.start * size : blocks.stop * size]):
                progress(num_done)
        for num_done in duplicates.add(part):
            progress(num_done)
        for number in wanted:
            if 0 <= number - part.first_block < part.num_blocks:
                excerpts[number] = excerpt(part, number - part.first_block)
    return Statistics(
        lengths=lengths.result(),
        filling=filling.result(),
        tokens=tokens.tokens(NUM_MOST_FREQUENT),
        characters=tokens.characters(),
        duplicates=duplicates.result(),
        excerpts=tuple(excerpts[number] for number in sorted(excerpts)),
        seed=seed,
    )
