"""Copies of sets from a store: whole or not there, gone on with, made once however many ask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("s3fs", reason="needs the packages of requirements-s3.lock")
pytest.importorskip("moto.server", reason="needs the packages of requirements-s3.lock")

import shards
from shards import pull as pull_module
from shards.common.errors import InputError
from shards.pull import pull
from shards.verify import verify
from tests.conftest import REPOSITORY, SAMPLE, directory_bytes, run_module
from tests.pipeline.store import BUCKET, SETTINGS, file_system, s3_server

URL = f"s3://{BUCKET}/set"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    from pipeline.build import build

    path = tmp_path_factory.mktemp("built") / "set"
    build([str(SAMPLE)], path, tokenizer_name=str(tokenizer_dir), settings=SETTINGS, num_workers=1)
    (path / ".sources.json").unlink()
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Iterator[None]:
    with s3_server(tmp_path_factory.mktemp("store")):
        file_system().put(str(built), f"{BUCKET}/", recursive=True)
        yield


@pytest.fixture(autouse=True)
def cache(server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokenize-once"


def test_a_set_is_copied_once_to_a_place_named_by_its_fingerprint(built: Path, cache: Path) -> None:
    lines: list[str] = []
    path = pull(URL, notice=lines.append)
    assert path.parent == cache and shards.open(built).fingerprint.startswith(path.name)
    assert directory_bytes(path) == directory_bytes(built)
    assert len(lines) == 1 and "copying" in lines[0]
    assert pull(URL, notice=lines.append) == path
    assert len(lines) == 1


def test_a_copy_that_broke_off_goes_on_with_the_files_that_are_missing(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = pull_module._copy
    copied: list[Any] = []

    def break_off(url: str, partial: Path, file: Any) -> int:
        if len(copied) == 3:
            raise InputError("broken off")
        copied.append(file.name)
        return copy(url, partial, file)

    monkeypatch.setattr(pull_module, "_FILES_AT_ONCE", 1)
    monkeypatch.setattr(pull_module, "_copy", break_off)
    with pytest.raises(InputError, match="broken off"):
        pull(URL, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out.partial" / "train-00000.bin.tmp").write_bytes(b"begun")

    def note(url: str, partial: Path, file: Any) -> int:
        again.append(file.name)
        return copy(url, partial, file)

    again: list[str] = []
    monkeypatch.setattr(pull_module, "_copy", note)
    pull(URL, tmp_path / "out")
    assert not set(again) & set(copied)
    assert directory_bytes(tmp_path / "out") == directory_bytes(built)


def test_a_file_that_was_changed_in_the_store_is_refused(built: Path, tmp_path: Path) -> None:
    file_system().put(str(built), f"{BUCKET}/changed", recursive=True)
    name = next(path.name for path in sorted(built.iterdir()) if path.suffix == ".bin")
    content = (built / name).read_bytes()
    file_system().pipe_file(f"{BUCKET}/changed/{name}", content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=f"{name}: expected digest"):
        pull(f"s3://{BUCKET}/changed", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../../evil", "train-../x", "/etc/passwd"])
def test_a_manifest_whose_names_lead_elsewhere_is_refused(built: Path, tmp_path: Path, name: str) -> None:
    from shards.manifest import _fingerprint

    content = json.loads((built / "manifest.json").read_bytes())
    content["shards"][0]["name"] = name
    content["fingerprint"] = _fingerprint(content)
    file_system().pipe_file(f"{BUCKET}/evil/manifest.json", json.dumps(content).encode())
    with pytest.raises(InputError, match="expected a name such as train-00000"):
        pull(f"s3://{BUCKET}/evil", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_build_and_a_directory_in_the_way_are_one_line_each(tmp_path: Path) -> None:
    result = run_module("shards", "pull", f"s3://{BUCKET}/nothing")
    assert result.returncode == 2 and "no complete set is there" in result.stderr
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(InputError, match="exists and is another set, or none"):
        pull(URL, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_of_processes_that_begin_at_once_one_copies_and_the_others_wait(built: Path, cache: Path) -> None:
    """As the ranks of a training do."""
    code = f"""
import time
from shards import pull
copy = pull._copy
def slow(*arguments):
    print("copied a file", flush=True)
    time.sleep(0.5)
    return copy(*arguments)
pull._copy, pull._FILES_AT_ONCE = slow, 4
print(pull.pull({URL!r}, notice=print), flush=True)
"""
    command = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=dict(os.environ))
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert sum("copied a file" in output for output in outputs) == 1
    assert sum("copying" in output for output in outputs) == 1
    (path,) = {Path(output.splitlines()[-1]) for output in outputs}
    assert verify(path) == []


def test_the_parts_of_a_mixture_may_be_urls(built: Path, cache: Path) -> None:
    mixture = shards.open_data(f"{URL}:0.7,{built}:0.3")
    assert isinstance(mixture, shards.Mixture)
    assert [part.path.parent for part in mixture.sets] == [cache, built.parent]
    assert isinstance(shards.open_data(URL), shards.ShardSet)
    assert shards.open_data(mixture.description).fingerprint == mixture.fingerprint


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_can_t_be_written_is_told_with_what_to_do(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"can't write here: .*; choose another place \(XDG_CACHE_HOME, or --out\)"):
        pull(URL, tmp_path / place / "set")
