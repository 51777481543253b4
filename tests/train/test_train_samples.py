"""The prompts are continued at each evaluation, and the training doesn't notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import Qwen2ForCausalLM

from tests.train.runs import stop_after, train_to_the_end
from train.callbacks import SamplesAtEvaluation
from train.run_directory import read_lines
from train.sampling import Continuation, load_model
from train.settings import GenerationSettings

WriteConfig = Callable[..., Path]
STEPS = (2, 4, 6, 8, 10, 11)
LOSSES = ("loss", "grad_norm", "eval_loss")


def losses(run: Path) -> list[tuple[int, str, float]]:
    lines = read_lines(run / "metrics.jsonl")
    return [(line["step"], name, line[name]) for line in lines for name in LOSSES if name in line]


def written(run: Path) -> list[tuple[int, str, str]]:
    return [(line["step"], line["prompt"], line["text"]) for line in read_lines(run / "samples.jsonl")]


EVALUATED: dict[str, Any] = {
    "training": {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 4},
    "generation": {"prompts": ["ab", "xyz"]},
}


def test_losses_are_the_same_to_the_last_bit_with_samples_and_without(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    """With dropout, so that random numbers matter in each step."""
    config, run = write_config(**EVALUATED, model={"attention_dropout": 0.3}), tmp_path / "run"
    train_to_the_end(config)
    without = tmp_path / "without"
    train_to_the_end(config, "--output_dir", str(without), "--generation.every_evaluation", "false")
    assert len(losses(run)) > 20 and losses(run) == losses(without)
    samples = written(run)
    assert [sample[:2] for sample in samples] == [(step, prompt) for step in STEPS for prompt in ("ab", "xyz")]
    assert written(without) == samples[-2:]
    assert samples[0][2] != samples[-2][2], "the model learnt something"


def test_a_continued_run_has_each_sample_once(write_config: WriteConfig, tmp_path: Path) -> None:
    """It was stopped after the evaluation of step 6 and continues from step 4."""
    config, whole, stopped = write_config(**EVALUATED), tmp_path / "whole", ("--output_dir", str(tmp_path / "stopped"))
    train_to_the_end(config, "--output_dir", str(whole))
    stop_after(7, config, *stopped)
    assert [step for step, _, _ in written(tmp_path / "stopped")] == [2, 2, 4, 4, 6, 6]
    train_to_the_end(config, *stopped)
    assert losses(tmp_path / "stopped") == losses(whole)
    assert written(tmp_path / "stopped") == written(whole)


def test_a_failure_ends_the_samples_and_not_the_training(
    trained: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = load_model(trained.run / "model")
    shown: list[tuple[list[Continuation], int]] = []
    settings = GenerationSettings(prompts=["ab"], max_new_tokens=10_000)
    callback = SamplesAtEvaluation(settings, tokenizer, lambda samples, step: shown.append((samples, step)))

    def evaluate(step: int) -> None:
        callback.on_evaluate(None, SimpleNamespace(global_step=step, max_steps=9), None, model=model)

    model.train()
    evaluate(3)
    assert all(module.training for module in model.modules())
    evaluate(9)  # the end's are written from the saved model
    assert [step for _, step in shown] == [3]
    assert shown[0][0][0].num_tokens <= 64

    def fail(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("CUDA out of memory\nmore")

    monkeypatch.setattr(Qwen2ForCausalLM, "generate", fail)
    evaluate(5)
    evaluate(6)
    assert capsys.readouterr().out == "no samples from step 5 on: CUDA out of memory\n"
    assert len(shown) == 1
