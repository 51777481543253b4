"""Settings: what is accepted, and that every fault is one line that names the place."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import shards
from shards.common.errors import InputError
from train.__main__ import build_parser, main, prepare
from train.arguments import convert, training_argument_types
from train.settings import load_settings

WriteConfig = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
SWEEP = ROOT / "configs" / "sweep.yaml"  # settings of `train.sweep`, checked there


def test_training_argument_types_are_those_of_the_class() -> None:
    from transformers import TrainingArguments

    types = training_argument_types()
    assert set(types) == {field.name for field in dataclasses.fields(TrainingArguments)}
    assert types["learning_rate"] == {"float"}
    assert types["bf16"] == {"bool"}
    assert types["eval_steps"] == {"float", "None"}
    assert types["fsdp_config"] >= {"dict", "str", "None"}


@pytest.mark.parametrize(
    ("value", "types", "expected"),
    [
        ("1e-3", {"float"}, 0.001),
        (3, {"float"}, 3.0),
        ("7", {"int"}, 7),
        ("true", {"bool"}, True),
        ("none", {"None", "int"}, None),
        ('{"a": 1}', {"dict", "str"}, {"a": 1}),
        ("cosine", {"SchedulerType", "str"}, "cosine"),
    ],
)
def test_values_become_the_type_of_their_field(value: object, types: set[str], expected: object) -> None:
    found = convert(value, frozenset(types), "here")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "types"),
    [("1.5", {"int"}), ("nan", {"float"}), (True, {"int"}), ("maybe", {"bool"}), ([1], {"float"}), ("{", {"dict"})],
)
def test_values_of_another_type_are_refused(value: object, types: set[str]) -> None:
    with pytest.raises(InputError, match=r"^here: expected "):
        convert(value, frozenset(types), "here")


def test_options_win_over_the_file(write_config: WriteConfig, tmp_path: Path) -> None:
    arguments = ["--config", str(write_config()), "--learning_rate", "3e-4", "--model.hidden_size", "32"]
    arguments += ["--output_dir", str(tmp_path / "other"), "--generation.seed", "9", "--tf32"]
    settings, _, _ = prepare(arguments)
    assert settings.training["learning_rate"] == 3e-4
    assert settings.training["tf32"] is True
    assert settings.model.hidden_size == 32
    assert settings.generation.seed == 9
    assert settings.output_dir == tmp_path / "other"


def test_of_two_ways_to_set_the_batch_the_command_lines_wins(write_config: WriteConfig) -> None:
    accumulating = write_config("accumulating.yaml")  # gradient_accumulation_steps: 2
    settings = load_settings(accumulating, {"global_batch_blocks": "8"})
    assert settings.global_batch_blocks == 8 and "gradient_accumulation_steps" not in settings.training
    content = yaml.safe_load(accumulating.read_text())
    del content["training"]["gradient_accumulation_steps"]
    by_blocks = accumulating.with_name("by-blocks.yaml")
    by_blocks.write_text(yaml.safe_dump({**content, "global_batch_blocks": 8}))
    settings = load_settings(by_blocks, {"gradient_accumulation_steps": "4"})
    assert settings.global_batch_blocks is None and settings.training["gradient_accumulation_steps"] == 4
    with pytest.raises(InputError, match="sets gradient_accumulation_steps too"):
        load_settings(by_blocks, {"gradient_accumulation_steps": "4", "global_batch_blocks": "8"})


def test_number_spelt_as_yaml_reads_text(write_config: WriteConfig) -> None:
    path = write_config()
    path.write_text(path.read_text().replace("learning_rate: 0.01", "learning_rate: 5e-4"))
    assert load_settings(path, {}).training["learning_rate"] == 5e-4


def test_every_training_argument_is_an_option_or_refused() -> None:
    from train.checks import REFUSED_ARGUMENTS

    options = {option for action in build_parser()._actions for option in action.option_strings}
    for name in training_argument_types():
        assert (f"--{name}" in options) != (name in REFUSED_ARGUMENTS and name != "resume_from_checkpoint")


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"modle": {}}, r"config.yaml: unknown key 'modle'; did you mean 'model'\?"),
        ({"learning_rate": 1}, "config.yaml: unknown key 'learning_rate'; it belongs into the section `training`"),
        ({"model": {"hidden_sise": 1}}, r"config.yaml: model: unknown key 'hidden_sise'; did you mean 'hidden_size'\?"),
        ({"training": {"learning_rte": 1}}, r"training: unknown key 'learning_rte'; did you mean 'learning_rate'\?"),
        ({"training": {"learning_rate": "fast"}}, "training: learning_rate: expected a number, found 'fast'"),
        ({"training": {"learning_rate": -1}}, "training: learning_rate: expected 0 or more, found -1"),
        ({"training": {"save_steps": [1]}}, r"training: save_steps: expected a number, found \[1\]"),
        ({"training": {"bf16": "sometimes"}}, "training: bf16: expected true, false or auto, found 'sometimes'"),
        ({"training": {"torch_compile": "often"}}, "torch_compile: expected true, false or auto, found 'often'"),
        ({"training": {"auto_find_batch_size": True}}, "training: auto_find_batch_size: can't be set: "),
        (
            {"training": {"per_device_train_batch_size": 0}},
            "per_device_train_batch_size: expected 1 to 1,048,576, found 0",
        ),
        ({"training": {"num_train_epochs": 0}}, "num_train_epochs: expected above 0, found 0"),
        ({"training": {"output_dir": None}}, "training: output_dir is missing"),
        ({"training": 7}, "config.yaml: training: expected a mapping, found 7"),
        ({"model": {"hidden_size": "big"}}, "model: hidden_size: expected a whole number, found 'big'"),
        (
            {"model": {"hidden_size": 18}},
            "model: hidden_size: expected a multiple of 2 × num_attention_heads = 4, found 18",
        ),
        ({"model": {"num_key_value_heads": 3}}, "num_key_value_heads: expected a divisor of num_attention_heads = 2"),
        ({"model": {"max_position_embeddings": 8}}, "max_position_embeddings: 8 positions are too few .* 16 tokens"),
        ({"tracking": {"mode": "onlin"}}, r"tracking: mode: expected one of .*found 'onlin'; did you mean 'online'\?"),
        ({"generation": {"prompts": "one"}}, "generation: prompts: expected a list, found 'one'"),
        ({"generation": {"prompts": [""]}}, r"generation: prompts\[0\]: expected text, found ''"),
        ({"generation": {"top_p": 0}}, "generation: top_p: expected above 0, at most 1, found 0"),
        ({"global_batch_blocks": 8}, "global_batch_blocks: sets gradient_accumulation_steps too"),
        ({"global_batch_blocks": 0}, "global_batch_blocks: expected a number of blocks from 1 on, found 0"),
        ({"eval_blocks": 0}, "eval_blocks: expected a number of blocks from 1 on, found 0"),
        ({"global_batch_blocks": "many"}, "global_batch_blocks: expected a whole number, found 'many'"),
        ({"shards": None}, "config.yaml: shards: expected a shard set's directory"),
        ({"shards": "/nowhere/at/all"}, "/nowhere/at/all: no such shard set"),
    ],
)
def test_faults_of_a_config_name_the_place(
    write_config: WriteConfig, sections: dict[str, object], expected: str
) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        prepare(["--config", str(write_config(**sections))])
    assert "\n" not in str(caught.value)


def test_a_config_below_a_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").touch()
    with pytest.raises(InputError, match=r"a\.yaml/b\.yaml: no such config file"):
        load_settings(tmp_path / "a.yaml" / "b.yaml", {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "line 1, column 6: "),
        ("- 1", "expected a mapping with the keys shards, shuffle, document_mask, .*_blocks, eval_blocks, model"),
        ("", "expected a mapping"),
        ("shards: a\nshards: b", "line 2, column 1: key 'shards' is given twice"),
        ("model: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ],
)
def test_faults_of_yaml_name_the_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"bad.yaml: .*{expected}|bad.yaml: {expected}"):
        load_settings(path, {})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--learning_rte", "1"], r"unrecognized argument '--learning_rte'; did you mean '--learning_rate'\?"),
        (["--learning_rate", "fast"], "--learning_rate: expected a number, found 'fast'"),
        (["--max_steps", "1.5"], "--max_steps: expected a whole number, found '1.5'"),
        (["--report_to", "all"], "--report_to: can't be set: see the section `tracking`"),
        (["--resume_from_checkpoint"], "run: no complete checkpoint to continue from"),
        (["--resume_from_checkpoint", "/nowhere"], "/nowhere: no such checkpoint"),
    ],
)
def test_faults_of_the_command_line_name_the_option(
    write_config: WriteConfig, arguments: list[str], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        prepare(["--config", str(write_config()), *arguments])


def test_missing_config_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: no such config file"):
        prepare(["--config", str(tmp_path / "none.yaml")])


def test_torch_compile_auto_is_off_on_a_cpu(write_config: WriteConfig) -> None:
    from train.setup import build_arguments

    settings, _, _ = prepare(["--config", str(write_config()), "--torch_compile", "auto"])
    assert settings.training["torch_compile"] == "auto"
    assert not build_arguments(settings, num_blocks=8).torch_compile


@pytest.mark.parametrize(
    ("package", "gpu", "compiler", "expected"),
    [
        ("triton", 8, "gcc", True),
        ("triton", 6, "gcc", False),
        ("triton", None, "gcc", False),
        (None, 8, "gcc", False),
        ("triton", 8, None, False),
    ],
)
def test_triton_needs_its_package_a_gpu_and_a_compiler(
    monkeypatch: pytest.MonkeyPatch, package: str | None, gpu: int | None, compiler: str | None, expected: bool
) -> None:
    from train.softmax import has_triton

    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: package)
    monkeypatch.setattr("shutil.which", lambda name: compiler)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu is not None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (gpu, 0))
    has_triton.cache_clear()
    try:
        assert has_triton() == expected
    finally:
        has_triton.cache_clear()


def test_no_training_blocks(tmp_path: Path, write_config: WriteConfig, make_set: Callable[..., Path]) -> None:
    empty = make_set(tmp_path / "empty", train_blocks=0)
    with pytest.raises(InputError, match="empty: has no training blocks"):
        prepare(["--config", str(write_config()), "--shards", str(empty)])


def test_settings_are_checked_without_torch(write_config: WriteConfig) -> None:
    code = "import sys; from train.__main__ import prepare; prepare(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "--config", str(write_config())]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("config", sorted({*(ROOT / "configs").glob("*.yaml")} - {SWEEP}), ids=lambda path: path.stem)
def test_configs_of_the_project_are_valid(config: Path) -> None:
    settings = load_settings(config, {})
    assert settings.generation.prompts
    assert str(settings.shards).startswith("data/shards/")


def test_shard_set_of_the_fixture_is_sound(shard_set_path: Path) -> None:
    assert len(shards.open(shard_set_path)["val"]) == 5


@pytest.mark.parametrize("mixed", [False, True])
def test_a_set_whose_tokenizer_was_changed_is_not_trained_on(
    write_config: Callable[..., Path], shard_set_path: Path, tmp_path: Path, mixed: bool
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(shard_set_path, damaged)
    config = write_config(shards=f"{damaged}:1,{damaged}:1" if mixed else str(damaged))
    prepare(["--config", str(config)])
    with (damaged / "tokenizer" / "tokenizer.json").open("a") as file:
        file.write("\n")
    with pytest.raises(InputError, match="the tokenizer was changed"):
        prepare(["--config", str(config)])


def test_check_writes_nothing_and_tells_what_is_wrong(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--config", str(write_config()), "--check"])
    assert not (tmp_path / "run").exists() and capsys.readouterr().out == ""
    with pytest.raises(InputError, match="no such config file"):
        main(["--config", str(tmp_path / "none.yaml"), "--check"])
