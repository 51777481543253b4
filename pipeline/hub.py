"""A data set by its name, `hf:NAME[:SPLIT]`, streamed by the package datasets: a stretch is one of its files."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3

from pipeline.records import Batch, StretchReader, row_batch
from pipeline.sources import HUB_PREFIX, Source
from shards.common.errors import InputError
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

    def __iter__(self) -> Iterator[Batch]:
        dataset = open_hub(self._source)
        rows = iter(dataset.shard(num_shards=dataset.num_shards, index=self._stretch.start))
        digest, row = blake3(), 0
        while values := list(itertools.islice(rows, ROWS_AT_A_TIME)):
            content = repr(values).encode("utf-8", "surrogatepass")
            digest.update(content)
            yield row_batch(values, row, len(content))
            row += len(values)
        self.digest = digest.hexdigest()
