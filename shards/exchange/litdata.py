"""Export for litdata: `StreamingDataset(…, item_loader=TokensLoader(block_size=block_tokens))`.

    OUT/train/index.json
    OUT/train/chunk-0-0.bin  chunk-0-1.bin …     at most 64 MiB of tokens each
    OUT/val/…

A chunk (litdata/streaming/writer.py, `_create_chunk`), little-endian; an item is a block:

    offset      type       field
    0           u32        N = number of items
    4           u32[N + 1] where each item begins, from the file's beginning; the last is the file's size
    8 + 4 N     bytes      the items one behind the other: block_tokens × int32 each

`index.json` (ibid., `get_config`, and litdata/streaming/config.py) lists the chunks with their bytes (`chunk_bytes`), items
(`chunk_size`) and tokens (`dim`), and the type of an item: `no_header_tensor:16` is a one-dimensional torch tensor of int32
(litdata/constants.py), the same bits as uint32 for every id below 2**31. A chunk's blocks divide it exactly, so that
`TokensLoader`, which cuts each chunk by itself, leaves nothing out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shards.common.files import write_atomically
from shards.exchange.blocks import Format, encode_head, files_of, write_blocks
from shards.reader import ShardSet, Split
from shards.writer import bin_bytes

_CHUNK_BYTES = 1 << 26
# Of a leaf: litdata/utilities/_pytree.py, `treespec_dumps`.
_LEAF = '[1, {"type": null, "context": null, "children_spec": []}]'
_INT32_TENSOR = "no_header_tensor:16"


def export(shard_set: ShardSet, splits: Sequence[Split], directory: Path, advance: Callable[[int], None]) -> None:
    for split in splits:
        folder = directory / split.name
        folder.mkdir()
        chunks: list[dict[str, Any]] = []
        for number, blocks in enumerate(files_of(split, max_bytes=_CHUNK_BYTES)):
            name = f"chunk-0-{number}.bin"
            head = encode_head(len(blocks), bin_bytes(1, split.block_tokens))
            write_blocks(folder / name, head, split, blocks, "<i4", advance)
            chunks.append(
                {
                    "chunk_bytes": len(head) + bin_bytes(len(blocks), split.block_tokens),
                    "chunk_size": len(blocks),
                    "dim": len(blocks) * split.block_tokens,
                    "filename": name,
                }
            )
        config = {
            "chunk_bytes": _CHUNK_BYTES,
            "chunk_size": None,
            "compression": None,
            "data_format": [_INT32_TENSOR],
            "data_spec": _LEAF,
            "encryption": None,
            "item_loader": "TokensLoader",
        }
        # What a cache of a remote directory is known by; litdata writes the time.
        content = {"chunks": chunks, "config": config, "updated_at": shard_set.fingerprint[:16]}
        write_atomically(folder / "index.json", json.dumps(content, sort_keys=True).encode())


def reader(shard_set: ShardSet, splits: Sequence[Split], out: Path) -> str:
    return (
        "from litdata import StreamingDataset, TokensLoader; "
        f"{splits[0].name} = StreamingDataset({str(out / splits[0].name)!r}, "
        f"item_loader=TokensLoader(block_size={shard_set.block_tokens}))"
    )


FORMAT = Format(export=export, reader=reader)
