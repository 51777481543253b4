"""A step of the trainer against the tutorial's script: the same model, batch and device, in turns.

    python bench/trainer.py SET [--rounds 2] [--steps 6] [--layers 4] [--batch 4] [--loss auto]

SET is a shard set with Qwen2's tokenizer and blocks of 512 tokens. The tutorial's way is transformers' Trainer over a
`datasets` table with its collator and the model's own loss; ours is `python -m train`. Both train a Qwen2 of hidden size
512 with a vocabulary of 151,646 in fp32 (or bf16 with --bf16). The first two steps are not counted. Prints a Markdown
table: tokens a second, and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from bench.pipeline import machine  # noqa: E402

NUM_WARM_STEPS = 2


def model_settings(layers: int) -> dict[str, Any]:
    if layers == 0:  # to see that the benchmark itself runs
        return {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1} | {
            "intermediate_size": 64
        }
    return {
        "hidden_size": 512,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 2048,
    }


def tutorial(directory: Path, options: dict[str, Any]) -> list[float]:
    """Seconds of each step, as the tutorial's script trains. In a process of its own."""
    import datasets
    from transformers import (
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Qwen2Config,
        Qwen2ForCausalLM,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    import shards

    split = shards.open(directory)["train"]
    blocks = split[: options["batch"] * options["steps"] * 4]
    table = datasets.Dataset.from_dict({"input_ids": blocks.tolist()})
    tokenizer = AutoTokenizer.from_pretrained(directory / "tokenizer")
    tokenizer.pad_token = tokenizer.eos_token
    config = Qwen2Config(
        vocab_size=len(tokenizer), tie_word_embeddings=True, use_cache=False, **model_settings(options["layers"])
    )
    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as out:
        trainer = Trainer(
            model=Qwen2ForCausalLM(config),
            args=TrainingArguments(
                output_dir=out,
                per_device_train_batch_size=options["batch"],
                max_steps=options["steps"],
                learning_rate=5e-4,
                save_strategy="no",
                report_to=[],
                bf16=options["bf16"],
                use_cpu=options["cpu"],
                disable_tqdm=True,
            ),
            train_dataset=table,
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
            callbacks=[Clock()],
        )
        trainer.train()
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def ours(directory: Path, options: dict[str, Any]) -> list[float]:
    """The same by `python -m train`'s own function."""
    import yaml

    from train.__main__ import main
    from train.callbacks import MetricsFile

    times: list[float] = []
    MetricsFile.on_step_end = lambda *_args, **_: times.append(time.perf_counter())
    with tempfile.TemporaryDirectory() as out:
        config = {
            "shards": str(directory),
            "loss": options["loss"],
            "model": model_settings(options["layers"]),
            "training": {
                "output_dir": f"{out}/run",
                "per_device_train_batch_size": options["batch"],
                "max_steps": options["steps"],
                "learning_rate": 5e-4,
                "save_strategy": "no",
                "eval_strategy": "no",
                "bf16": options["bf16"],
                "use_cpu": options["cpu"],
                **options["training"],
            },
            "tracking": {"mode": "disabled"},
        }
        path = Path(out, "config.yaml")
        path.write_text(yaml.safe_dump(config))
        import train.run

        train.run.evaluate = lambda *_: {}  # the steps alone are measured
        main(["--config", str(path)])
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def measure(way: str, directory: Path, options: dict[str, Any]) -> tuple[float, int]:
    """Tokens a second and the peak memory in bytes of one run in a process of its own."""
    command = [sys.executable, __file__, "--way", way, str(directory), "--options", json.dumps(options)]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL, cwd=REPOSITORY)
        _pid, status, usage = os.wait4(process.pid, 0)
        output.seek(0)
        lines = output.read().splitlines()
    if status != 0:
        raise SystemExit(f"{way} failed: {' '.join(command)}")
    result = json.loads(lines[-1])
    seconds = result["seconds"][NUM_WARM_STEPS - 1 :]
    peak = result["gpu_bytes"] or usage.ru_maxrss * 1024
    return options["batch"] * options["block_tokens"] / statistics.median(seconds), peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path, help="a shard set with Qwen2's tokenizer and blocks of 512 tokens")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4, help="blocks of 512 tokens")
    parser.add_argument("--loss", default="auto")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--gpu", action="store_true", help="use the accelerator (default: the CPU)")
    parser.add_argument("--training", default="{}", help="more of our TrainingArguments, as JSON")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--options", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        given = json.loads(options.options)
        seconds = {"tutorial": tutorial, "ours": ours}[options.way](options.set, given)
        import torch

        gpu_bytes = 0 if given["cpu"] else torch.cuda.max_memory_allocated()
        print(json.dumps({"seconds": seconds, "gpu_bytes": gpu_bytes}))
        return
    values = {name: getattr(options, name) for name in ("steps", "layers", "batch", "loss", "bf16")}
    import shards

    block_tokens = shards.open(options.set).block_tokens
    values |= {"cpu": not options.gpu, "training": json.loads(options.training), "block_tokens": block_tokens}
    found: dict[str, list[tuple[float, int]]] = {"tutorial": [], "ours": []}
    for _ in range(options.rounds):
        for way, results in found.items():
            results.append(measure(way, options.set.resolve(), values))
    print(f"{machine()}; {options.layers} layers, batches of {options.batch} × {block_tokens} tokens\n")
    print("| way | tokens/s | peak memory, GB |\n|---|---|---|")
    for way, results in found.items():
        print(
            f"| {way} | {', '.join(f'{r:,.0f}' for r, _ in results)} | {', '.join(f'{m / 1e9:.2f}' for _, m in results)} |"
        )
    pairs = list(zip(found["ours"], found["tutorial"], strict=True))
    speed = ", ".join(f"{own[0] / other[0]:.2f}" for own, other in pairs)
    memory = ", ".join(f"{own[1] / other[1]:.2f}" for own, other in pairs)
    print(f"| ours / tutorial | {speed} (≥ 1.1) | {memory} (≤ 0.4) |")


if __name__ == "__main__":
    main()
