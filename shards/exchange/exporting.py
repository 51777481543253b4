"""Export: which blocks go to which file, datatrove's links, and the formats whose files are blocks after a header.

All numbers are little-endian. `OUT/val` is as `OUT/train`.

datatrove: `DatatroveFolderDataset(OUT/train, seq_len=S, token_size=4)` over links to the set's own files, hard ones where
the file system has them, so that they stay whole if the set is moved. It cuts each file into windows of S + 1 tokens, none
overlapping, so with S = block_tokens - 1 window n is block n (datatrove/utils/dataset.py).

    OUT/manifest.json                    a link: says whose shards these are, for an import
    OUT/train/train-00000.ds             a link to the set's train-00000.bin
    OUT/train/train-00000.ds.index       where sequences end, and padding between or after them (see `token_files`)

litdata: `StreamingDataset(OUT/train, item_loader=TokensLoader(block_size=block_tokens))`. `OUT/train/index.json` lists
`chunk-0-0.bin`, `chunk-0-1.bin`, …, each of at most 64 MiB (litdata/streaming/writer.py, `_create_chunk` and `get_config`;
config.py). The items' type `no_header_tensor:16` is a one-dimensional int32 tensor (litdata/constants.py), the same bits as
uint32 for every id below 2**31. An item is a block, so that `TokensLoader`, which cuts each chunk by itself, leaves nothing
out:

    offset      type       field
    0           u32        N = number of items
    4           u32[N + 1] where each item begins, from the file's beginning; the last is the file's size
    8 + 4 N     bytes      the items one after another: block_tokens × int32 each

MosaicML Streaming: `StreamingDataset(local=OUT, split="train", batch_size=…)`, column `tokens`. The shards
`OUT/train/shard.00000.mds`, … are like litdata's chunks, with a configuration in JSON between offsets and samples
(streaming/base/format/mds/writer.py, `encode_joint_shard`). `ndarray:uint16:512` where every id fits 16 bits, else
`ndarray:uint32:512`, is an array whose bytes are all there is of a sample (ibid., `encodings.NDArray`). `index.json`
repeats the configuration for each shard (ibid., `base/writer.py`, `_write_index`).

llm.c and its descendants (modded-nanogpt and others): `OUT/train_000000.bin`, …, of at most 100 million tokens each
(karpathy/llm.c, dev/data/data_common.py, `write_datafile`):

    offset    type              field
    0         i32               magic = 20240520 (`gpt-2`) or 20240801 (`llama-3`)
    4         i32               version = 1 (`gpt-2`) or 7 (`llama-3`)
    8         i32               N = number of tokens
    12        i32[253]          0
    1024      u16[N] or u32[N]  the tokens: u16 in `gpt-2`, u32 in `llama-3`

`gpt-2` is written where every id fits 16 bits; only train_llama3.py reads `llama-3`. The readers take T + 1 tokens and go
on by T (llmc/dataloader.h), so each token has its successor as its target: one token follows a file's blocks, the first of
the next file or EOS. With T = block_tokens and a batch of one row, every block comes back as it is.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards.common.files import atomic_writer, flush_directory, write_atomically
from shards.exchange.token_files import ENDS_SUFFIX, TOKENS_SUFFIX
from shards.layout import BIN_SUFFIX, MANIFEST_NAME, bin_bytes
from shards.reader import ShardSet, Split, Tokens

_READ_BYTES = 1 << 23
_FILE_BYTES = 1 << 26
_LLM_C_TOKENS = 100_000_000
# litdata/utilities/_pytree.py, `treespec_dumps` of a leaf.
_LEAF = '[1, {"type": null, "context": null, "children_spec": []}]'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """What is written to which directory: `splits`, none of them empty. Each format is a function of this."""

    shard_set: ShardSet
    splits: Sequence[Split]
    directory: Path
    progress: Callable[[int], None]  # is called with the bytes of blocks just written

    @property
    def id_type(self) -> np.dtype[Any]:
        """16 bits where every id fits."""
        return np.dtype("<u2" if self.shard_set.vocab_size <= 1 << 16 else "<u4")

    def read(self, split: Split, blocks: range, *, at_once: int | None = None) -> Iterator[Tokens]:
        """The blocks in order, `at_once` at a time, shape `(n, block_tokens)`; by default about 8 MiB."""
        step = at_once or max(1, _READ_BYTES // bin_bytes(1, split.block_tokens))
        for first in blocks[::step]:
            batch = split[first : min(first + step, blocks.stop)]
            yield batch
            self.progress(batch.nbytes)

    def write(self, path: Path, split: Split, blocks: range, dtype: str, *, before: bytes, after: bytes = b"") -> int:
        """Write `before`, the tokens of `blocks` as `dtype`, `after`; how many bytes. The caller flushes the directory."""
        with atomic_writer(path, flush_parent=False) as file:
            file.write(before)
            for batch in self.read(split, blocks):
                file.write(batch.astype(dtype, copy=False).data)
            file.write(after)
            return file.tell()

    def write_chunks(self, split: Split, name: str, dtype: str, config: bytes = b"") -> list[tuple[str, int, int]]:
        """Files of litdata, and with a `config` of MosaicML Streaming: the name, bytes and items of each."""
        (self.directory / split.name).mkdir()
        item_bytes, chunks = split.block_tokens * np.dtype(dtype).itemsize, []
        blocks_per_file = (_FILE_BYTES - 8 - len(config)) // (bin_bytes(1, split.block_tokens) + 4)
        for number, blocks in enumerate(cut_files(len(split), blocks_per_file)):
            path, begin = self.directory / split.name / name.format(number), 8 + 4 * len(blocks) + len(config)
            offsets = begin + item_bytes * np.arange(len(blocks) + 1)
            head = np.concatenate([[len(blocks)], offsets]).astype("<u4").tobytes() + config
            chunks.append((path.name, self.write(path, split, blocks, dtype, before=head), len(blocks)))
        return chunks


def cut_files(num_blocks: int, blocks_per_file: int) -> list[range]:
    """The blocks of each file: as few files as hold at most `blocks_per_file` (or one), all of about the same size.

    >>> cut_files(10, 4)
    [range(0, 3), range(3, 6), range(6, 10)]
    """
    num_files = -(-num_blocks // max(1, blocks_per_file))
    bounds = [num_blocks * number // num_files for number in range(num_files + 1)]
    return [range(first, stop) for first, stop in itertools.pairwise(bounds)]


def export_datatrove(export: Export) -> None:
    path = export.shard_set.path
    for split in export.splits:
        folder = export.directory / split.name
        folder.mkdir()
        for number, shard in enumerate(split.shards):
            _link(path / (shard.name + BIN_SUFFIX), folder / (shard.name + TOKENS_SUFFIX))
            index, num_tokens = split.shard_index(number), shard.num_blocks * split.block_tokens
            ends = np.unique(np.concatenate([index.starts, index.ends, [num_tokens]]))
            write_atomically(folder / (shard.name + ENDS_SUFFIX), ends[ends > 0].astype("<u8").tobytes())
            export.progress(bin_bytes(shard.num_blocks, split.block_tokens))
    _link(path / MANIFEST_NAME, export.directory / MANIFEST_NAME)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        os.symlink(source.resolve(), target)


def export_litdata(export: Export) -> None:
    for split in export.splits:
        chunks = [
            {"chunk_bytes": num_bytes, "chunk_size": num_items, "dim": num_items * split.block_tokens, "filename": name}
            for name, num_bytes, num_items in export.write_chunks(split, "chunk-0-{}.bin", "<i4")
        ]
        config: dict[str, Any] = {
            "chunk_bytes": _FILE_BYTES,
            "data_format": ["no_header_tensor:16"],
            "data_spec": _LEAF,
        }
        config |= {"chunk_size": None, "compression": None, "encryption": None, "item_loader": "TokensLoader"}
        # What a cache of a remote directory is known by; litdata writes the time.
        content = {"chunks": chunks, "config": config, "updated_at": export.shard_set.fingerprint[:16]}
        write_json(export.directory / split.name / "index.json", content)


def export_mds(export: Export) -> None:
    dtype, block_tokens = export.id_type, export.shard_set.block_tokens
    config: dict[str, Any] = {
        "column_encodings": [f"ndarray:{dtype.name}:{block_tokens}"],
        "column_names": ["tokens"],
        "column_sizes": [block_tokens * dtype.itemsize],
    }
    config |= {"compression": None, "format": "mds", "hashes": [], "size_limit": _FILE_BYTES, "version": 2}
    encoded = json.dumps(config, sort_keys=True).encode()
    for split in export.splits:
        shards = [
            config
            | {"raw_data": {"basename": name, "bytes": num_bytes, "hashes": {}}, "samples": num_items, "zip_data": None}
            for name, num_bytes, num_items in export.write_chunks(split, "shard.{:05}.mds", dtype.str, encoded)
        ]
        write_json(export.directory / split.name / "index.json", {"shards": shards, "version": config["version"]})


def export_llm_c(export: Export) -> None:
    dtype = export.id_type
    magic, version = (20240520, 1) if dtype.itemsize == 2 else (20240801, 7)
    for split in export.splits:
        for number, blocks in enumerate(cut_files(len(split), _LLM_C_TOKENS // split.block_tokens)):
            following = split[blocks.stop][0] if blocks.stop < len(split) else export.shard_set.eos_id
            header = np.array([magic, version, len(blocks) * split.block_tokens + 1] + [0] * 253, dtype="<i4")
            path, after = export.directory / f"{split.name}_{number:06}.bin", np.array(following, dtype=dtype).tobytes()
            export.write(path, split, blocks, dtype.str, before=header.tobytes(), after=after)
    flush_directory(export.directory)


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, sort_keys=True).encode())
