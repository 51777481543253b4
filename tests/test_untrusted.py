"""Files from strangers: one clear line and exit status 2, in bounded time and memory, and nothing raw on the terminal.

What is tested elsewhere: compressed files in test_packed.py, manifests that don't agree with themselves in
test_manifest.py, pages and cards in test_report.py, test_train_compare.py and test_train_model_card.py, terminal escapes
in texts in test_show.py and test_train_generate.py, objects in checkpoints in test_train_resume.py.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

import shards
from pipeline.build import build
from pipeline.settings import BuildSettings
from pipeline.tokenizers import FastEncoder, load_encoder
from shards.common.errors import InputError
from shards.manifest import canonical_json, decode_manifest
from shards.tokenizer_files import read_tokenizer_files, read_vocabulary
from shards.verify import verify
from tests.conftest import assert_one_error_line, run_module, write_corpus
from train.checkpoints import DataPosition, read_position, seal_checkpoint
from train.generate import generation_settings
from train.run_directory import read_record
from train.sampling import load_model
from train.values import MAX_YAML_BYTES, read_yaml

DEEP = "[" * 100_000 + "]" * 100_000
ESCAPE = "\x1b]0;owned\x07\x1b[31m\x9b2J"


@pytest.fixture(scope="module")
def right_set(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    directory = tmp_path_factory.mktemp("right")
    corpus = write_corpus(directory / "corpus.jsonl", [{"text": f"第{number}篇"} for number in range(40)], "lines")
    settings = BuildSettings(block_tokens=16, val_fraction=0.1)
    build([str(corpus)], directory / "set", tokenizer_name=str(tokenizer_dir), settings=settings, num_workers=1)
    return directory / "set"


@pytest.fixture
def own_set(right_set: Path, tmp_path: Path) -> Path:
    shutil.copytree(right_set, tmp_path / "set")
    return tmp_path / "set"


def signed(content: dict[str, Any]) -> bytes:
    """A manifest with the fingerprint that belongs to it: whoever changes one can do that."""
    without = {key: value for key, value in content.items() if key != "fingerprint"}
    return json.dumps({**without, "fingerprint": blake3(canonical_json(without)).hexdigest()}).encode()


# ---- manifests ----

NUMBERS = [2**31, 2**63 - 1, 2**63, 2**64, 10**500, -1, -(2**63), 1.0, 1.5, True, None, "1"]
NAMES = ["../train-00000", "/tmp/train-00000", "train-../../x", "train-", "train-٠١", "train-0\x00", "train-0/1"]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: repr(number)[:20])
@pytest.mark.parametrize(
    "path",
    [("shards", 0, field) for field in ("num_blocks", "num_tokens", "num_sequences", "num_documents")]
    + [("block_tokens",), ("tokenizer", "vocab_size"), ("tokenizer", "eos_id")],
    ids=str,
)
def test_numbers_that_are_not_or_too_large(right_set: Path, path: tuple[Any, ...], number: Any) -> None:
    if number == 2**31 and path[-1] == "vocab_size":
        return  # the most that there may be
    content = parent = json.loads((right_set / "manifest.json").read_bytes())
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = number
    with pytest.raises(InputError) as caught:
        decode_manifest(signed(content), "manifest.json")
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("where", "message"),
    [("shards", "expected a name such as train-00000"), ("other_files", "is not a file of a shard set")],
)
def test_names_that_lead_elsewhere(right_set: Path, where: str, message: str, name: str) -> None:
    content = json.loads((right_set / "manifest.json").read_bytes())
    content[where][0]["name"] = name
    with pytest.raises(InputError, match=message) as caught:
        decode_manifest(signed(content), "manifest.json")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(settings={"a": json.loads("[" * 40 + "]" * 40)}), "nested too deeply"),
        (lambda content: content.update(settings={"a": float("nan")}), "64 bits"),
        (lambda content: content.update(settings={"a": 10**300}), "64 bits"),
        (lambda content: content.update(format_version=[["x"] * 1000]), "found a list"),
        (lambda content: content.update(format_version=10**600), "more than 64 bits"),
        (lambda content: content.update(packing="x" * 10_000), "expected one of"),
        (lambda content: content.update(splits={ESCAPE * 100: content["splits"]["train"]}), "expected train, val"),
        (lambda content: content.update({ESCAPE: 1}), r"unknown field"),
    ],
)
def test_other_things_in_a_manifest(right_set: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    content = json.loads((right_set / "manifest.json").read_bytes())
    change(content)
    with pytest.raises(InputError, match=message) as caught:
        decode_manifest(signed(content), "manifest.json")
    assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


def test_half_a_character_in_a_manifest(right_set: Path) -> None:
    content = json.loads((right_set / "manifest.json").read_bytes())
    content["tokenizer"]["name"] = "\ud800"
    with pytest.raises(InputError, match="lone surrogate"):
        decode_manifest(json.dumps(content).encode(), "manifest.json")


def test_a_manifest_nested_without_end(own_set: Path) -> None:
    (own_set / "manifest.json").write_text(DEEP)
    assert_one_error_line(run_module("shards", "info", own_set), "not valid JSON")


def test_names_in_a_manifest_reach_no_terminal_raw(own_set: Path, right_set: Path) -> None:
    content = json.loads((own_set / "manifest.json").read_bytes())
    content["tokenizer"] |= {"name": ESCAPE}
    content["sources"][0]["path"] = ESCAPE
    content["settings"][ESCAPE] = ESCAPE
    content["rejected"] = [{"kind": ESCAPE, "num_records": 0}]
    content["other_files"].append({"name": "rejected.jsonl", "num_bytes": 0, "digest": "0" * 64})
    (own_set / "manifest.json").write_bytes(signed(content))
    for command in ("info", "verify", "report"):
        result = run_module("shards", command, own_set, *(["--out", own_set.parent / "p.html"] * (command == "report")))
        assert "\x1b" not in result.stdout + result.stderr and "\x07" not in result.stdout + result.stderr, command
        assert "Traceback" not in result.stderr, command
    for option in (["--json"], [right_set]):
        result = run_module("shards", "info", own_set, *option)
        assert not set("\x1b\x07\x9b") & set(result.stdout) and "owned" in result.stdout, option
    assert "\x1b" not in (own_set.parent / "p.html").read_text(encoding="utf-8")


# ---- the files of a set ----


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize(
    ("make", "found"),
    [(Path.symlink_to, "a symbolic link"), (os.mkfifo, "something else"), (os.mkdir, "something else")],
)
def test_what_is_not_a_regular_file_in_a_set(own_set: Path, make: Any, found: str, suffix: str) -> None:
    path = own_set / f"train-00000{suffix}"
    path.rename(own_set.parent / "elsewhere")
    make(path, *[own_set.parent / "elsewhere"] * (make is Path.symlink_to))
    with pytest.raises(InputError, match=f"expected a regular file, found {found}"):
        shards.open(own_set)


@pytest.mark.parametrize("number", [2**31, 2**40, 2**63, 2**64 - 1])
@pytest.mark.parametrize("place", [18, 26])
def test_an_index_that_promises_terabytes(own_set: Path, place: int, number: int) -> None:
    path = own_set / "train-00000.idx"
    content = bytearray(path.read_bytes())
    content[place : place + 8] = struct.pack("<Q", number)
    path.write_bytes(content)
    with pytest.raises(InputError, match="index header: expected number of"):
        shards.open(own_set)["train"].document(0)


def test_a_linked_tokenizer_is_still_checked_by_its_digest(own_set: Path, tmp_path: Path) -> None:
    path = own_set / "tokenizer" / "tokenizer.json"
    path.unlink()
    (tmp_path / "other.json").write_text("{}")
    path.symlink_to(tmp_path / "other.json")
    assert verify(own_set)


# ---- tokenizers ----

EOS = {"id": 2, "content": "<e>", "special": True, "normalized": False} | dict.fromkeys(
    ("single_word", "lstrip", "rstrip"), False
)


def tokenizer(directory: Path, config: str = '{"eos_token": "<e>"}', **changes: Any) -> Path:
    content: dict[str, Any] = {"version": "1.0", "added_tokens": [EOS], "normalizer": None, "pre_tokenizer": None}
    content |= {"post_processor": None, "decoder": None}
    content |= {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}, **changes}
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(content))
    (directory / "tokenizer_config.json").write_text(config)
    return directory / "tokenizer.json"


@pytest.mark.parametrize("number", [2**24, 2**31, 2**63, -5, 1.5, "x", None, [1]])
@pytest.mark.parametrize("where", ["model", "added"])
def test_ids_that_would_need_gigabytes(tmp_path: Path, where: str, number: Any) -> None:
    if where == "model":
        path = tokenizer(tmp_path, model={"type": "BPE", "vocab": {"a": number}, "merges": []}, added_tokens=[])
    else:
        path = tokenizer(tmp_path, added_tokens=[{**EOS, "id": number}])
    begun = time.monotonic()
    with pytest.raises(InputError, match="tokenizer"):
        from pipeline.tokenizers import choose_encoder

        choose_encoder(read_tokenizer_files("t", path))
    assert time.monotonic() - begun < 5


def test_a_tokenizer_with_endless_added_tokens(tmp_path: Path) -> None:
    added = [{**EOS, "id": number, "content": f"<{number}>"} for number in range(70_000)]
    with pytest.raises(InputError, match="at most 65,536 added tokens, found 70,000"):
        read_tokenizer_files("t", tokenizer(tmp_path, added_tokens=added))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_nested_without_end(tmp_path: Path, name: str) -> None:
    path = tokenizer(tmp_path)
    (tmp_path / name).write_text(DEEP)
    with pytest.raises(InputError, match=r"not a tokenizer\.json that can be read|not valid JSON"):
        read_tokenizer_files("t", path)
    if name == "tokenizer.json":
        with pytest.raises(InputError, match="can be read"):
            read_vocabulary(tmp_path)


def test_a_pattern_that_backtracks_without_end(tmp_path: Path) -> None:
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    files = read_tokenizer_files("t", tokenizer(tmp_path, pre_tokenizer=pattern))
    encoder = load_encoder(FastEncoder.name, files.tokenizer_json)
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"the tokenizer can't encode a text of the corpus: .*limit"):
        encoder.encode(["a" * 40 + "!"])
    assert time.monotonic() - begun < 10
    corpus = write_corpus(tmp_path / "corpus.jsonl", [{"text": "a" * 40 + "!"}], "lines")
    arguments = [corpus, "--tokenizer", tmp_path, "--out", tmp_path / "set", "--workers", "1"]
    assert_one_error_line(run_module("pipeline", "build", *arguments), "can't encode a text of the corpus")


# ---- names in a corpus ----


def test_names_of_fields_and_files_reach_no_terminal_raw(tmp_path: Path, tokenizer_dir: Path) -> None:
    path = write_corpus(tmp_path / f"corpus{ESCAPE.replace('/', '')}.jsonl", [{ESCAPE: "a"}], "lines")
    arguments = [path, "--tokenizer", tokenizer_dir, "--out", tmp_path / "set", "--workers", "1"]
    result = run_module("pipeline", "build", *arguments)
    assert_one_error_line(result, "no field 'text'; this record has", "\\x1b[31m")
    assert "\x1b" not in result.stdout + result.stderr


# ---- configurations ----


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['touch owned']", "could not determine a constructor for the tag"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: &a [x]\nb: [*a, *a]", "line 2, column 5: aliases .* aren't taken"),
        ("a: &a {x: 1}\nb: {<<: *a}", "aliases .* aren't taken"),
        ("a: &a [*a]", "aliases .* aren't taken"),
        ("a: '" + "x" * MAX_YAML_BYTES + "'", "more than 1,048,576 bytes"),
        ("a: " + "[" * 2000, "nested too deeply"),
        ("a: 1" + "0" * 5000, "4300 digits"),
        ("a: 2026-99-99", "month must be in 1..12"),
        ('"a\\x1b[2J": 1\n"a\\x1b[2J": 2', "given twice"),
        ("? [a]\n: 1", "unhashable"),
    ],
)
def test_a_config_made_to_harm(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    begun = time.monotonic()
    with pytest.raises(InputError, match=message):
        read_yaml(path)
    assert time.monotonic() - begun < 20


def test_names_in_a_config_reach_no_terminal_raw(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text('"\\e[31m": 1\n')
    result = run_module("train", "--config", path)
    assert_one_error_line(result, "unknown key", "\\x1b[31m")
    assert "\x1b" not in result.stderr


# ---- checkpoints and models ----


POSITION = DataPosition(step=4, global_batch_blocks=2, block_tokens=8, seed=1, fingerprint="f")


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../../x": 1}},
        {"files": {"/etc/passwd": 1}},
        {"files": [1]},
        {"files": {"x": 2**64}},
        {"step": "4"},
        {"step": True},
        {"step": -1},
        {"seed": 1.5},
        {"other": 1},
    ],
)
def test_the_record_of_a_checkpoint(tmp_path: Path, change: dict[str, Any]) -> None:
    seal_checkpoint(tmp_path, POSITION)
    path = tmp_path / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    with pytest.raises(InputError, match="can't be read"):
        read_position(tmp_path)


def test_json_of_a_run_nested_without_end(tmp_path: Path) -> None:
    for name in ("run.json", "generation_config.json", "checkpoint.json"):
        (tmp_path / name).write_text(DEEP)
    for read in (read_record, lambda path: generation_settings(path, {}), read_position):
        with pytest.raises(InputError, match="can't be read"):
            read(tmp_path)


@pytest.mark.parametrize(
    "config", [DEEP, "[]", "{}", '{"model_type": "qwen2", "hidden_size": "x"}', '{"model_type": "\\u001b[31m"}']
)
def test_a_model_with_another_config(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match="the model can't be loaded"):
        load_model(tmp_path)


@pytest.mark.parametrize("size", [2**20, 2**40, 2**63, 2**64 - 1])
def test_weights_whose_header_promises_too_much(tmp_path: Path, size: int) -> None:
    model = {"model_type": "qwen2", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 8}
    model |= {"num_attention_heads": 2, "num_key_value_heads": 2, "architectures": ["Qwen2ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(model))
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", size) + b'{"a": 1}')
    with pytest.raises(InputError, match="the model can't be loaded"):
        load_model(tmp_path)
