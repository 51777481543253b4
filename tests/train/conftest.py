"""Tiny shard sets, made by the real writer, and a trained model."""

from __future__ import annotations

import functools
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models

from shards.manifest import Packing
from shards.tokenizer_files import TokenizerFiles, bytes_of_characters, make_tokenizer_files
from tests.conftest import made_once
from tests.shards.sets import PACKINGS, Unit, source, write_set
from tests.train.processes import command
from tests.train.runs import train_to_the_end
from train.__main__ import main

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
    "generation": {"prompts": [], "max_new_tokens": 5, "temperature": 1.0, "top_p": 1.0, "top_k": 0},
}


def byte_tokenizer() -> TokenizerFiles:
    """A token a byte, as transformers loads it."""
    tokenizer = Tokenizer(models.BPE(dict(bytes_of_characters()), []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return make_tokenizer_files("bytes", json.loads(tokenizer.to_str()), {}, where="tests")


def write_texts(directory: Path, train: list[str], val: list[str], packing: Packing = "concat") -> Path:
    """A shard set of ASCII texts, made by the real writer; a token is a byte."""
    unit: Unit = {"train": [[*text.encode()] for text in train], "val": [[*text.encode()] for text in val]}
    own: dict[str, Any] = {
        "tokenizer": byte_tokenizer(),
        "sources": [source("tiny", num_records=len(train) + len(val))],
    }
    return write_set(directory, [unit], packing=packing, block_tokens=BLOCK_TOKENS, **own)


def make_shard_set(
    directory: Path, *, train_blocks: int = TRAIN_BLOCKS, val_blocks: int = VAL_BLOCKS, seed: int = 0
) -> Path:
    """A shard set of exactly so many blocks, each one document: a number, 12 letters in alphabetical order and EOS."""
    texts = []
    for number in range(train_blocks + val_blocks):
        start = 33 + (number * 7 + seed) % 60
        texts.append(f"{number:03}" + "".join(chr(start + place) for place in range(BLOCK_TOKENS - 4)))
    return write_texts(directory, texts[:train_blocks], texts[train_blocks:])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two threads of a model this small wait for each other more than they work."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def quick_runs() -> None:
    importlib.import_module("tests.train.quick")


@pytest.fixture(scope="session")
def shard_set_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "tiny-set", lambda directory: make_shard_set(directory / "tiny")) / "tiny"


@pytest.fixture(scope="session")
def packed_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same documents in each packing, a few tokens more than half a block or one and a half: two never fit together."""
    texts = []
    for number in range(57):
        size = (9, 10, 11, 26, 27)[number % 5]
        texts.append("".join(chr(33 + (number * 11 + place) % 90) for place in range(size)))

    def make(directory: Path) -> None:
        for packing in PACKINGS:
            write_texts(directory / packing, texts[17:], texts[:17], packing)

    directory = made_once(tmp_path_factory, "packed-sets", make)
    return {packing: directory / packing for packing in PACKINGS}


def write_settings(path: Path, shard_set: Path, **sections: Any) -> Path:
    """Write `SETTINGS` to a YAML file, sections updated by keyword; the run's directory is `run` beside it."""
    content: dict[str, Any] = {"shards": str(shard_set)}
    for section, fields in SETTINGS.items():
        changes = sections.pop(section, {})
        content[section] = {**fields, **changes} if isinstance(changes, dict) else changes
    if isinstance(content["training"], dict):
        content["training"].setdefault("output_dir", str(path.parent / "run"))
    path.write_text(yaml.safe_dump({**content, **sections}, allow_unicode=True), encoding="utf-8")
    return path


@pytest.fixture
def write_config(tmp_path: Path, shard_set_path: Path) -> Callable[..., Path]:
    """`write_settings` to a file in `tmp_path`."""

    def write(name: str = "config.yaml", **sections: Any) -> Path:
        return write_settings(tmp_path / name, shard_set_path, **sections)

    return write


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory, shard_set_path: Path) -> Path:
    """A run of `SETTINGS` that nothing interrupted, by a user whose group may read."""

    def make(directory: Path) -> None:
        before = os.umask(0o027)
        try:
            train_to_the_end(write_settings(directory / "config.yaml", shard_set_path))
        finally:
            os.umask(before)

    return made_once(tmp_path_factory, "whole", make) / "run"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, shard_set_path: Path) -> Path:
    """A run in a process of its own, with SwanLab offline, its output beside it; for tests that only look at it."""
    training: dict[str, Any] = {"num_train_epochs": 8, "save_steps": 21, "save_total_limit": 2}
    training |= {"eval_strategy": "steps", "eval_steps": 10}

    def make(directory: Path) -> None:
        config = write_settings(
            directory / "config.yaml",
            shard_set_path,
            training=training,
            tracking={"mode": "auto", "project": "tests"},
            generation={"prompts": ["ab"]},
        )
        alone = functools.partial(without_swanlab_login, directory)
        with command(main, "--config", config, files=directory / "train", prepare=alone) as started:
            assert started.status() == 0, started.errors

    return made_once(tmp_path_factory, "trained", make) / "run"


def without_swanlab_login(home: Path) -> None:
    for name in [name for name in os.environ if name.startswith("SWANLAB_")]:
        del os.environ[name]
    os.environ["HOME"] = str(home)
    os.chdir(home)
