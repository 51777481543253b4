"""Shard sets: tokenized once, read many times. NumPy, the standard library and a hash only.

    import shards
    train = shards.open("data/shards/sample")["train"]

The byte layout is described in `shards.index` (the `.idx`) and `shards.manifest` (`manifest.json`); a `.bin` is
headerless little-endian uint32, `num_blocks` × `block_tokens` × 4 bytes. Names are loaded when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.common.errors import InputError
    from shards.layout import SHUFFLES, Shuffle
    from shards.mixture import Data, Mixture, epoch_blocks, fingerprint_until, open_data, run_order, validation_sets
    from shards.order import RunOrder, Stage, epoch_order, rank_positions, window_order
    from shards.reader import ShardSet, Split
    from shards.reader import open_shard_set as open

__all__ = [
    "SHUFFLES",
    "Data",
    "InputError",
    "Mixture",
    "RunOrder",
    "ShardSet",
    "Shuffle",
    "Split",
    "Stage",
    "epoch_blocks",
    "epoch_order",
    "fingerprint_until",
    "open",
    "open_data",
    "rank_positions",
    "run_order",
    "validation_sets",
    "window_order",
]


# Each imports those before it, and what it needs besides.
_MODULES = ("shards.common.errors", "shards.layout", "shards.order", "shards.reader", "shards.mixture")


def __getattr__(name: str) -> Any:
    for module in map(importlib.import_module, _MODULES if name in __all__ else ()):
        if value := getattr(module, "open_shard_set" if name == "open" else name, None):
            return value
    raise AttributeError(f"module 'shards' has no attribute {name!r}")
