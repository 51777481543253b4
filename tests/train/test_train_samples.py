"""The prompts are continued at each evaluation, and the training doesn't notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import Qwen2ForCausalLM

from train.__main__ import main
from train.callbacks import SamplesAtEvaluation
from train.log_lines import MetricsFile
from train.run_directory import read_lines
from train.sampling import Continuation, load_model
from train.settings import GenerationSettings

WriteConfig = Callable[..., Path]
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
    config = str(write_config(**EVALUATED, model={"attention_dropout": 0.3}))
    main(["--config", config, "--output_dir", str(tmp_path / "with")])
    main(["--config", config, "--output_dir", str(tmp_path / "without"), "--generation.every_evaluation", "false"])
    assert len(losses(tmp_path / "with")) > 20
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    expected = [(step, prompt) for step in (2, 4, 6, 8, 10, 11) for prompt in ("ab", "xyz")]
    samples = written(tmp_path / "with")
    assert [(step, prompt) for step, prompt, _ in samples] == expected
    assert written(tmp_path / "without") == samples[-2:]
    assert samples[0][2] != samples[-2][2], "the model learnt something"


def test_a_continued_run_has_each_sample_once(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped after the evaluation of step 6 and continues from step 4."""
    config = str(write_config(**EVALUATED))
    on_log = MetricsFile.on_log

    def stop(self: MetricsFile, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        on_log(self, args, state, control, logs=logs, **kwargs)
        if state.global_step == 7:
            raise KeyboardInterrupt

    main(["--config", config, "--output_dir", str(tmp_path / "whole")])
    with monkeypatch.context() as patched:
        patched.setattr(MetricsFile, "on_log", stop)
        with pytest.raises(KeyboardInterrupt):
            main(["--config", config, "--output_dir", str(tmp_path / "stopped")])
    assert [step for step, _, _ in written(tmp_path / "stopped")] == [2, 2, 4, 4, 6, 6]
    main(["--config", config, "--output_dir", str(tmp_path / "stopped")])
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert written(tmp_path / "stopped") == written(tmp_path / "whole")


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
