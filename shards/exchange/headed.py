"""Export to files of blocks with a header: for litdata, MosaicML Streaming, and llm.c with its descendants.

All numbers are little-endian.

litdata: `StreamingDataset(OUT/train, item_loader=TokensLoader(block_size=block_tokens))`

    OUT/train/index.json
    OUT/train/chunk-0-0.bin  chunk-0-1.bin …     at most 64 MiB of tokens each
    OUT/val/…

A chunk (litdata/streaming/writer.py, `_create_chunk`); an item is a block:

    offset      type       field
    0           u32        N = number of items
    4           u32[N + 1] where each item begins, from the file's beginning; the last is the file's size
    8 + 4 N     bytes      the items one after another: block_tokens × int32 each

`index.json` (ibid., `get_config`, and litdata/streaming/config.py) lists the chunks with their bytes (`chunk_bytes`), items
(`chunk_size`) and tokens (`dim`), and the type of an item: `no_header_tensor:16` is a one-dimensional torch tensor of int32
(litdata/constants.py), the same bits as uint32 for every id below 2**31. A chunk's blocks divide it exactly, so that
`TokensLoader`, which cuts each chunk by itself, leaves nothing out.

MosaicML Streaming: `StreamingDataset(local=OUT, split="train", batch_size=…)`, column `tokens`

    OUT/train/index.json
    OUT/train/shard.00000.mds  shard.00001.mds …     at most 64 MiB each
    OUT/val/…

A shard (streaming/base/format/mds/writer.py, `encode_joint_shard`) is like a chunk of litdata, with the shard's
configuration, JSON of any length, between the offsets and the first sample, a block. The one column `tokens` is
`ndarray:uint16:512` where every id fits 16 bits, `ndarray:uint32:512` elsewhere (512 being block_tokens). Type and shape
are fixed, so a sample is the array's bytes alone (ibid., `encodings.NDArray`). `index.json` (ibid., `base/writer.py`,
`_write_index`) repeats the configuration for each shard, with its name, bytes and samples.

llm.c and its descendants (modded-nanogpt and others)

    OUT/train_000000.bin  train_000001.bin …     at most 100 million tokens each, all of about the same size
    OUT/val_000000.bin …

A file (karpathy/llm.c, dev/data/data_common.py, `write_datafile`):

    offset    type              field
    0         i32               magic = 20240520 (`gpt-2`) or 20240801 (`llama-3`)
    4         i32               version = 1 (`gpt-2`) or 7 (`llama-3`)
    8         i32               N = number of tokens
    12        i32[253]          0
    1024      u16[N] or u32[N]  the tokens: u16 in `gpt-2`, u32 in `llama-3`

`gpt-2` is written where every id fits 16 bits: train_gpt2.c, train_gpt2.cu and train_gpt2.py read it. Elsewhere it is
`llama-3`, which train_llama3.py reads. The readers take T + 1 tokens at a time and go on by T (llmc/dataloader.h,
`dataloader_load_batch`), so that each token has its successor as its target. Therefore one token follows a file's blocks:
the first of the next file, or EOS. With it, T = block_tokens and a batch of one row every block comes back as it is;
without it each file's last block would be lost.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from shards.common.files import flush_directory, write_atomically
from shards.exchange.blocks import Export, cut_files
from shards.layout import bin_bytes
from shards.reader import ShardSet

_FILE_BYTES = 1 << 26
_LLM_C_TOKENS = 100_000_000
_LLM_C_HEADER_FIELDS = 256
# litdata/utilities/_pytree.py, `treespec_dumps` of a leaf.
_LEAF = '[1, {"type": null, "context": null, "children_spec": []}]'


def _id_type(shard_set: ShardSet) -> np.dtype[Any]:
    """16 bits where every id fits."""
    return np.dtype("<u2" if shard_set.vocab_size <= 1 << 16 else "<u4")


def _encode_head(num_items: int, item_bytes: int, config: bytes = b"") -> bytes:
    """What stands before the first block in a chunk of litdata, and with a `config` in a shard of MosaicML Streaming.

    >>> np.frombuffer(_encode_head(2, 256), "<u4").tolist()
    [2, 16, 272, 528]
    """
    begin = 8 + 4 * num_items + len(config)
    offsets = range(begin, begin + num_items * item_bytes + 1, item_bytes)
    return np.array([num_items, *offsets], dtype="<u4").tobytes() + config


def export_litdata(export: Export) -> None:
    block_bytes = bin_bytes(1, export.shard_set.block_tokens)
    for split in export.splits:
        folder = export.directory / split.name
        folder.mkdir()
        chunks: list[dict[str, Any]] = []
        for number, blocks in enumerate(cut_files(len(split), _FILE_BYTES // block_bytes)):
            name, head = f"chunk-0-{number}.bin", _encode_head(len(blocks), block_bytes)
            export.write(folder / name, split, blocks, "<i4", before=head)
            num_bytes, num_tokens = len(head) + len(blocks) * block_bytes, len(blocks) * split.block_tokens
            chunks.append({"chunk_bytes": num_bytes, "chunk_size": len(blocks), "dim": num_tokens, "filename": name})
        config = {
            "chunk_bytes": _FILE_BYTES,
            "chunk_size": None,
            "compression": None,
            "data_format": ["no_header_tensor:16"],
            "data_spec": _LEAF,
            "encryption": None,
            "item_loader": "TokensLoader",
        }
        # What a cache of a remote directory is known by; litdata writes the time.
        content = {"chunks": chunks, "config": config, "updated_at": export.shard_set.fingerprint[:16]}
        write_atomically(folder / "index.json", json.dumps(content, sort_keys=True).encode())


def export_mds(export: Export) -> None:
    dtype, block_tokens = _id_type(export.shard_set), export.shard_set.block_tokens
    sample_bytes = block_tokens * dtype.itemsize
    config: dict[str, Any] = {
        "column_encodings": [f"ndarray:{dtype.name}:{block_tokens}"],
        "column_names": ["tokens"],
        "column_sizes": [sample_bytes],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": _FILE_BYTES,
        "version": 2,
    }
    encoded = json.dumps(config, sort_keys=True).encode()
    blocks_per_file = (_FILE_BYTES - len(encoded) - 8) // (bin_bytes(1, block_tokens) + 4)
    for split in export.splits:
        folder = export.directory / split.name
        folder.mkdir()
        shards = []
        for number, blocks in enumerate(cut_files(len(split), blocks_per_file)):
            name, head = f"shard.{number:05}.mds", _encode_head(len(blocks), sample_bytes, encoded)
            export.write(folder / name, split, blocks, dtype.str, before=head)
            raw = {"basename": name, "bytes": len(head) + len(blocks) * sample_bytes, "hashes": {}}
            shards.append({**config, "raw_data": raw, "samples": len(blocks), "zip_data": None})
        index = {"shards": shards, "version": config["version"]}
        write_atomically(folder / "index.json", json.dumps(index, sort_keys=True).encode())


def export_llm_c(export: Export) -> None:
    dtype = _id_type(export.shard_set)
    magic, version = (20240520, 1) if dtype.itemsize == 2 else (20240801, 7)
    for split in export.splits:
        for number, blocks in enumerate(cut_files(len(split), _LLM_C_TOKENS // split.block_tokens)):
            following = split[blocks.stop][0] if blocks.stop < len(split) else export.shard_set.eos_id
            header = np.zeros(_LLM_C_HEADER_FIELDS, dtype="<i4")
            header[:3] = magic, version, len(blocks) * split.block_tokens + 1
            path, after = export.directory / f"{split.name}_{number:06}.bin", np.array(following, dtype=dtype).tobytes()
            export.write(path, split, blocks, dtype.str, before=header.tobytes(), after=after)
    flush_directory(export.directory)
