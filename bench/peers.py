"""Each peer's own reader reads a shard set, unmodified or exported; every token is compared with what `np.memmap` sees.

    python -m bench.peers [--only NAME,…]

It builds two small sets of the sample corpus, in many shards: one with Qwen2's tokenizer (151,646 entries,
packing concat, documents cut between shards) and one with a small tokenizer (below 65,536 entries, packing best-fit), so
that both forms of `mds` occur. Prints a table; exit status 1 if anything differs, or a reader fails.

The peers run in an environment of their own (`make peers`): `python -m bench.peers read NAME SET EXPORT` there. Parquet,
`datasets` and llm.c's layout, which need no such environment, are read in tests/shards/test_exchange.py.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
import tempfile
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.measure import PEERS_VENV, ours, print_head, print_row, run

LIMIT_SECONDS = 600


class Source:
    """A shard set, seen with NumPy alone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest = json.loads((directory / "manifest.json").read_bytes())
        self.block_tokens: int = self.manifest["block_tokens"]
        self.eos_id: int = self.manifest["tokenizer"]["eos_id"]
        self.vocab_size: int = self.manifest["tokenizer"]["vocab_size"]

    def names(self, *splits: str) -> list[str]:
        return [shard["name"] for shard in self.manifest["shards"] if shard["split"] in splits]

    def splits(self) -> list[str]:
        return [split for split in ("train", "val") if self.names(split)]

    def tokens(self, name: str) -> Any:
        return np.memmap(self.directory / f"{name}.bin", "<u4", mode="r")

    def blocks(self, split: str) -> Any:
        return np.concatenate([self.tokens(name) for name in self.names(split)]).reshape(-1, self.block_tokens)

    def sequences(self, name: str) -> tuple[list[Any], list[int]]:
        """The pieces of documents in a shard, and the document boundaries among them."""
        content, tokens = (self.directory / f"{name}.idx").read_bytes(), self.tokens(name)
        num_pieces, num_boundaries = np.frombuffer(content, "<u8", 2, 18).tolist()
        lengths = np.frombuffer(content, "<i4", num_pieces, 34)
        starts = np.frombuffer(content, "<i8", num_pieces, 34 + 4 * num_pieces) // 4
        pieces = [tokens[start : start + length] for start, length in zip(starts, lengths, strict=True)]
        return pieces, np.frombuffer(content, "<i8", num_boundaries, 34 + 12 * num_pieces).tolist()


def compare(where: str, expected: Any, found: Any) -> int:
    """The number of tokens compared. Raises `ValueError`."""
    expected, found = np.asarray(expected).reshape(-1), np.asarray(found).reshape(-1)
    if len(expected) != len(found):
        raise ValueError(f"{where}: {len(expected):,} tokens in the files, {len(found):,} from the reader")
    if not np.array_equal(expected, found):
        place = int(np.argmax(expected != found))
        raise ValueError(f"{where}: token {place:,} is {expected[place]}, the reader gives {found[place]}")
    return len(expected)


def compare_all(where: str, expected: Iterable[Any], found: Iterable[Any]) -> int:
    """All expected items with as many of the reader."""
    items = iter(found)
    num_tokens = sum(compare(f"{where}: item {n:,}", item, next(items, [])) for n, item in enumerate(expected))
    if next(items, None) is not None:
        raise ValueError(f"{where}: more items than there are")
    return num_tokens


def compare_blocks(source: Source, export: Path, read: Reader) -> int:
    """All blocks by number, and one after another where the reader can do that."""
    num_tokens = 0
    for split in source.splits():
        dataset, blocks = read(source, export, split), source.blocks(split)
        num_tokens += compare_all(split, blocks, (ids_of(dataset[number]) for number in range(len(dataset))))
        if hasattr(dataset, "__iter__"):
            compare_all(f"{split}, one after another", blocks, map(ids_of, dataset))
    return num_tokens


def ids_of(item: Any) -> Any:
    return item.get("input_ids", item.get("tokens")) if isinstance(item, dict) else item


# ---- the readers: a data set of a split's blocks ----

Reader = Callable[[Source, Path, str], Any]


