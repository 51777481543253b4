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


def test_samples_change_no_bit_of_the_losses_and_a_continued_run_has_each_once(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    """With dropout, so that random numbers matter in each step. One was stopped after step 6's evaluation, at step 4."""
    training = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 4}
    config = write_config(training=training, generation={"prompts": ["ab", "xyz"]}, model={"attention_dropout": 0.3})
    whole, without, stopped = (tmp_path / name for name in ("whole", "without", "stopped"))
    train_to_the_end(config, "--output_dir", str(whole))
    samples = written(whole)
    assert [sample[:2] for sample in samples] == [(step, prompt) for step in STEPS for prompt in ("ab", "xyz")]
    assert samples[0][2] != samples[-2][2], "the model learnt something"

    train_to_the_end(config, "--output_dir", str(without), "--generation.every_evaluation", "false")
    assert len(losses(whole)) > 20 and losses(whole) == losses(without) and written(without) == samples[-2:]

    stop_after(7, config, "--output_dir", str(stopped))
    assert [step for step, _, _ in written(stopped)] == [2, 2, 4, 4, 6, 6]
    train_to_the_end(config, "--output_dir", str(stopped))
    assert losses(stopped) == losses(whole) and written(stopped) == samples


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
