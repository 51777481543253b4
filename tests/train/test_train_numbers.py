"""What a finished run leaves; the numbers that it reports are those of a plain model of transformers, counted by hand."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainingArguments

import shards
from shards.common.errors import InputError
from shards.torch import IGNORED, BlockDataset
from tests.train.conftest import make_shard_set
from tests.train.runs import Capture, Patch, WriteConfig
from tests.train.test_train_model import make_model
from train import callbacks, evaluate, generate
from train.__main__ import main
from train.arguments import check
from train.flops import flops_a_token, peak_flops, peak_memory_bytes
from train.run_directory import read_lines, read_record
from train.settings import load_settings
from train.trainer import BlockTrainer

EOS_ID, BLOCK_TOKENS, BATCH_BLOCKS = 256, 16, 4
VOCAB_SIZE, PADDED_VOCAB_SIZE = 257, 384
WAYS = [("concat", False), ("concat", True), ("best-fit", False), ("best-fit", True)]
OWN = [("plain", "none"), ("chunked", "window"), ("plain", "global"), ("chunked", "global")]


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


@pytest.mark.parametrize("way", [(*way, *own) for way, own in zip(WAYS, OWN, strict=True)])
def test_run_and_evaluation_agree_with_a_plain_model(
    write_config: WriteConfig, packed_sets: dict[str, Path], tmp_path: Path, capsys: Capture, way: Any
) -> None:
    """A token is a byte here: bits per byte are the loss in bits, times the tokens that the EOS add."""
    packing, masked, loss, shuffle = way
    path, run = packed_sets[packing], tmp_path / "run"
    config = write_config(shards=str(path), document_mask=masked, loss=loss, shuffle=shuffle, training={"max_steps": 3})
    main(["--config", str(config)])
    data = shards.open(str(path))

    blocks = data["train"][shards.run_order(data, 42, shuffle).blocks(0, BATCH_BLOCKS)]
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


def test_a_step_that_takes_a_cpu_minutes_is_warned_of(
    write_config: WriteConfig, packed_sets: dict[str, Path], monkeypatch: Patch
) -> None:
    data = shards.open(str(packed_sets["concat"]))
    trainer = trainer_of(write_config(shards=str(packed_sets["concat"])), data)
    assert callbacks.slowness(data, trainer) == []
    monkeypatch.setattr(callbacks, "_CPU_STEP_FLOPS", 1)
    (line,) = callbacks.slowness(data, trainer)
    assert re.match(r"warning  a step is \de\+\d\d operations, minutes on a CPU: --dry_run measures one; ", line)


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
    if packing == "best-fit" or masked:  # a step of padding alone
        batches = [{"labels": torch.full((1, 16), IGNORED)}]
        assert trainer.get_batch_samples(iter(batches), 1, torch.device("cpu"))[1] == 1, "the loss is divided by it"
    if packing != "best-fit" and not masked:
        assert type(found) is int  # nothing is counted, so no GPU and no rank is waited for
        monkeypatch.setattr(TrainingArguments, "world_size", 3)
        assert trainer.get_batch_samples(iter(batches), 2, torch.device("cpu"))[1] == 3 * expected


def test_utilization_is_of_all_devices(write_config: WriteConfig, shard_set_path: Path, monkeypatch: Patch) -> None:
    """Two steps of 4 blocks in half a second, on three devices of 1 GFLOP/s."""
    trainer = trainer_of(write_config(), shards.open(str(shard_set_path)))
    now = [100.0]
    monkeypatch.setattr("train.trainer.time.monotonic", lambda: now[0])
    monkeypatch.setattr(TrainingArguments, "world_size", 3)
    trainer._peak_flops = 1e9
    trainer.start_clock(step=5, seconds_before=0.0)
    now[0], trainer.state.global_step = 100.5, 7
    logs = {"loss": 1.0}
    trainer.log(logs)
    assert logs["tokens_per_second"] == 2 * BATCH_BLOCKS * BLOCK_TOKENS / 0.5
    assert logs["mfu"] == pytest.approx(256 * flops_a_token(trainer.model.config, BLOCK_TOKENS) / 3e9)


def test_finished_run_holds_everything(trained: Path) -> None:
    record = read_record(trained)
    assert record["state"] == "finished"
    assert record["settings"]["training"]["learning_rate"] == 0.01
    assert record["shards"]["train_blocks"] == 22
    assert record["sessions"][0]["command"][:3] == ["python", "-m", "train"]
    results = record["results"]
    assert (results["steps"], results["tokens"], results["epochs"]) == (44, 44 * 4 * 16, 8.0)
    assert results["last_train_loss"] < results["first_train_loss"] - 1
    assert sorted(path.name for path in trained.glob("checkpoint-*")) == ["checkpoint-42", "checkpoint-44"]
    output = (trained.parent / "train.out").read_text()
    assert all(part in output for part in ("training loss", "validation loss", "model            ", "【ab】")), output
    lines = read_lines(trained / "metrics.jsonl")
    for line in (line for line in lines if "loss" in line):
        assert (line["epoch"], line["tokens"]) == (pytest.approx(line["step"] * 4 / 22), line["step"] * 64)
    assert lines[-1]["eval_perplexity"] == pytest.approx(math.exp(lines[-1]["eval_loss"]), rel=1e-6)


def test_saved_model_loads_without_this_project(trained: Path) -> None:
    directory = trained / "model"
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    config, generation = model.config, model.generation_config
    assert config.use_cache is True
    assert config.eos_token_id == generation.eos_token_id == generation.pad_token_id == EOS_ID
    assert config.pad_token_id is None
    assert config.vocab_size == PADDED_VOCAB_SIZE
    assert config.layer_types == ["full_attention"] * 2
    assert generation.suppress_tokens == list(range(VOCAB_SIZE, PADDED_VOCAB_SIZE))
    assert (generation.do_sample, generation.max_new_tokens) == (True, 5)
    assert tokenizer.decode(tokenizer("ab").input_ids) == "ab"
    messages = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "abc"  # what `transformers serve` asks for
    assert not list(directory.glob("*.bin"))


def test_a_model_that_was_cut_short_is_one_line(trained: Path, tmp_path: Path) -> None:
    model = shutil.copytree(trained / "model", tmp_path / "model") / "model.safetensors"
    model.write_bytes(model.read_bytes()[:100])
    with pytest.raises(InputError, match="the model can't be loaded"):
        generate.main([str(model.parent), "--prompt", "a"])


def test_no_validation_blocks_is_no_fault(write_config: WriteConfig, tmp_path: Path, capsys: Capture) -> None:
    shard_set = make_shard_set(tmp_path / "set", val_blocks=0)
    options = ["--eval_strategy", "steps", "--eval_on_start", "--max_steps", "2"]
    main(["--config", str(write_config()), "--shards", str(shard_set), *options])
    assert not [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "eval_loss" in line]
    assert "no validation blocks in the shard set: evaluation skipped" in capsys.readouterr().out
    assert read_record(tmp_path / "run")["state"] == "finished"


# ---- what a token costs, and the log ----


@pytest.mark.parametrize("tied", [True, False])
def test_flops_are_those_of_all_matrices(tied: bool) -> None:
    model = make_model(tied=tied)
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    num_weights = sum(matrix.numel() for matrix in [*matrices, model.lm_head.weight])
    assert flops_a_token(model.config, BLOCK_TOKENS) == 6 * num_weights + 6 * 2 * 32 * BLOCK_TOKENS


def test_peaks_are_found_by_name() -> None:
    peaks = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA GeForce RTX 4090": 165e12}
    peaks |= {"NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA L4": 121e12, "NVIDIA L40S": 362e12}
    assert {name: peak_flops(name) for name in peaks} == peaks and peak_flops("Some GPU") is None


def test_memory_is_that_of_this_process() -> None:
    before = peak_memory_bytes(torch.device("cpu"))
    block = torch.ones(20_000_000)
    assert max(before, block.numel() * 4) <= peak_memory_bytes(torch.device("cpu")) < 64 * 2**30


def test_log_lines_say_what_is_left() -> None:
    logs = {"loss": 2.0, "epoch": 0.5, "tokens_per_second": 1234.5, "mfu": 0.412, "peak_memory_bytes": 4.1e9}
    line = callbacks.log_line({**logs, "seconds_left": 11_100.0, "tokens": 13_107_200}, 5, 1000)
    assert line is not None
    assert line.endswith("  13.11 M tokens  loss 2.0000  1,234 tokens/s  MFU 41.2 %  4.1 GB  3 h 5 min left")
