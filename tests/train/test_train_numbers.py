"""The numbers that a run reports are those of a plain model of transformers, counted by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainingArguments

import shards
from shards.torch import BlockDataset
from tests.train.runs import Capture, Patch, WriteConfig
from train import evaluate
from train.__main__ import main
from train.arguments import check
from train.run_directory import read_lines, read_record
from train.settings import load_settings
from train.trainer import BlockTrainer

EOS_ID, BLOCK_TOKENS, BATCH_BLOCKS = 256, 16, 4
WAYS = [("concat", False), ("concat", True), ("best-fit", False), ("best-fit", True)]


def without_padding(block: list[int]) -> list[int]:
    while block[-2:] == [EOS_ID, EOS_ID]:
        block = block[:-1]
    return block


def documents_of(block: list[int]) -> list[list[int]]:
    """The block's parts of documents, EOS included; padding gives parts of one EOS."""
    parts: list[list[int]] = [[]]
    for token in block:
        parts[-1].append(token)
        if token == EOS_ID:
            parts.append([])
    return [part for part in parts if part]


def plain_loss(model: PreTrainedModel, blocks: Any, *, masked: bool, keep_padding: bool = False) -> tuple[float, int]:
    """The mean loss and the number of labels; masked: each document is given to the model by itself."""
    total, count = 0.0, 0
    for block in blocks:
        row = block.tolist() if keep_padding else without_padding(block.tolist())
        for part in documents_of(row) if masked else [row]:
            if len(part) > 1:
                ids = torch.tensor([part])
                with torch.no_grad():
                    total += model(input_ids=ids, labels=ids).loss.item() * (len(part) - 1)
                count += len(part) - 1
    return total / count, count


def trainer_of(config: Path, data: shards.Data) -> BlockTrainer:
    settings, args = check(load_settings(config, {}), data)
    return BlockTrainer(settings, data, args)


@pytest.mark.parametrize(
    ("packing", "masked", "loss"), [(*way, loss) for way, loss in zip(WAYS, ["plain", "chunked"] * 2, strict=True)]
)
def test_run_and_evaluation_agree_with_a_plain_model(
    write_config: WriteConfig,
    packed_sets: dict[str, Path],
    tmp_path: Path,
    capsys: Capture,
    packing: str,
    masked: bool,
    loss: str,
) -> None:
    """A token is a byte here: bits per byte are the loss in bits, times the tokens that the EOS add."""
    path, run = packed_sets[packing], tmp_path / "run"
    config = write_config(shards=str(path), document_mask=masked, loss=loss, training={"max_steps": 3})
    main(["--config", str(config)])
    data = shards.open(str(path))

    blocks = data["train"][shards.run_order(data, 42).blocks(0, BATCH_BLOCKS)]
    expected, count = plain_loss(untrained(config, data), blocks, masked=masked, keep_padding=packing == "concat")
    assert (count < BATCH_BLOCKS * (BLOCK_TOKENS - 1)) == (masked or packing == "best-fit")
    first = next(line["loss"] for line in read_lines(run / "metrics.jsonl") if "loss" in line)
    assert first == pytest.approx(expected, rel=1e-5)

    results, split = read_record(run)["results"], data["val"]
    capsys.readouterr()
    evaluate.main([str(run), "--json", "--batch", "3"])
    evaluated = json.loads(capsys.readouterr().out)
    assert split.num_padding_tokens > 0
    model = AutoModelForCausalLM.from_pretrained(run / "model").eval()
    expected, count = plain_loss(model, split[:], masked=masked)
    bits_per_byte = expected / math.log(2) * (split.num_text_bytes + split.num_documents) / split.num_text_bytes
    for found in (results["eval_loss"], evaluated["loss"]):
        assert found == pytest.approx(expected, rel=1e-5)
    for found in (results["eval_bits_per_byte"], evaluated["bits_per_byte"], evaluated["bits_per_char"]):
        assert found == pytest.approx(bits_per_byte, rel=1e-5)
    assert results["eval_perplexity"] == pytest.approx(evaluated["perplexity"], rel=1e-4)
    assert (evaluated["num_tokens"], evaluated["document_mask"]) == (count, masked)
    evaluate.main([str(run)])
    words = "masked from" if masked else "attend to"
    assert f"documents      {words} each other in a block" in capsys.readouterr().out


def untrained(config: Path, data: shards.Data) -> PreTrainedModel:
    """transformers' own model with the weights that a run starts with."""
    ours = trainer_of(config, data).model
    model = transformers.Qwen2ForCausalLM(ours.config).train()
    model.load_state_dict(ours.state_dict())
    return model


@pytest.mark.parametrize(("packing", "masked"), WAYS)
def test_labels_of_a_step_are_counted_over_its_batches(
    write_config: WriteConfig, packed_sets: dict[str, Path], monkeypatch: Patch, packing: str, masked: bool
) -> None:
    data = shards.open(str(packed_sets[packing]))
    trainer = trainer_of(write_config(shards=data.description, document_mask=masked), data)
    last = len(data["train"]) - 1
    numbers = [[0, 1], [last]]
    blocks = BlockDataset(data, "train")
    batches = [trainer.data_collator(blocks.__getitems__(batch)) for batch in numbers]
    _, found = trainer.get_batch_samples(iter(batches), 2, torch.device("cpu"))
    expected = 0
    for block in data["train"][[0, 1, last]]:
        row = without_padding(block.tolist()) if packing == "best-fit" else block.tolist()
        expected += sum(len(part) - 1 for part in (documents_of(row) if masked else [row]))
    assert found == expected
    if packing != "best-fit" and not masked:
        assert type(found) is int  # nothing is counted, so no GPU and no rank is waited for
        monkeypatch.setattr(TrainingArguments, "world_size", 3)
        assert trainer.get_batch_samples(iter(batches), 2, torch.device("cpu"))[1] == 3 * expected


def test_utilization_is_of_all_devices(write_config: WriteConfig, shard_set_path: Path, monkeypatch: Patch) -> None:
    """Two steps of 4 blocks in half a second, on three devices of 1 GFLOP/s."""
    trainer = trainer_of(write_config(), shards.open(str(shard_set_path)))
    matrices = [parameter for name, parameter in trainer.model.model.layers.named_parameters() if parameter.ndim == 2]
    parameters = sum(matrix.numel() for matrix in matrices) + trainer.model.lm_head.weight.numel()
    flops_a_token = 6 * parameters + 6 * 2 * 16 * BLOCK_TOKENS  # 2 layers with heads of 16 numbers together
    now = [100.0]
    monkeypatch.setattr("train.trainer.time.monotonic", lambda: now[0])
    monkeypatch.setattr(TrainingArguments, "world_size", 3)
    trainer._peak_flops = 1e9
    trainer.start_clock(step=5, seconds_before=0.0)
    now[0], trainer.state.global_step = 100.5, 7
    logs = {"loss": 1.0}
    trainer.log(logs)
    assert logs["tokens_per_second"] == 2 * BATCH_BLOCKS * BLOCK_TOKENS / 0.5
    assert logs["mfu"] == pytest.approx(256 * flops_a_token / 3e9)
