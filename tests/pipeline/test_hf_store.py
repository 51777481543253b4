"""Corpora and sets at `hf://`, read through huggingface_hub's file system from a server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec", reason="needs the package fsspec")

import shards
from pipeline.build import build
from shards.common.errors import InputError
from shards.pull import pull
from shards.verify import verify
from tests.conftest import SAMPLE, directory_bytes, run_module
from tests.hub_server import Hub, hub
from tests.pipeline.store import SETTINGS

__all__ = ["hub"]

REPOSITORY = "datasets/org/name"
URL = f"hf://{REPOSITORY}"


@pytest.fixture(autouse=True)
def listed(hub: Hub) -> Iterator[None]:
    from huggingface_hub import HfFileSystem

    hub.lists_files = True
    HfFileSystem.clear_instance_cache()
    yield
    HfFileSystem.clear_instance_cache()


def run(source: Path | str, out: Path | str, tokenizer_dir: Path) -> Any:
    return build([str(source)], out, tokenizer_name=str(tokenizer_dir), settings=SETTINGS, num_workers=1)


@pytest.mark.usefixtures("inline_engine")
def test_a_corpus_at_hf_gives_the_same_shards_and_a_set_there_is_copied(
    hub: Hub, tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put(REPOSITORY, f"corpus/{SAMPLE.name}", SAMPLE.read_bytes())
    hub.put(REPOSITORY, "README.md", b"no corpus")
    run(SAMPLE, tmp_path / "local", tokenizer_dir)
    expected = directory_bytes(tmp_path / "local")
    expected.pop(".sources.json")
    for number, source in enumerate((f"{URL}/corpus", f"{URL}/corpus/{SAMPLE.name}", f"{URL}/corpus/*.json", URL)):
        run(source, tmp_path / f"set{number}", tokenizer_dir)
        found = directory_bytes(tmp_path / f"set{number}")
        found.pop(".sources.json")
        if source == URL:  # the source's name is another: with its directory
            found.pop("manifest.json")
            expected.pop("manifest.json")
        assert found == expected
    content = directory_bytes(tmp_path / "local")
    for name, file in content.items():
        hub.put(REPOSITORY, f"sets/zh/{name}", file)
    assert verify(pull(f"{URL}/sets/zh", tmp_path / "pulled")) == []
    pulled = directory_bytes(tmp_path / "pulled")
    assert {**pulled, ".sources.json": content[".sources.json"]} == content
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert isinstance(shards.open_data(f"{URL}@main/sets/zh"), shards.ShardSet)


@pytest.mark.usefixtures("inline_engine")
def test_what_is_not_there_and_what_is_refused_at_hf_is_one_line(hub: Hub, tmp_path: Path, tokenizer_dir: Path) -> None:
    hub.put(REPOSITORY, "a.json", SAMPLE.read_bytes())
    for source in (f"{URL}/b.json", "hf://datasets/org/other/a.json", f"{URL}/b/*.json"):
        with pytest.raises(InputError, match="no such file, and no file below it"):
            run(source, tmp_path / "set", tokenizer_dir)
    for url in (f"{URL}/set", "hf://datasets/org/other"):
        with pytest.raises(InputError, match="no complete set is there"):
            pull(url)
    hub.status = 401
    with pytest.raises(InputError, match="; check the credentials in the environment"):
        run(f"{URL}/a.json", tmp_path / "set", tokenizer_dir)
    hub.status = 500
    result = run_module("shards", "pull", f"{URL}/set")
    assert result.returncode == 2 and "; the same command goes on when the store answers" in result.stderr
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")
