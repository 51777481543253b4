"""What grows with the number of units: planning, finishing a set, and opening it, for real, with made-up receipts.

    python -m bench.scale --units 65536 --units 1000000

Each step runs in a process of its own; its CPU seconds and peak memory are printed. No corpus is needed: the source is one
made-up JSON Lines file of the right size, and each unit's receipt says that it wrote a shard for either split.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pipeline.units import plan_units
from shards.entries import SPLITS, ShardEntry, shard_name
from shards.run_order import RunOrder
from shards.tables import TABLE_NAMES

from pipeline.finish import write_set
from pipeline.receipts import RECEIPTS_DIRECTORY, Receipt, SplitReceipt, StretchReceipt, encode_receipt, read_receipt
from pipeline.settings import DEFAULT_UNIT_BYTES, BuildSettings
from pipeline.sources import Source
from pipeline.tokenizers import load_tokenizer_files
from shards.manifest import MANIFEST_NAME, read_manifest
from shards.packing import Tail
from shards.reader import ShardSet
from shards.tokenizer_files import TokenizerFiles

_BLOCKS = {"train": 29_500, "val": 3_277}  # of a unit of 64 MiB of Chinese text
_TAIL_TOKENS = 32
_RECEIPT_FILES = 20_000


def made_up_source(num_units: int) -> Source:
    num_bytes = num_units * DEFAULT_UNIT_BYTES
    return Source(path="/made-up.jsonl", name="made-up.jsonl", format="json-lines", num_bytes=num_bytes, modified_ns=1)


def made_up_receipt(unit: int) -> Receipt:
    splits: dict[str, SplitReceipt] = {}
    digest = f"{unit:064x}"
    for split in SPLITS:
        num_blocks = _BLOCKS[split]
        num_documents = num_blocks // 2
        shard = ShardEntry(
            name=shard_name(split, unit),
            split=split,
            num_blocks=num_blocks,
            num_tokens=num_blocks * 512,
            num_pieces=num_documents,
            num_index_documents=num_documents,
            num_documents=num_documents,
            digest=digest,
            index_digest=digest,
        )
        tail = Tail(
            tokens=np.arange(_TAIL_TOKENS, dtype=np.uint32), piece_tokens=np.array([_TAIL_TOKENS]), continues=False
        )
        splits[split] = SplitReceipt(
            num_documents=num_documents + 1,
            num_tokens=num_blocks * 512 + _TAIL_TOKENS,
            num_text_bytes=1,
            num_text_chars=1,
            num_short_documents=0,
            num_tail_tokens=0,
            num_dropped_tokens=0,
            shard=shard,
            tail=tail,
        )
    num_records = sum(split.num_documents for split in splits.values())
    return Receipt(
        unit=unit,
        stretches=[StretchReceipt(first=0, last=1, digest=digest, num_records=num_records)],
        num_empty=0,
        num_duplicates=0,
        num_checked=4,
        rejected={},
        rejected_digest="",
        splits=splits,
    )


def plan(num_units: int, _directory: Path) -> str:
    units = plan_units([made_up_source(num_units)], DEFAULT_UNIT_BYTES)
    assert len(units) == num_units
    return f"{len(units):,} units"


def receipts(num_units: int, directory: Path) -> str:
    """Read receipts from files, as a second run and the end of a build do."""
    number = min(num_units, _RECEIPT_FILES)
    (directory / RECEIPTS_DIRECTORY).mkdir(exist_ok=True)
    for unit in range(number):
        (directory / RECEIPTS_DIRECTORY / f"{unit:05}.json").write_bytes(encode_receipt(made_up_receipt(unit)))
    begin = time.process_time()
    for unit in range(number):
        assert read_receipt(directory, unit, 512, check_files=False) is not None
    return f"{1e6 * (time.process_time() - begin) / number:.0f} µs a receipt"


def finish(num_units: int, directory: Path) -> str:
    units = plan_units([made_up_source(num_units)], DEFAULT_UNIT_BYTES)
    made_up: Iterator[Receipt] = (made_up_receipt(unit) for unit in range(num_units))
    tokenizer: TokenizerFiles = load_tokenizer_files("qwen2")
    write_set(directory, [made_up_source(num_units)], units, BuildSettings(), tokenizer, made_up)
    names = [MANIFEST_NAME, *TABLE_NAMES.values()]
    sizes = {name: (directory / name).stat().st_size for name in names if (directory / name).exists()}
    return ", ".join(f"{name} of {size / 1e6:,.1f} MB" for name, size in sizes.items())


def open_set(_num_units: int, directory: Path) -> str:
    manifest = read_manifest(directory)
    split = ShardSet(directory, manifest)["train"]
    order = RunOrder((len(split),), 42, "global")
    assert len(order.blocks(0, 1 << 15)) == 1 << 15
    return f"{len(manifest.shards):,} shards, {len(split):,} training blocks"


def measured(step: Callable[[int, Path], str], num_units: int, directory: Path) -> dict[str, Any]:
    """Run `step` in a process of its own."""

    def run() -> None:
        begin, wall = time.process_time(), time.monotonic()
        found = step(num_units, directory)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        pipe_in.send(
            {
                "step": step.__name__,
                "units": num_units,
                "cpu_seconds": round(time.process_time() - begin, 2),
                "seconds": round(time.monotonic() - wall, 2),
                "peak_gib": round(peak, 2),
                "found": found,
            }
        )

    context = multiprocessing.get_context("fork")
    pipe_out, pipe_in = context.Pipe(duplex=False)
    process = context.Process(target=run)
    process.start()
    pipe_in.close()
    try:
        result: dict[str, Any] = pipe_out.recv()
    except EOFError:
        result = {"step": step.__name__, "units": num_units, "found": "the process died"}
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, action="append", metavar="N", help="units (65536 and 1000000)")
    options = parser.parse_args()
    for num_units in options.units or [65_536, 1_000_000]:
        directory = Path(tempfile.mkdtemp(prefix="scale-"))
        try:
            for step in (plan, receipts, finish, open_set):
                print(json.dumps(measured(step, num_units, directory), ensure_ascii=False), flush=True)
        finally:
            shutil.rmtree(directory)


if __name__ == "__main__":
    main()
