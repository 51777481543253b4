"""A tiny shard set, made by the real writer, and a way to run the command lines as a user does."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

import shards

ROOT = Path(__file__).resolve().parents[2]
BLOCK_TOKENS = 16
VOCAB_SIZE = 257  # 256 bytes and EOS: 127 ids of the padded vocabulary of 384 must never be sampled
EOS_ID = 256
TRAIN_BLOCKS = 22  # with 4 blocks a step, an epoch ends within a step
VAL_BLOCKS = 5

SETTINGS: dict[str, Any] = {
    "model": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
        "initializer_range": 0.2,
    },
    "training": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_steps": 2,
        "warmup_steps": 2,
        "use_cpu": True,
        "bf16": False,
    },
    "tracking": {"mode": "disabled"},
    "generation": {"prompts": ["ab"], "max_new_tokens": 5, "temperature": 1.0, "top_p": 1.0, "top_k": 0},
}

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def make_tokenizer(directory: Path) -> None:
    """A tokenizer of one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: number for number, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|\s+|."), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}'
    )


def make_shard_set(
    directory: Path, *, train_blocks: int = TRAIN_BLOCKS, val_blocks: int = VAL_BLOCKS, seed: int = 0
) -> Path:
    """Build a shard set of exactly so many blocks, each one document: 15 letters in alphabetical order and EOS.

    Which split a document falls into is found by a first build of more documents than needed.
    """
    work = directory.with_name(directory.name + "-work")
    make_tokenizer(work / "tokenizer")
    candidates = []
    for number in range(150):
        start = 33 + (number * 7 + seed) % 60
        letters = "".join(chr(start + place) for place in range(BLOCK_TOKENS - 4))
        candidates.append(f"{number:03}{letters}")
    pipeline_build(work, candidates, work / "all")
    chosen = []
    for split, num_blocks in (("train", train_blocks), ("val", val_blocks)):
        documents = list(shards.open(work / "all")[split].documents())[:num_blocks]
        assert len(documents) == num_blocks
        tokenizer = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
        chosen += [tokenizer.decode(document.tolist()) for document in documents]
    pipeline_build(work, chosen, directory)
    return directory


def pipeline_build(work: Path, texts: list[str], out: Path, *arguments: str) -> None:
    source = work / f"{out.name}.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = ["--tokenizer", str(work / "tokenizer"), "--block-tokens", str(BLOCK_TOKENS), "--val-fraction", "0.3"]
    run = run_module("pipeline", "build", str(source), "--out", str(out), *options, *arguments, "--quiet", cwd=work)
    assert run.returncode == 0, run.stderr


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two threads of a model this small wait for each other more than they work."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_set() -> Callable[..., Path]:
    return make_shard_set


@pytest.fixture(scope="session")
def run_command_line() -> Run:
    return run_module


@pytest.fixture(scope="session")
def shard_set_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shard_set(tmp_path_factory.mktemp("shards") / "tiny")


@pytest.fixture(scope="session")
def packed_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same documents in each packing, a few tokens more than half a block or one and a half: two never fit together."""
    work = tmp_path_factory.mktemp("packed")
    make_tokenizer(work / "tokenizer")
    texts = []
    for number in range(57):
        size = (9, 10, 11, 26, 27)[number % 5]
        texts.append("".join(chr(33 + (number * 11 + place) % 90) for place in range(size)))
    sets = {packing: work / packing for packing in ("concat", "best-fit")}
    for packing, path in sets.items():
        pipeline_build(work, texts, path, "--packing", packing)
    return sets


@pytest.fixture
def write_config(tmp_path: Path, shard_set_path: Path) -> Callable[..., Path]:
    """Write `SETTINGS` to a YAML file, sections updated by keyword; `output_dir` is `tmp_path/run`."""

    def write(name: str = "config.yaml", **sections: Any) -> Path:
        content: dict[str, Any] = {"shards": str(shard_set_path)}
        for section, fields in SETTINGS.items():
            changes = sections.pop(section, {})
            content[section] = {**fields, **changes} if isinstance(changes, dict) else changes
        if isinstance(content["training"], dict):
            content["training"].setdefault("output_dir", str(tmp_path / "run"))
        content.update(sections)
        path = tmp_path / name
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        return path

    return write


def environment() -> dict[str, str]:
    """For a process that has neither SwanLab's nor another tool's login."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SWANLAB_")}
    return {**kept, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def run_module(*arguments: str, cwd: Path, timeout: float = 180, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python -m ARGUMENTS` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env={**environment(), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What a finished training left."""

    run: Path
    output: str


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, shard_set_path: Path) -> Trained:
    """A run by the command line, with SwanLab offline, shared by the tests that only look at it."""
    directory = tmp_path_factory.mktemp("trained")
    content = {"shards": str(shard_set_path), **SETTINGS, "tracking": {"mode": "auto", "project": "tests"}}
    content["training"] = {
        **SETTINGS["training"],
        "num_train_epochs": 8,
        "save_total_limit": 2,
        "eval_strategy": "steps",
        "eval_steps": 10,
        "output_dir": str(directory / "run"),
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(content))
    finished = run_module("train", "--config", "config.yaml", cwd=directory, HOME=str(directory))
    assert finished.returncode == 0, finished.stderr
    return Trained(run=directory / "run", output=finished.stdout)
