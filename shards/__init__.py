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

_MODULES = {
    "shards.common.errors": ["InputError"],
    "shards.mixture": [
        "Data",
        "Mixture",
        "epoch_blocks",
        "fingerprint_until",
        "open_data",
        "run_order",
        "validation_sets",
    ],
    "shards.layout": ["SHUFFLES", "Shuffle"],
    "shards.order": ["RunOrder", "Stage", "epoch_order", "rank_positions", "window_order"],
    "shards.reader": ["ShardSet", "Split", "open"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

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


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'shards' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), "open_shard_set" if name == "open" else name)
