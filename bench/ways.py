"""What a build is measured against, each in a process of its own: the tutorial's way and the peers' own.

    PYTHON -m bench.ways NAME TEXTS TOKENIZER OUT NUM_WORKERS

TEXTS is a directory of `*.jsonl` with `id` and `text`, a file for each worker. The peers run in environments of their own;
what they write beside OUT lies in its parent directory. Prints the seconds of the work alone, imports left out, and the
tokens, EOS included where it is written.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as with each of the peers: the workers are the parallelism

Found = tuple[float, int]  # seconds of the work alone, and the tokens
EOS_TOKEN = "<|endoftext|>"
BLOCK_TOKENS = 512


def tutorial(texts: Path, tokenizer: Path, out: Path, num_workers: int) -> Found:
    """The usual script's way: `datasets.map`, chunks of 512 tokens, shorter ones dropped, no cache."""
    import datasets
    from transformers import AutoTokenizer

    del os.environ["TOKENIZERS_PARALLELISM"]  # as the script leaves it: with one process the tokenizer takes all cores
    datasets.disable_caching()
    datasets.disable_progress_bars()
    qwen2 = AutoTokenizer.from_pretrained(tokenizer)

    def tokenize(rows: dict[str, Any]) -> dict[str, Any]:
        outputs = qwen2(
            rows["text"], truncation=True, max_length=BLOCK_TOKENS, return_overflowing_tokens=True, return_length=True
        )
        pairs = zip(outputs["length"], outputs["input_ids"], strict=True)
        return {"input_ids": [ids for length, ids in pairs if length == BLOCK_TOKENS]}

    names = [str(path) for path in sorted(texts.glob("*.jsonl"))]
    raw = datasets.load_dataset("json", data_files=names, split="train", cache_dir=str(out))
    begin, processes = time.perf_counter(), num_workers if num_workers > 1 else None
    blocks = raw.map(tokenize, batched=True, remove_columns=raw.column_names, num_proc=processes)
    return time.perf_counter() - begin, len(blocks) * BLOCK_TOKENS


def datatrove(texts: Path, tokenizer: Path, out: Path, num_workers: int) -> Found:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    begin, names = time.perf_counter(), {"save_filename": "part", "shuffle_documents": False, "eos_token": EOS_TOKEN}
    steps = [JsonlReader(str(texts)), DocumentTokenizer(str(out), str(tokenizer / "tokenizer.json"), **names)]
    LocalPipelineExecutor(steps, tasks=num_workers, workers=num_workers, logging_dir=str(out / "logs")).run()
    return time.perf_counter() - begin, sum(path.stat().st_size for path in out.glob("*.ds")) // 4


_tokenizer: Any = None


def _load_tokenizer(directory: str) -> None:
    global _tokenizer
    from transformers import AutoTokenizer

    _tokenizer = AutoTokenizer.from_pretrained(directory)


def _encode_line(line: str) -> list[int]:
    return [*_tokenizer(json.loads(line)["text"]).input_ids, _tokenizer.eos_token_id]


def megatron(texts: Path, tokenizer: Path, out: Path, num_workers: int) -> Found:
    """As tools/preprocess_data.py does it with --append-eod: a pool of encoders, one writer."""
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    out.mkdir(parents=True)
    begin = time.perf_counter()
    builder = IndexedDatasetBuilder(str(out / "part.bin"), dtype=DType.optimal_dtype(151_646))
    with multiprocessing.Pool(num_workers, _load_tokenizer, (str(tokenizer),)) as pool:
        for path in sorted(texts.glob("*.jsonl")):
            with path.open(encoding="utf-8") as lines:
                for ids in pool.imap(_encode_line, lines, 32):
                    builder.add_document(ids, [len(ids)])
    builder.finalize(str(out / "part.idx"))
    return time.perf_counter() - begin, (out / "part.bin").stat().st_size // 4


def _tokens_of_file(path: str) -> Iterator[Any]:
    import torch

    if _tokenizer is None:
        _load_tokenizer(os.environ["BENCH_TOKENIZER"])
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            yield torch.tensor(_encode_line(line), dtype=torch.int32)


def litdata(texts: Path, tokenizer: Path, out: Path, num_workers: int) -> Found:
    # Without these it removes the directories `chunks` and `data` of the temporary directory, whosever they are.
    os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(out.parent / "chunks")
    os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = str(out.parent / "data")
    from litdata import TokensLoader, optimize

    os.environ["BENCH_TOKENIZER"] = str(tokenizer)
    names, options = sorted(map(str, texts.glob("*.jsonl"))), {"num_workers": num_workers, "chunk_bytes": "64MB"}
    begin = time.perf_counter()
    optimize(fn=_tokens_of_file, inputs=names, output_dir=str(out), item_loader=TokensLoader(), **options)
    seconds = time.perf_counter() - begin
    chunks = json.loads((out / "index.json").read_bytes())["chunks"]
    return seconds, sum(chunk["dim"] for chunk in chunks)


WAYS = {way.__name__: way for way in (tutorial, datatrove, megatron, litdata)}

if __name__ == "__main__":
    name, *paths, number = sys.argv[1:]
    texts, tokenizer, out = map(Path, paths)
    print(json.dumps(WAYS[name](texts, tokenizer, out, int(number))))
