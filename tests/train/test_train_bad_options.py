"""Options that a training can't take are one line before anything is written, never a traceback."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from train.setup import build_arguments, holds_training_state
from transformers.training_args import trainer_log_levels

from shards.common.errors import InputError
from tests.train.conftest import SETTINGS
from tests.train.runs import stop_after
from train import checks
from train.__main__ import main, prepare
from train.checkpoints import numbered_checkpoints, read_position, seal_checkpoint
from train.evaluate import main as evaluate
from train.generate import main as generate
from train.generate import saved_defaults
from train.run_directory import read_record
from train.sampling import continue_prompts, load_model
from train.settings import GenerationSettings
from train.trainer import BlockTrainer

WriteConfig = Callable[..., Path]

SCHEDULES = [
    ("cosine_with_min_lr", None, "min_lr"),
    ("cosine", '{"foo":1}', "unexpected keyword argument 'foo'"),
    ("constant", '{"foo":1}', "lr_scheduler_kwargs: constant takes none"),
    ("warmup_stable_decay", '{"decay_type":"nope"}', "nope"),
    ("warmup_stable_decay", '{"num_decay_steps":"x"}', "num_decay_steps: expected a number, found 'x'"),
    ("warmup_stable_decay", '{"num_decay_steps":10}', "2 steps of warm-up and 10 of decay are more than the run's 11"),
    ("warmup_stable_decay", '{"num_decay_steps":-1}', "num_decay_steps: expected 0 or more"),
    ("polynomial", '{"lr_end":1}', "lr_end"),
    ("inverse_sqrt", '{"timescale":0}', "division by zero"),
    ("cosine_with_restarts", '{"num_cycles":"x"}', "lr_scheduler_type: cosine_with_restarts: "),
    ("cosine", "[1]", r"--lr_scheduler_kwargs: expected a mapping, found '\[1\]'"),
    ("cosine", "x", "--lr_scheduler_kwargs: expected a mapping, found 'x'"),
    ("nope", None, "--lr_scheduler_type: expected one of linear, .*, found 'nope'"),
]

OPTIONS = [
    ("--optim adamw_bnb_8bit", "training: optim: adamw_bnb_8bit: .*bitsandbytes"),
    ("--optim lomo", "training: optim: lomo: .*lomo"),
    ("--optim stable_adamw", "training: optim: stable_adamw: .*optimi"),
    ("--optim galore_adamw", "optim_target_modules: expected names of modules"),
    ("--optim galore_adamw --optim_target_modules all-linear", "training: optim: galore_adamw: .*galore"),
    ("--optim adamw_torch_4bit", "training: optim: adamw_torch_4bit: .*torchao"),
    ("--optim moun", "--optim: expected one of .*; did you mean 'muon'"),
    ("--optim adamw_torch --optim_args foo", "--optim_args: expected NAME=VALUE,NAME=VALUE, found 'foo'"),
    ("--optim sgd --optim_args momentum=x", "training: optim: sgd: could not convert"),
    ("--optim muon --optim_args a=b", "--optim_args: expected nothing beside optim: muon"),
    ("--optim muon --optim_target_modules a", "--optim_target_modules: expected nothing beside optim: muon"),
    ("--adam_beta1 2.0", "--adam_beta1: expected 0 or more and less than 1, found 2.0"),
    ("--adam_beta2 -1 --optim muon", "--adam_beta2: expected 0 or more and less than 1, found -1"),
    ("--adam_epsilon -1", "--adam_epsilon: expected 0 or more"),
    ("--weight_decay -1", "--weight_decay: expected 0 or more"),
    ("--learning_rate 1e39 --optim muon", "--learning_rate: expected at most 1,000,000, found 1e[+]39"),
    ("--dataloader_num_workers -1", "--dataloader_num_workers: expected 0 or more, found -1"),
    ("--dataloader_num_workers 1 --dataloader_prefetch_factor 0", "--dataloader_prefetch_factor: expected at least 1"),
    ("--dataloader_prefetch_factor 2", "--dataloader_prefetch_factor: expected nothing without loader workers"),
    ("--dataloader_persistent_workers true", "--dataloader_persistent_workers: expected nothing without loader"),
    (
        "--torch_compile true --torch_compile_backend nope",
        "torch_compile_backend: expected one of .*'nope'",
    ),
    ("--torch_compile true --torch_compile_mode nope", "--torch_compile_mode: expected one of default, .*'nope'"),
    ("--max_steps 99999999999999999999", "--max_steps: expected at most 2,147,483,647"),
    ("--num_train_epochs 1e300", "--num_train_epochs: expected at most 1,000,000"),
    ("--num_train_epochs 1e300 --max_steps -1", "--num_train_epochs: expected at most 1,000,000"),
    ("--log_level nope", "--log_level: expected one of detail, .*, found 'nope'"),
    ("--log_level_replica nope", "--log_level_replica: expected one of"),
    ("--use_liger_kernel true", "--use_liger_kernel: can't be set: .*`loss: liger`"),
    ("--push_to_hub true", "--push_to_hub: can't be set: .*`hf upload`"),
    ("--push_to_hub", "--push_to_hub: can't be set: "),
    ('--parallelism_config={"a":1}', "--parallelism_config: can't be set: "),
    ("--save_only_model true", "--save_only_model: can't be set: "),
    ("--neftune_noise_alpha 5", "--neftune_noise_alpha: can't be set: "),
    ("--label_smoothing_factor 0.1", "--label_smoothing_factor: expected 0 .*, found 0.1"),
    ('--gradient_checkpointing true --gradient_checkpointing_kwargs {"foo":1}', "gradient_checkpointing_kwargs: .*foo"),
    ("--gradient_checkpointing true --gradient_checkpointing_kwargs 1", "_kwargs: expected a mapping, found '1'"),
    (
        "--load_best_model_at_end true --metric_for_best_model nope --eval_strategy steps --eval_steps 2",
        "--metric_for_best_model: expected one of loss, .*, found 'nope'",
    ),
    ("--logging_steps 0", "--logging_steps: expected above 0"),
    ("--logging_steps -1", "--logging_steps: expected above 0"),
    ("--eval_steps 0", "--eval_steps: expected above 0"),
    ("--save_steps 0", "--save_steps: expected above 0 .for never: save_strategy: 'no'., found 0"),
    ("--save_steps -5", "--save_steps: expected above 0"),
    ("--ddp_backend nope", "--ddp_backend: expected one of nccl, .*, found 'nope'"),
    ("--eval_strategy sometimes", "--eval_strategy: expected one of no, steps, epoch, found 'sometimes'"),
    ("--generation.temperature 1e-45", "generation: temperature: expected 0, or 0.001 to 100, found 1e-45"),
    ("--generation.temperature 1000", "generation: temperature: expected 0, or 0.001 to 100, found 1000"),
    ("--generation.repetition_penalty 1e-320", "generation: repetition_penalty: expected 0.01 to 100"),
    ("--output_dir /proc/x", "/proc/x: can't be made there; choose another --output_dir"),
]


def refused(config: Path, arguments: list[str], expected: str) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        main(["--config", str(config), *arguments])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "settings", "expected"), SCHEDULES)
def test_a_schedule_that_fails_is_refused(
    write_config: WriteConfig, tmp_path: Path, name: str, settings: str | None, expected: str
) -> None:
    given = [] if settings is None else ["--lr_scheduler_kwargs", settings]
    refused(write_config(), ["--lr_scheduler_type", name, *given], expected)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("line", "expected"), OPTIONS)
def test_options_that_cannot_be_trained_with_are_refused(
    write_config: WriteConfig, tmp_path: Path, line: str, expected: str
) -> None:
    refused(write_config(), line.split(), expected)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({"label_smoothing_factor": 0, "metric_for_best_model": "perplexity", "log_level": "info"}, []),
        ({"eval_steps": 0.1, "logging_steps": 2, "eval_strategy": "steps"}, []),
        ({"dataloader_num_workers": 2, "dataloader_prefetch_factor": 4, "dataloader_persistent_workers": True}, []),
        ({"lr_scheduler_kwargs": {"num_cycles": 0.5}, "lr_scheduler_type": "cosine"}, ["--optim", "muon"]),
        ({"torch_compile_mode": "max-autotune", "weight_decay": 0.1, "adam_beta1": 0, "adam_epsilon": 0}, []),
    ],
)
def test_usual_options_are_taken(write_config: WriteConfig, changes: dict[str, object], arguments: list[str]) -> None:
    prepare(["--config", str(write_config(training=changes)), *arguments])


def test_words_are_checked_without_torch(write_config: WriteConfig) -> None:
    """As by `--check`, and by `train.sweep` for all runs before the first."""
    for name in ("lr_scheduler_type", "optim", "eval_strategy", "save_strategy", "logging_strategy", "hub_strategy"):
        with pytest.raises(InputError, match=rf"^--{name}: expected one of .*, found 'nope'"):
            prepare(["--config", str(write_config()), f"--{name}", "nope"])


def test_words_are_those_of_the_libraries() -> None:
    import torch._inductor

    assert set(checks.LOG_LEVELS) == set(trainer_log_levels)
    assert set(checks.COMPILE_MODES) >= set(torch._inductor.list_mode_options())


def test_the_rehearsal_draws_no_random_number(write_config: WriteConfig) -> None:
    options = ["--lr_scheduler_type", "warmup_stable_decay", "--activation_checkpointing", "true"]
    settings, _, _ = prepare(
        ["--config", str(write_config()), *options, "--activation_checkpointing_kwargs", '{"debug":true}']
    )
    before = torch.get_rng_state(), random.getstate()
    args = build_arguments(settings, num_blocks=22)
    assert args.lr_scheduler_kwargs == {"num_decay_steps": 3, "decay_type": "linear"}
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


# ---- memory ----


@pytest.mark.parametrize("option", ["--model.hidden_size=100000000000", "--model.vocab_multiple=1000000000000"])
def test_a_model_that_is_too_large_is_refused(write_config: WriteConfig, option: str) -> None:
    refused(write_config(), [option], "^out of memory.*: the machine can't hold this model; choose a smaller one")


@pytest.mark.parametrize(
    ("step", "options", "expected"),
    [
        (
            0,
            [],
            r"with as many times more --gradient_accumulation_steps a step stays .*starts again: there is no check",
        ),
        (3, [], r"choose a smaller --per_device_train_batch_size .*continues from \S+/run/checkpoint-2$"),
        (3, ["--global_batch_blocks", "4"], r"--per_device_train_batch_size \(a step stays the same\)"),
    ],
)
def test_memory_that_runs_out_is_one_line_with_the_remedy(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch, step: int, options: list[str], expected: str
) -> None:
    training_step = BlockTrainer.training_step

    def run_out(self: BlockTrainer, *args: Any) -> torch.Tensor:
        if self.state.global_step == step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 8 GiB.")
        return training_step(self, *args)

    monkeypatch.setattr(BlockTrainer, "training_step", run_out)
    config = write_config()
    if options:
        config.write_text(config.read_text().replace("  gradient_accumulation_steps: 2\n", ""))
    refused(config, options, rf"^out of memory \(20.00 MiB more were needed\): .*{expected}")


def test_other_faults_of_torch_keep_their_traceback(write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(BlockTrainer, "training_step", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["--config", str(write_config())])


# ---- what earlier runs have left ----


@pytest.mark.parametrize("lost", ["optimizer.pt", "scheduler.pt"])
def test_a_checkpoint_without_the_training_state_is_not_continued(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lost: str
) -> None:
    config = write_config()
    stop_after(3, monkeypatch, config)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    position = read_position(checkpoint)
    (checkpoint / lost).unlink()
    seal_checkpoint(checkpoint, position)
    for newer in numbered_checkpoints(tmp_path / "run"):
        if newer != checkpoint:
            shutil.rmtree(newer)
    refused(config, [], "checkpoint-2: has no state of the optimizer or of the schedule, so it can't be continued")


def test_a_sharded_optimizer_is_a_training_state(tmp_path: Path) -> None:
    (tmp_path / "optimizer_0").mkdir()
    (tmp_path / "scheduler.pt").touch()
    assert holds_training_state(tmp_path)


RECORDS = [
    (
        {"settings": 3, "shards": []},
        "settings: expected an object, found int",
        "shards: expected an object, found list",
    ),
    ({"settings": {"generation": []}, "shards": {"path": 3}}, "generation: expected an object", "evaluate on what"),
    ({"settings": {"generation": {"prompts": 7}}}, "what to continue", "evaluate on what"),
    (
        {"shards": {"path": "A:0.7,B:0.3"}},
        "what to continue",
        r"several sets \(A:0.7,B:0.3\); give one of them: --shards",
    ),
]


@pytest.mark.parametrize(("content", "generating", "evaluating"), RECORDS)
def test_a_record_of_another_shape_is_refused(
    tmp_path: Path, content: dict[str, Any], generating: str, evaluating: str
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=generating):
        generate([str(tmp_path)])
    with pytest.raises(InputError, match=evaluating):
        evaluate([str(tmp_path)])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"settings": 3}, "settings: expected an object, found int"),
        ({"settings": {"model": 3}}, "settings: model: expected an object, found int"),
        ({"settings": {"training": [1]}}, "settings: training: expected an object, found list"),
        ({"sessions": 3}, "sessions: expected a list of objects"),
        ({"sessions": [3]}, "sessions: expected a list of objects"),
    ],
)
def test_a_run_whose_record_has_another_shape_is_not_continued(
    write_config: WriteConfig, stopped: Path, content: dict[str, Any], expected: str
) -> None:
    (stopped / "run.json").write_text(json.dumps({"state": "training", **content}))
    refused(write_config(), ["--output_dir", str(stopped)], rf"run.json: {expected}")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, shard_set_path: Path) -> Path:
    """A run that was stopped behind its first checkpoint."""
    directory = tmp_path_factory.mktemp("stopped")
    training = {**SETTINGS["training"], "output_dir": str(directory / "run")}
    (directory / "config.yaml").write_text(
        yaml.safe_dump({"shards": str(shard_set_path), **SETTINGS, "training": training})
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_after(3, monkeypatch, directory / "config.yaml")
    return directory / "run"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"temperature": "hot"}, "temperature: expected a number, found 'hot'"),
        ({"max_new_tokens": [1]}, r"max_new_tokens: expected a whole number, found \[1\]"),
        ({"temperature": 1e-45}, "temperature: expected 0, or 0.001 to 100"),
    ],
)
def test_saved_settings_of_another_kind_are_refused(tmp_path: Path, content: dict[str, Any], expected: str) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"generation_config.json: .*{expected}"):
        saved_defaults(tmp_path)


@pytest.mark.parametrize("value", ["1e-45", "1e-310", "inf", "nan"])
def test_temperatures_that_overflow_are_refused(trained: Any, value: str) -> None:
    with pytest.raises(InputError, match=r"temperature: expected 0"):
        generate([str(trained.run), "--prompt", "a", "--temperature", value])


def test_a_prompt_with_an_id_that_the_model_lacks_is_refused(trained: Any) -> None:
    model, tokenizer = load_model(trained.run / "model")
    tokenizer.add_tokens([f"<{number}>" for number in range(200)])
    with pytest.raises(InputError, match=r"the prompt 'a<199>' has the token id 456, the model has 384 ids"):
        list(continue_prompts(model, tokenizer, GenerationSettings(prompts=["a<199>"])))


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_a_run_that_diverged_is_finished_without_samples(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], temperature: str
) -> None:
    options = "--learning_rate 1e5 --max_steps 8 --optim adamw_torch --model.initializer_range 1e30"
    main(["--config", str(write_config()), *options.split(), "--generation.temperature", temperature])
    assert "no samples: the model's outputs are no numbers" in capsys.readouterr().out
    record = read_record(tmp_path / "run")
    assert record["state"] == "finished"
    with pytest.raises(InputError, match="the model's outputs are no numbers"):
        generate([str(tmp_path / "run")])
