"""What it costs to feed a trainer: batches of 32 random blocks from a shard set, in one process, in turns.

    python bench/loader.py SET [--rounds 5] [--batches 2000] [--peers-venv DIR] [--only ours,tutorial,cold,…]

ours      the split's gather in the order of a run, against `memmap[numbers]` over the same tokens in one file
manifest  decoding and checking a manifest of 20,000 shards
tutorial  batches of tensors: DataLoader over `BlockDataset`, against DataLoader over a `datasets` table and the tutorial's
          collator
cold      from `import shards` to the first batch in a new process, the set's pages out of the page cache
growth    the order's cost as the number of blocks grows, 10^4 to 10^10, against NumPy's permutation, held in memory
peers     each peer's own reader on the same tokens (`make peers` installs them; left out where missing)

Prints Markdown tables for bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import numpy as np  # noqa: E402

import shards  # noqa: E402
from bench.pipeline import machine  # noqa: E402
from shards.layout import SPLITS, shard_name  # noqa: E402
from shards.manifest import Manifest, decode_manifest, encode_manifest, sum_splits  # noqa: E402

BATCH_BLOCKS = 32
CHUNK_POSITIONS = 1 << 15  # as the trainer's sampler asks for them
MEASURES = ("ours", "manifest", "tutorial", "cold", "growth", "peers")


def seconds_a_batch(batches: Iterator[Any], count: int) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        next(batches)
    return (time.perf_counter() - begin) / count


def in_turns(ways: dict[str, Callable[[], Iterator[Any]]], rounds: int, count: int) -> dict[str, list[float]]:
    """Seconds a batch of each way, in turns; each way's first batches are not counted."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    running = {name: way() for name, way in ways.items()}
    for batches in running.values():
        seconds_a_batch(batches, 20)
    for _ in range(rounds):
        for name, batches in running.items():
            found[name].append(seconds_a_batch(batches, count))
    return found


def print_rates(found: dict[str, list[float]], ours: str, targets: dict[str, str], block_tokens: int) -> None:
    print("\n| way | µs a batch of 32, every round | M tokens/s | ours is faster by | target |\n|---|---|---|---|---|")
    for name, values in found.items():
        median = statistics.median(values)
        ratio = statistics.median(other / own for other, own in zip(values, found[ours], strict=True))
        every = ", ".join(f"{1e6 * value:.1f}" for value in values)
        rate = BATCH_BLOCKS * block_tokens / median / 1e6
        print(f"| {name} | {every} | {rate:,.0f} | {ratio:.2f} × | {targets.get(name, '')} |", flush=True)


# ---- the ways ----


def one_file(split: shards.Split, path: Path) -> np.ndarray:
    """The split's blocks in one file, as a plain memory map: what a bare reader would have."""
    expected = len(split) * split.block_tokens * 4
    if not path.exists() or path.stat().st_size != expected:
        with path.open("wb") as file:
            for number in range(len(split.shards)):
                file.write(split.shard_blocks(number).data)
    return np.memmap(path, "<u4", "r").reshape(-1, split.block_tokens)


def bare_gather(blocks: np.ndarray) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    while True:
        for numbers in rng.permutation(len(blocks))[: len(blocks) // BATCH_BLOCKS * BATCH_BLOCKS].reshape(
            -1, BATCH_BLOCKS
        ):
            yield blocks[numbers]


def own_gather(shard_set: shards.ShardSet, chunk: int = CHUNK_POSITIONS) -> Iterator[np.ndarray]:
    """As the trainer does it: the order in chunks, a gather for each batch."""
    split, order = shard_set["train"], shards.run_order(shard_set, seed=0)
    for start in range(0, 1 << 62, chunk):
        for numbers in order.blocks(start, start + chunk).reshape(-1, BATCH_BLOCKS):
            yield split[numbers]


