"""Sets to and from hubs and object stores: whole or not there, and every file as the manifest says."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import shards
from shards.common.errors import InputError, TransientError
from shards.common.urls import listing, read_bytes, remove, write_bytes
from shards.manifest import _fingerprint, read_manifest
from shards.set_writer import NewSet, new_directory
from shards.share.pull import pull
from shards.share.push import push
from shards.tokenizer_files import make_tokenizer_files
from shards.verify import verify
from tests.conftest import REPOSITORY, assert_one_error_line, directory_bytes, run_module
from tests.hub_server import Hub, environment, hub  # noqa: F401
from tests.object_stores import Server, running, server  # noqa: F401

URLS = [
    "s3://bucket-s3/sets/a",
    "oss://bucket-oss/a",
    "hf://datasets/org/set",
    "hf://datasets/org/set/a",
    "ms://datasets/org/set/a",
]
_OF_HUB = {"README.md", ".gitattributes"}


def write_set(path: Path, num_units: int = 3, seed: int = 0) -> Path:
    """A set of a train and a val shard a unit."""
    content = {"model": {"vocab": {f"w{number}": number for number in range(99)} | {"</s>": 99}}}
    tokenizer = make_tokenizer_files("words", content, {"eos_token": "</s>"}, where="words")
    with new_directory(path) as directory:
        new_set = NewSet(directory, block_tokens=8, packing="concat", tokenizer=tokenizer)
        for unit in range(num_units):
            ids = np.full(20, unit + seed, dtype=np.uint32)
            ids[-1] = 99
            new_set.add_unit(unit, [("train", ids, np.array([20])), ("val", ids, np.array([20]))])
        new_set.finish(sources=[], settings={})
    return path


@pytest.fixture
def built(tmp_path: Path) -> Path:
    return write_set(tmp_path / "built")


@dataclasses.dataclass
class Place:
    """Where a set may be put."""

    url: str
    files: Callable[[], dict[str, bytes]]  # what is there, by names below the URL
    put: Callable[[str, bytes], object]


@pytest.fixture(params=URLS)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Place:
    url: str = request.param
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if url.startswith(("s3:", "oss:")):
        request.getfixturevalue("server")
        remove(*[f"{url}/{name}" for name in listing(url)])
        return Place(
            url,
            lambda: {name: read_bytes(f"{url}/{name}") or b"" for name in listing(url)},
            lambda name, content: write_bytes(f"{url}/{name}", content),
        )
    served: Hub = request.getfixturevalue("hub")
    monkeypatch.setattr("modelscope_hub.HubApi.create_repo", ModelScope(served).create_repo)
    monkeypatch.setattr("modelscope_hub.HubApi.upload_folder", ModelScope(served).upload_folder)
    monkeypatch.setattr("modelscope_hub.HubApi.delete_files", ModelScope(served).delete_files)
    folder = "a/" if url.endswith("/a") else ""
    return Place(
        url,
        lambda: {
            name.removeprefix(folder): content
            for name, content in served.files("datasets/org/set").items()
            if name.startswith(folder) and name not in _OF_HUB
        },
        lambda name, content: served.put("datasets/org/set", folder + name, content),
    )


@dataclasses.dataclass
class ModelScope:
    """What its client uploads is put on the hub at once."""

    hub: Hub

    def create_repo(self, *, repo_id: str, repo_type: str, visibility: str) -> None:
        assert visibility == "private"
        self.hub.commits.setdefault(f"{repo_type}s/{repo_id}", [{}])

    def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> None:
        assert not options["use_cache"] and options["revision"] == "master"
        found = directory_bytes(Path(folder_path))
        new = {
            f"{options['path_in_repo']}/{name}": content
            for name, content in found.items()
            if any(fnmatch(name, pattern) for pattern in options["allow_patterns"])
        }
        self.hub.commit(f"datasets/{repo_id}", self.hub.files(f"datasets/{repo_id}") | new)

    def delete_files(self, *, repo_id: str, file_paths: list[str], **_options: Any) -> None:
        files = self.hub.files(f"datasets/{repo_id}")
        self.hub.commit(f"datasets/{repo_id}", {name: files[name] for name in files.keys() - set(file_paths)})


def test_a_set_comes_back_as_it_went(built: Path, place: Place, tmp_path: Path) -> None:
    lines: list[str] = []
    assert push(built, place.url, notice=lines.append) and not push(built, place.url, notice=lines.append)
    out = pull(place.url, tmp_path / "out", notice=lines.append)
    assert directory_bytes(out) == directory_bytes(built) and verify(out) == []
    assert [line.partition("a: ")[2].split()[0] for line in lines if place.url.endswith("a")] in (
        [],
        ["putting", "copying"],
    )
    cached = pull(place.url)
    assert cached == tmp_path / "cache" / "tokenize-once" / read_manifest(built).fingerprint[:32]
    assert pull(place.url, notice=lines.append) == cached and len(lines) == 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") or path.suffix == ".partial"]
    opened = shards.open_data(place.url)
    assert isinstance(opened, shards.ShardSet) and opened.path == cached


def test_another_set_is_replaced_when_asked_and_nothing_else(built: Path, place: Place, tmp_path: Path) -> None:
    push(write_set(tmp_path / "older", num_units=5, seed=50), place.url)
    place.put("photos/1.jpg", b"mine")
    before = place.files()
    with pytest.raises(InputError, match="another shard set is there; choose another URL, or replace it with --force"):
        push(built, place.url)
    assert place.files() == before
    assert push(built, place.url, force=True)
    found = {name: content for name, content in place.files().items() if name not in _OF_HUB}
    assert found == directory_bytes(built) | {"photos/1.jpg": b"mine"}
    assert directory_bytes(pull(place.url, tmp_path / "out")) == directory_bytes(built)


@pytest.mark.parametrize("place", URLS[2:3], indirect=True)
def test_a_set_whose_manifest_can_t_be_read_is_replaced_when_asked(built: Path, place: Place) -> None:
    place.put("manifest.json", b'{"format_version": 2}')
    with pytest.raises(InputError, match="written by an older version of this program"):
        push(built, place.url)
    assert push(built, place.url, force=True)
    assert {name: content for name, content in place.files().items() if name not in _OF_HUB} == directory_bytes(built)


def test_the_manifest_goes_first_and_comes_last(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So at each instant whoever sees it sees a whole set."""
    url, events = f"memory://{tmp_path.name}/set", []
    push(built, url)
    for name, place in (("put_file", 1), ("pipe_file", 0), ("rm_file", 0)):
        original: Callable[..., Any] = getattr(MemoryFileSystem, name)

        def noted(
            *given: Any, _name: str = name, _place: int = place, _original: Any = original, **options: Any
        ) -> Any:
            events.append(f"{_name} {given[1 + _place].rpartition('/')[2]}")
            return _original(*given, **options)

        monkeypatch.setattr(MemoryFileSystem, name, noted)
    push(write_set(tmp_path / "other", num_units=2, seed=1), url, force=True)
    assert events[0] == "rm_file manifest.json" and events[-1] == "pipe_file manifest.json"
    assert sum("manifest.json" in event for event in events) == 2 < len(events)


