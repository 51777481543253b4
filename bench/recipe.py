"""How many tokens our recipe needs to reach the loss at which the tutorial's recipe ends. Resumable.

    python bench/recipe.py prepare CORPUS WORK     # documents, a tokenizer, shard sets; --size tiny, small or 120m
    python bench/recipe.py run WORK NAME [NAME …]  # train the runs of these names, one after another; skips what is done
    python bench/recipe.py table WORK              # all runs that have ended

CORPUS is a JSON array or JSON Lines (also .gz) with a field `text`; no passage may come twice. Each text is cut at line
ends into documents of log-normal lengths with a mean of 430 characters, as Wikipedia's articles have, each part in one.

A NAME is a recipe and what is changed in it, `tutorial,learning_rate=1e-3,tokens=800k,seed=1`. Recipes are in RECIPES.
`global_batch_blocks` is the blocks of a step. The model, the tokenizer, the held-out documents and the hardware are the
same for all. A recipe with `shards: tutorial` trains on the blocks that the tutorial would have: of each document whole
blocks only, no separator. `tokens` is what is trained on, with the schedule ending there.

The measure is the loss a token on held-out documents, each by itself from its first token on, in windows of a block: EOS is
no label, since the tutorial's model never sees one, and no document sees another. Several `run`s may go on side by side.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import shards  # noqa: E402
from bench.trainer import model_settings  # noqa: E402

EVALUATED_TOKENS = 300_000
MEAN_CHARS, SIGMA = 430, 1.35

# `documents`: cut texts into documents of Wikipedia's lengths, or take them as they are. `vocab_size`: of a BPE trained on
# them; without it Qwen2's tokenizer.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "documents": "cut",
        "vocab_size": 512,
        "block_tokens": 64,
        "batch_blocks": 4,
        "model": model_settings(0),
        "training": {"per_device_train_batch_size": 4},
    },
    "small": {  # 3.2 million parameters, on one CPU thread
        "documents": "cut",
        "vocab_size": 8192,
        "block_tokens": 512,
        "batch_blocks": 8,
        "model": {"hidden_size": 192, "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 1}
        | {"intermediate_size": 768},
        "training": {"per_device_train_batch_size": 8, "use_cpu": True, "torch_compile": True},
        "threads": "1",
    },
    "120m": {  # the tutorial's model, on a GPU
        "documents": "whole",
        "block_tokens": 512,
        "batch_blocks": 256,
        "model": {**model_settings(12), "rope_theta": 1e6},
        "training": {"per_device_train_batch_size": 32, "dataloader_num_workers": 2, "torch_compile": "auto"},
    },
}

# What lies in `training` but for the names at the top level, in `model.` and `shards`.
RECIPES: dict[str, dict[str, Any]] = {
    "tutorial": {
        "shards": "tutorial",
        "optim": "adamw_torch_fused",
        "learning_rate": 5e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "weight_decay": 0.1,
    },
    "ours": {
        "shards": "packed",
        "optim": "muon",
        "learning_rate": 4e-3,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.02,
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
    },
}


def texts(path: Path) -> Iterator[str]:
    """The field `text` of each record."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        if file.read(1) == "[":
            file.seek(0)
            yield from (record["text"] for record in json.load(file))
        else:
            file.seek(0)
            yield from (json.loads(line)["text"] for line in file)


def documents(path: Path, seed: int = 0) -> Iterator[str]:
    """The texts cut at line ends, disjoint."""
    source = random.Random(seed)
    mu = math.log(MEAN_CHARS) - SIGMA**2 / 2
    for text in texts(path):
        piece, wanted = "", source.lognormvariate(mu, SIGMA)
        for line in text.split("\n"):
            piece += line + "\n"
            if len(piece) >= wanted:
                yield piece.strip()
                piece, wanted = "", source.lognormvariate(mu, SIGMA)
        if piece.strip():
            yield piece.strip()


def prepare(corpora: list[Path], work: Path, size_name: str) -> None:
    work.mkdir(parents=True, exist_ok=True)
    (work / "size").write_text(size_name)
    size = SIZES[size_name]
    pipeline = [sys.executable, "-m", "pipeline"]
    sources = [str(path.resolve()) for path in corpora]
    if size["documents"] == "cut":
        corpus = work / "documents.jsonl"
        if not corpus.exists():
            with open(work / "documents.partial", "w", encoding="utf-8") as file:
                for path in corpora:
                    for text in documents(path):
                        file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            os.replace(work / "documents.partial", corpus)
        sources = [str(corpus)]
    tokenizer = "qwen2"
    if "vocab_size" in size:
        tokenizer = str(work / "tokenizer")
        if not (work / "tokenizer" / "tokenizer.json").exists():
            command = [*pipeline, "tokenizer", *sources, "--vocab-size", str(size["vocab_size"]), "--out", tokenizer]
            subprocess.run(command, check=True, cwd=REPOSITORY)
    for name, packing in (("tutorial", "tutorial"), ("packed", "concat"), ("best-fit", "best-fit")):
        command = [*pipeline, "build", *sources, "--out", str(work / name), "--tokenizer", tokenizer]
        options = ["--packing", packing, "--block-tokens", str(size["block_tokens"]), "--val-fraction", "0.02"]
        subprocess.run([*command, *options], check=True, cwd=REPOSITORY)


def size_of(work: Path) -> dict[str, Any]:
    """What `prepare` was told."""
    return SIZES[(work / "size").read_text().strip()]


def parse(name: str) -> tuple[dict[str, Any], int]:
    """The recipe's settings and the tokens to train on."""
    recipe, *changes = name.split(",")
    settings = {"seed": 1, **RECIPES[recipe]}
    tokens = 800_000
    for change in changes:
        key, value = change.split("=")
        if key == "tokens":
            tokens = int(float(value.rstrip("kM")) * {"k": 1e3, "M": 1e6}.get(value[-1], 1))
        else:
            settings[key] = value
    return settings, tokens


def config(name: str, work: Path) -> dict[str, Any]:
    settings, tokens = parse(name)
    size = size_of(work)
    batch_blocks = int(settings.pop("global_batch_blocks", size["batch_blocks"]))
    steps = max(1, round(tokens / size["block_tokens"] / batch_blocks))
    top: dict[str, Any] = {key: settings.pop(key) for key in ("document_mask", "loss", "shuffle") if key in settings}
    model = {key.removeprefix("model."): settings.pop(key) for key in list(settings) if key.startswith("model.")}
    return {
        "shards": str(work / settings.pop("shards")),
        "global_batch_blocks": batch_blocks,
        **top,
        "model": {**size["model"], **model},
        "training": {
            "output_dir": str(work / "runs" / name),
            "max_steps": steps,
            "logging_steps": 50,
            "save_steps": 100,
            "save_total_limit": 1,
            "eval_strategy": "no",
            **size["training"],
            **settings,
        },
        "tracking": {"mode": "disabled"},
    }


def run(name: str, work: Path) -> None:
    """Train (or go on) and evaluate; the result goes to WORK/results/NAME.json."""
    import yaml

    result = work / "results" / f"{name}.json"
    if result.exists():
        return
    path = work / "configs" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(config(name, work)))
    size = size_of(work)
    environment = {**os.environ, **({"OMP_NUM_THREADS": size["threads"]} if "threads" in size else {})}
    directory = work / "runs" / name
    start = time.perf_counter()
    if not (directory / "model").exists():
        command = [sys.executable, "-m", "train", "--config", str(path)]
        with open(work / "configs" / f"{name}.log", "a") as log:
            subprocess.run(command, check=True, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
    command = [sys.executable, __file__, "evaluate", str(work), str(directory / "model")]
    output = subprocess.run(command, check=True, capture_output=True, env=environment, text=True).stdout
    result.parent.mkdir(exist_ok=True)
    _, tokens = parse(name)
    record = {"name": name, "tokens": tokens, "seconds": time.perf_counter() - start, **json.loads(output)}
    result.write_text(json.dumps(record) + "\n")
    print(f"{record['loss']:.4f}  {name}  {record['seconds']:.0f} s", flush=True)


def evaluate(work: Path, model_path: Path) -> dict[str, float]:
    """Mean loss a token on the first held-out documents."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(model_path).to(device).eval()
    block_tokens = size_of(work)["block_tokens"]
    windows: list[list[int]] = []
    total = 0
    for document in shards.open(work / "packed")["val"].documents():
        if total >= EVALUATED_TOKENS:
            break
        ids = document.tolist()
        windows += [ids[start : start + block_tokens] for start in range(0, len(ids), block_tokens)]
        total += len(ids)
    windows = sorted((window for window in windows if len(window) > 1), key=len)
    losses, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(windows), 16):
            group = windows[start : start + 16]
            width = len(group[-1])
            ids = torch.tensor([window + [0] * (width - len(window)) for window in group], device=device)
            wanted = [window + [-100] * (width - len(window)) for window in group]
            labels = torch.tensor(wanted, device=device)[:, 1:]
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
            losses += torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
            count += int((labels != -100).sum())
    return {"loss": losses / count, "evaluated_tokens": count}


def table(work: Path) -> None:
    rows = [json.loads(path.read_text()) for path in sorted((work / "results").glob("*.json"))]
    print("| run | tokens | held-out loss | seconds |\n|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row["tokens"], row["loss"])):
        print(f"| {row['name']} | {row['tokens'] / 1e6:.1f} M | {row['loss']:.4f} | {row['seconds']:,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("prepare")
    command.add_argument("corpus", type=Path, nargs="+")
    command.add_argument("work", type=Path)
    command.add_argument("--size", choices=sorted(SIZES), default="small")
    command = commands.add_parser("run")
    command.add_argument("work", type=Path)
    command.add_argument("names", nargs="+", metavar="NAME")
    command = commands.add_parser("table")
    command.add_argument("work", type=Path)
    command = commands.add_parser("evaluate")
    command.add_argument("work", type=Path)
    command.add_argument("model", type=Path)
    options = parser.parse_args()
    work = options.work.resolve()
    if options.command == "prepare":
        prepare(options.corpus, work, options.size)
    elif options.command == "run":
        for name in options.names:
            run(name, work)
    elif options.command == "evaluate":
        print(json.dumps(evaluate(work, options.model)))
    else:
        table(work)


if __name__ == "__main__":
    main()
