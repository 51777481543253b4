"""Files from strangers: one clear line and exit status 2, in bounded time and memory, and nothing raw on the terminal.

What is tested elsewhere: compressed files in test_packed.py, manifests that don't agree with themselves in
test_manifest.py, pages and cards in test_report.py, test_train_compare.py and test_train_model_card.py, terminal escapes
in texts in test_verify.py and test_train_generate.py, objects in checkpoints in test_train_resume.py.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

import shards
from pipeline.build import build
from pipeline.settings import BuildSettings
from pipeline.tokenizers import choose_encoder
from shards.common.errors import InputError
from shards.manifest import SplitEntry, decode_manifest
from shards.tokenizer_files import load_tokenizer, read_tokenizer_files, read_vocabulary
from tests.conftest import run_module, write_corpus
from tests.shards.sets import forge, source, write_set
from train.checkpoints import DataPosition, read_position, seal_checkpoint
from train.generate import generation_settings
from train.run_directory import read_record
from train.sampling import load_model
from train.values import MAX_YAML_BYTES, read_yaml

DEEP = "[" * 100_000 + "]" * 100_000
ESCAPE = "\x1b]0;owned\x07\x1b[31m\x9b2J"


@pytest.fixture
def own_set(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set", [{"train": [[1] * 9]}], rejected={"no text": 1}, sources=[source()])


# ---- JSON of any kind ----


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("manifest.json", shards.open),
        ("tokenizer.json", load_tokenizer),
        ("tokenizer.json", read_vocabulary),
        ("tokenizer_config.json", load_tokenizer),
        ("run.json", read_record),
        ("generation_config.json", lambda path: generation_settings(path, {})),
        ("checkpoint.json", read_position),
        ("config.json", load_model),
    ],
)
def test_json_nested_without_end(tmp_path: Path, name: str, read: Callable[[Path], Any]) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (tmp_path / name).write_text(DEEP)
    with pytest.raises(InputError, match=r"can be read|can't be read|not valid JSON|the model can't be loaded"):
        read(tmp_path)


# ---- manifests ----

NUMBERS = [2**31 + 1, 2**63 - 1, 2**63, 2**64, 10**500, -1, -(2**63), 1.0, 1.5, True, None, "1"]
SPLIT_FIELDS = [field.name for field in dataclasses.fields(SplitEntry)]
NAMES = ["../train-00000", "/tmp/train-00000", "train-../../x", "train-", "train-٠١", "train-0\x00", "train-0/1"]


@pytest.mark.parametrize(
    ("path", "values", "message"),
    [
        *((("shards", 0, f"num_{what}"), NUMBERS, "^manifest") for what in ("blocks", "tokens", "documents")),
        *((("tokenizer", field), NUMBERS, "^manifest") for field in ("vocab_size", "eos_id")),
        (("block_tokens",), NUMBERS, "^manifest"),
        (("shards", 0, "name"), NAMES, "expected a name such as train-00000"),
        (("other_files", 0, "name"), NAMES, "is not a file of a shard set"),
        (("settings", "a"), [json.loads("[" * 40 + "]" * 40)], "nested too deeply"),
        (("settings", "a"), [float("nan"), 10**300], "64 bits"),
        (("format_version",), [[["x"] * 1000]], "found a list"),
        (("format_version",), [10**600], "more than 64 bits"),
        (("packing",), ["x" * 10_000], "expected one of"),
        (("splits",), [{ESCAPE * 100: dict.fromkeys(SPLIT_FIELDS, 0)}], "expected train, val"),
        (("splits",), [{"x" * 10_000: {}}], "no field"),
        ((ESCAPE * 1000,), [1], "unknown field"),
    ],
)
def test_what_a_manifest_must_not_say(own_set: Path, path: tuple[Any, ...], values: list[Any], message: str) -> None:
    def edit(content: Any) -> None:
        for step in path[:-1]:
            content = content[step]
        content[path[-1]] = value

    for value in values:
        forge(own_set, edit)
        with pytest.raises(InputError, match=message) as caught:
            decode_manifest((own_set / "manifest.json").read_bytes(), "manifest.json")
        assert len(str(caught.value)) < 400 and str(caught.value).isprintable(), value


def test_half_a_character_in_a_manifest(own_set: Path) -> None:
    encoded = (own_set / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="lone surrogate"):
        decode_manifest(encoded.replace(b'"bytes"', b'"\\ud800"'), "manifest.json")


def test_names_in_a_manifest_reach_no_terminal_raw(own_set: Path, tmp_path: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["tokenizer"]["name"] = content["sources"][0]["path"] = content["settings"][ESCAPE] = ESCAPE
        content["rejected"] = {ESCAPE: 2}

    right, page = shutil.copytree(own_set, tmp_path / "right"), tmp_path / "page.html"
    forge(own_set, edit)
    for command, *options in (["info"], ["info", "--json"], ["info", right], ["verify"], ["report", "--out", page]):
        result = run_module("shards", command, own_set, *options)
        assert not set("\x1b\x07\x9b") & set(result.stdout + result.stderr) and "Traceback" not in result.stderr
        assert command != "info" or "owned" in result.stdout, options
    assert "\x1b" not in page.read_text(encoding="utf-8")


# ---- the files of a set ----


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("make", [lambda path: path.symlink_to("../elsewhere"), os.mkfifo, os.mkdir])
def test_what_is_not_a_regular_file_in_a_set(own_set: Path, make: Callable[[Path], None], suffix: str) -> None:
    path = own_set / f"train-00000{suffix}"
    path.rename(own_set.parent / "elsewhere")
    make(path)
    with pytest.raises(InputError, match=r"expected a regular file, found (a symbolic link|something else)"):
        shards.open(own_set)


@pytest.mark.parametrize("number", [2**31, 2**63, 2**64 - 1])
@pytest.mark.parametrize("place", [18, 26])
def test_an_index_that_promises_terabytes(own_set: Path, place: int, number: int) -> None:
    path = own_set / "train-00000.idx"
    content = bytearray(path.read_bytes())
    content[place : place + 8] = struct.pack("<Q", number)
    path.write_bytes(content)
    with pytest.raises(InputError, match="expected the index of"):
        shards.open(own_set)["train"].document(0)


# ---- tokenizers ----


def tokenizer(directory: Path, **changes: Any) -> Path:
    """A tokenizer that can be loaded, but for the changes."""
    own = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    own.add_special_tokens(["</s>"])
    (directory / "tokenizer.json").write_text(json.dumps(json.loads(own.to_str()) | changes))
    return directory / "tokenizer.json"


@pytest.mark.parametrize("number", [2**24, 2**31, 2**63, -5, 1.5, "x", None, [1]])
@pytest.mark.parametrize("where", ["model", "added_tokens"])
def test_ids_that_would_need_gigabytes(tmp_path: Path, where: str, number: Any) -> None:
    content = json.loads(tokenizer(tmp_path).read_bytes())
    if where == "model":
        content["model"]["vocab"]["a"] = number
    else:
        content["added_tokens"][0]["id"] = number
    begun = time.monotonic()
    with pytest.raises(InputError, match="tokenizer"):
        choose_encoder(read_tokenizer_files("t", tokenizer(tmp_path, **content)))
    assert time.monotonic() - begun < 5


def test_a_tokenizer_with_endless_added_tokens(tmp_path: Path) -> None:
    added = [{"id": number, "content": f"<{number}>"} for number in range(70_000)]
    with pytest.raises(InputError, match="at most 65,536 added tokens, found 70,000"):
        load_tokenizer(tokenizer(tmp_path, added_tokens=added))


def test_a_pattern_that_backtracks_without_end(tmp_path: Path) -> None:
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    path = tokenizer(tmp_path, pre_tokenizer=pattern)
    corpus = write_corpus(tmp_path / "corpus.jsonl", [{"text": "a" * 40 + "!"}], "lines")
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"the tokenizer can't encode a text of the corpus: .*limit"):
        build([str(corpus)], tmp_path / "set", tokenizer_name=str(path), settings=BuildSettings(), num_workers=1)
    assert time.monotonic() - begun < 10


# ---- configurations ----


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['touch owned']", "could not determine a constructor for the tag"),
        ("a: &a [x]\nb: [*a, *a]", "line 2, column 5: aliases .* aren't taken"),
        ("a: &a [*a]", "aliases .* aren't taken"),
        ("a: '" + "x" * MAX_YAML_BYTES + "'", "more than 1,048,576 bytes"),
        ("a: " + "[" * 2000, "nested too deeply"),
        ("a: 1" + "0" * 5000, "line 1, column 4: '10.* as !!int"),
        ("a: 0x" + "f" * 5000, "line 1, column 4: '0xff.* as !!int"),
        ("a: 1" + ":1" * 200_000, "line 1, column 4: '1:1.* as !!int"),
        ("a: !!int ''", "line 1, column 4: '' can't be read as !!int"),
        ("a: !!timestamp x", "line 1, column 4: 'x' can't be read as !!timestamp"),
        ("a: 2026-99-99", "line 1, column 4: '2026-99-99' can't be read as !!timestamp"),
        ("? [a]\n: 1", "unhashable"),
    ],
)
def test_a_config_made_to_harm(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    begun = time.process_time()
    with pytest.raises(InputError, match=message):
        read_yaml(path)
    assert time.process_time() - begun < 20


# ---- checkpoints and models ----


@pytest.mark.parametrize(
    "change",
    [{"files": files} for files in ({"../../x": 1}, {"/etc/passwd": 1}, [1], {"x": 2**64})]
    + [{"step": step} for step in ("four", True, -1)]
    + [{"seed": 1.5}, {"other": 1}],
)
def test_the_record_of_a_checkpoint(tmp_path: Path, change: dict[str, Any]) -> None:
    position = DataPosition(step=4, global_batch_blocks=2, block_tokens=8, seed=1, fingerprint="f")
    seal_checkpoint(tmp_path, position)
    path = tmp_path / "checkpoint.json"
    assert read_position(tmp_path) == position
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    with pytest.raises(InputError, match="can't be read"):
        read_position(tmp_path)


QWEN2: dict[str, Any] = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 1}
QWEN2 |= {"num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 8}


@pytest.mark.parametrize(
    ("config", "header"),
    [("[]", 8), ("{}", 8), ('{"model_type": "qwen2", "hidden_size": "x"}', 8), ('{"model_type": "\\u001b[31m"}', 8)]
    + [(json.dumps(QWEN2), size) for size in (2**20, 2**40, 2**63, 2**64 - 1)],
)
def test_a_model_with_another_config_or_a_header_that_promises_too_much(
    tmp_path: Path, config: str, header: int
) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", header) + b'{"a": 1}')
    with pytest.raises(InputError, match="the model can't be loaded"):
        load_model(tmp_path)
