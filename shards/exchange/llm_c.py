"""Export for llm.c and its descendants (modded-nanogpt and others): `.bin` files with a header.

    OUT/train_000000.bin  train_000001.bin …     at most 100 million tokens each, all of about the same size
    OUT/val_000000.bin …

A file (karpathy/llm.c, dev/data/data_common.py, `write_datafile`), little-endian:

    offset    type              field
    0         i32               magic = 20240520 (`gpt-2`) or 20240801 (`llama-3`)
    4         i32               version = 1 (`gpt-2`) or 7 (`llama-3`)
    8         i32               N = number of tokens
    12        i32[253]          0
    1024      u16[N] or u32[N]  the tokens: u16 in `gpt-2`, u32 in `llama-3`

`gpt-2` is written where every id fits 16 bits: train_gpt2.c, train_gpt2.cu and train_gpt2.py read it. Elsewhere it is
`llama-3`, which train_llama3.py reads.

The readers take T + 1 tokens at a time and go on by T (llmc/dataloader.h, `dataloader_load_batch`), so that each token has
its successor as its target. Therefore one token stands behind a file's blocks: the first of the next file, or EOS. With it,
T = block_tokens and a batch of one row every block comes back as it is; without it each file's last block would be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from shards.common.files import flush_directory
from shards.exchange.blocks import Format, cut_files, write_blocks
from shards.reader import ShardSet, Split

_FILE_TOKENS = 100_000_000
_HEADER_FIELDS = 256


def export(shard_set: ShardSet, splits: Sequence[Split], directory: Path, advance: Callable[[int], None]) -> None:
    magic, version, dtype = _variant(shard_set)
    for split in splits:
        for number, blocks in enumerate(cut_files(len(split), _FILE_TOKENS // split.block_tokens)):
            behind = split[blocks.stop][0] if blocks.stop < len(split) else shard_set.eos_id
            header = np.zeros(_HEADER_FIELDS, dtype="<i4")
            header[:3] = magic, version, len(blocks) * split.block_tokens + 1
            path, tail = directory / f"{split.name}_{number:06}.bin", np.array(behind, dtype=dtype).tobytes()
            write_blocks(path, header.tobytes(), split, blocks, dtype, advance, tail=tail)
    flush_directory(directory)


def _variant(shard_set: ShardSet) -> tuple[int, int, str]:
    """Magic, version and type of a token."""
    return (20240520, 1, "<u2") if shard_set.vocab_size <= 1 << 16 else (20240801, 7, "<u4")


def reader(shard_set: ShardSet, splits: Sequence[Split], out: Path) -> str:
    names = {split.name for split in splits}
    if _variant(shard_set)[2] == "<u2":
        command, options, length = "./train_gpt2cu", {"train": "-i", "val": "-j"}, "-t"
    else:
        options = {"train": "--input_bin", "val": "--input_val_bin"}
        command, length = "python train_llama3.py", "--sequence_length"
    patterns = [f"{option} '{out / name}_*.bin'" for name, option in options.items() if name in names]
    return " ".join([command, *patterns, length, str(shard_set.block_tokens)])


FORMAT = Format(export=export, reader=reader)
