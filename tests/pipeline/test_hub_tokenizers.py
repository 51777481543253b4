"""`--tokenizer hf:ORG/NAME` and `ms:ORG/NAME`: one tokenizer is one, from wherever it comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from pipeline import qwen2
from pipeline.tokenizers import load_tokenizer_files
from shards.common.errors import InputError
from tests.conftest import REPOSITORY
from tests.hub_server import Hub, hub  # noqa: F401

SHARED = REPOSITORY.parent / "shared" / "qwen2"
both = pytest.mark.parametrize("name", ["hf:org/model", "ms:org/model"])
OWN = {"model": {"type": "WordLevel", "vocab": {"a": 0, "</s>": 1}}}


@pytest.fixture
def served(hub: Hub) -> Hub:  # noqa: F811
    files = {"tokenizer.json": orjson.dumps(OWN), "tokenizer_config.json": b'{"eos_token": "</s>"}'}
    hub.commit("models/org/model", files)
    return hub


def built_in() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(qwen2.qwen2_tokenizer_json())
    return content


@both
def test_it_has_the_repository_s_name_and_needs_no_network_the_second_time(served: Hub, name: str) -> None:
    first = load_tokenizer_files(name)
    assert (first.entry.name, first.entry.eos_token, first.entry.vocab_size) == ("org/model", "</s>", 2)
    served.put("models/org/model", "tokenizer.json", b"changed")
    served.status = 503
    assert load_tokenizer_files(name) == first


def test_both_files_are_of_one_commit(served: Hub) -> None:
    served.put("models/org/model", "tokenizer_config.json", b'{"eos_token": "a"}')
    commit = served.head("models/org/model")
    first = load_tokenizer_files("hf:org/model")
    assert first.entry.eos_token == "a"
    assert [one for one in served.questions if "/resolve/" in one and commit not in one] == []


@both
def test_a_published_qwen2_is_the_built_in_one(hub: Hub, name: str) -> None:  # noqa: F811
    """In the words of newer files: merges as pairs, other defaults, another order of keys."""
    content = built_in()
    content["model"]["merges"] = [merge.split(" ") for merge in content["model"]["merges"]]
    content["model"] |= {"ignore_merges": False, "continuing_subword_prefix": None}
    content["model"] = dict(reversed(content["model"].items()))
    config = b'{"eos_token": "<|endoftext|>", "chat_template": "x"}'
    spelled_otherwise = json.dumps(dict(reversed(content.items())), indent=2).encode()
    hub.commit("models/org/model", {"tokenizer.json": spelled_otherwise, "tokenizer_config.json": config})
    assert load_tokenizer_files(name) == load_tokenizer_files("qwen2")


@pytest.mark.skipif(not SHARED.exists(), reason="no reference copy of the tokenizer here")
def test_the_reference_copy_is_the_built_in_one(hub: Hub) -> None:  # noqa: F811
    names = ("tokenizer.json", "tokenizer_config.json")
    hub.commit("models/Qwen/Qwen2-0.5B", {name: (SHARED / name).read_bytes() for name in names})
    assert load_tokenizer_files("hf:Qwen/Qwen2-0.5B") == load_tokenizer_files("qwen2")
    assert load_tokenizer_files("qwen2").entry.sha256 == qwen2.TOKENIZER_SHA256


def test_what_is_not_qwen2_is_not_taken_for_it() -> None:
    content = built_in()
    assert qwen2.canonical_tokenizer_json(content) == orjson.dumps(content)
    changes: list[tuple[str, Any]] = [
        ("normalizer", None),
        ("normalizer", {"type": "NFKC"}),
        ("added_tokens", content["added_tokens"][:2]),
        ("added_tokens", [{**token, "normalized": True} for token in content["added_tokens"]]),
        ("pre_tokenizer", content["pre_tokenizer"]["pretokenizers"][1]),
        ("truncation", {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}),
        ("model", {**content["model"], "merges": content["model"]["merges"][::-1]}),
        ("model", {**content["model"], "dropout": 0.5}),
        ("model", {**content["model"], "byte_fallback": True}),
        ("model", {**content["model"], "vocab": {**content["model"]["vocab"], "!": 1, '"': 0}}),
        ("model", None),
    ]
    for key, value in changes:
        assert qwen2.canonical_tokenizer_json({**content, key: value}) is None, (key, str(value)[:60])


def test_another_eos_is_another_tokenizer(hub: Hub) -> None:  # noqa: F811
    """The chat models have the same `tokenizer.json`, and end a text with another token."""
    hub.put("models/org/model", "tokenizer.json", orjson.dumps(built_in()))
    hub.put("models/org/model", "tokenizer_config.json", b'{"eos_token": "<|im_end|>"}')
    entry = load_tokenizer_files("hf:org/model").entry
    assert (entry.name, entry.eos_token, entry.eos_id) == ("org/model", "<|im_end|>", 151_645)


@both
def test_without_a_configuration_the_end_is_found_as_in_a_directory(hub: Hub, name: str) -> None:  # noqa: F811
    own = {**OWN, "added_tokens": [{"content": "</s>", "id": 1}]}
    hub.put("models/org/model", "tokenizer.json", orjson.dumps(own))
    assert load_tokenizer_files(name).entry.eos_token == "</s>"
    hub.status = 503  # it is known that there is none
    assert name.startswith("ms") or load_tokenizer_files(name).entry.eos_token == "</s>"


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"model": {"vocab": {"a": "b"}}}', b"\xff"])
def test_a_file_that_is_no_tokenizer_is_refused(served: Hub, content: bytes) -> None:
    served.put("models/org/model", "tokenizer.json", content)
    with pytest.raises(InputError, match=r"hf:org/model: not a tokenizer\.json that can be read"):
        load_tokenizer_files("hf:org/model")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("qwen", "did you mean 'qwen2'"),
        ("Qwen/Qwen2-0.5B", "on a hub it is hf:Qwen/Qwen2-0.5B"),
        ("hf:qwen2", "hf:ORG/NAME"),
        ("{beside}/qwen", "did you mean '{beside}/qwen3'"),
    ],
)
def test_a_mistyped_tokenizer_suggests_the_right_one(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / "qwen3").mkdir()
    with pytest.raises(InputError) as raised:
        load_tokenizer_files(name.format(beside=tmp_path))
    assert hint.format(beside=tmp_path) in str(raised.value)
