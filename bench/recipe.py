"""What a change of the training recipe is worth: one short run after another, each with one change. Resumable.

    python bench/recipe.py prepare WORK CORPUS [--shape 120m]   # documents, a tokenizer, shard sets
    python bench/recipe.py run WORK NAME …                      # trains these, but what is done
    python bench/recipe.py table WORK                           # all results beside the base of as many tokens

A NAME is what differs from `Recipe`'s values, `learning_rate=1.6e-2,seed=2`, or `base`. CORPUS is a JSON array or JSON
Lines (also .gz) with a field `text`. Each text is cut at line ends into documents of log-normal lengths with a mean of 430
characters, as Wikipedia's articles have.

The measure is the bits a byte of held-out documents, each by itself, in windows of a block that overlap by a token. Neither
a document's first token nor EOS counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import itertools
import json
import math
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import shards  # noqa: E402
from shards.order import RunOrder  # noqa: E402
from shards.torch import collate_blocks  # noqa: E402
from train.model import Qwen2ForCausalLM, build_config  # noqa: E402
from train.optimizer import MuonWithAdamW, parameter_groups  # noqa: E402
from train.settings import GroupSettings, ModelSettings  # noqa: E402

MEAN_CHARS, SIGMA = 430, 1.35
SHAPES = {  # hidden size, layers, heads, key-value heads
    "tiny": (32, 1, 4, 2),
    "small": (128, 2, 4, 2),  # with a vocabulary of 4,096 of its own; for one CPU thread
    "medium": (192, 3, 6, 2),
    "120m": (512, 12, 8, 2),  # with Qwen2's, for a GPU
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    seed: int = 1
    tokens: float = 0.4e6
    step_tokens: int = 2048
    block_tokens: int = 256
    packing: str = "concat"  # or "whole": each document's whole blocks alone, as the tutorial's
    learning_rate: float = 8e-3
    embedding_rate: float = 1.0  # times the rate
    weight_decay: float = 0.1
    warmup: float = 0.02
    schedule: str = "linear"  # or "cosine"
    optimizer: str = "muon"  # or "adamw"
    shape: str = "small"


def parse(name: str) -> Recipe:
    changes: dict[str, Any] = {}
    for change in name.split(",") if name != "base" else ():
        key, value = change.split("=")
        default = getattr(Recipe, key)
        changes[key] = value == "true" if isinstance(default, bool) else type(default)(value)
    return Recipe(**changes)


def documents(path: Path) -> Iterator[str]:
    """The texts cut at line ends, disjoint."""
    source, mu = random.Random(0), math.log(MEAN_CHARS) - SIGMA**2 / 2
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        is_array = file.read(1) == "["
        file.seek(0)
        for record in json.load(file) if is_array else map(json.loads, file):
            piece, wanted = "", source.lognormvariate(mu, SIGMA)
            for line in record["text"].split("\n"):
                piece += line + "\n"
                if len(piece) >= wanted:
                    yield piece.strip()
                    piece, wanted = "", source.lognormvariate(mu, SIGMA)
            if piece.strip():
                yield piece.strip()


def prepare(work: Path, corpus: Path, shape: str) -> None:
    work.mkdir(parents=True, exist_ok=True)
    source, tokenizer, commands = corpus.resolve(), Path("qwen2"), []
    if shape != "120m":
        source, sample, tokenizer = (work / name for name in ("documents.jsonl", "sample.jsonl", "tokenizer"))
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents(corpus)]
        source.write_text("".join(lines), encoding="utf-8")
        sample.write_text("".join(lines[9::10]), encoding="utf-8")  # training on all of it would take 4 GB of memory
        commands = [["tokenizer", sample, "--vocab-size", 4096, "--out", tokenizer, "--force"]]
    build = ["build", source, "--tokenizer", tokenizer, "--val-fraction", 0.008, "--force", "--out", work / "shards"]
    for command in [*commands, build]:
        subprocess.run([sys.executable, "-m", "pipeline", *map(str, command)], check=True, cwd=REPOSITORY)


def training_blocks(recipe: Recipe, split: shards.Split) -> Any:
    """Shape `(blocks, block_tokens)`."""
    size = recipe.block_tokens
    if recipe.packing == "whole":
        return np.concatenate([ids[: len(ids) // size * size] for ids in split.documents()]).reshape(-1, size)
    return np.asarray(split[np.arange(len(split))]).reshape(-1, size)


def build_model(recipe: Recipe, vocab_size: int, eos_id: int) -> Any:
    hidden, layers, heads, kv_heads = SHAPES[recipe.shape]
    settings = ModelSettings(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=4 * hidden,
        rope_theta=1e6,
    )
    config = build_config(settings, vocab_size=vocab_size, eos_id=eos_id, block_tokens=recipe.block_tokens)
    transformers.set_seed(recipe.seed)
    model = Qwen2ForCausalLM(config)
    model.head_loss = "chunked"
    return model


def share_of_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Of the peak rate, in `step` of 1 … `steps`."""
    warmup = round(recipe.warmup * steps)
    if step < warmup:
        return step / warmup
    left = (steps - step) / (steps - warmup)
    return left if recipe.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)


