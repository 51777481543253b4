"""Export to Parquet, and to a directory of Hugging Face `datasets`. The one module that imports pyarrow.

`parquet`: a row is a block. Type and codec by pyarrow's own writer; a row group has some 4 million tokens.

    OUT/train/train-00000-of-00002.parquet …     column `input_ids`: list<uint32>, no nulls, zstd
    OUT/val/val-00000-of-00001.parquet …

`hf`: what `DatasetDict.save_to_disk` writes (datasets/arrow_dataset.py and dataset_dict.py), so `load_from_disk` maps it
without copying. The split `val` is called `validation`, as is the custom there.

    OUT/dataset_dict.json                        {"splits": ["train", "validation"]}
    OUT/train/data-00000-of-00003.arrow …        Arrow IPC streams of batches of 1,000 rows, at most 500 MB each;
                                                 column `input_ids`: fixed-size list of block_tokens × int32
    OUT/train/dataset_info.json                  the column's type in the words of `datasets.Features`
    OUT/train/state.json                         the files in order, the split's name, a fingerprint
    OUT/validation/…

int32 has the same bits as uint32 for every id below 2**31, and torch can compute with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from shards.common.errors import InputError
from shards.common.files import atomic_writer, flush_directory, write_atomically
from shards.exchange.blocks import Format, files_of, read_blocks
from shards.reader import ShardSet, Split, Tokens

COLUMN = "input_ids"
_MAX_FILE_BYTES = 500_000_000
_ROW_GROUP_TOKENS = 1 << 22
_ROWS_PER_BATCH = 1000  # as the ArrowWriter of `datasets`
_HF_SPLITS = {"train": "train", "val": "validation"}


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError("this format needs the package pyarrow; install it with `pip install pyarrow`") from None
    return pyarrow


def export_parquet(
    shard_set: ShardSet, splits: Sequence[Split], directory: Path, advance: Callable[[int], None]
) -> None:
    pyarrow = _pyarrow()
    element = pyarrow.field("element", pyarrow.uint32(), nullable=False)
    schema = pyarrow.schema([pyarrow.field(COLUMN, pyarrow.list_(element), nullable=False)])
    rows_per_group = max(1, _ROW_GROUP_TOKENS // shard_set.block_tokens)
    for split in splits:
        folder = directory / split.name
        folder.mkdir()
        files = files_of(split, max_bytes=_MAX_FILE_BYTES)
        for number, blocks in enumerate(files):
            path = folder / f"{split.name}-{number:05}-of-{len(files):05}.parquet"
            with (
                atomic_writer(path, flush_parent=False) as file,
                pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer,
            ):
                for batch in read_blocks(split, blocks, advance, blocks_per_read=rows_per_group):
                    offsets = np.arange(len(batch) + 1, dtype=np.int32) * np.int32(split.block_tokens)
                    rows = pyarrow.ListArray.from_arrays(offsets, _array(pyarrow, batch), type=schema.field(0).type)
                    table = pyarrow.Table.from_arrays([rows], schema=schema)
                    writer.write_table(table, row_group_size=len(batch))
        flush_directory(folder)


def export_hf(shard_set: ShardSet, splits: Sequence[Split], directory: Path, advance: Callable[[int], None]) -> None:
    pyarrow = _pyarrow()
    row_type = pyarrow.list_(pyarrow.int32(), shard_set.block_tokens)
    schema = pyarrow.schema([pyarrow.field(COLUMN, row_type)])
    for split in splits:
        name = _HF_SPLITS[split.name]
        folder = directory / name
        folder.mkdir()
        files = files_of(split, max_bytes=_MAX_FILE_BYTES)
        paths = [folder / f"data-{number:05}-of-{len(files):05}.arrow" for number in range(len(files))]
        for path, blocks in zip(paths, files, strict=True):
            with (
                atomic_writer(path, flush_parent=False) as file,
                pyarrow.ipc.new_stream(file, schema) as writer,
            ):
                for batch in read_blocks(split, blocks, advance, blocks_per_read=_ROWS_PER_BATCH):
                    values = _array(pyarrow, batch).view(pyarrow.int32())
                    rows = pyarrow.FixedSizeListArray.from_arrays(values, type=row_type)
                    writer.write_batch(pyarrow.record_batch([rows], schema=schema))
        info = {
            "citation": "",
            "description": f"shard set {shard_set.fingerprint}, split {split.name}",
            # `Sequence` is what every version of `datasets` reads.
            "features": {
                COLUMN: {
                    "feature": {"dtype": "int32", "_type": "Value"},
                    "length": shard_set.block_tokens,
                    "_type": "Sequence",
                }
            },
            "homepage": "",
            "license": "",
        }
        state: dict[str, Any] = {
            "_data_files": [{"filename": path.name} for path in paths],
            "_fingerprint": blake3(f"{shard_set.fingerprint} {name}".encode()).hexdigest(length=8),
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": name,
        }
        write_atomically(folder / "dataset_info.json", json.dumps(info, indent=2).encode())
        write_atomically(folder / "state.json", json.dumps(state, indent=2).encode())
    names = {"splits": [_HF_SPLITS[split.name] for split in splits]}
    write_atomically(directory / "dataset_dict.json", json.dumps(names).encode())


def _array(pyarrow: Any, blocks: Tokens) -> Any:
    """The tokens of blocks as one Arrow array of uint32, without copying."""
    buffer = pyarrow.py_buffer(np.ascontiguousarray(blocks, dtype="<u4"))
    return pyarrow.Array.from_buffers(pyarrow.uint32(), blocks.size, [None, buffer])


def parquet_reader(_shard_set: ShardSet, splits: Sequence[Split], out: Path) -> str:
    name = splits[0].name
    return f"import pyarrow.parquet as pq; {name} = pq.read_table({str(out / name)!r})"


def hf_reader(_shard_set: ShardSet, splits: Sequence[Split], out: Path) -> str:
    name = _HF_SPLITS[splits[0].name]
    return f'from datasets import load_from_disk; {name} = load_from_disk({str(out)!r})["{name}"]'


PARQUET = Format(export=export_parquet, reader=parquet_reader)
HF = Format(export=export_hf, reader=hf_reader)
