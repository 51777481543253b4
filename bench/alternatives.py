"""What the builds are measured against, each in a process of its own: the tokenizer alone, and the tutorial's way.

    python -m bench.alternatives tokenizer CORPUS
    python -m bench.alternatives tutorial PART TOKENIZER NUM_PROCESSES

Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.fields import TextOf
from pipeline.plan import plan_units
from pipeline.readers import open_range
from pipeline.readers.base import ReadOptions, raise_bad
from pipeline.sources import find_sources
from pipeline.tokenizers import load_tokenizer_files

LIST_BYTES = 1_000_000
BLOCK_TOKENS = 512


def lists_of_texts(path: Path) -> Iterator[list[str]]:
    """The corpus's texts in lists of about a megabyte of UTF-8."""
    options, text_of = ReadOptions(on_bad=raise_bad), TextOf("text")
    (source,) = find_sources([str(path)])
    texts: list[str] = []
    num_bytes = 0
    ((whole,),) = (unit.ranges for unit in plan_units([source], sys.maxsize))
    for batch in open_range(whole, options):
        for text in filter(None, text_of.texts(batch, options)):
            texts.append(text)
            num_bytes += len(text.encode())  # caches nothing in the text
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


def main() -> None:
    name, path, *others = sys.argv[1:]
    if name == "tokenizer":
        result = tokenizer_alone(Path(path))
    else:
        result = tutorial(Path(path), Path(others[0]), int(others[1]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
