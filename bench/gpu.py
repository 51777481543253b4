"""All that is to be measured on a GPU, in one command: steps against the tutorial's, and tokens to the same loss.

    python -m bench.gpu CORPUS WORK [--tokens 1e9]
    python -m bench.gpu CORPUS WORK --tiny     # the same way in a minute on a CPU, with a model of no use

CORPUS is a JSON array or JSON Lines with a field `text`, such as the published Wikipedia file. Steps: the
123-million-parameter model, batches of 32 × 512 tokens in bf16, each loss, with and without torch.compile, in turns with
the tutorial's script. Tokens (resumable): the tutorial's recipe trains on `--tokens`, ours on half of them, with three
learning rates each, and once without the faster embedding (`bench/recipe.py`).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.measure import REPOSITORY, ours
from shards.common.command_line import Parser, run_command


def show(*command: str) -> None:
    """Run it, its output shown as it comes."""
    print(f"\n    {' '.join(command)}\n", flush=True)
    subprocess.run(command, cwd=REPOSITORY, check=True)


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tokens", type=float, default=1e9, help="what the tutorial's recipe trains on")
    parser.add_argument("--tiny", action="store_true", help="a model of no use, on any device")
    options = parser.parse_args(argv)
    corpus, work, tokens = str(options.corpus.resolve()), str(options.work.resolve()), options.tokens
    steps = ["--layers", "12", "--batch", "32", "--rounds", "2", "--steps", "22", "--bf16", "--gpu"]
    shape, changes = "120m", "shape=120m,block_tokens=512,step_tokens=32768"
    if options.tiny:
        steps, tokens = ["--layers", "0", "--batch", "2", "--rounds", "1", "--steps", "4"], 40_000.0
        shape, changes = "tiny", "shape=tiny"

    recipe = (sys.executable, "bench/recipe.py")
    show(*recipe, "prepare", work, corpus, "--shape", shape)
    for loss in ("chunked", "plain"):
        for training in ("{}", '{"torch_compile": true}'):
            show(*ours("bench.trainer", f"{work}/shards", *steps, "--loss", loss, "--training", training))
    tutorial = f"{changes},packing=whole,optimizer=adamw,schedule=cosine,warmup=0.05,tokens={tokens:g}"
    own = f"{changes},tokens={tokens / 2:g}"
    names = [f"{tutorial},learning_rate={rate}" for rate in ("5e-4", "1e-3", "2e-3")]
    names += [f"{own},learning_rate={rate},embedding_rate=3" for rate in ("2e-3", "4e-3", "8e-3")]
    show(*recipe, "run", work, *names, f"{own},learning_rate=4e-3")
    show(*recipe, "table", work)


if __name__ == "__main__":
    run_command(main)
