"""The peers' own ways from JSON Lines to tokens on disk, timed; runs in the peers' environments, not in ours.

    PEERS_PYTHON bench/peers.py NAME DOCUMENTS TOKENIZER OUT NUM_WORKERS

DOCUMENTS is a directory of `*.jsonl` with `id` and `text`, a file for each worker; what they write beside OUT lies in its
parent directory. Prints `{"wall_seconds", "num_tokens"}`:
the time of the work alone, imports left out, and the tokens that were written, EOS included.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as with each of them: the workers are the parallelism

EOS_TOKEN = "<|endoftext|>"


def datatrove(documents: Path, tokenizer: Path, out: Path, num_workers: int) -> tuple[float, int]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    begin = time.perf_counter()
    steps = [
        JsonlReader(str(documents)),
        DocumentTokenizer(
            str(out),
            str(tokenizer / "tokenizer.json"),
            eos_token=EOS_TOKEN,
            save_filename="part",
            shuffle_documents=False,
        ),
    ]
    LocalPipelineExecutor(steps, tasks=num_workers, workers=num_workers, logging_dir=str(out / "logs")).run()
    return time.perf_counter() - begin, sum(path.stat().st_size for path in out.glob("*.ds")) // 4


_tokenizer: Any = None


def _load_tokenizer(directory: str) -> None:
    global _tokenizer
    from transformers import AutoTokenizer

    _tokenizer = AutoTokenizer.from_pretrained(directory)


def _encode_line(line: str) -> list[int]:
    return [*_tokenizer(json.loads(line)["text"]).input_ids, _tokenizer.eos_token_id]


def megatron(documents: Path, tokenizer: Path, out: Path, num_workers: int) -> tuple[float, int]:
    """As tools/preprocess_data.py does it with --append-eod: a pool of encoders, one writer."""
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    out.mkdir(parents=True)
    begin = time.perf_counter()
    builder = IndexedDatasetBuilder(str(out / "part.bin"), dtype=DType.optimal_dtype(151_646))
    with multiprocessing.Pool(num_workers, _load_tokenizer, (str(tokenizer),)) as pool:
        for path in sorted(documents.glob("*.jsonl")):
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


def litdata(documents: Path, tokenizer: Path, out: Path, num_workers: int) -> tuple[float, int]:
    # Without these it removes the directories `chunks` and `data` of the temporary directory, whosever they are.
    os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(out.parent / "chunks")
    os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = str(out.parent / "data")
    from litdata import TokensLoader, optimize

    os.environ["BENCH_TOKENIZER"] = str(tokenizer)
    begin = time.perf_counter()
    optimize(
        fn=_tokens_of_file,
        inputs=[str(path) for path in sorted(documents.glob("*.jsonl"))],
        output_dir=str(out),
        num_workers=num_workers,
        chunk_bytes="64MB",
        item_loader=TokensLoader(),
    )
    seconds = time.perf_counter() - begin
    chunks = json.loads((out / "index.json").read_bytes())["chunks"]
    return seconds, sum(chunk["dim"] for chunk in chunks)


def dolma(documents: Path, tokenizer: Path, out: Path, num_workers: int) -> tuple[float, int]:
    from dolma.tokenizer import tokenize_in_parallel

    content = json.loads((tokenizer / "tokenizer.json").read_bytes())
    eos_id = next(token["id"] for token in content["added_tokens"] if token["content"] == EOS_TOKEN)
    begin = time.perf_counter()
    tokenize_in_parallel(
        sources=[str(path) for path in sorted(documents.glob("*.jsonl"))],
        destination=str(out),
        num_writers=num_workers,
        tokenizer_name_or_path=str(tokenizer / "tokenizer.json"),
        eos_token_id=eos_id,
        pad_token_id=eos_id,
        metadata_dir=str(out.parent / "dolma"),  # what it has done; by default kept in the temporary directory for good
        dtype="uint32",
        encode_special_tokens=True,
    )
    seconds = time.perf_counter() - begin
    num_tokens = 0
    for path in out.rglob("*.csv.gz"):  # start, end, … of each document
        with gzip.open(path, "rt") as rows:
            num_tokens += sum(int(end) - int(start) for start, end, *_ in (row.split(",") for row in rows))
    return seconds, num_tokens


PEERS: dict[str, Callable[[Path, Path, Path, int], tuple[float, int]]] = {
    "datatrove": datatrove,
    "megatron": megatron,
    "litdata": litdata,
    "dolma": dolma,
}


def main() -> None:
    name, documents, tokenizer, out, num_workers = sys.argv[1:]
    seconds, num_tokens = PEERS[name](Path(documents), Path(tokenizer), Path(out), int(num_workers))
    print(json.dumps({"wall_seconds": seconds, "num_tokens": num_tokens}))


if __name__ == "__main__":
    main()
