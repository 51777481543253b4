"""Shard sets: tokenized once, read many times. NumPy, the standard library and a hash only.

    import shards
    train = shards.open("data/shards/sample")["train"]

The byte layout is described in `shards.index` (the `.idx`) and `shards.manifest` (`manifest.json`); a `.bin` is
headerless little-endian uint32, `num_blocks` × `block_tokens` × 4 bytes.
"""

import shards.interruption  # noqa: F401
from shards.errors import InputError
from shards.mixture import Data, Mixture, epoch_blocks, open_data, run_order
from shards.order import epoch_order, window_order
from shards.reader import ShardSet, Split
from shards.reader import open_shard_set as open
from shards.run_order import SHUFFLES, RunOrder, Shuffle, rank_positions

__all__ = [
    "SHUFFLES",
    "Data",
    "InputError",
    "Mixture",
    "RunOrder",
    "ShardSet",
    "Shuffle",
    "Split",
    "epoch_blocks",
    "epoch_order",
    "open",
    "open_data",
    "rank_positions",
    "run_order",
    "window_order",
]
