"""Each peer's own reader reads a shard set, unmodified or exported; every token is compared with what `np.memmap` sees.

    python bench/peers_readers.py [--peers-python PYTHON] [--set DIR …] [--only NAME,…] [--out FILE.json]

Without `--set` it builds two small sets of the sample corpus, in many shards: one with Qwen2's tokenizer (151,646 entries,
packing concat, documents cut between shards) and one with a small tokenizer (below 65,536 entries, packing best-fit), so
that both forms of `mds` and `llm.c` occur. Prints a table; exit status 1 if anything differs, or a reader fails.

The peers run in an environment of their own (`make peers`). llm.c is no package: its files are read by a reader of the
documented layout.
"""

from __future__ import annotations

import argparse
import glob
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULT_PYTHON = REPOSITORY / "bench" / ".peers-venv" / "bin" / "python"
SAMPLE = "data/sample/wikipedia-zh-sample.json"
SPLITS = ("train", "val")
TIMEOUT_SECONDS = 600


class Difference(Exception):
    """What a reader gave is not what is in the files."""


class Source:
    """A shard set, seen with NumPy alone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest = json.loads((directory / "manifest.json").read_bytes())
        self.block_tokens: int = self.manifest["block_tokens"]
        self.eos_id: int = self.manifest["tokenizer"]["eos_id"]
        self.vocab_size: int = self.manifest["tokenizer"]["vocab_size"]
        self.is_wide = self.vocab_size > 1 << 16

    def names(self, split: str) -> list[str]:
        return [shard["name"] for shard in self.manifest["shards"] if shard["split"] == split]

    def tokens(self, name: str) -> Any:
        return np.memmap(self.directory / f"{name}.bin", "<u4", mode="r")

    def blocks(self, split: str) -> Any:
        shards = [self.tokens(name) for name in self.names(split)]
        return np.concatenate([np.empty(0, "<u4"), *shards]).reshape(-1, self.block_tokens)

    def splits(self) -> list[str]:
        return [split for split in SPLITS if self.names(split)]

    def index(self, name: str) -> tuple[Any, Any, Any]:
        """Starts and lengths of pieces, in tokens, and document boundaries."""
        content = (self.directory / f"{name}.idx").read_bytes()
        num_pieces, num_boundaries = np.frombuffer(content, "<u8", 2, 18).tolist()
        lengths = np.frombuffer(content, "<i4", num_pieces, 34)
        offsets = np.frombuffer(content, "<i8", num_pieces, 34 + 4 * num_pieces)
        return offsets // 4, lengths, np.frombuffer(content, "<i8", num_boundaries, 34 + 12 * num_pieces)


def compare(where: str, expected: Any, found: Any) -> int:
    """The number of tokens compared. Raises `Difference`."""
    expected, found = np.asarray(expected).reshape(-1), np.asarray(found).reshape(-1)
    if len(expected) != len(found):
        raise Difference(f"{where}: {len(expected):,} tokens in the files, {len(found):,} from the reader")
    if not np.array_equal(expected, found):
        place = int(np.argmax(expected != found))
        raise Difference(f"{where}: token {place:,} is {expected[place]}, the reader gives {found[place]}")
    return len(expected)


def compare_blocks(where: str, blocks: Any, found: Iterable[Any]) -> int:
    """All of `blocks` with as many items of the reader."""
    num_tokens, items = 0, iter(found)
    for number, block in enumerate(blocks):
        num_tokens += compare(f"{where}: block {number:,}", block, next(items, []))
    if next(items, None) is not None:
        raise Difference(f"{where}: more than {len(blocks):,} items")
    return num_tokens


def megatron_indexed(source: Source, _export: Path) -> int:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    num_tokens = 0
    for mmap in (True, False):
        for name in source.names("train") + source.names("val"):
            dataset = IndexedDataset(str(source.directory / name), mmap=mmap)
            starts, lengths, boundaries = source.index(name)
            tokens = source.tokens(name)
            if dataset.document_indices.tolist() != boundaries.tolist():
                raise Difference(f"{name}: document boundaries")
            pieces = [tokens[start : start + length] for start, length in zip(starts, lengths, strict=True)]
            num_tokens += compare_blocks(name, pieces, (dataset[number] for number in range(len(dataset))))
    return num_tokens // 2


def megatron_dataset(source: Source, name: str) -> Any:
    """Megatron's GPTDataset over one shard, in its own shuffled order."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    class Tokenizer:
        eod, vocab_size = source.eos_id, None

        def __init__(self) -> None:
            self.unique_identifiers = {"class": "ids"}

    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=source.block_tokens,
        split="1,0,0",
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        path_to_cache=tempfile.mkdtemp(),
        tokenizer=Tokenizer(),
    )
    prefix = str(source.directory / name)
    low = GPTDataset.build_low_level_dataset(prefix, config)
    indices = np.arange(GPTDataset.numel_low_level_dataset(low), dtype=np.int32)
    return GPTDataset(low, prefix, indices, None, Split.train, config)