def train(recipe: Recipe, work: Path) -> dict[str, float]:
    data = shards.open(work / "shards")
    blocks, eos_id, vocab_size = training_blocks(recipe, data["train"]), data.eos_id, data.vocab_size
    order = RunOrder((len(blocks),), recipe.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, rate = build_model(recipe, vocab_size, eos_id).to(device), recipe.learning_rate
    settings = GroupSettings(embedding_learning_rate_multiplier=recipe.embedding_rate)
    groups = parameter_groups(model, settings, learning_rate=rate, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "adamw":
        optimizer: Any = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999), fused=True)
    else:
        optimizer = MuonWithAdamW(groups, lr=rate, betas=(0.9, 0.95), eps=1e-8)
    peaks = [group["lr"] for group in optimizer.param_groups]
    size, steps = recipe.step_tokens // recipe.block_tokens, round(recipe.tokens / recipe.step_tokens)
    start, cpu_start = time.perf_counter(), time.process_time()
    for step in range(steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * share_of_rate(recipe, step + 1, steps)
        ids = torch.from_numpy(blocks[order.blocks(step * size, (step + 1) * size)].astype(np.int64))
        batch = {key: value.to(device) for key, value in collate_blocks(ids).items()}
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    record = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
    tokenizer = transformers.AutoTokenizer.from_pretrained(work / "shards" / "tokenizer")
    # In a byte-level vocabulary a letter of an entry stands for a byte.
    lengths = torch.tensor([len(entry or "") for entry in tokenizer.convert_ids_to_tokens(range(vocab_size))])
    texts = (ids.astype(np.int64) for ids in itertools.islice(data["val"].documents(), 0, None, 2))
    return {"bits": bits_a_byte(model, texts, lengths, recipe.block_tokens), **record}


@torch.no_grad()
def bits_a_byte(model: Any, documents: Iterator[Any], lengths: Tensor, size: int) -> float:
    windows = [ids[first : first + size] for ids in documents for first in range(0, len(ids) - 1, size - 1)]
    windows.sort(key=len)
    nats, count = 0.0, 0
    while windows:
        group = windows[-max(1, 4096 // len(windows[-1])) :]
        del windows[-len(group) :]
        labels = torch.full((len(group), len(group[-1])), -100)
        for row, window in zip(labels, group, strict=True):
            row[: len(window)] = torch.from_numpy(window)
        targets = labels[:, 1:]
        count += int(lengths[targets[targets >= 0]].sum())
        labels = labels.to(model.device)
        nats += model(labels.clamp(min=0), labels=labels, num_items_in_batch=1, want_token_losses=True).loss.item()
    return nats / math.log(2) / count


def results(work: Path) -> dict[str, dict[str, float]]:
    path = work / "results.jsonl"
    return {(row := json.loads(line)).pop("name"): row for line in path.open()} if path.exists() else {}


def run(work: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names:
        if name not in results(work):
            record = train(parse(name), work)
            with open(work / "results.jsonl", "a") as file:
                file.write(json.dumps({"name": name, **record}) + "\n")
            print(f"{record['bits']:.4f}  {record['cpu_seconds']:4.0f} s  {name}", flush=True)


def table(work: Path) -> None:
    seeds: dict[str, list[dict[str, float]]] = {}
    for name, row in results(work).items():
        seeds.setdefault(re.sub(r",?\bseed=\d+", "", name) or "base", []).append(row)
    means = {name: statistics.mean(row["bits"] for row in rows) for name, rows in seeds.items()}
    print("| run | bits a byte | against the base of as many tokens | CPU s |\n|---|---|---|---|")
    for name, rows in seeds.items():
        tokens = re.search(r"\btokens=[^,]+", name)
        difference = means[name] / means.get(tokens.group() if tokens else "base", math.nan) - 1
        bits = ", ".join(f"{row['bits']:.4f}" for row in rows)
        seconds = statistics.mean(row["cpu_seconds"] for row in rows)
        print(f"| {name} | {bits} | {100 * difference:+.2f} % | {seconds:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("prepare", "run", "table"))
    parser.add_argument("work", type=Path)
    parser.add_argument("names", nargs="*", metavar="CORPUS|NAME")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="small")
    options = parser.parse_args()
    work = options.work.resolve()
    if options.command == "prepare":
        prepare(work, Path(options.names[0]), options.shape)
    elif options.command == "run":
        run(work, options.names)
    else:
        table(work)


if __name__ == "__main__":
    main()
