"""The validation loss is the mean over all labels, whatever the micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import shards
from shards.torch import IGNORED, DocumentCollator, collate_blocks
from train.__main__ import main
from train.model import build_model
from train.run_directory import read_lines, read_record
from train.settings import load_settings


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 8])
@pytest.mark.parametrize("masked", [False, True])
def test_mean_over_all_labels(
    write_config: Callable[..., Path], shard_set_path: Path, tmp_path: Path, micro_batch: int, masked: bool
) -> None:
    config = write_config(training={"max_steps": 1, "per_device_eval_batch_size": micro_batch}, document_mask=masked)
    main(["--config", str(config)])
    data, settings = shards.open_data(str(shard_set_path)), load_settings(config, {})
    model = build_model(
        settings.model, settings.generation, vocab_size=257, eos_id=256, block_tokens=16, seed=settings.seed
    ).eval()
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    model.load_state_dict({**model.state_dict(), **weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    blocks = torch.from_numpy(data["val"][list(range(len(data["val"])))].astype("int32"))
    batch = (DocumentCollator(256) if masked else collate_blocks)(blocks)
    positions = {"position_ids": batch["position_ids"]} if masked else {}
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"].long(), use_cache=False, **positions).logits[:, :-1]
    labels = batch["labels"][:, 1:].long()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    found = read_record(tmp_path / "run")["results"]["eval_loss"]
    assert found == pytest.approx(expected.item(), rel=1e-6)


def test_evaluations_before_the_last_take_some_blocks(
    write_config: Callable[..., Path], shard_set_path: Path, tmp_path: Path
) -> None:
    training = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.0}
    main(["--config", str(write_config(training=training, eval_blocks=3))])
    found = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "eval_loss" in line]
    num_blocks = len(shards.open_data(str(shard_set_path))["val"])
    assert num_blocks >= 5
    some = len(range(0, num_blocks, -(-num_blocks // 3)))
    assert 2 <= some <= 3
    assert [(line["step"], line["eval_samples"]) for line in found] == [(1, some), (2, some), (3, num_blocks)]
    first, second, last = (line["eval_loss"] for line in found)
    assert first == second != last
