"""Export to Parquet, and to a directory of Hugging Face `datasets`. The one module that needs pyarrow.

`parquet`: a row is a block. `OUT/train/train-00000-of-00002.parquet`, …, at most 500 MB each, have the column `input_ids`:
list<uint32>, no nulls, zstd, by pyarrow's own writer; a row group has some 4 million tokens.

`hf`: what `DatasetDict.save_to_disk` writes (datasets/arrow_dataset.py and dataset_dict.py), so `load_from_disk` maps it
without copying. The split `val` is called `validation`, as is the custom there.

    OUT/dataset_dict.json                        {"splits": ["train", "validation"]}
    OUT/train/data-00000-of-00003.arrow …        Arrow IPC streams of batches of 1,000 rows, at most 500 MB each;
                                                 column `input_ids`: fixed-size list of block_tokens × int32, the same bits
                                                 as uint32 for every id below 2**31, and torch can compute with it
    OUT/train/dataset_info.json                  the column's type in the words of `datasets.Features`
    OUT/train/state.json                         the files in order, the split's name, a fingerprint
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from blake3 import blake3

from shards.common.files import atomic_writer, flush_directory
from shards.exchange.exporting import Export, cut_files, write_json
from shards.layout import bin_bytes
from shards.reader import Split

COLUMN = "input_ids"
_MAX_FILE_BYTES = 500_000_000
_ROW_GROUP_TOKENS = 1 << 22
_ROWS_PER_BATCH = 1000  # as the ArrowWriter of `datasets`


def export_parquet(export: Export) -> None:
    element = pyarrow.field("element", pyarrow.uint32(), nullable=False)
    schema = pyarrow.schema([pyarrow.field(COLUMN, pyarrow.list_(element), nullable=False)])

    open_writer = functools.partial(pyarrow.parquet.ParquetWriter, schema=schema, compression="zstd")
    at_once = max(1, _ROW_GROUP_TOKENS // export.shard_set.block_tokens)
    for split in export.splits:
        _write(export, split, f"{split.name}/{split.name}", ".parquet", schema, open_writer, at_once)


def export_hf(export: Export) -> None:
    shard_set, names = export.shard_set, {"train": "train", "val": "validation"}
    schema = pyarrow.schema([pyarrow.field(COLUMN, pyarrow.list_(pyarrow.int32(), shard_set.block_tokens))])
    open_writer = functools.partial(pyarrow.ipc.new_stream, schema=schema)
    for split in export.splits:
        name = names[split.name]
        files = _write(export, split, f"{name}/data", ".arrow", schema, open_writer, _ROWS_PER_BATCH)
        # `Sequence` is what every version of `datasets` reads.
        feature = {"dtype": "int32", "_type": "Value"}
        features = {COLUMN: {"feature": feature, "length": shard_set.block_tokens, "_type": "Sequence"}}
        description = f"shard set {shard_set.fingerprint}, split {split.name}"
        info = {"features": features, "description": description, "citation": "", "homepage": "", "license": ""}
        state: dict[str, Any] = {
            "_data_files": [{"filename": file} for file in files],
            "_fingerprint": blake3(f"{shard_set.fingerprint} {name}".encode()).hexdigest(length=8),
            "_split": name,
        }
        state |= {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False}
        write_json(export.directory / name / "dataset_info.json", info)
        write_json(export.directory / name / "state.json", state)
    write_json(export.directory / "dataset_dict.json", {"splits": [names[split.name] for split in export.splits]})


def _write(
    export: Export,
    split: Split,
    stem: str,
    suffix: str,
    schema: pyarrow.Schema,
    open_writer: Callable[[Any], Any],
    rows_at_once: int,
) -> list[str]:
    """Write the split to files `STEM-00000-of-00003SUFFIX` of the schema's one column; their names."""
    row_type, values_type = schema.field(0).type, schema.field(0).type.value_type
    files = cut_files(len(split), _MAX_FILE_BYTES // bin_bytes(1, split.block_tokens))
    paths = [export.directory / f"{stem}-{number:05}-of-{len(files):05}{suffix}" for number in range(len(files))]
    paths[0].parent.mkdir()
    for path, blocks in zip(paths, files, strict=True):
        with atomic_writer(path, flush_parent=False) as file, open_writer(file) as writer:
            for batch in export.read(split, blocks, at_once=rows_at_once):
                content = pyarrow.py_buffer(np.ascontiguousarray(batch, dtype="<u4"))  # not copied
                values = pyarrow.Array.from_buffers(values_type, batch.size, [None, content])
                rows = pyarrow.FixedSizeListArray.from_arrays(values, split.block_tokens).cast(row_type)
                writer.write_batch(pyarrow.record_batch([rows], schema=schema))
    flush_directory(paths[0].parent)
    return [path.name for path in paths]
