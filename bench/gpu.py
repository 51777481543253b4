"""All that is to be measured on a GPU, in one command: steps against the tutorial's, and tokens to the same loss.

    python bench/gpu.py CORPUS WORK [--tokens 1e9] [--out bench/gpu.md]
    python bench/gpu.py CORPUS WORK --tiny     # the same way in a minute on a CPU, with a model of no use

CORPUS is a JSON array or JSON Lines with a field `text`, such as the published Wikipedia file. Resumable: what is done is
not done again. Steps: the 123-million-parameter model, batches of 32 × 512 tokens in bf16, each loss, with and without
torch.compile, in turns with the tutorial's script. Tokens: the tutorial's recipe trains on `--tokens`, ours on half of
them, with three learning rates each, and once without the faster embedding (`bench/recipe.py`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def run(*command: str) -> str:
    """The output of a Python program of `bench/`, shown as it comes."""
    print(f"\n    python {' '.join(command)}\n", flush=True)
    lines = []
    with subprocess.Popen([sys.executable, *command], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode != 0:
        raise SystemExit(f"failed with {process.returncode}: python {' '.join(command)}")
    return "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tokens", type=float, default=1e9, help="what the tutorial's recipe trains on")
    parser.add_argument("--out", type=Path, help="append the results to this Markdown file")
    parser.add_argument("--tiny", action="store_true", help="a model of no use, on any device")
    options = parser.parse_args()
    corpus, work = str(options.corpus.resolve()), options.work.resolve()
    results = []
    shape = "tiny" if options.tiny else "120m"
    run("bench/recipe.py", "prepare", str(work), corpus, "--shape", shape)

    if options.tiny:
        steps = ["--layers", "0", "--batch", "2", "--rounds", "1", "--steps", "4"]
        tokens, changes = 40_000.0, "shape=tiny"
    else:
        steps = ["--layers", "12", "--batch", "32", "--rounds", "2", "--steps", "22", "--bf16", "--gpu"]
        tokens, changes = options.tokens, "shape=120m,block_tokens=512,step_tokens=32768"
    losses = ["chunked", "plain"]
    for loss in losses:
        for training in ("{}", '{"torch_compile": true}'):
            command = ["bench/trainer.py", str(work / "shards"), *steps, "--loss", loss, "--training", training]
            results.append(f"{loss}, {training}:\n\n" + run(*command))

    tutorial = f"{changes},packing=whole,optimizer=adamw,schedule=cosine,warmup=0.05,tokens={tokens:g}"
    names = [f"{tutorial},learning_rate={rate}" for rate in ("5e-4", "1e-3", "2e-3")]
    ours = f"{changes},tokens={tokens / 2:g}"
    names += [f"{ours},learning_rate={rate},embedding_rate=3" for rate in ("2e-3", "4e-3", "8e-3")]
    names += [f"{ours},learning_rate=4e-3"]
    run("bench/recipe.py", "run", str(work), *names)
    results.append(run("bench/recipe.py", "table", str(work)))
    if options.out:
        with open(options.out, "a", encoding="utf-8") as file:
            file.write("\n".join(results))


if __name__ == "__main__":
    main()
