"""`--tokenizer hf:ORG/NAME` and `ms:ORG/NAME`: one tokenizer gives one set, from wherever it comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from pipeline import qwen2
from pipeline.build import build
from pipeline.settings import BuildSettings
from pipeline.tokenizers import load_tokenizer_files
from shards.common.errors import InputError
from tests.conftest import REPOSITORY, assert_one_error_line, directory_bytes, run_module, sample_records, write_corpus
from tests.hub_server import Hub, environment, hub  # noqa: F401

SHARED = REPOSITORY.parent / "shared" / "qwen2"
ORIGINS = ["hf:org/model", "ms:org/model"]


@pytest.fixture
def served(hub: Hub, tokenizer_dir: Path) -> Hub:  # noqa: F811
    for name in ("tokenizer.json", "tokenizer_config.json"):
        hub.put("models/org/model", name, (tokenizer_dir / name).read_bytes())
    return hub


def built(out: Path, corpus: Path, tokenizer: str) -> dict[str, bytes]:
    build([str(corpus)], out, tokenizer_name=tokenizer, settings=BuildSettings(block_tokens=64), num_workers=1)
    content = directory_bytes(out)
    return {name: value for name, value in content.items() if not name.startswith(".")}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.json", sample_records()[:20])


@pytest.mark.usefixtures("inline_engine")
def test_both_hubs_and_a_later_build_without_network_give_the_same_bytes(
    served: Hub, corpus: Path, tmp_path: Path
) -> None:
    first, second = (built(tmp_path / f"set-{name[:2]}", corpus, name) for name in ORIGINS)
    assert first == second
    entry = json.loads(first["manifest.json"])["tokenizer"]
    assert entry["name"] == "org/model" and len(entry["sha256"]) == 64
    served.status, served.requests = 503, []
    assert built(tmp_path / "offline", corpus, ORIGINS[0]) == first
    assert built(tmp_path / "offline-ms", corpus, ORIGINS[1]) == first
    assert served.requests == []


@pytest.mark.usefixtures("inline_engine")
@pytest.mark.parametrize("name", ORIGINS)
def test_a_published_qwen2_gives_the_set_of_the_built_in_one(
    hub: Hub,  # noqa: F811
    corpus: Path,
    tmp_path: Path,
    name: str,
) -> None:
    hub.put("models/org/model", "tokenizer.json", spelled_otherwise())
    hub.put("models/org/model", "tokenizer_config.json", b'{"eos_token": "<|endoftext|>", "chat_template": "x"}')
    assert built(tmp_path / "hub", corpus, name) == built(tmp_path / "built-in", corpus, "qwen2")


@pytest.mark.skipif(not SHARED.exists(), reason="no reference copy of the tokenizer here")
@pytest.mark.usefixtures("inline_engine")
@pytest.mark.parametrize("name", ["hf:Qwen/Qwen2-0.5B", "ms:Qwen/Qwen2-0.5B"])
def test_the_reference_copy_gives_the_set_of_the_built_in_one(
    hub: Hub,  # noqa: F811
    corpus: Path,
    tmp_path: Path,
    name: str,
) -> None:
    for file_name in ("tokenizer.json", "tokenizer_config.json"):
        hub.put("models/Qwen/Qwen2-0.5B", file_name, (SHARED / file_name).read_bytes())
    assert built(tmp_path / "hub", corpus, name) == built(tmp_path / "built-in", corpus, "qwen2")


def built_in() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((qwen2.qwen2_tokenizer_directory() / "tokenizer.json").read_bytes())
    return content


def spelled_otherwise() -> bytes:
    """Qwen2's tokenizer in the words of newer files: merges as pairs, other defaults, another order of keys."""
    content = built_in()
    content["model"]["merges"] = [merge.split(" ") for merge in content["model"]["merges"]]
    content["model"]["ignore_merges"] = False
    content["model"]["continuing_subword_prefix"] = None
    content["model"] = dict(reversed(content["model"].items()))
    return json.dumps(dict(reversed(content.items())), indent=2).encode()


def test_the_digest_of_the_built_in_tokenizer_is_the_one_written_down() -> None:
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
        ("model", {**content["model"], "vocab": {"a": 0}}),
        ("model", {**content["model"], "vocab": {**content["model"]["vocab"], "!": 1, '"': 0}}),
        ("model", {"type": "BPE"}),
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


@pytest.mark.parametrize("name", ORIGINS)
def test_without_a_configuration_the_end_is_found_as_in_a_directory(served: Hub, name: str) -> None:
    del served.repositories["models/org/model"]["tokenizer_config.json"]
    assert load_tokenizer_files(name).entry.eos_token == "<|endoftext|>"


@pytest.mark.parametrize("name", ORIGINS)
@pytest.mark.parametrize("content", [b"[]", b"{", b'{"model": {"vocab": {"a": "b"}}}', b"\xff"])
def test_a_file_that_is_no_tokenizer_is_refused(served: Hub, name: str, content: bytes) -> None:
    served.put("models/org/model", "tokenizer.json", content)
    with pytest.raises(InputError, match=rf"{name}: not a tokenizer\.json that can be read"):
        load_tokenizer_files(name)


def test_the_command_line_takes_it_and_tells_what_is_wrong(served: Hub, corpus: Path, tmp_path: Path) -> None:
    def run(*arguments: str, **variables: str) -> Any:
        env = {**environment(served, tmp_path), **variables}
        return run_module("pipeline", "build", str(corpus), "--out", tmp_path / "set", "--quiet", *arguments, env=env)

    result = run("--tokenizer", "hf:org/nothing")
    assert_one_error_line(result, "hf:org/nothing", "no such repository")
    result = run("--tokenizer", "hf:org/model", HF_HUB_OFFLINE="1")
    assert_one_error_line(result, "hf:org/model", "HF_HUB_OFFLINE=1 forbids")
    result = run("--tokenizer", "hf:org/model")
    assert result.returncode == 0, result.stderr
    result = run("--tokenizer", "hf:org/model", HF_HUB_OFFLINE="1")
    assert result.returncode == 0 and "up to date" in result.stdout


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("qwen", "did you mean 'qwen2'"),
        ("Qwen/Qwen2-0.5B", "on a hub it is hf:Qwen/Qwen2-0.5B"),
        ("hf:qwen2", "hf:ORG/NAME"),
    ],
)
def test_a_mistyped_tokenizer_suggests_the_right_one(name: str, hint: str) -> None:
    with pytest.raises(InputError) as raised:
        load_tokenizer_files(name)
    assert hint in str(raised.value)


def test_a_mistyped_directory_suggests_its_neighbour(tokenizer_dir: Path) -> None:
    with pytest.raises(InputError, match=f"did you mean '{tokenizer_dir}'"):
        load_tokenizer_files(str(tokenizer_dir)[:-1] + "x")