def own_tensors(shard_set: shards.ShardSet) -> Iterator[Any]:
    import torch
    from torch.utils.data import DataLoader

    from shards.torch import BlockDataset, RunSampler, collate_blocks

    order = shards.run_order(shard_set, seed=0)
    sampler = RunSampler(order, stop=1 << 40)
    dataset = BlockDataset(shard_set, "train", torch.int32)
    return iter(DataLoader(dataset, batch_size=BATCH_BLOCKS, sampler=sampler, collate_fn=collate_blocks))


def tutorial_tensors(table: Path, tokenizer: Path) -> Iterator[Any]:
    """A `datasets` table of lists, shuffled by the DataLoader, padded and labelled by the collator, batch after batch."""
    import datasets
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    qwen2 = AutoTokenizer.from_pretrained(tokenizer)
    qwen2.pad_token = qwen2.eos_token
    rows = datasets.load_from_disk(str(table))
    collator = DataCollatorForLanguageModeling(qwen2, mlm=False)
    while True:
        yield from DataLoader(rows, batch_size=BATCH_BLOCKS, shuffle=True, collate_fn=collator)


def tutorial_table(split: shards.Split, directory: Path, num_blocks: int = 200_000) -> Path:
    """What the tutorial's `map` leaves: a table with a list of ids and their number in each row."""
    if not directory.exists():
        import datasets

        features = datasets.Features(
            {"input_ids": datasets.List(datasets.Value("int32")), "length": datasets.Value("int64")}
        )

        def rows() -> Iterable[dict[str, Any]]:
            for block in split[: min(num_blocks, len(split))]:
                yield {"input_ids": block.astype(np.int32), "length": len(block)}

        datasets.disable_progress_bars()
        with tempfile.TemporaryDirectory(dir=directory.parent) as cache:
            table = datasets.Dataset.from_generator(rows, features=features, cache_dir=cache)
            table.save_to_disk(str(directory))
    return directory


COLD = """
import sys, time
begin = time.perf_counter()
import numpy as np
import shards
opened = shards.open(sys.argv[1])
now = time.perf_counter()
order = shards.run_order(opened, seed=0)
batch = opened["train"][order.blocks(10**6 % len(opened["train"]), 10**6 % len(opened["train"]) + 32)]
print(now - begin, time.perf_counter() - now)
"""


