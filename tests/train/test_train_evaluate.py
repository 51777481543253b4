"""Evaluation counts what the model predicts, and nothing else; one function serves training, its end and the command."""

from __future__ import annotations

import functools
import itertools
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import shards
from shards.common.errors import InputError
from shards.torch import IGNORED, BlockDataset, text_collator
from tests.train.conftest import make_shard_set
from tests.train.runs import Capture, Patch, WriteConfig
from tests.train.test_train_model import make_model
from train.__main__ import main as main_train
from train.compare.runs import read_runs
from train.compare.table import summary_rows
from train.evaluate import bits_per_byte, by_position, evaluate_blocks, lines, main, spread_evenly
from train.run_directory import read_lines, read_record


def test_a_finished_run_is_evaluated_to_the_loss_that_it_ended_with(
    trained: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    main([str(trained), "--json", "--batch", "3"])
    result = json.loads(capsys.readouterr().out)
    assert result["loss"] == pytest.approx(read_record(trained)["results"]["eval_loss"], rel=1e-5)
    assert (result["num_blocks"], result["num_tokens"], result["precision"]) == (5, 5 * 15, "fp32")
    weights = [last - first + 1 for first, last, _loss in result["loss_by_position"]]
    assert weights == [1, 2, 4, 8]
    mean = sum(weight * row[2] for weight, row in zip(weights, result["loss_by_position"], strict=True)) / 15
    assert mean == pytest.approx(result["loss"])
    monkeypatch.chdir(trained / "model")
    main(["."])
    assert f"bits per byte  {result['bits_per_byte']:.4f}" in capsys.readouterr().out


def test_each_set_of_a_mixture_is_evaluated_by_its_name(
    write_config: WriteConfig, shard_set_path: Path, tmp_path: Path, capsys: Any
) -> None:
    """Their losses, weighed by their tokens, are the loss; other sets may be named instead."""
    other = make_shard_set(tmp_path / "other", val_blocks=3, seed=30)
    empty = make_shard_set(tmp_path / "empty", val_blocks=0)
    run, spec = tmp_path / "run", f"{shard_set_path}:0.5,{other}:0.25,{empty}:0.25"
    training = {"max_steps": 10, "save_steps": 10, "per_device_train_batch_size": 10}
    main_train(["--config", str(write_config(shards=spec, training=training))])
    output, results = capsys.readouterr().out, read_record(run)["results"]
    assert (5 * results["eval_tiny_loss"] + 3 * results["eval_other_loss"]) / 8 == pytest.approx(results["eval_loss"])
    assert f"(tiny {results['eval_tiny_loss']:.4f}, other {results['eval_other_loss']:.4f})" in output
    assert re.findall(r"warning  .*/(\w+): ([0-9.]+) passes", output) == [("tiny", "4.5")]
    assert len(read_record(run)["shards"]["evaluated"]) == 2
    main([str(run), "--shards", str(other), "--json"])
    alone = json.loads(capsys.readouterr().out)
    assert results["eval_other_loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert results["eval_other_bits_per_byte"] == pytest.approx(alone["bits_per_byte"], rel=1e-5)
    rows = dict(summary_rows(read_runs([run])))
    assert rows["other loss"] == [f"{alone['loss']:.4f}"] and "tiny bits per byte" in rows

    named = json.dumps({"old": str(shard_set_path), "new": str(other)})
    config = ["--config", str(write_config(shards=str(empty))), "--max_steps", "2", "--output_dir", str(tmp_path / "b")]
    main_train([*config, "--eval_shards", named])
    found = read_record(tmp_path / "b")["results"]
    assert {"eval_old_loss", "eval_new_loss"} <= found.keys() and found["eval_bits_per_byte"] > 0
    with pytest.raises(InputError, match="has no validation blocks to evaluate"):
        main_train([*config, "--eval_shards", json.dumps({"none": str(empty)})])


def test_positions_are_grouped_by_powers_of_two() -> None:
    rows = by_position(np.array([1.0, 4, 4, 3, 3]), np.array([1, 2, 2, 1, 1]))
    assert rows == [(1, 1, 1.0), (2, 3, 2.0), (4, 5, 3.0)]


def test_texts_without_a_byte_have_no_bits_per_byte() -> None:
    empty: Any = SimpleNamespace(num_predicted_tokens=3, num_text_bytes=0)
    assert bits_per_byte([empty], 1.0) is None
    result: dict[str, Any] = dict.fromkeys(("num_tokens", "num_blocks", "loss", "perplexity", "document_mask"), 1)
    result |= {"precision": "fp32", "bits_per_byte": None, "bits_per_char": None, "loss_by_position": []}
    assert "bits per byte  –" in lines(result)


def test_what_does_not_go_together_is_refused(trained: Path, tmp_path: Path) -> None:
    other, model = make_shard_set(tmp_path / "set", train_blocks=3, val_blocks=0), tmp_path / "model"
    shutil.copytree(trained / "model", model)
    for arguments, message in (
        ([trained, "--split", "vall"], "did you mean 'val'"),
        ([trained, "--blocks", "0"], "--blocks: expected at least 1, found 0"),
        ([trained, "--shards", tmp_path / "none"], "no such shard set"),
        ([trained, "--shards", other], "split val has no blocks"),
        ([model], "give --shards DIR"),
    ):
        with pytest.raises(InputError, match=message):
            main(list(map(str, arguments)))
    (model / "tokenizer.json").write_text((model / "tokenizer.json").read_text() + "\n")
    with pytest.raises(InputError, match="another tokenizer than the model's"):
        main([str(model), "--shards", read_record(trained)["shards"]["path"]])


@pytest.mark.parametrize(("total", "limit"), [(4097, 4096), (7, 3), (5, 5), (5, 9), (1, 1), (10**7, 4096), (5, None)])
def test_exactly_as_many_blocks_as_asked_are_spread_evenly(total: int, limit: int | None) -> None:
    numbers = spread_evenly(total, limit)
    count = total if limit is None else min(limit, total)
    assert len(set(numbers)) == len(numbers) == count and numbers[0] == 0 and numbers[-1] < total
    gaps = {after - before for before, after in itertools.pairwise([*numbers, total])}
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("micro_batch", "num_ranks"), [(1, 1), (2, 1), (3, 1), (8, 1), (2, 3), (8, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_is_the_mean_over_all_labels(
    packed_sets: dict[str, Path], micro_batch: int, num_ranks: int, masked: bool, monkeypatch: Patch
) -> None:
    data = shards.open(packed_sets["best-fit"])
    model = make_model()
    dataset, collate = BlockDataset(data, "val"), text_collator(data, document_mask=masked)
    sums, counts = [], []
    for rank in range(num_ranks):
        numbers = {"get_rank": functools.partial(int, rank), "get_world_size": functools.partial(int, num_ranks)}
        for name, value in (numbers | {"is_initialized": lambda: True, "all_reduce": lambda _totals: None}).items():
            monkeypatch.setattr(torch.distributed, name, value)
        where: Any = {"device": torch.device("cpu"), "batch_blocks": micro_batch}
        found = evaluate_blocks(model, dataset, range(len(dataset)), collate, **where)
        sums.append(found[0].sum())
        counts.append(found[1].sum())
    batch = collate(dataset.__getitems__(range(len(dataset))))
    with torch.no_grad():
        expected = model(**batch, num_items_in_batch=1).loss.item()
    assert sum(sums) == pytest.approx(expected, rel=1e-6)
    assert sum(counts) == (batch["labels"][:, 1:] != IGNORED).sum()


def test_evaluations_before_the_last_take_some_blocks_and_never_mix(write_config: WriteConfig, tmp_path: Path) -> None:
    training = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "learning_rate": 0.0}
    main_train(["--config", str(write_config(training=training, eval_blocks=3)), "--load_best_model_at_end"])
    found = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "eval_loss" in line]
    assert [(line["step"], line["eval_samples"]) for line in found] == [(1, 3), (2, 3), (3, 3), (3, 5)]
    assert len({line["eval_loss"] for line in found[:3]}) == 1 and found[3]["eval_loss"] != found[0]["eval_loss"]
    (run,) = read_runs([tmp_path / "run"])
    assert run.summary["best_validation_loss"] == found[3]["eval_loss"]


def test_a_model_is_evaluated_in_the_precision_of_its_run(
    write_config: WriteConfig, tmp_path: Path, capsys: Capture
) -> None:
    main_train(["--config", str(write_config(training={"max_steps": 3, "bf16": True}))])
    run, losses = tmp_path / "run", {}
    for precision in ("bf16", "fp32"):
        (run / "run.json").write_text((run / "run.json").read_text().replace('"bf16"', f'"{precision}"'))
        capsys.readouterr()
        main([str(run), "--json"])
        result = json.loads(capsys.readouterr().out)
        assert result["precision"] == precision
        losses[precision] = result["loss"]
    trained_with = read_record(run)["results"]["eval_loss"]
    assert losses["bf16"] == pytest.approx(trained_with, rel=1e-6) and losses["fp32"] != losses["bf16"]
