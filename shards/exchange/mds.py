"""Export for MosaicML Streaming: `StreamingDataset(local=OUT, split="train", batch_size=…)`, column `tokens`.

    OUT/train/index.json
    OUT/train/shard.00000.mds  shard.00001.mds …     at most 64 MiB each
    OUT/val/…

A shard (streaming/base/format/mds/writer.py, `encode_joint_shard`), little-endian; a sample is a block:

    offset          type       field
    0               u32        N = number of samples
    4               u32[N + 1] where each sample begins, from the file's beginning; the last is the file's size
    8 + 4 N         bytes      the shard's configuration: JSON, as long as it is
    …               bytes      the samples one behind the other

The one column `tokens` is `ndarray:uint16:512` where every id fits 16 bits, `ndarray:uint32:512` elsewhere (512 being
block_tokens). Type and shape are fixed, so a sample is the array's bytes alone (ibid., `encodings.NDArray`). `index.json`
(ibid., `base/writer.py`, `_write_index`) repeats the configuration for each shard, with its name, bytes and samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards.common.files import write_atomically
from shards.exchange.blocks import Format, encode_head, files_of, write_blocks
from shards.reader import ShardSet, Split

COLUMN = "tokens"
_SHARD_BYTES = 1 << 26
_FORMAT_VERSION = 2


def export(shard_set: ShardSet, splits: Sequence[Split], directory: Path, advance: Callable[[int], None]) -> None:
    dtype = np.dtype("<u2" if shard_set.vocab_size <= 1 << 16 else "<u4")
    sample_bytes = shard_set.block_tokens * dtype.itemsize
    config: dict[str, Any] = {
        "column_encodings": [f"ndarray:{dtype.name}:{shard_set.block_tokens}"],
        "column_names": [COLUMN],
        "column_sizes": [sample_bytes],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": _SHARD_BYTES,
        "version": _FORMAT_VERSION,
    }
    for split in splits:
        folder = directory / split.name
        folder.mkdir()
        shards = []
        for number, blocks in enumerate(files_of(split, max_bytes=_SHARD_BYTES - (1 << 20))):
            name = f"shard.{number:05}.mds"
            head = encode_head(len(blocks), sample_bytes, json.dumps(config, sort_keys=True).encode())
            write_blocks(folder / name, head, split, blocks, dtype.str, advance)
            raw = {"basename": name, "bytes": len(head) + len(blocks) * sample_bytes, "hashes": {}}
            shards.append({**config, "raw_data": raw, "samples": len(blocks), "zip_data": None})
        index = {"shards": shards, "version": _FORMAT_VERSION}
        write_atomically(folder / "index.json", json.dumps(index, sort_keys=True).encode())


def reader(shard_set: ShardSet, splits: Sequence[Split], out: Path) -> str:
    name = splits[0].name
    return (
        "from streaming import StreamingDataset; "
        f'{name} = StreamingDataset(local={str(out)!r}, split="{name}", batch_size=1)  # {name}[0]["{COLUMN}"]'
    )


FORMAT = Format(export=export, reader=reader)
