"""The peers' readers at a trainer's work: batches of 32 blocks in random order; runs in the peers' environment.

    PEERS_PYTHON bench/peers_loaders.py --list
    PEERS_PYTHON bench/peers_loaders.py NAME SET EXPORT NUM_BATCHES

Each in the way that its package means for random order: by number where it has a map-style data set, by its own shuffled
iteration where it streams. Prints `{"seconds_a_batch": …}`; opening and the first batches are not counted.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers_readers import Source, megatron_dataset, mosaicml_dataset, olmo_dataset

BATCH_BLOCKS = 32
NUM_WARM_BATCHES = 20

Rows = Iterator[Any]


def by_number(dataset: Any, take: Callable[[Any], Any]) -> Rows:
    rng = np.random.default_rng(0)
    while True:
        for number in rng.integers(0, len(dataset), 100_000).tolist():
            yield take(dataset[number])


def megatron(source: Source, _export: Path) -> Rows:
    """Over one shard: its data set is of one file. The order is its own shuffle."""
    return by_number(megatron_dataset(source, source.names("train")[0]), lambda item: item["tokens"])


def olmo_core(source: Source, _export: Path) -> Rows:
    return by_number(olmo_dataset(source, "train"), lambda item: item["input_ids"])


def datatrove(source: Source, export: Path) -> Rows:
    from datatrove.utils.dataset import DatatroveFolderDataset

    dataset = DatatroveFolderDataset(str(export / "train"), seq_len=source.block_tokens - 1, token_size=4)
    return by_number(dataset, lambda item: item["input_ids"])


def litdata(source: Source, export: Path) -> Rows:
    from litdata import StreamingDataset, TokensLoader

    loader = TokensLoader(block_size=source.block_tokens)
    while True:
        yield from StreamingDataset(str(export / "train"), item_loader=loader, shuffle=True)


def mosaicml_streaming(_source: Source, export: Path) -> Rows:
    dataset = mosaicml_dataset()(local=str(export), split="train", shuffle=True, batch_size=BATCH_BLOCKS)
    while True:
        for item in dataset:
            yield item["tokens"]


# Name → the reader, and the format to export to ("" for the set as it is).
LOADERS: dict[str, tuple[Callable[[Source, Path], Rows], str]] = {
    "Megatron GPTDataset": (megatron, ""),
    "OLMo-core NumpyFSLDataset": (olmo_core, ""),
    "datatrove DatatroveFolderDataset": (datatrove, "datatrove"),
    "litdata StreamingDataset": (litdata, "litdata"),
    "MosaicML StreamingDataset": (mosaicml_streaming, "mds"),
}


def stacked(rows: list[Any]) -> Any:
    import torch

    return torch.stack(rows) if isinstance(rows[0], torch.Tensor) else np.stack(rows)


def main() -> None:
    if sys.argv[1:] == ["--list"]:
        print(json.dumps({name: form for name, (_reader, form) in LOADERS.items()}))
        return
    name, directory, export, num_batches = sys.argv[1:]
    source = Source(Path(directory))
    rows = LOADERS[name][0](source, Path(export))

    def batch() -> Any:
        return stacked([next(rows) for _ in range(BATCH_BLOCKS)])

    for _ in range(NUM_WARM_BATCHES):
        shape = batch().shape
    assert tuple(shape) == (BATCH_BLOCKS, source.block_tokens), shape
    begin = time.perf_counter()
    for _ in range(int(num_batches)):
        batch()
    print(json.dumps({"seconds_a_batch": (time.perf_counter() - begin) / int(num_batches)}))


if __name__ == "__main__":
    main()