def megatron(source: Source, _export: Path, split_or_name: str) -> Any:
    """Megatron's GPTDataset over one shard (of a split: the first), in its own shuffled order."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    tokenizer = types.SimpleNamespace(eod=source.eos_id, vocab_size=None, unique_identifiers={"class": "ids"})
    masks = ("reset_position_ids", "reset_attention_mask", "eod_mask_loss", "create_attention_mask")
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=source.block_tokens,
        split="1,0,0",
        path_to_cache=tempfile.mkdtemp(),
        tokenizer=tokenizer,
        **dict.fromkeys(masks, False),
    )
    prefix = str(source.directory / (source.names(split_or_name) or [split_or_name])[0])
    low = GPTDataset.build_low_level_dataset(prefix, config)
    indices = np.arange(GPTDataset.numel_low_level_dataset(low), dtype=np.int32)
    return GPTDataset(low, prefix, indices, None, Split.train, config)


def compare_megatron_windows(source: Source, export: Path, read: Reader) -> int:
    """Its samples are windows of block_tokens + 1 over the documents."""
    num_tokens, size = 0, source.block_tokens
    for name in source.names("train", "val"):
        pieces, _boundaries = source.sequences(name)
        if sum(map(len, pieces)) <= size:
            continue
        dataset = read(source, export, name)
        stream = np.concatenate([pieces[number] for number in dataset.document_index])
        for number in range(len(dataset)):
            begin = int(dataset.shuffle_index[number]) * size
            window, sample = stream[begin : begin + size + 1], dataset[number]
            num_tokens += compare(f"{name}: sample {number:,}", window[:-1], sample["tokens"])
            compare(f"{name}: labels {number:,}", window[1:], sample["labels"])
    return num_tokens


def compare_megatron_documents(source: Source, _export: Path, _read: Reader) -> int:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    num_tokens = 0
    for name in source.names("train", "val"):
        pieces, boundaries = source.sequences(name)
        for mmap in (False, True):
            dataset = IndexedDataset(str(source.directory / name), mmap=mmap)
            compare(f"{name}: document boundaries", boundaries, dataset.document_indices)
            found = compare_all(name, pieces, (dataset[number] for number in range(len(dataset))))
        num_tokens += found
    return num_tokens


def olmo_core(source: Source, _export: Path, split: str) -> Any:
    from olmo_core.data import NumpyFSLDataset

    dataset = NumpyFSLDataset(
        *[str(source.directory / f"{name}.bin") for name in source.names(split)],
        sequence_length=source.block_tokens,
        dtype=np.uint32,
        eos_token_id=source.eos_id,
        pad_token_id=source.eos_id,
        vocab_size=source.vocab_size,
    )
    dataset.work_dir = tempfile.mkdtemp()
    dataset.prepare()
    return dataset


def datatrove(source: Source, export: Path, split: str) -> Any:
    from datatrove.utils.dataset import DatatroveFolderDataset

    return DatatroveFolderDataset(str(export / split), seq_len=source.block_tokens - 1, token_size=4)


def litdata(source: Source, export: Path, split: str) -> Any:
    from litdata import StreamingDataset, TokensLoader

    loader = TokensLoader(block_size=source.block_tokens)
    return StreamingDataset(str(export / split), item_loader=loader, shuffle=False)


def mosaicml(_source: Source, export: Path, split: str) -> Any:
    """The package imports torchvision for its data sets of pictures, which we go round."""
    if "streaming" not in sys.modules:
        specification = importlib.util.find_spec("streaming")
        assert specification is not None and specification.submodule_search_locations is not None
        package = types.ModuleType("streaming")
        package.__path__ = list(specification.submodule_search_locations)
        sys.modules["streaming"] = package
    from streaming.base import StreamingDataset

    return StreamingDataset(local=str(export), split=split, shuffle=False, batch_size=1)


class Peer(NamedTuple):
    package: str
    form: str  # of the export; "" for the set as it is
    read: Reader
    compare: Callable[[Source, Path, Reader], int] = compare_blocks


PEERS = {
    "Megatron-Core IndexedDataset": Peer("megatron-core", "", megatron, compare_megatron_documents),
    "Megatron-Core GPTDataset": Peer("megatron-core", "", megatron, compare_megatron_windows),
    "OLMo-core NumpyFSLDataset": Peer("ai2-olmo-core", "", olmo_core),
    "datatrove DatatroveFolderDataset": Peer("datatrove", "datatrove", datatrove),
    "litdata StreamingDataset": Peer("litdata", "litdata", litdata),
    "MosaicML StreamingDataset": Peer("mosaicml-streaming", "mds", mosaicml),
}


def read_all(name: str, source: Source, export: Path) -> dict[str, Any]:
    """In the peers' environment."""
    peer = PEERS[name]
    try:
        num_tokens, result = peer.compare(source, export, peer.read), "equal"
    except ValueError as error:
        num_tokens, result = 0, str(error)
    return {"version": importlib.metadata.version(peer.package), "num_tokens": num_tokens, "result": result}


def build_sets(work: Path) -> list[Path]:
    """Two sets of the sample corpus."""
    from bench.corpus import SAMPLE, make_tokenizer

    wide, narrow, small = work / "qwen2-concat", work / "2000-best-fit", ("--unit-bytes", 60_000, "--quiet")
    run(ours("pipeline", "build", SAMPLE, "--out", wide, *small))
    options = ("--tokenizer", make_tokenizer(work / "tokenizer", 2000), "--block-tokens", 128, "--packing", "best-fit")
    run(ours("pipeline", "build", SAMPLE, "--out", narrow, *options, *small))
    return [wide, narrow]


def main(argv: list[str]) -> int:
    from shards.common.command_line import Parser

    parser = Parser(description=__doc__)
    parser.add_argument("--only", default="", metavar="NAME,…", help="peers whose names hold one of these")
    options = parser.parse_args(argv)
    wanted = options.only.lower().split(",")
    num_wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        # The peers may write below `work` alone.
        environment |= dict.fromkeys(("TMPDIR", "HF_HOME", "LITDATA_CACHE_DIR"), temporary) | {"HF_HUB_OFFLINE": "1"}
        print_head("reader", "version", "set", "tokens compared", "result")
        for directory in build_sets(work):
            for name in (name for name in PEERS if any(part in name.lower() for part in wanted)):
                export = work / f"{directory.name}-{PEERS[name].form}" if PEERS[name].form else directory
                if not export.exists():
                    run(ours("shards", "export", directory, "--to", PEERS[name].form, "--out", export))
                command = [PEERS_VENV / "bin" / "python", "-m", "bench.peers", "read", name, directory, export]
                ended = run(command, environment=environment, may_fail=True, limit_seconds=LIMIT_SECONDS)
                failed = {"version": "?", "num_tokens": 0, "result": f"failed: {ended.errors.splitlines()[-1:]}"}
                row = failed if ended.status else ended.last_line()
                num_wrong += row["result"] != "equal"
                print_row(name, row["version"], directory.name, f"{row['num_tokens']:,}", row["result"])
    return int(num_wrong > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["read"]:
        name, directory, export = sys.argv[2:]
        print(json.dumps(read_all(name, Source(Path(directory)), Path(export))))
    else:
        from shards.common.command_line import run_command

        run_command(main)
