"""Hubs by their own clients: one look at each revision, what the bytes must be, and each failure as one line in time."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.common.errors import InputError, TransientError
from shards.common.server_errors import NoSuchFile
from shards.common.urls import read_bytes
from shards.share import hub as hub_module
from shards.share.hub import (
    HubReference,
    download_file,
    find_file,
    list_files,
    parse_reference,
    pin_url,
    resolve,
    small_files,
    snapshot,
)
from tests.hub_server import Hub, commit_name

both = pytest.mark.parametrize("name", ["hf:org/model", "ms:org/model"])
CONFIG = b'{"model_type": "qwen2"}' * 100
DATA = bytes(range(256)) * 400


@pytest.fixture
def served(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    hub.commit(
        "models/org/model", {"config.json": CONFIG, "model.safetensors": b"weights", "x.py": b"raise SystemExit"}
    )
    hub.commit("datasets/org/data", {"zh/a.jsonl": DATA, "zh/b.jsonl": b"{}", "en/c.jsonl": b"{}", "[1]/d": b""})
    hub.questions.clear()
    return hub


def data_set(**fields: Any) -> HubReference:
    return HubReference(**{"hub": "hf", "repository": "a/b", "is_dataset": True, **fields})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:Qwen/Qwen2-0.5B", HubReference(hub="hf", repository="Qwen/Qwen2-0.5B")),
        ("ms:a/b@v1.0/x", HubReference(hub="ms", repository="a/b", revision="v1.0/x")),
        ("hf://datasets/a/b", data_set()),
        ("ms://datasets/a/b@v1/c/d", data_set(hub="ms", revision="v1", path="c/d")),
        ("hf://a/b/c", HubReference(hub="hf", repository="a/b", path="c")),
        ("hf://datasets/a/b@refs/convert/parquet/c", data_set(revision="refs/convert/parquet", path="c")),
        ("hf://datasets/a/b@x%2Fy/c", data_set(revision="x/y", path="c")),
    ],
)
def test_a_reference_is_read_and_written(text: str, expected: HubReference) -> None:
    assert parse_reference(text) == expected
    assert parse_reference(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["hf:model", "hf:a/b/c", "hf:../b", "hf:a/b@../c", "hf://datasets/a", "hf://datasets/a/b/../c"]
)
def test_what_names_nothing_on_a_hub_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected hf:ORG/NAME or ms:ORG/NAME"):
        parse_reference(text)


def fetched(reference: HubReference, part: Path) -> str:
    return download_file(reference, find_file(reference), part)


# ---- revisions ----


def test_a_pinned_url_shows_what_it_showed(served: Hub) -> None:
    url = pin_url("hf://datasets/org/data/zh/a.jsonl")
    assert url == f"hf://datasets/org/data@{commit_name(1)}/zh/a.jsonl"
    served.put("datasets/org/data", "zh/a.jsonl", b"changed")
    assert read_bytes(url) == DATA
    assert pin_url("hf://datasets/org/data/zh/a.jsonl") == f"hf://datasets/org/data@{commit_name(2)}/zh/a.jsonl"
    served.questions.clear()
    assert pin_url(url) == url and pin_url("s3://bucket/file") == "s3://bucket/file" and served.questions == []


def test_listing_digest_and_content_are_of_one_commit(served: Hub, tmp_path: Path) -> None:
    """The branch moves between any two requests: what comes is the commit of the first."""
    reference = resolve(parse_reference("hf://datasets/org/data/zh"))
    looks: tuple[Callable[[], object], ...] = (
        lambda: list_files(reference),
        lambda: fetched(reference.at("a.jsonl"), tmp_path / "part"),
        lambda: snapshot(reference, tmp_path / "copy", ["*.jsonl"]),
    )
    for number, look in enumerate(looks):
        served.put("datasets/org/data", "zh/a.jsonl", b"changed" * number)
        look()
    assert list_files(reference)["a.jsonl"] == hub_module.HubFile(len(DATA), hashlib.sha256(DATA).hexdigest())
    assert (tmp_path / "part").read_bytes() == (tmp_path / "copy" / "zh" / "a.jsonl").read_bytes() == DATA
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [".cache", "zh"]


# ---- contents ----


@both
def test_a_small_file_is_fetched_once_and_then_needs_no_network(served: Hub, tmp_path: Path, name: str) -> None:
    path = small_files(parse_reference(name), "config.json") / "config.json"
    assert path.read_bytes() == CONFIG and path.is_relative_to(tmp_path)
    assert served.requests == ["config.json"]
    served.put("models/org/model", "config.json", b"changed")
    served.status = 500
    assert small_files(parse_reference(name), "config.json") == path.parent
    served.status = 0
    with pytest.raises(NoSuchFile, match=rf"^{name[:2]}:.*org/model.*: no .*file"):
        small_files(parse_reference(name), "tokenizer.json")


def test_a_download_goes_on_where_it_broke_off(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    reference, part = resolve(parse_reference("hf://datasets/org/data/zh/a.jsonl")), tmp_path / "part"
    served.break_after = [40_000, *[0] * 5]
    with pytest.raises(TransientError, match="Hugging Face can't be reached"):
        fetched(reference, part)
    assert part.stat().st_size == 40_000
    served.break_after, served.requests = [30_000], []
    assert fetched(reference, part) == hashlib.sha256(DATA).hexdigest()
    assert part.read_bytes() == DATA
    assert served.requests == ["zh/a.jsonl bytes=40000-", "zh/a.jsonl bytes=70000-"]
    part.write_bytes(bytes(200_000))  # of something else
    fetched(reference, part)
    assert part.read_bytes() == DATA


def test_other_bytes_than_listed_are_thrown_away(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0)
    reference = resolve(parse_reference("hf://datasets/org/data/zh/a.jsonl"))
    served.sent = bytes(len(DATA))
    with pytest.raises(TransientError, match=r"expected the SHA-256 .* which the hub lists"):
        fetched(reference, tmp_path / "part")
    assert not (tmp_path / "part").exists()
    with pytest.raises(InputError):
        snapshot(resolve(parse_reference("ms://datasets/org/data")), tmp_path / "copy", ["zh/*"])
    assert not [path for path in (tmp_path / "copy").rglob("*.jsonl") if path.is_file()]


@pytest.mark.parametrize("name", ["hf", "ms"])
def test_a_snapshot_has_the_files_that_match(served: Hub, tmp_path: Path, name: str) -> None:
    reference = resolve(parse_reference(f"{name}://datasets/org/data/zh"))
    assert snapshot(reference, tmp_path, ["a*"]) == tmp_path / "zh"
    assert [path.name for path in (tmp_path / "zh").iterdir()] == ["a.jsonl"]
    served.requests.clear()
    snapshot(reference, tmp_path, ["*"])
    assert served.requests == ["zh/b.jsonl"] and not (tmp_path / "en").exists()
    folder = dataclasses.replace(reference, path="[1]")  # is no pattern
    assert [path.name for path in snapshot(folder, tmp_path, ["*"]).iterdir()] == ["d"]


# ---- failures ----


FAILURES: dict[str, tuple[dict[str, Any], str, type[InputError]]] = {
    "refuses": (
        {"status": 403},
        r"refused \(HTTP 403\): .*; log in, or ask for permission|needs permission",
        InputError,
    ),
    "is down": ({"status": 502}, r"can't be reached \(.*502.*\); try later", TransientError),
    "is a page": ({"is_hub": False}, "doesn't answer as a hub does", InputError),
    "is empty": ({"commits": {}}, "no such repository", InputError),
}


@both
@pytest.mark.parametrize("failure", FAILURES)
def test_each_failure_is_one_line_of_its_kind(served: Hub, name: str, failure: str) -> None:
    changes, message, kind = FAILURES[failure]
    for field, value in changes.items():
        setattr(served, field, value)
    for ask in (lambda: small_files(parse_reference(name), "config.json"), lambda: resolve(parse_reference(name))):
        with pytest.raises(InputError, match=rf"^{name}.*: .*({message})") as raised:
            ask()
        assert type(raised.value) is kind and "\n" not in str(raised.value)


def test_a_revision_that_isn_t_there_is_one_line(served: Hub) -> None:
    with pytest.raises(InputError, match=r"hf:org/model@v9: no such revision in this repository"):
        resolve(parse_reference("hf:org/model@v9"))
    with pytest.raises(InputError, match=r"hf://datasets/org/data.*/nothing: no such file in this repository"):
        fetched(resolve(parse_reference("hf://datasets/org/data/nothing")), Path("never"))


@both
def test_a_hub_that_does_not_answer_is_given_up(served: Hub, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", served.address)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@127.0.0.1:9")
    served.seconds_before_answer = 5
    begin = time.monotonic()
    with pytest.raises(
        TransientError, match=r"can't be reached \((no answer within 0.2 s|timed out); HTTPS_PROXY is set"
    ) as raised:
        resolve(parse_reference(name), seconds=0.2)
    assert time.monotonic() - begin < 3 and "secret" not in str(raised.value)
    assert hub_module.ANSWER_SECONDS == 10


def test_offline_is_one_line_before_anything_is_asked(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for ask in (lambda: pin_url("hf://datasets/org/data/x"), lambda: small_files(parse_reference("hf:org/model"), "x")):
        with pytest.raises(InputError, match="HF_HUB_OFFLINE=1 forbids to ask the hub; unset it"):
            ask()
    assert served.questions == []
