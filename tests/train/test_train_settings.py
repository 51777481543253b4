"""Settings: what is accepted, and that every fault is one line that names the place, before anything is written."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml

from shards.common.errors import InputError
from tests.train.conftest import make_shard_set
from tests.train.runs import Patch, WriteConfig
from train.__main__ import build_parser, main, prepare
from train.arguments import check, decay_settings, micro_batches, typed
from train.settings import load_settings, training_fields
from train.trainer import BlockTrainer
from train.trials import preflight
from train.values import Count, convert, require

ROOT = Path(__file__).resolve().parents[2]
REFUSED = object()
SWEEP = ROOT / "configs" / "sweep.yaml"  # settings of `train.sweep`, checked there


def refused(config: Path, arguments: list[str], expected: str) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        main(["--config", str(config), *arguments])
    assert "\n" not in str(caught.value)


def test_training_fields_are_those_of_the_class() -> None:
    from transformers import TrainingArguments

    assert set(training_fields()) == {field.name for field in dataclasses.fields(TrainingArguments)}
    assert {f"--{name}" for name in training_fields()} <= build_parser().options


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("1e-3", float, 0.001),
        (3, float, 3.0),
        (7.0, int, 7),
        ("true", bool, True),
        ("none", Count | None, None),
        ('["a"]', list[str], ["a"]),
        ('{"a": 1}', dict | str | None, {"a": 1}),
        ("a.json", dict | str | None, "a.json"),
        ("1.5", int, REFUSED),
        ("nan", float, REFUSED),
        (10**400, float, REFUSED),
        (True, int, REFUSED),
        ("maybe", bool, REFUSED),
        ([1], float, REFUSED),
        ([1], list[str], REFUSED),
        ("[", list[str], REFUSED),
        ("{", dict | str | None, REFUSED),
        (0, Count, REFUSED),
        (5, str, REFUSED),
        ("none", Count, REFUSED),
        ("b", Literal["a"], REFUSED),
    ],
)
def test_values_become_the_type_of_their_field_or_are_refused(value: object, kind: object, expected: object) -> None:
    if expected is REFUSED:
        with pytest.raises(InputError, match=r"^here(\[0\])?: "):
            convert(value, kind, "here")
    else:
        found = convert(value, kind, "here")
        assert found == expected and type(found) is type(expected)


def test_options_win_over_the_file(write_config: WriteConfig, tmp_path: Path) -> None:
    path = write_config()
    path.write_text(path.read_text().replace("warmup_steps: 2", "weight_decay: 5e-2"))  # a string to YAML
    words = f"--config {path} --output_dir {tmp_path}/other --learning_rate 3e-4 --model.hidden_size 32 --optim muon"
    words += " --save_total_limit none --generation.seed 9 --torch_compile auto --full_determinism"
    arguments = [*words.split(), "--lr_scheduler_kwargs", '{"num_cycles": 2}']
    settings, data, _ = prepare(arguments)
    settings, args = check(settings, data)
    training = settings.training
    assert (training["learning_rate"], training["weight_decay"], training["logging_steps"]) == (3e-4, 0.05, 1)
    assert training["full_determinism"] is True and training["save_total_limit"] is None
    assert (training["lr_scheduler_kwargs"], training["optim"]) == ({"num_cycles": 2}, "muon")
    assert (settings.model.hidden_size, settings.generation.seed) == (32, 9)
    assert settings.output_dir == tmp_path / "other"
    assert not args.torch_compile and args.save_total_limit is None


def test_of_two_ways_to_set_the_same_the_command_lines_wins(write_config: WriteConfig) -> None:
    accumulating = write_config("accumulating.yaml")  # gradient_accumulation_steps: 2
    settings = load_settings(accumulating, {"global_batch_blocks": "8"})
    assert settings.global_batch_blocks == 8 and "gradient_accumulation_steps" not in settings.training
    content = yaml.safe_load(accumulating.read_text())
    del content["training"]["gradient_accumulation_steps"]
    by_blocks = accumulating.with_name("by-blocks.yaml")
    content["training"]["max_steps"] = 9
    by_blocks.write_text(yaml.safe_dump({**content, "global_batch_blocks": 8}))
    assert "max_steps" not in load_settings(by_blocks, {"num_train_epochs": "2"}).training
    settings = load_settings(by_blocks, {"gradient_accumulation_steps": "4"})
    assert settings.global_batch_blocks is None and settings.training["gradient_accumulation_steps"] == "4"
    with pytest.raises(InputError, match="sets gradient_accumulation_steps too"):
        load_settings(by_blocks, {"gradient_accumulation_steps": "4", "global_batch_blocks": "8"})


# Sections of the config, or options as the command line has them; and what is said. Needing no torch:
FAULTS: list[tuple[dict[str, Any] | str, str]] = [
    ({"modle": {}}, r"config.yaml: unknown key 'modle'; did you mean 'model'\?"),
    ({"learning_rate": 1}, "config.yaml: unknown key 'learning_rate'; it belongs in the section `training`"),
    ({"model": {"hidden_sise": 1}}, r"config.yaml: model: unknown key 'hidden_sise'; did you mean 'hidden_size'\?"),
    ({"training": {"learning_rte": 1}}, r"training: unknown key 'learning_rte'; did you mean 'learning_rate'\?"),
    ({"training": {"auto_find_batch_size": True}}, "training: auto_find_batch_size: can't be set: "),
    ({"training": {"output_dir": None}}, "config.yaml: training: output_dir: expected text, found None"),
    ("--shards ~nobody-of-that-name/set", "~nobody-of-that-name/set: no such shard set"),
    ("--model.config ~nobody-of-that-name/model", "~nobody-of-that-name/model: "),
    ("--resume_from_checkpoint ~nobody-of-that-name/checkpoint-1", "~nobody-of-that-name/checkpoint-1: "),
    ({"training": 7}, "config.yaml: training: expected a mapping, found 7"),
    ({"model": {"hidden_size": "big"}}, "model: hidden_size: expected a whole number, found 'big'"),
    ({"model": {"hidden_size": 18}}, "hidden_size: expected a multiple of 2 × num_attention_heads = 4, found 18"),
    ({"model": {"num_key_value_heads": 3}}, "num_key_value_heads: expected a divisor of num_attention_heads = 2"),
    ({"model": {"max_position_embeddings": 8}}, "max_position_embeddings: 8 positions are too few .* 16 tokens"),
    ({"generation": {"prompts": [""]}}, r"generation: prompts\[0\]: expected text, found ''"),
    ({"generation": {"top_p": 0}}, "generation: top_p: expected above 0, at most 1, found 0"),
    ({"generation": {"temperature": 1e-45}}, "generation: temperature: expected 0, or 0.001 to 100, found 1e-45"),
    ({"generation": {"prompts": ["a\ud800"]}}, r"generation: the prompt 'a\\ud800' isn't text in UTF-8"),
    ({"shards": "/nowhere/at/all"}, "/nowhere/at/all: no such shard set"),
    ("--learning_rte 1", r"unrecognized argument '--learning_rte'; did you mean '--learning_rate'\?"),
    ("--report_to all", "--report_to: can't be set: see the section `tracking`"),
    ('--accelerator_config {"split_batches":true}', "--accelerator_config: can't be set: "),
    ("--enable_jit_checkpoint", "--enable_jit_checkpoint: can't be set: SIGTERM saves"),
    ("--resume_from_checkpoint", "run: no complete checkpoint to continue from"),
    ("--resume_from_checkpoint /nowhere", "/nowhere: no such checkpoint"),
    ("--push_to_hub", "--push_to_hub: can't be set: .*`hf upload`"),
    ("--learning_rate", "--learning_rate: expected one argument .see `python -m train --help`."),
    ("--learning_rate fast", "--learning_rate: expected a number, found 'fast'"),
    ("--bf16 sometimes", "--bf16: expected auto or true or false, found 'sometimes'"),
    ("--optim moun", r"--optim: expected one of \d+ names, found 'moun'; did you mean 'muon'\?"),
    ("--optim adamw_bnb_8bit", "training: optim: adamw_bnb_8bit: .*bitsandbytes"),
    ("--optim adamw_torch --optim_args foo", "training: optim: adamw_torch: .*"),
    ("--adam_beta1 2.0", "training: optim: adamw_torch\\w*: Invalid beta parameter"),
    ("--optim muon --learning_rate -1", "--learning_rate: expected 0 or more, found '-1'"),
    ("--dataloader_num_workers -1", "training: dataloader: .*num_workers"),
    ("--per_device_train_batch_size 0", "per_device_train_batch_size: expected auto or at least 1, found '0'"),
    ("--num_train_epochs 0", "num_train_epochs: expected above 0, at most 1,000,000, found '0'"),
    ("--max_steps 0", "--max_steps: expected 1 to 2,147,483,647, or -1 .num_train_epochs., found '0'"),
    ("--save_steps -5", "save_steps: expected above 0 .for never: save_strategy: 'no'., found '-5'"),
    ("--save_strategy no --save_steps none", "save_steps: expected a number, found 'none'"),
    ('--lr_scheduler_kwargs {"foo":1}', "training: lr_scheduler_type: linear: .*foo"),
    ('--lr_scheduler_type cosine --lr_scheduler_kwargs {"num_cycles":1e999}', "cosine: math domain error"),
    ('--lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs {"num_decay_steps":-1}', "0 or more, found -1"),
    ('--gradient_checkpointing true --gradient_checkpointing_kwargs {"foo":1}', "gradient_checkpointing_kwargs: .*foo"),
    ("--torch_compile true --torch_compile_backend nope", "training: torch_compile: .*nope"),
    ("--metric_for_best_model nope", "metric_for_best_model: expected loss or eval_loss"),
    ("--fsdp full_shard", "fsdp: shards a model over GPUs"),
    ("--output_dir /proc/x", "/proc/x: can't write here: No such file or directory; choose another"),
    ("--model.hidden_size 100000000000", "^out of memory.*: the machine can't hold this model; choose a smaller one"),
    (f"--model.intermediate_size {10**30}", "^out of memory: the machine can't hold this model; choose a smaller one"),
    ("--model.hidden_act silo", "model: hidden_act: expected one of .* names, found 'silo'; did you mean 'silu'"),
]


@pytest.mark.parametrize(("change", "expected"), FAULTS)
def test_what_cannot_be_trained_with_is_refused_before_anything_is_written(
    write_config: WriteConfig, tmp_path: Path, change: dict[str, Any] | str, expected: str
) -> None:
    sections, options = ({}, change.split()) if isinstance(change, str) else (change, [])
    refused(write_config(**sections), options, expected)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "line 1, column 6: "),
        ("- 1", "expected a mapping of settings, found"),
        ("", "expected a mapping"),
        ("shards: a\nshards: b", "line 2, column 1: key 'shards' is given twice"),
        ("seed: !!bool maybe", "line 1, column 7: 'maybe' can't be read as !!bool"),
    ],
)
def test_faults_of_yaml_name_the_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"bad.yaml: .*{expected}|bad.yaml: {expected}"):
        load_settings(path, {})
    with pytest.raises(InputError, match=r"bad\.yaml/b\.yaml: no such config file; expected one such as configs"):
        load_settings(path / "b.yaml", {})


@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({"metric_for_best_model": "perplexity", "log_level": "info"}, []),
        ({"eval_steps": 0.1, "logging_steps": 2, "eval_strategy": "steps"}, []),
        ({"dataloader_num_workers": 2, "dataloader_prefetch_factor": 4, "dataloader_persistent_workers": True}, []),
        ({"lr_scheduler_kwargs": {"num_cycles": 0.5}, "lr_scheduler_type": "cosine"}, ["--optim", "muon"]),
        ({"weight_decay": 0.1, "adam_beta1": 0, "adam_epsilon": 0}, []),
    ],
)
def test_usual_options_are_taken_and_a_check_writes_nothing(
    write_config: WriteConfig, tmp_path: Path, changes: dict[str, object], arguments: list[str]
) -> None:
    main(["--config", str(write_config(training=changes)), *arguments, "--check"])
    assert not (tmp_path / "run").exists()


def test_several_gpus_and_one_process_are_refused_with_the_command(
    write_config: WriteConfig, monkeypatch: Patch
) -> None:
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", 4)
    refused(write_config(), [], "4 GPUs are visible to one process: .*torchrun --nproc-per-node 4 .*DEVICES=0")


def test_the_preflight_draws_no_random_number(write_config: WriteConfig) -> None:
    settings, data, _ = prepare(["--config", str(write_config()), "--lr_scheduler_type", "warmup_stable_decay"])
    settings, args = check(settings, data)
    assert args.lr_scheduler_kwargs == {"num_decay_steps": 3, "decay_type": "linear"}
    trainer = BlockTrainer(settings, data, args)
    before = torch.get_rng_state(), random.getstate()
    preflight(trainer)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert trainer.optimizer is None and trainer.lr_scheduler is None


def test_decay_is_the_last_fifth_of_the_steps_or_the_share_that_is_given() -> None:
    assert decay_settings({"num_decay_steps": 0.5}, 10, 5)["num_decay_steps"] == 5
    given = {"num_decay_steps": 4, "decay_type": "cosine"}
    assert decay_settings(given, 10, 0) == given
    assert decay_settings({"num_decay_steps": 1}, 10, 0)["num_decay_steps"] == 1
    with pytest.raises(InputError, match="7 steps of warm-up and 4 of decay are more than the run's 10"):
        decay_settings(given, 10, 7)


def test_accumulation_follows_from_the_global_batch(write_config: WriteConfig, monkeypatch: Patch) -> None:
    """And from the processes of torchrun: a scheduler may set one of its variables for a process alone."""
    monkeypatch.setattr("train.arguments.micro_batches", lambda *numbers: require(False, "", "", numbers))
    for name, count in (("WORLD_SIZE", 1), ("LOCAL_RANK", 2)):
        monkeypatch.setenv(name, "2")
        refused(write_config(), ["--global_batch_blocks", "8", "--check"], rf"found \(8, 2, {count}\)")
    assert [micro_batches(256, 32, processes) for processes in (1, 2, 8)] == [(32, 8), (32, 4), (32, 1)]
    assert [micro_batches(256, 128, processes) for processes in (1, 2, 8, 256)] == [(128, 2), (128, 1), (32, 1), (1, 1)]
    with pytest.raises(InputError, match="4 blocks can't be shared by 8 processes in micro-batches of 1"):
        micro_batches(4, 128, 8)


@pytest.mark.parametrize("shards", ["{0}", "{0}:1,{0}:1"])
def test_a_set_that_is_empty_or_whose_tokenizer_was_changed_is_not_trained_on(
    write_config: WriteConfig, tmp_path: Path, shards: str
) -> None:
    empty, damaged = make_shard_set(tmp_path / "empty", train_blocks=0), make_shard_set(tmp_path / "damaged")
    refused(write_config(shards=shards.format(empty)), [], "empty.*: has no training blocks")
    with (damaged / "tokenizer" / "tokenizer.json").open("a") as file:
        file.write("\n")
    refused(write_config(shards=shards.format(damaged)), [], r"tokenizer.json: .* was changed")


def test_what_needs_no_torch_is_answered_at_once(write_config: WriteConfig) -> None:
    """Unknown keys, missing files and a wrong shard set within half a second of computing; without importing torch."""
    code = "import sys; from train.__main__ import prepare; prepare(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "--config", str(write_config())]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    started = time.process_time()
    for arguments in (["--learning_rte", "1"], ["--shards", "/nowhere"], ["--training.foo", "1"]):
        with pytest.raises(InputError):
            prepare(["--config", str(write_config()), *arguments])
    assert time.process_time() - started < 3 * 0.5


@pytest.mark.parametrize("config", sorted({*(ROOT / "configs").glob("*.yaml")} - {SWEEP}), ids=lambda path: path.stem)
def test_configs_of_the_project_are_valid(config: Path) -> None:
    settings = typed(load_settings(config, {}))
    assert settings.generation.prompts and str(settings.shards).startswith("data/shards/")
