"""A model of documents with a begin token: nothing learns to predict it, and whatever is continued begins with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import shards
from shards.tokenizer_files import with_begin_token
from shards.torch import IGNORED, BlockDataset, PaddingCollator, text_collator
from tests.shards.sets import write_set
from tests.train.conftest import BLOCK_TOKENS, EOS_ID, byte_tokenizer
from tests.train.runs import WriteConfig
from train.__main__ import main
from train.arguments import check
from train.evaluate import evaluate, gzip_bits_per_byte
from train.run_directory import read_record
from train.sampling import continue_prompts, load_model
from train.settings import GenerationSettings, load_settings
from train.trainer import BlockTrainer


@pytest.fixture
def begun(tmp_path: Path) -> shards.ShardSet:
    """Documents of 1 to 20 letters that begin with `~`, which is no special token."""
    tokenizer = with_begin_token(byte_tokenizer(), "~")
    documents = [[*b"~abcdefghijklmnopqrst"[: 2 + number % 20]] for number in range(90)]
    units: Any = [{"train": documents[:60], "val": documents[60:]}]
    return shards.open(write_set(tmp_path / "set", units, block_tokens=BLOCK_TOKENS, tokenizer=tokenizer))


def test_it_is_no_label_after_another_document() -> None:
    blocks = torch.tensor([[7, 1, 9, 7, 2, 7], [1, 9, 7, 9, 9, 9]])
    expected = [[7, 1, 9, IGNORED, 2, 7], [1, 9, IGNORED, 9, IGNORED, IGNORED]]
    assert PaddingCollator(9, 7)(blocks)["labels"].tolist() == expected
    assert PaddingCollator(9)(blocks)["labels"].tolist() == [[7, 1, 9, 7, 2, 7], [1, 9, 7, 9, IGNORED, IGNORED]]


@pytest.mark.parametrize("masked", [False, True])
def test_a_run_learns_evaluates_and_generates_with_it(
    begun: shards.ShardSet, write_config: WriteConfig, tmp_path: Path, masked: bool
) -> None:
    begin_id, val = begun.begin_id, begun["val"]
    config = write_config(shards=str(begun.path), document_mask=masked, training={"max_steps": 2})
    settings, arguments = check(load_settings(config, {}), begun)
    trainer = BlockTrainer(settings, begun, arguments)
    blocks = begun["train"][:]
    found = trainer.data_collator(BlockDataset(begun, "train").__getitems__(range(len(blocks))))["labels"]
    after_eos = np.pad(blocks[:, :-1] == EOS_ID, ((0, 0), (1, 0)))
    untold = after_eos if masked else after_eos & ((blocks == begin_id) | (blocks == EOS_ID))
    assert np.array_equal(found.numpy() == IGNORED, untold)
    assert (blocks[after_eos] == begin_id).any()

    main(["--config", str(config)])
    results = read_record(tmp_path / "run")["results"]
    num_bytes = sum(1 + number % 20 for number in range(60, 90))
    assert val.num_text_bytes == num_bytes
    bits = results["eval_loss"] / math.log(2) * (num_bytes + 30) / num_bytes
    evaluated = evaluate(tmp_path / "run" / "model", begun, "val", batch_blocks=2)
    for bits_per_byte in (results["eval_bits_per_byte"], evaluated["bits_per_byte"]):
        assert bits_per_byte == pytest.approx(bits, rel=1e-4)
    collated = text_collator(begun, document_mask=masked)(torch.from_numpy(val[:].astype(int)))
    assert evaluated["num_tokens"] == (collated["labels"][:, 1:] != IGNORED).sum()

    model, tokenizer = load_model(tmp_path / "run" / "model")
    assert model.config.bos_token_id == model.generation_config.bos_token_id == begin_id
    with mock.patch.object(model, "generate", wraps=model.generate) as generate:
        (sample,) = continue_prompts(model, tokenizer, GenerationSettings(prompts=["ab"], max_new_tokens=3))
    letters = tokenizer("ab", add_special_tokens=False)["input_ids"]
    assert generate.call_args.kwargs["input_ids"].tolist() == [[begin_id, *letters]]
    assert sample.prompt == "ab"
    code = (tmp_path / "run" / "model" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "\n\n" not in code.split("directory = ")[1]
    card: dict[str, Any] = {}
    exec(code.replace('"."', repr(str(tmp_path / "run" / "model"))), card)
    assert card["inputs"]["input_ids"][0, 0] == begin_id


def test_gzip_sees_the_text_alone(begun: shards.ShardSet) -> None:
    with mock.patch("train.evaluate.zlib.compress", return_value=b"") as compress:
        gzip_bits_per_byte(begun, [begun["val"]])
    assert b"~" not in compress.call_args.args[0]


def test_eos_as_the_first_token_of_a_published_model_is_left_out(trained: Path) -> None:
    model, tokenizer = load_model(trained / "model")
    model.generation_config.bos_token_id = EOS_ID
    with mock.patch.object(model, "generate", wraps=model.generate) as generate:
        list(continue_prompts(model, tokenizer, GenerationSettings(prompts=["ab"], max_new_tokens=3)))
    assert generate.call_args.kwargs["input_ids"].shape == (1, 2)