def cold_start(path: Path) -> tuple[float, float]:
    """Seconds to import and open, and then to the first batch, with the set's pages dropped from the page cache."""
    for file in path.glob("*.bin"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    output = subprocess.check_output([sys.executable, "-c", COLD, str(path)], cwd=REPOSITORY, text=True)
    opened, first = map(float, output.split())
    return opened, first


def growth_table() -> None:
    print("\n| blocks | M positions/s | µs to the first 32 | NumPy's permutation: M positions/s | s to the first |")
    print("|---|---|---|---|---|")
    for exponent in range(4, 11):
        order, count = shards.RunOrder((10**exponent,), 0), 4_000_000
        begin = time.perf_counter()
        order.blocks(10**exponent // 2, 10**exponent // 2 + BATCH_BLOCKS)
        first, begin = time.perf_counter() - begin, time.perf_counter()
        for start in range(0, count, CHUNK_POSITIONS):
            order.blocks(start * 7919 % 10**exponent, start * 7919 % 10**exponent + CHUNK_POSITIONS)
        rate = count / (time.perf_counter() - begin) / 1e6
        cells = ["–", "–"]
        if exponent <= 8:
            begin = time.perf_counter()
            np.random.default_rng(0).permutation(10**exponent)
            seconds = time.perf_counter() - begin
            cells = [f"{10**exponent / seconds / 1e6:.1f}", f"{seconds:.4f}"]
        print(f"| 10^{exponent} | {rate:.1f} | {1e6 * first:.0f} | {' | '.join(cells)} |", flush=True)


def manifest_row(manifest: Manifest, rounds: int) -> None:
    """Of a manifest with 20,000 copies of the set's first shard."""
    entries = [
        dataclasses.replace(manifest.shards[0], name=shard_name(name, number), split=name)
        for name in SPLITS
        for number in range(10_000)
    ]
    splits = sum_splits(entries, manifest.block_tokens)
    encoded = encode_manifest(dataclasses.replace(manifest, shards=entries, splits=splits).with_fingerprint())
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        decode_manifest(encoded, "bench")
        seconds.append(time.perf_counter() - begin)
    every = ", ".join(f"{value:.2f}" for value in seconds)
    print(f"\na manifest of {len(entries):,} shards, {len(encoded):,} bytes: decoded in {every} s (target: 0.5)")


def peers_table(path: Path, python: Path, work: Path, rounds: int, count: int) -> None:
    """Each peer's reader in a process of its own, in turns with ours."""
    script = REPOSITORY / "bench" / "peers_loaders.py"
    forms: dict[str, str] = json.loads(subprocess.check_output([python, script, "--list"], text=True))
    for form in sorted(set(forms.values()) - {""}):
        if not (work / form).exists():
            command = [sys.executable, "-m", "shards", "export", path.resolve(), "--to", form, "--out", work / form]
            subprocess.run(list(map(str, command)), check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    shard_set = shards.open(path)
    ours = own_gather(shard_set)
    seconds_a_batch(ours, 20)
    found: dict[str, list[float]] = {"ours, gather": [], **{name: [] for name in forms}}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"TMPDIR": str(work), "HF_HOME": str(work), "HF_HUB_OFFLINE": "1"}
    for _ in range(rounds):
        found["ours, gather"].append(seconds_a_batch(ours, count))
        for name, form in list(forms.items()):
            command = [python, script, name, path.resolve(), work / form, max(100, count // 10)]
            ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
            if ended.returncode != 0:
                print(f"{name}: failed: {ended.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
                del forms[name], found[name]
                continue
            found[name].append(json.loads(ended.stdout.splitlines()[-1])["seconds_a_batch"])
    print_rates(found, "ours, gather", dict.fromkeys(forms, "> 1"), shard_set.block_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path, help="a shard set; 500 million tokens or more say something")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=2000, help="in each round")
    parser.add_argument("--only", default=",".join(MEASURES))
    parser.add_argument("--work", type=Path, help="where copies are kept (a temporary directory)")
    parser.add_argument("--peers-venv", type=Path, default=REPOSITORY / "bench" / ".peers-venv")
    options = parser.parse_args()
    wanted = options.only.split(",")
    shard_set = shards.open(options.set)
    split = shard_set["train"]
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        print(f"{machine()}; {split.num_tokens:,} training tokens in {len(split.shards):,} shards")
        if "ours" in wanted:
            blocks = one_file(split, work / "one.bin")
            ways = {"ours, gather": lambda: own_gather(shard_set), "memmap[numbers]": lambda: bare_gather(blocks)}
            found = in_turns(ways, options.rounds, options.batches)
            print_rates(found, "ours, gather", {"memmap[numbers]": "≥ 0.4"}, split.block_tokens)
        if "manifest" in wanted:
            manifest_row(shard_set.manifest, options.rounds)
        if "tutorial" in wanted:
            table = tutorial_table(split, work / "table")
            ways = {
                "ours, tensors": lambda: own_tensors(shard_set),
                "datasets table, collator": lambda: tutorial_tensors(table, shard_set.tokenizer_path),
            }
            found = in_turns(ways, options.rounds, max(50, options.batches // 20))
            print_rates(found, "ours, tensors", {"datasets table, collator": "≥ 50"}, split.block_tokens)
        if "cold" in wanted:
            starts = [cold_start(options.set) for _ in range(options.rounds)]
            print("\ncold: import and open, then to the first batch, ms: ", end="")
            print(", ".join(f"{1e3 * opened:.0f} + {1e3 * first:.0f}" for opened, first in starts))
        if "growth" in wanted:
            growth_table()
        if "peers" in wanted:
            python = options.peers_venv / "bin" / "python"
            if python.exists():
                peers_table(options.set, python, work, options.rounds, options.batches)
            else:
                print("peers: left out, not installed: `make peers`", file=sys.stderr)


if __name__ == "__main__":
    main()