def megatron_gpt(source: Source, _export: Path) -> int:
    """Its samples are windows of block_tokens + 1 over the documents."""
    num_tokens = 0
    for name in source.names("train") + source.names("val"):
        starts, lengths, _boundaries = source.index(name)
        if lengths.sum() <= source.block_tokens:
            continue
        dataset, tokens = megatron_dataset(source, name), source.tokens(name)
        order = [int(number) for number in dataset.document_index]
        stream = np.concatenate([tokens[starts[number] : starts[number] + lengths[number]] for number in order])
        for number in range(len(dataset)):
            begin = int(dataset.shuffle_index[number]) * source.block_tokens
            window = stream[begin : begin + source.block_tokens + 1]
            num_tokens += compare(f"{name}: sample {number:,}", window[:-1], dataset[number]["tokens"])
            compare(f"{name}: labels {number:,}", window[1:], dataset[number]["labels"])
    return num_tokens


def olmo_dataset(source: Source, split: str) -> Any:
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


def olmo_core(source: Source, _export: Path) -> int:
    num_tokens = 0
    for split in source.splits():
        dataset = olmo_dataset(source, split)
        items = (dataset[number]["input_ids"] for number in range(len(dataset)))
        num_tokens += compare_blocks(split, source.blocks(split), items)
    return num_tokens


def datatrove(source: Source, export: Path) -> int:
    from datatrove.utils.dataset import DatatroveFileDataset, DatatroveFolderDataset

    num_tokens, length = 0, source.block_tokens - 1
    for split in source.splits():
        dataset = DatatroveFolderDataset(str(export / split), seq_len=length, token_size=4, return_positions=True)
        items = [dataset[number] for number in range(len(dataset))]
        num_tokens += compare_blocks(split, source.blocks(split), (item["input_ids"] for item in items))
        # A token's position in its document counts from 0; where it is 0, the index has an end before it.
        ends = [np.fromfile(export / split / f"{name}.ds.index", "<u8") for name in source.names(split)]
        first = np.cumsum([0, *(len(source.tokens(name)) for name in source.names(split))])
        begins = {0, *(int(end + begin) for begin, some in zip(first, ends, strict=False) for end in some)}
        for number, item in enumerate(items):
            found = np.flatnonzero(item["positions"].numpy() == 0) + number * source.block_tokens
            expected = [place for place in range(found[0], found[0] + source.block_tokens) if place in begins]
            compare(f"{split}: beginnings in block {number:,}", sorted({int(found[0]), *expected}), found)
        for name in source.names(split):
            single = DatatroveFileDataset(str(export / split / f"{name}.ds"), seq_len=length, token_size=4)
            blocks = source.tokens(name).reshape(-1, source.block_tokens)
            compare_blocks(name, blocks, (single[number]["input_ids"] for number in range(len(single))))
    return num_tokens


def litdata(source: Source, export: Path) -> int:
    from litdata import StreamingDataset, TokensLoader

    num_tokens = 0
    for split in source.splits():
        folder = str(export / split)
        dataset = StreamingDataset(folder, item_loader=TokensLoader(block_size=source.block_tokens), shuffle=False)
        num_tokens += compare_blocks(split, source.blocks(split), (item.numpy() for item in dataset))
        items = (dataset[number].numpy() for number in range(len(dataset)))
        compare_blocks(f"{split}, by number", source.blocks(split), items)
    return num_tokens


def mosaicml_dataset() -> Any:
    """Its class. The package imports torchvision for its data sets of pictures, which we go round."""
    specification = importlib.util.find_spec("streaming")
    assert specification is not None and specification.submodule_search_locations is not None
    package = types.ModuleType("streaming")
    package.__path__ = list(specification.submodule_search_locations)
    sys.modules["streaming"] = package
    from streaming.base import StreamingDataset

    return StreamingDataset


def mosaicml_streaming(source: Source, export: Path) -> int:
    num_tokens = 0
    for split in source.splits():
        dataset = mosaicml_dataset()(local=str(export), split=split, shuffle=False, batch_size=1)
        items = (dataset[number]["tokens"] for number in range(len(dataset)))
        num_tokens += compare_blocks(split, source.blocks(split), items)
        compare_blocks(f"{split}, one after another", source.blocks(split), (item["tokens"] for item in dataset))
    return num_tokens


def parquet(source: Source, export: Path) -> int:
    import pyarrow.parquet

    num_tokens = 0
    for split in source.splits():
        rows = pyarrow.parquet.read_table(export / split)["input_ids"]
        num_tokens += compare_blocks(split, source.blocks(split), (row.values.to_numpy() for row in rows))
    return num_tokens


def datasets(source: Source, export: Path) -> int:
    from datasets import load_from_disk

    dataset = load_from_disk(str(export))
    num_tokens = 0
    for split, name in (("train", "train"), ("val", "validation")):
        if split in source.splits():
            items = (item["input_ids"] for item in dataset[name].with_format("numpy"))
            num_tokens += compare_blocks(split, source.blocks(split), items)
    return num_tokens


