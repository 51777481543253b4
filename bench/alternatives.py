"""What the builds are measured against, each in a process of its own: the tokenizer alone, and the tutorial's way.

    python -m bench.alternatives tokenizer CORPUS
    python -m bench.alternatives tutorial PART TOKENIZER NUM_PROCESSES
    python -m bench.alternatives phases CORPUS OUT NUM_WORKERS    # a build, taken apart: what one process does alone

Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pipeline.engine
from pipeline.records import ReadOptions, raise_bad
from pipeline.units import plan_units

import pipeline.build
from pipeline.build import Reporter
from pipeline.fields import TextOf
from pipeline.readers import open_stretch
from pipeline.settings import BuildSettings
from pipeline.sources import find_sources
from pipeline.tokenizers import load_tokenizer_files

LIST_BYTES = 1_000_000
BLOCK_TOKENS = 512


def lists_of_texts(path: Path) -> Iterator[list[str]]:
    """The corpus's texts in lists of about a megabyte of UTF-8."""
    options, text_of = ReadOptions(on_bad=raise_bad), TextOf("text")
    sources = find_sources([str(path)])
    texts: list[str] = []
    num_bytes = 0
    for unit in plan_units(sources, 1 << 62):
        for batch in open_stretch(sources[0], unit.stretches[0], options):
            for text in text_of.texts(batch, options):
                if not text:
                    continue
                texts.append(text)
                num_bytes += len(text.encode())  # leaves nothing behind in the text
                if num_bytes >= LIST_BYTES:
                    yield texts
                    texts, num_bytes = [], 0
    if texts:
        yield texts


def tokenizer_alone(path: Path) -> dict[str, float]:
    """CPU seconds of `encode_batch_flat` for all texts, which are in memory and are encoded once."""
    os.environ["FASTOKENS_BPE_THREADS"] = "1"
    from fastokens import _native

    tokenizer = _native.Tokenizer.from_json_str(load_tokenizer_files("qwen2").tokenizer_json.decode())
    lists = list(lists_of_texts(path))
    num_tokens = 0
    begin, wall_begin = time.process_time(), time.perf_counter()
    for texts in lists:
        ids, _ = tokenizer.encode_batch_flat(texts, add_special_tokens=False, split_special_tokens=True)
        num_tokens += len(ids) // 4
    return {
        "cpu_seconds": time.process_time() - begin,
        "wall_seconds": time.perf_counter() - wall_begin,
        "num_tokens": num_tokens,
        "num_texts": sum(map(len, lists)),
    }


def tutorial(path: Path, tokenizer: Path, num_processes: int) -> dict[str, float]:
    """The usual script's way: `datasets.map`, chunks of 512 tokens, shorter ones dropped, no cache."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    qwen2 = AutoTokenizer.from_pretrained(tokenizer)

    def tokenize(rows: dict[str, Any]) -> dict[str, Any]:
        outputs = qwen2(
            rows["text"], truncation=True, max_length=BLOCK_TOKENS, return_overflowing_tokens=True, return_length=True
        )
        pairs = zip(outputs["length"], outputs["input_ids"], strict=True)
        return {"input_ids": [ids for length, ids in pairs if length == BLOCK_TOKENS]}

    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        raw = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
        begin = time.perf_counter()
        blocks = raw.map(
            tokenize,
            batched=True,
            remove_columns=raw.column_names,
            num_proc=num_processes if num_processes > 1 else None,
        )
        return {"wall_seconds": time.perf_counter() - begin, "num_tokens": len(blocks) * BLOCK_TOKENS}


class PhaseClock(Reporter):
    """CPU and wall seconds at the points between a build's phases; as a build's reporter it hears of two of them."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}
        self.loading = self.loading_before = 0.0  # CPU seconds of loading tokenizers: in all, and until it was planned

    def note(self, name: str) -> None:
        self.cpu[name], self.wall[name] = time.process_time(), time.perf_counter()

    def started(self, num_bytes: int, num_bytes_done: int, num_workers: int) -> None:
        self.note("planned")
        self.loading_before = self.loading

    def finished(self) -> None:
        self.note("built")

    def loads(self, module: Any, name: str) -> None:
        """Count what this function takes as loading a tokenizer."""
        original = getattr(module, name)

        def timed(*args: Any, **options: Any) -> Any:
            begin = time.process_time()
            try:
                return original(*args, **options)
            finally:
                self.loading += time.process_time() - begin

        setattr(module, name, timed)


def phases(path: Path, out: Path, num_workers: int) -> dict[str, float]:
    """A whole build; the CPU and wall seconds of what is not shared by its workers."""
    clock = PhaseClock()
    clock.loads(pipeline.build, "load_tokenizer_files")
    clock.loads(pipeline.build, "choose_encoder")
    clock.loads(pipeline.engine, "load_document_encoder")
    imports = time.process_time()
    clock.note("begun")
    pipeline.build.build(
        [str(path)], out, tokenizer_name="qwen2", settings=BuildSettings(), num_workers=num_workers, reporter=clock
    )
    clock.note("ended")
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "cpu_seconds": time.process_time() + workers.ru_utime + workers.ru_stime,
        "wall_seconds": clock.wall["ended"] - clock.wall["begun"],
        "imports": imports,
        "loading": clock.loading,
        "planning": clock.cpu["planned"] - clock.cpu["begun"] - clock.loading_before,
        "directing": clock.cpu["built"] - clock.cpu["planned"] - (clock.loading - clock.loading_before),
        "finishing": clock.cpu["ended"] - clock.cpu["built"],
        "finishing_wall": clock.wall["ended"] - clock.wall["built"],
    }


def main() -> None:
    name, path, *others = sys.argv[1:]
    if name == "tokenizer":
        result = tokenizer_alone(Path(path))
    elif name == "phases":
        result = phases(Path(path), Path(others[0]), int(others[1]))
    else:
        result = tutorial(Path(path), Path(others[0]), int(others[1]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
