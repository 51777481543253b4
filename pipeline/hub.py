"""A data set by its name, `hf:NAME[:SPLIT]`, streamed by the package datasets: a stretch is one of its files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3

from pipeline.records import Batch, StretchReader
from pipeline.sources import HUB_PREFIX, Source
from shards.errors import InputError
from shards.hub.hugging_face import check_data_set

ROWS_AT_A_TIME = 1024


def open_hub(source: Source) -> Any:
    """The data set as a `datasets.IterableDataset`. Raises `InputError`."""
    import datasets

    name, _, split = source.path.removeprefix(HUB_PREFIX).partition(":")
    try:
        return datasets.load_dataset(name, split=split or "train", streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{source.path}: datasets can't open it: {reason}") from None


def num_hub_shards(source: Source) -> int:
    """The number of files of the data set. Raises `InputError`, at once if the hub can't be reached."""
    name = source.path.removeprefix(HUB_PREFIX).partition(":")[0]
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not Path(name).exists():  # other names are paths
        check_data_set(name)
    return int(open_hub(source).num_shards)


class HubReader(StretchReader):
    """The rows of one of the data set's files. The digest is of what was read: there is no file to look at."""

    _hash = None

    @property
    def digest(self) -> str:
        return self._hash.hexdigest() if self._hash is not None else ""

    def __iter__(self) -> Iterator[Batch]:
        dataset = open_hub(self._source)
        part = dataset.shard(num_shards=dataset.num_shards, index=self._stretch.start)
        self._hash = blake3()
        row = 0
        values: list[Any] = []
        for value in part:
            values.append(value)
            if len(values) == ROWS_AT_A_TIME:
                yield self._batch(values, row)
                row, values = row + len(values), []
        if values:
            yield self._batch(values, row)

    def _batch(self, values: list[Any], row: int) -> Batch:
        content = repr(values).encode("utf-8", "surrogatepass")
        assert self._hash is not None
        self._hash.update(content)
        return Batch(values, len(content), lambda number: (row + number, repr(values[number]).encode()))
