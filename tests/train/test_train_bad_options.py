"""Options that a training can't take are one line before anything is written, never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers.training_args import trainer_log_levels

from shards.errors import InputError
from train import checks
from train.__main__ import main, prepare

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


def test_words_are_those_of_the_libraries() -> None:
    import torch._inductor

    assert set(checks.LOG_LEVELS) == set(trainer_log_levels)
    assert set(checks.COMPILE_MODES) >= set(torch._inductor.list_mode_options())
