"""Token files as other programs write them, and their import."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards.exchange.importing import ImportSettings, import_files
from shards.exchange.token_files import open_files
from shards.manifest import Manifest
from shards.verify import verify

Documents = Sequence[Sequence[int]]
DTYPE_CODES = {"<u1": 1, "<i1": 2, "<i2": 3, "<i4": 4, "<i8": 5, "<u2": 8}


def write_megatron(path: Path, documents: Documents, dtype: str = "<i4", cut: int = 0) -> Path:
    """As Megatron-Core writes it; with `cut`, each document in sequences of at most so many tokens."""
    sequences: list[Sequence[int]] = []
    boundaries = [0]
    for document in documents:
        step = cut or len(document) or 1
        sequences += [document[begin : begin + step] for begin in range(0, len(document), step)]
        boundaries.append(len(sequences))
    lengths = np.array([len(sequence) for sequence in sequences], dtype="<i4")
    item_bytes = np.dtype(dtype).itemsize
    offsets = (np.cumsum(lengths, dtype="<i8") - lengths) * item_bytes
    np.array([token for sequence in sequences for token in sequence], dtype=dtype).tofile(path.with_suffix(".bin"))
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, DTYPE_CODES[dtype], len(sequences), len(boundaries))
    arrays = (lengths, offsets.astype("<i8"), np.array(boundaries, dtype="<i8"))
    path.with_suffix(".idx").write_bytes(header + b"".join(array.tobytes() for array in arrays))
    return path.with_suffix(".bin")


def write_datatrove(path: Path, documents: Documents, dtype: str = "<u4") -> Path:
    np.array([token for document in documents for token in document], dtype=dtype).tofile(path)
    ends = np.cumsum([len(document) for document in documents], dtype="<u8")
    path.with_name(path.name + ".index").write_bytes(ends.tobytes())
    return path


def write_any(path: Path, documents: Documents, dtype: str, cut: int = 0) -> Path:
    """As datatrove for a `dtype` such as `ds<u2`, else as Megatron-Core."""
    if dtype.startswith("ds"):
        return write_datatrove(path.with_suffix(".ds"), documents, dtype[2:])
    return write_megatron(path, documents, dtype, cut)


def take(paths: Sequence[Path], out: Path, tokenizer: Path, **options: Any) -> Manifest:
    """Import, and verify what came out of it."""
    form = "datatrove" if paths[0].suffix == ".ds" else "megatron"
    settings = ImportSettings(**{"imported_from": form, "block_tokens": 8, **options})
    manifest = import_files(open_files(list(map(str, paths)), form), out, tokenizer=tokenizer, settings=settings)
    assert verify(out) == []
    return manifest
