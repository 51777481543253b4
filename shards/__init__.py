"""Shard sets: tokenized once, read many times. NumPy, the standard library and a hash only.

    import shards
    train = shards.open("data/shards/sample")["train"]

The byte layout is described in `shards.index` (the `.idx`) and `shards.manifest` (`manifest.json`); a `.bin` is
headerless little-endian uint32, `num_blocks` × `block_tokens` × 4 bytes.
"""

from shards.errors import InputError
from shards.order import epoch_order
from shards.reader import ShardSet, Split
from shards.reader import open_shard_set as open

__all__ = ["InputError", "ShardSet", "Split", "epoch_order", "open"]
