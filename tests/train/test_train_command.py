"""What a finished run leaves, as its user meets it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from shards.common.errors import InputError
from tests.train.runs import Capture, MakeSet, WriteConfig
from train import generate
from train.__main__ import main
from train.run_directory import read_lines, read_record

EOS_ID, VOCAB_SIZE, PADDED_VOCAB_SIZE = 256, 257, 384


def test_finished_run_holds_everything(trained: Any) -> None:
    record = read_record(trained.run)
    assert record["state"] == "finished"
    assert record["settings"]["training"]["learning_rate"] == 0.01
    assert record["shards"]["train_blocks"] == 22
    assert record["sessions"][0]["command"][:3] == ["python", "-m", "train"]
    results = record["results"]
    assert (results["steps"], results["tokens"], results["epochs"]) == (44, 44 * 4 * 16, 8.0)
    assert results["last_train_loss"] < results["first_train_loss"] - 1
    assert sorted(path.name for path in trained.run.glob("checkpoint-*")) == ["checkpoint-42", "checkpoint-44"]
    for part in ("training loss", "validation loss", "model            ", "【ab】"):
        assert part in trained.output


def test_metrics_have_true_epochs_and_tokens(trained: Any) -> None:
    lines = read_lines(trained.run / "metrics.jsonl")
    train_lines = [line for line in lines if "loss" in line]
    assert [line["step"] for line in train_lines] == list(range(1, 45))
    for line in train_lines:
        assert line["epoch"] == pytest.approx(line["step"] * 4 / 22)
        assert line["tokens"] == line["step"] * 64
        assert line["tokens_per_second"] > 0
    evaluations = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [10, 20, 30, 40, 44]
    assert evaluations[-1]["eval_perplexity"] == pytest.approx(2.718281828 ** evaluations[-1]["eval_loss"], rel=1e-6)


def test_saved_model_loads_without_this_project(trained: Any) -> None:
    directory = trained.run / "model"
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


def test_a_model_that_was_cut_short_is_one_line(trained: Any, tmp_path: Path) -> None:
    model = shutil.copytree(trained.run / "model", tmp_path / "model") / "model.safetensors"
    model.write_bytes(model.read_bytes()[:100])
    with pytest.raises(InputError, match="the model can't be loaded"):
        generate.main([str(model.parent), "--prompt", "a"])


def test_no_validation_blocks_is_no_fault(
    write_config: WriteConfig, tmp_path: Path, make_set: MakeSet, capsys: Capture
) -> None:
    shard_set = make_set(tmp_path / "set", val_blocks=0)
    main(["--config", str(write_config()), "--shards", str(shard_set), "--eval_strategy", "steps", "--max_steps", "2"])
    assert "no validation blocks in the shard set: evaluation skipped" in capsys.readouterr().out
    assert read_record(tmp_path / "run")["state"] == "finished"
