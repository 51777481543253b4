"""Export to Parquet, and to a directory of Hugging Face `datasets`. The one module that needs pyarrow.

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
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from blake3 import blake3

from shards.common.files import atomic_writer, flush_directory, write_atomically
from shards.exchange.blocks import Export, cut_files
from shards.layout import bin_bytes
from shards.reader import Split, Tokens

COLUMN = "input_ids"
_MAX_FILE_BYTES = 500_000_000
_ROW_GROUP_TOKENS = 1 << 22
_ROWS_PER_BATCH = 1000  # as the ArrowWriter of `datasets`
_HF_SPLITS = {"train": "train", "val": "validation"}


def export_parquet(export: Export) -> None:
    element = pyarrow.field("element", pyarrow.uint32(), nullable=False)
    schema = pyarrow.schema([pyarrow.field(COLUMN, pyarrow.list_(element), nullable=False)])
    rows_per_group = max(1, _ROW_GROUP_TOKENS // export.shard_set.block_tokens)
    for split in export.splits:
        folder = export.directory / split.name
        for path, blocks in _new_files(split, folder, split.name, ".parquet").items():
            with (
                atomic_writer(path, flush_parent=False) as file,
                pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer,
            ):
                for batch in export.read(split, blocks, at_once=rows_per_group):
                    offsets = np.arange(len(batch) + 1, dtype=np.int32) * np.int32(split.block_tokens)
                    rows = pyarrow.ListArray.from_arrays(offsets, _array(batch), type=schema.field(0).type)
                    table = pyarrow.Table.from_arrays([rows], schema=schema)
                    writer.write_table(table, row_group_size=len(batch))
        flush_directory(folder)


def export_hf(export: Export) -> None:
    shard_set, directory = export.shard_set, export.directory
    row_type = pyarrow.list_(pyarrow.int32(), shard_set.block_tokens)
    schema = pyarrow.schema([pyarrow.field(COLUMN, row_type)])
    for split in export.splits:
        name = _HF_SPLITS[split.name]
        files = _new_files(split, directory / name, "data", ".arrow")
        for path, blocks in files.items():
            with atomic_writer(path, flush_parent=False) as file, pyarrow.ipc.new_stream(file, schema) as writer:
                for batch in export.read(split, blocks, at_once=_ROWS_PER_BATCH):
                    values = _array(batch).view(pyarrow.int32())
                    rows = pyarrow.FixedSizeListArray.from_arrays(values, type=row_type)
                    writer.write_batch(pyarrow.record_batch([rows], schema=schema))
        # `Sequence` is what every version of `datasets` reads.
        feature = {"dtype": "int32", "_type": "Value"}
        info = {
            "citation": "",
            "description": f"shard set {shard_set.fingerprint}, split {split.name}",
            "features": {COLUMN: {"feature": feature, "length": shard_set.block_tokens, "_type": "Sequence"}},
            "homepage": "",
            "license": "",
        }
        state: dict[str, Any] = {
            "_data_files": [{"filename": path.name} for path in files],
            "_fingerprint": blake3(f"{shard_set.fingerprint} {name}".encode()).hexdigest(length=8),
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": name,
        }
        write_atomically(directory / name / "dataset_info.json", json.dumps(info, indent=2).encode())
        write_atomically(directory / name / "state.json", json.dumps(state, indent=2).encode())
    names = {"splits": [_HF_SPLITS[split.name] for split in export.splits]}
    write_atomically(directory / "dataset_dict.json", json.dumps(names).encode())


def _new_files(split: Split, folder: Path, stem: str, suffix: str) -> dict[Path, range]:
    """Make `folder`; the files to write in it with the blocks of each."""
    folder.mkdir()
    files = cut_files(len(split), _MAX_FILE_BYTES // bin_bytes(1, split.block_tokens))
    names = [f"{stem}-{number:05}-of-{len(files):05}{suffix}" for number in range(len(files))]
    return {folder / name: blocks for name, blocks in zip(names, files, strict=True)}


def _array(blocks: Tokens) -> Any:
    """The tokens of blocks as one Arrow array of uint32, without copying."""
    buffer = pyarrow.py_buffer(np.ascontiguousarray(blocks, dtype="<u4"))
    return pyarrow.Array.from_buffers(pyarrow.uint32(), blocks.size, [None, buffer])
