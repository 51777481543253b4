"""Evaluation counts what the model foretells, and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import shards
from shards.common.errors import InputError
from train.evaluate import by_position, evaluate, main
from train.run_directory import read_record

EOS_ID = 256


def test_a_finished_run_is_evaluated_to_the_loss_that_it_ended_with(
    trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(trained.run), "--json", "--batch", "3"])
    result = json.loads(capsys.readouterr().out)
    split = shards.open(read_record(trained.run)["shards"]["path"])["val"]
    assert result["loss"] == pytest.approx(read_record(trained.run)["results"]["eval_loss"], rel=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    bits = result["loss"] / math.log(2) * split.num_tokens
    assert result["bits_per_byte"] == pytest.approx(bits / split.num_text_bytes)
    assert result["bits_per_char"] == pytest.approx(bits / split.num_text_chars)
    assert (result["num_blocks"], result["num_tokens"]) == (5, 5 * 15)
    weights = [last - first + 1 for first, last, _loss in result["loss_by_position"]]
    assert weights == [1, 2, 4, 8]
    mean = sum(weight * row[2] for weight, row in zip(weights, result["loss_by_position"], strict=True)) / 15
    assert mean == pytest.approx(result["loss"])
    main([str(trained.run)])
    assert f"bits per byte  {result['bits_per_byte']:.4f}" in capsys.readouterr().out


def test_filling_is_not_counted(trained: Any) -> None:
    class Filled:
        """A split of two blocks, the second half empty."""

        block_tokens, num_tokens, num_dropped_tokens, num_text_bytes, num_text_chars = 6, 9, 0, 7, 7
        blocks = np.array([[1, 2, 3, EOS_ID, 4, 5], [6, EOS_ID, EOS_ID, EOS_ID, EOS_ID, EOS_ID]], dtype=np.uint32)

        def __len__(self) -> int:
            return 2

        def __getitem__(self, key: slice) -> np.ndarray:
            return self.blocks[key]

    model = AutoModelForCausalLM.from_pretrained(trained.run / "model").eval()
    result = evaluate(model, Filled(), EOS_ID, batch_blocks=1)  # type: ignore[arg-type]
    with torch.no_grad():
        expected = [
            torch.nn.functional.cross_entropy(
                model(torch.tensor(block[None].astype(np.int64))).logits[0, : count - 1],
                torch.tensor(block[1:count].astype(np.int64)),
                reduction="sum",
            ).item()
            for block, count in zip(Filled.blocks, (6, 2), strict=True)
        ]
    assert result.num_tokens == 5 + 1
    assert result.loss == pytest.approx(sum(expected) / 6, rel=1e-5)


def test_positions_are_grouped_by_powers_of_two() -> None:
    rows = by_position(np.array([1.0, 4, 4, 3, 3]), np.array([1, 2, 2, 1, 1]))
    assert rows == [(1, 1, 1.0), (2, 3, 2.0), (4, 5, 3.0)]


def test_what_does_not_go_together_is_refused(trained: Any, make_set: Callable[..., Path], tmp_path: Path) -> None:
    for arguments, message in (
        (["--split", "vall"], "did you mean 'val'"),
        (["--blocks", "0"], "expected at least 1"),
        (["--shards", str(tmp_path / "none")], "no such shard set"),
    ):
        with pytest.raises(InputError, match=message):
            main([str(trained.run), *arguments])
    other = make_set(tmp_path / "set", train_blocks=3, val_blocks=0)
    with pytest.raises(InputError, match="split val has no blocks"):
        main([str(trained.run), "--shards", str(other)])
    model = tmp_path / "model"
    model.mkdir()
    for file in (trained.run / "model").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="give --shards DIR"):
        main([str(model)])
    (model / "tokenizer.json").write_text((model / "tokenizer.json").read_text() + "\n")
    with pytest.raises(InputError, match="another tokenizer than the model's"):
        main([str(model), "--shards", read_record(trained.run)["shards"]["path"]])