def test_a_file_that_was_changed_there_is_refused_and_fetched_anew(built: Path, place: Place, tmp_path: Path) -> None:
    push(built, place.url)
    names = ("tokenizer/tokenizer_config.json", "val-00002.bin")
    right = {name: place.files()[name] for name in names}
    for name in names:
        place.put(name, right[name][:-1] + b" ")
    with pytest.raises(
        TransientError, match=r"tokenizer_config\.json: expected digest .* \(2 such files, thrown away\)"
    ):
        pull(place.url, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for name in names:
        place.put(name, right[name])
    (tmp_path / "out.partial" / "left over").write_bytes(b"")
    assert directory_bytes(pull(place.url, tmp_path / "out")) == directory_bytes(built)


def test_what_is_incomplete_or_not_there_is_one_line(built: Path, place: Place, tmp_path: Path) -> None:
    place.put("train-00000.bin", b"begun")
    with pytest.raises(InputError, match=r"no manifest\.json, so no complete set is there"):
        pull(place.url, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
    push(built, place.url)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists and isn't this set; choose another --out"):
        pull(place.url, tmp_path / "out")
    with pytest.raises(InputError, match=r"can't write here: .*; choose another"):
        pull(place.url, built / "manifest.json" / "set")


def test_a_manifest_whose_names_lead_elsewhere_is_refused(built: Path, place: Place, tmp_path: Path) -> None:
    push(built, place.url)
    content = json.loads((built / "manifest.json").read_bytes())
    content["other_files"][0]["name"] = "../../evil"
    content["fingerprint"] = _fingerprint(content)
    place.put("manifest.json", json.dumps(content).encode())
    with pytest.raises(InputError, match="evil"):
        pull(place.url, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("place", URLS[:1], indirect=True)
def test_a_copy_that_broke_off_goes_on_with_the_files_that_are_missing(
    built: Path, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(built, place.url)
    (tmp_path / "out.partial" / "tokenizer").mkdir(parents=True)
    for name in ("tokenizer/tokenizer.json", "train-00000.bin", "val-00000.idx"):
        shutil.copy(built / name, tmp_path / "out.partial" / name)
    (tmp_path / "out.partial" / "train-00001.bin.tmp").write_bytes(b"begun")
    lines: list[str] = []
    copied: list[int] = []
    pull(place.url, tmp_path / "out", notice=lines.append, progress=copied.append)
    assert "3 files of it here already" in lines[0]
    assert len(copied) == len(directory_bytes(built)) - 3 - 1  # and the manifest
    assert directory_bytes(tmp_path / "out") == directory_bytes(built)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"more are needed, 1.00 kB are free; make room"):
        pull(place.url, tmp_path / "another")


@pytest.mark.parametrize("place", URLS[:1], indirect=True)
def test_of_processes_that_begin_at_once_one_copies_and_the_others_wait(
    built: Path, place: Place, tmp_path: Path
) -> None:
    """As the ranks of a training do."""
    push(built, place.url)
    code = f"""
import time
from shards.share.pull import pull
from shards.share.remote import StoreFolder
fetch = StoreFolder.fetch
StoreFolder.fetch = lambda *given, **options: (print("fetched", flush=True), time.sleep(1), fetch(*given, **options))
print(pull({place.url!r}, notice=print), flush=True)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert sum("fetched" in output for output in outputs) == 1
    (path,) = {Path(output.splitlines()[-1]) for output in outputs}
    assert verify(path) == []


@pytest.mark.parametrize("place", URLS[3:4], indirect=True)
def test_what_a_hub_shows_of_a_set(built: Path, place: Place, hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    """A private repository, the manifest in a commit after all files, and a card that is theirs once they changed it."""
    push(built, place.url)
    commits = hub.commits["datasets/org/set"]
    assert "a/manifest.json" not in commits[-2] and len(commits[-1]) == len(commits[-2]) + 2
    card = commits[-1]["a/README.md"].decode()
    for part in (
        "| train | 3 | 60 | 9 |",
        "`words`, 100 entries",
        read_manifest(built).fingerprint,
        "shards pull hf://datasets/org/set/a --out data/shards/a",
    ):
        assert part in card
    push(write_set(tmp_path / "newer", seed=9), place.url, force=True)
    assert read_manifest(tmp_path / "newer").fingerprint in hub.files("datasets/org/set")["a/README.md"].decode()
    place.put("README.md", b"My own words")
    push(built, place.url, force=True)
    assert hub.files("datasets/org/set")["a/README.md"] == b"My own words"


@pytest.mark.parametrize("place", URLS[3:4], indirect=True)
def test_a_push_that_can_t_be_right_is_one_line(built: Path, place: Place, hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    for url, message in {
        "data/shards/set": "expected a URL such as hf://",
        "hf://org/model": "expected a data set, such as hf://datasets/USER/NAME/FOLDER",
    }.items():
        with pytest.raises(InputError, match=message):
            push(built, url)
    hub.ignored = ".idx"
    with pytest.raises(InputError, match=r"train-00000\.idx: expected .* found no such file; does a \.gitignore"):
        push(built, place.url)
    assert "a/manifest.json" not in hub.files("datasets/org/set")
    hub.ignored = "no such suffix"
    damaged = shutil.copytree(built, tmp_path / "damaged")
    (damaged / "val-00000.bin").write_bytes(bytes(len((built / "val-00000.bin").read_bytes())))
    with pytest.raises(InputError, match=r"val-00000\.bin"):
        push(damaged, place.url)


def test_the_commands(built: Path, hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    variables = {"env": environment(hub, tmp_path)}
    url, out = "hf://datasets/org/set/a", tmp_path / "out"
    for expected in ("complete", "up to date"):
        pushed = run_module("shards", "push", built, url, **variables)
        assert (pushed.returncode, pushed.stdout) == (0, f"{url}: {expected}\n"), pushed.stderr
    pulled = run_module("shards", "pull", url, "--out", out, **variables)
    assert (pulled.returncode, pulled.stdout) == (0, f"{out}\n"), pulled.stderr
    assert len(pulled.stderr.splitlines()) == 1 and os.listdir(out)
    assert_one_error_line(
        run_module("shards", "pull", "hf://datasets/org/none", **variables), "no such repository there"
    )


def test_a_line_is_not_printed_over_the_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from shards.__main__ import run_pull
    from shards.share import pull as pull_module

    def talk(
        _url: str, _out: object, *, notice: Callable[[str], None], progress: Callable[[int], None], **_: Any
    ) -> str:
        progress(1000)
        notice("another process copies it")
        return "out"

    monkeypatch.setattr(pull_module, "pull", talk)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    run_pull(SimpleNamespace(url="s3://b/a", out=None))  # type: ignore[arg-type]
    assert re.search(r"copying: .*\r *\ranother process copies it\n", capsys.readouterr().err)
