"""The peers' readers at a trainer's work: batches of 32 blocks in random order; runs in the peers' environment.

    PEERS_PYTHON bench/peers_loaders.py --list
    PEERS_PYTHON bench/peers_loaders.py NAME SET EXPORT NUM_BATCHES

Each in the way that its package means for random order: by number where it has a map-style data set, by its own shuffled
iteration where it streams. Prints `{"seconds_a_batch": …}`; opening and the first batches are not counted.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers_readers import Source

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
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    class Tokenizer:
        eod, vocab_size = source.eos_id, None

        def __init__(self) -> None:
            self.unique_identifiers = {"class": "ids"}

    cache = tempfile.mkdtemp()
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=source.block_tokens,
        split="1,0,0",
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        path_to_cache=cache,
        tokenizer=Tokenizer(),
    )
    prefix = str(source.directory / source.names("train")[0])
    low = GPTDataset.build_low_level_dataset(prefix, config)
    indices = np.arange(GPTDataset.numel_low_level_dataset(low), dtype=np.int32)
    dataset = GPTDataset(low, prefix, indices, None, Split.train, config)
    return by_number(dataset, lambda item: item["tokens"])


def olmo_core(source: Source, _export: Path) -> Rows:
    from olmo_core.data import NumpyFSLDataset

    dataset = NumpyFSLDataset(
        *[str(source.directory / f"{name}.bin") for name in source.names("train")],
        sequence_length=source.block_tokens,
        dtype=np.uint32,
        eos_token_id=source.eos_id,
        pad_token_id=source.eos_id,
        vocab_size=source.vocab_size,
    )
    dataset.work_dir = tempfile.mkdtemp()
    dataset.prepare()
    return by_number(dataset, lambda item: item["input_ids"])


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
    import importlib.util
    import types

    # The package imports torchvision for its data sets of pictures: go round it.
    specification = importlib.util.find_spec("streaming")
    assert specification is not None and specification.submodule_search_locations is not None
    package = types.ModuleType("streaming")
    package.__path__ = list(specification.submodule_search_locations)
    sys.modules["streaming"] = package
    from streaming.base import StreamingDataset

    dataset = StreamingDataset(local=str(export), split="train", shuffle=True, batch_size=BATCH_BLOCKS)
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
