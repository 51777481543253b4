"""Configuration and tokenizer files of a hub: fetched once, checked, then always from the cache."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from shards.common.errors import InputError
from shards.hub.reference import HubReference, parse_reference
from shards.hub.remote import NoSuchFile
from shards.hub.small_files import small_file
from tests.hub_server import Hub, hub  # noqa: F401

both = pytest.mark.parametrize("name", ["hf:org/model", "ms:org/model"])
CONTENT = json.dumps({"model_type": "qwen2", "text": "汉" * 1000}).encode()


@pytest.fixture
def served(hub: Hub) -> Hub:  # noqa: F811
    hub.put("models/org/model", "config.json", CONTENT)
    hub.put("models/org/model", "model.safetensors", b"weights")
    hub.put("models/org/model", "modeling.py", b"raise SystemExit")
    return hub


def files_below(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in directory.rglob("*") if path.is_file()]


@both
def test_a_file_is_fetched_once_and_then_needs_no_network(served: Hub, tmp_path: Path, name: str) -> None:
    path = small_file(parse_reference(name), "config.json")
    assert path.read_bytes() == CONTENT and path.is_relative_to(tmp_path)
    assert served.requests == ["config.json"]
    assert not [content for content in files_below(tmp_path) if content in (b"weights", b"raise SystemExit")]
    served.status = 500
    assert small_file(parse_reference(name), "config.json") == path
    assert served.requests == ["config.json"]


@both
def test_a_revision_is_another_file(served: Hub, name: str) -> None:
    first = small_file(parse_reference(name), "config.json")
    assert served.requests == ["config.json"]
    assert small_file(parse_reference(f"{name}@v1.0"), "config.json").read_bytes() == first.read_bytes()
    assert name.startswith("ms") or "v1.0" in served.revisions


@both
def test_other_bytes_than_the_hub_lists_are_not_kept(served: Hub, tmp_path: Path, name: str) -> None:
    served.sent = b"x" * len(CONTENT)
    with pytest.raises(InputError, match="aren't those that the hub lists"):
        small_file(parse_reference(name), "config.json")
    assert served.sent not in files_below(tmp_path)
    served.sent = None
    assert small_file(parse_reference(name), "config.json").read_bytes() == CONTENT


@both
@pytest.mark.parametrize("fault", ["break", "short", "page", "refused", "trouble", "no such"])
def test_each_fault_is_one_clear_error(
    served: Hub, tmp_path: Path, name: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    monkeypatch.setattr("shards.hub.download._PAUSES_SECONDS", (0.0,) * 5)
    if fault == "break":
        served.break_after = [10, *[0] * 30]
    elif fault == "short":
        served.sent = CONTENT[:-1]
    elif fault == "page":
        served.is_hub = False
    elif fault == "refused":
        served.status = 403
    elif fault == "trouble":
        served.status = 502
    else:
        served.repositories = {}
    with pytest.raises(InputError, match=rf"^{name}: ") as raised:
        small_file(parse_reference(name), "config.json")
    assert "\n" not in str(raised.value)
    assert CONTENT[:10] not in [content[:10] for content in files_below(tmp_path) if len(content) > 10]


@both
def test_a_missing_file_is_told_from_a_missing_repository(served: Hub, name: str) -> None:
    with pytest.raises(NoSuchFile, match=r"no such file|no file"):
        small_file(parse_reference(name), "tokenizer.json")
    with pytest.raises(InputError, match="no such repository") as raised:
        small_file(parse_reference(name + "2"), "tokenizer.json")
    assert not isinstance(raised.value, NoSuchFile)


@both
def test_no_network_is_told_with_what_to_do(served: Hub, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = "http://127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", closed)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", closed + "/{repo_id}/{revision}/{filename}"
    )
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", closed)
    monkeypatch.setattr("modelscope_hub._legacy_api.REPO_TREE_PAGE_MAX_ATTEMPTS", 1)
    with pytest.raises(
        InputError, match=r"config\.json isn't in the cache, and .* can't be reached .*; use "
    ) as raised:
        small_file(parse_reference(name), "config.json")
    assert closed in str(raised.value) and "refused" in str(raised.value)


def test_the_user_s_own_offline_mode_is_one_clear_line(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    small_file(parse_reference("hf:org/model"), "config.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    small_file(parse_reference("hf:org/model"), "config.json")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE=1 forbids"):
        small_file(parse_reference("hf:org/model"), "tokenizer.json")
    assert small_file(parse_reference("ms:org/model"), "config.json").read_bytes() == CONTENT


def test_a_data_set_of_the_hub_is_looked_for_before_it_is_opened(
    served: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pipeline.hub import num_hub_shards
    from pipeline.sources import find_sources

    (source,) = find_sources(["hf:org/nothing:train"])
    with pytest.raises(InputError, match="datasets/org/nothing: no such repository"):
        num_hub_shards(source)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"can't be reached \(Connection refused\); try a mirror"):
        num_hub_shards(source)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE=1 forbids"):
        num_hub_shards(source)


def test_an_endpoint_that_is_no_address_is_told(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "hf-mirror.com")
    with pytest.raises(InputError, match=r"HF_ENDPOINT: expected an address such as https://hf-mirror\.com"):
        small_file(parse_reference("hf:org/model"), "config.json")


NO_NAMES = (
    *("hf:", "hf:a", "hf:a/b/c", "hf:../b", "hf:a/..", "hf:.a/b", "hf:/etc/passwd", "hf:a b/c", "hf:a/b\x1b[31m"),
    *("ms:a/b@", "ms:a/b@../c", "ms:a/b@/etc", "ms:a/b@x y", "xx:a/b"),
)


@pytest.mark.parametrize("text", NO_NAMES)
def test_names_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"expected hf:ORG/NAME or ms:ORG/NAME") as raised:
        parse_reference(text)
    assert str(raised.value).isprintable()


def test_names_are_parsed_and_written_alike() -> None:
    for text in ("hf:Qwen/Qwen2-0.5B", "ms:Qwen/Qwen2-0.5B@v1.0", "hf:a_b/c.d@refs/pr/1"):
        assert str(parse_reference(text)) == text
    assert parse_reference("ms:a/b@c") == HubReference(hub="ms", repository="a/b", revision="c")


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_hugging_face_s_cache_is_where_its_client_looks(served: Hub) -> None:
    import huggingface_hub

    path = small_file(parse_reference("hf:org/model"), "config.json")
    assert huggingface_hub.try_to_load_from_cache("org/model", "config.json") == str(path)


def test_model_scope_s_cache_is_where_its_client_looks(served: Hub) -> None:
    from modelscope_hub import HubApi
    from modelscope_hub.config import HubConfig

    path = small_file(parse_reference("ms:org/model"), "config.json")
    assert HubApi(HubConfig()).download_file("org/model", "model", "config.json", local_files_only=True) == path
