"""A step of the trainer against the tutorial's script: the same model, batch and device, in turns.

    python -m bench.trainer SET [--rounds 2] [--steps 6] [--layers 4] [--batch 4] [--loss auto]

SET is a shard set with Qwen2's tokenizer and blocks of 512 tokens. The tutorial's way is transformers' Trainer over a
`datasets` table with its collator and the model's own loss; ours is `python -m train`. Both train a Qwen2 of hidden size
512 with a vocabulary of 151,646 in fp32 (or bf16 with --bf16). The first two steps are not counted. Prints a Markdown
table: tokens a second, and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import shards
from bench.measure import every, ours, print_head, print_machine, print_row, ratios, run
from shards.common.command_line import Parser, run_command

NUM_WARM_STEPS = 2
Settings = dict[str, Any]


def model_settings(layers: int) -> Settings:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    # 0: to see that the benchmark itself runs
    return dict(zip(names, (512, layers, 8, 2, 2048) if layers else (32, 2, 2, 1, 64), strict=True))


def training_settings(options: argparse.Namespace) -> Settings:
    return {
        "per_device_train_batch_size": options.batch,
        "max_steps": options.steps,
        "learning_rate": 5e-4,
        "save_strategy": "no",
        "bf16": options.bf16,
        "use_cpu": not options.gpu,
    }


def tutorial(options: argparse.Namespace, out: str) -> list[float]:
    """When each step ended, as the tutorial's script trains."""
    import datasets
    import transformers

    blocks = shards.open(options.set)["train"][: options.batch * options.steps * 4]
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.set / "tokenizer")
    tokenizer.pad_token = tokenizer.eos_token
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer), tie_word_embeddings=True, use_cache=False, **model_settings(options.layers)
    )
    times: list[float] = []

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    settings = {"output_dir": out, "report_to": [], "disable_tqdm": True, **training_settings(options)}
    transformers.Trainer(
        model=transformers.Qwen2ForCausalLM(config),
        args=transformers.TrainingArguments(**settings),
        train_dataset=datasets.Dataset.from_dict({"input_ids": blocks.tolist()}),
        data_collator=transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=[Clock()],
    ).train()
    return times


def project(options: argparse.Namespace, out: str) -> list[float]:
    """The same by `python -m train`'s own function."""
    import yaml

    from train.__main__ import main
    from train.callbacks import MetricsFile
    from train.trainer import BlockTrainer

    times: list[float] = []
    MetricsFile.on_step_end = lambda *_args, **_: times.append(time.perf_counter())
    BlockTrainer.evaluate = lambda *_, **__: {}  # type: ignore[method-assign]  # the steps alone are measured
    more = {"output_dir": f"{out}/run", "eval_strategy": "no", **json.loads(options.training)}
    config = {
        "shards": str(options.set),
        "loss": options.loss,
        "model": model_settings(options.layers),
        "training": training_settings(options) | more,
        "tracking": {"mode": "disabled"},
    }
    path = Path(out, "config.yaml")
    path.write_text(yaml.safe_dump(config))
    main(["--config", str(path)])
    return times


WAYS = {"tutorial": tutorial, "ours": project}


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("set", type=Path, help="a shard set with Qwen2's tokenizer and blocks of 512 tokens")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4, help="blocks of 512 tokens")
    parser.add_argument("--loss", default="auto")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--gpu", action="store_true", help="use the accelerator (default: the CPU)")
    parser.add_argument("--training", default="{}", help="more of our TrainingArguments, as JSON")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args(argv)
    if options.way:
        with tempfile.TemporaryDirectory() as out:
            times = WAYS[options.way](options, out)
        import torch

        seconds = [later - earlier for earlier, later in itertools.pairwise(times)][NUM_WARM_STEPS - 1 :]
        peak = torch.cuda.max_memory_allocated() if options.gpu else 0
        print(json.dumps({"seconds": statistics.median(seconds), "gpu_bytes": peak}))
        return
    block_tokens = shards.open(options.set).block_tokens
    speeds, memory = ({way: list[float]() for way in WAYS} for _ in range(2))
    for _ in range(options.rounds):
        for way in WAYS:
            ended = run(ours("bench.trainer", *argv, "--way", way), watch_memory=True)
            result = ended.last_line()
            speeds[way].append(options.batch * block_tokens / result["seconds"])
            memory[way].append((result["gpu_bytes"] or ended.largest_bytes) / 1e9)
    print_machine(f"{options.layers} layers, batches of {options.batch} × {block_tokens} tokens")
    print_head("way", "tokens/s", "peak memory, GB")
    for way in WAYS:
        print_row(way, every(speeds[way], "{:,.0f}"), every(memory[way], "{:.2f}"))
    shares = (every(ratios(found["ours"], found["tutorial"]), "{:.2f}") for found in (speeds, memory))
    print_row("ours / tutorial (≥ 1.1; ≤ 0.4)", *shares)


if __name__ == "__main__":
    run_command(main)