def llm_c_layout(source: Source, export: Path) -> int:
    """As dev/data/data_common.py of llm.c writes it."""
    magic, version, dtype = (20240801, 7, "<u4") if source.is_wide else (20240520, 1, "<u2")
    num_tokens = 0
    for split in source.splits():
        parts = []
        for path in sorted(glob.glob(str(export / f"{split}_*.bin"))):
            header, tokens = np.fromfile(path, "<i4", 256), np.fromfile(path, dtype, offset=1024)
            compare(f"{path}: header", [magic, version, len(tokens)], header[:3])
            parts.append(tokens[:-1])
        num_tokens += compare_blocks(
            split, source.blocks(split), np.concatenate(parts).reshape(-1, source.block_tokens)
        )
    return num_tokens


# Name → the reader, its package, and the format to export to ("" for the set as it is).
PEERS: dict[str, tuple[Callable[[Source, Path], int], str, str]] = {
    "Megatron-Core IndexedDataset": (megatron_indexed, "megatron-core", ""),
    "Megatron-Core GPTDataset": (megatron_gpt, "megatron-core", ""),
    "OLMo-core NumpyFSLDataset": (olmo_core, "ai2-olmo-core", ""),
    "datatrove DatatroveFolderDataset": (datatrove, "datatrove", "datatrove"),
    "litdata StreamingDataset": (litdata, "litdata", "litdata"),
    "MosaicML StreamingDataset": (mosaicml_streaming, "mosaicml-streaming", "mds"),
    "pyarrow read_table": (parquet, "pyarrow", "parquet"),
    "datasets load_from_disk": (datasets, "datasets", "hf"),
    "llm.c's documented layout": (llm_c_layout, "", "llm.c"),
}


def read_with(name: str, directory: Path, export: Path) -> dict[str, Any]:
    """What happens in the peers' environment."""
    reader, package, _form = PEERS[name]
    version = importlib.metadata.version(package) if package else "–"
    try:
        return {"version": version, "num_tokens": reader(Source(directory), export), "result": "equal"}
    except Difference as difference:
        return {"version": version, "num_tokens": 0, "result": str(difference)}


def build_sets(work: Path) -> list[Path]:
    """Two sets of the sample corpus."""
    tokenizer = work / "tokenizer"
    run_ours("pipeline", "tokenizer", SAMPLE, "--vocab-size", "2000", "--out", tokenizer)
    common = ("--unit-bytes", "60000", "--quiet")
    wide, narrow = work / "qwen2-concat", work / "2000-best-fit"
    run_ours("pipeline", "build", SAMPLE, "--out", wide, *common)
    options = ("--block-tokens", "128", "--packing", "best-fit")
    run_ours("pipeline", "build", SAMPLE, "--tokenizer", tokenizer, "--out", narrow, *options, *common)
    return [wide, narrow]


def run_ours(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)


def run_peer(python: Path, name: str, directory: Path, export: Path, work: Path) -> dict[str, Any]:
    """`read_with` in a process of the peers' environment, which may write below `work` alone."""
    environment = {
        **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(work),
        "HF_HOME": str(work),
        "LITDATA_CACHE_DIR": str(work),
    }
    command = [python, __file__, "--peer", name, directory, export]
    try:
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"version": "?", "num_tokens": 0, "result": f"no end after {TIMEOUT_SECONDS} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"version": "?", "num_tokens": 0, "result": f"failed: {last}"}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", type=Path, default=DEFAULT_PYTHON, metavar="PYTHON")
    parser.add_argument(
        "--set", type=Path, action="append", default=[], metavar="DIR", help="a shard set (two are made)"
    )
    parser.add_argument("--only", default="", metavar="NAME,…", help="peers whose names hold one of these")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--peer", nargs=3, metavar=("NAME", "SET", "EXPORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        name, directory, export = options.peer
        print(json.dumps(read_with(name, Path(directory), Path(export))))
        return 0
    wanted = [part.lower() for part in options.only.split(",")]
    names = [name for name in PEERS if any(part in name.lower() for part in wanted)]
    rows = []
    with tempfile.TemporaryDirectory() as work:
        print("| reader | version | set | tokens compared | result |\n|---|---|---|---|---|", flush=True)
        for directory in [path.resolve() for path in options.set] or build_sets(Path(work)):
            exports: dict[str, Path] = {"": directory}
            for name in names:
                form = PEERS[name][2]
                if form not in exports:
                    exports[form] = Path(work) / f"{directory.name}-{form}"
                    run_ours("shards", "export", directory, "--to", form, "--out", exports[form])
                row = {"reader": name, "set": directory.name}
                row |= run_peer(options.peers_python, name, directory, exports[form], Path(work))
                rows.append(row)
                print("| {reader} | {version} | {set} | {num_tokens:,} | {result} |".format(**row), flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return int(any(row["result"] != "equal" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
