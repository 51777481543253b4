"""Sets to and from hubs and object stores: whole or not there, and every file as the manifest says."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

import shards
from shards.__main__ import main, run_pull
from shards.common.errors import InputError, TransientError
from shards.common.urls import listing, read_bytes, remove, write_bytes
from shards.manifest import read_manifest
from shards.share import pull as pull_module
from shards.share.pull import pull
from shards.share.push import push
from shards.share.remote import StoreFolder
from shards.verify import verify
from tests.conftest import directory_bytes, flip
from tests.hub_server import Hub
from tests.shards.sets import Unit, write_set

URLS = ["memory://bucket/sets/a", "hf://datasets/org/set", "hf://datasets/org/set/a", "ms://datasets/org/set/a"]
one_of_each = pytest.mark.parametrize("place", URLS[::2], indirect=True)
in_a_store = pytest.mark.parametrize("place", URLS[:1], indirect=True)
on_a_hub = pytest.mark.parametrize("place", URLS[2:3], indirect=True)
_OF_HUB = {"README.md", ".gitattributes"}


def set_of(path: Path, num_units: int = 3, first: int = 0) -> Path:
    """A set of a train and a val shard a unit."""
    units: list[Unit] = [{"train": [[first + unit] * 19], "val": [[first + unit] * 19]} for unit in range(num_units)]
    examples = '{"reason": "short", "text": "a"}\n'
    return write_set(path, units, block_tokens=8, rejected={"no text": 1}, examples=examples)


@pytest.fixture
def built(tmp_path: Path) -> Path:
    return set_of(tmp_path / "built")


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
    if url.startswith("memory:"):
        remove(*[f"{url}/{name}" for name in listing(url)])
        return Place(
            url,
            lambda: {name: read_bytes(f"{url}/{name}") or b"" for name in listing(url)},
            lambda name, content: write_bytes(f"{url}/{name}", content),
        )
    served: Hub = request.getfixturevalue("hub")
    for name in ("create_repo", "upload_folder", "delete_files"):
        monkeypatch.setattr(f"modelscope_hub.HubApi.{name}", getattr(ModelScope(served), name))
    folder = "a/" if url.endswith("/a") else ""
    return Place(
        url,
        lambda: {
            name: content
            for path, content in served.files("datasets/org/set").items()
            if path.startswith(folder) and (name := path.removeprefix(folder)) not in _OF_HUB
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
    assert [line.partition(": ")[2].split()[0] for line in lines] == ["putting", "copying"]
    cached = pull(place.url)
    assert cached == tmp_path / "cache" / "tokenize-once" / read_manifest(built).fingerprint[:32]
    assert pull(place.url, notice=lines.append) == cached and len(lines) == 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") or path.suffix == ".partial"]
    opened = shards.open_data(place.url)
    assert isinstance(opened, shards.ShardSet) and opened.path == cached


def test_a_power_failure_takes_nothing_of_a_copy(built: Path, place: Place, tmp_path: Path, not_flushed: Any) -> None:
    push(built, place.url)
    assert not_flushed(pull(place.url, tmp_path / "out")) == []


def test_another_set_is_replaced_when_asked_and_nothing_else(built: Path, place: Place, tmp_path: Path) -> None:
    push(set_of(tmp_path / "older", num_units=5, first=50), place.url)
    place.put("photos/1.jpg", b"mine")
    before = place.files()
    with pytest.raises(InputError, match="another shard set is there; choose another URL, or replace it with --force"):
        push(built, place.url)
    assert place.files() == before
    assert push(built, place.url, force=True)
    assert place.files() == directory_bytes(built) | {"photos/1.jpg": b"mine"}
    assert directory_bytes(pull(place.url, tmp_path / "out")) == directory_bytes(built)


@on_a_hub
def test_a_set_whose_manifest_can_t_be_read_is_replaced_when_asked(built: Path, place: Place) -> None:
    place.put("manifest.json", b'{"format_version": 2}')
    with pytest.raises(InputError, match="expected format version 1, found 2"):
        push(built, place.url)
    assert push(built, place.url, force=True)
    assert place.files() == directory_bytes(built)


def test_the_manifest_goes_first_and_comes_last(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So at each instant whoever sees it sees a whole set."""
    url, events = f"memory://{tmp_path.name}/set", []
    push(built, url)
    for name, place in (("put_file", 1), ("rm_file", 0)):
        original: Callable[..., Any] = getattr(MemoryFileSystem, name)

        def noted(*given: Any, _of: tuple[str, int, Any] = (name, place, original), **options: Any) -> Any:
            events.append(f"{_of[0]} {given[1 + _of[1]].rpartition('/')[2]}")
            return _of[2](*given, **options)

        monkeypatch.setattr(MemoryFileSystem, name, noted)
    push(set_of(tmp_path / "other", num_units=2, first=1), url, force=True)
    assert events[0] == "rm_file manifest.json" and events[-1] == "put_file manifest.json"
    assert sum("manifest.json" in event for event in events) == 2 < len(events)


@one_of_each
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


@one_of_each
def test_what_is_incomplete_or_not_there_is_one_line(built: Path, place: Place, tmp_path: Path) -> None:
    place.put("train-00000.bin", b"begun")
    with pytest.raises(InputError, match=r"no manifest\.json, so no complete set is there"):
        pull(place.url, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
    push(built, place.url)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists and isn't this set; choose another --out"):
        pull(place.url, tmp_path / "out")
    (tmp_path / "other.partial").symlink_to(tmp_path / "out")
    with pytest.raises(InputError, match=r"other\.partial: expected a directory, or nothing there"):
        pull(place.url, tmp_path / "other")
    with pytest.raises(InputError, match=r"can't write here: .*; choose another"):
        pull(place.url, built / "manifest.json" / "set")


@in_a_store
def test_a_broken_copy_goes_on(built: Path, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@in_a_store
def test_a_file_that_is_cut_on_its_way_is_noticed(built: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = StoreFolder.sizes
    monkeypatch.setattr(StoreFolder, "sizes", lambda folder: {**sizes(folder), "val-00000.bin": 1})
    with pytest.raises(InputError, match=r"val-00000\.bin: expected .* bytes there after it was put, found 1"):
        push(built, place.url)
    assert "manifest.json" not in place.files()


@in_a_store
def test_of_several_that_begin_at_once_one_copies_and_the_others_wait(built: Path, place: Place) -> None:
    """As the ranks of a training do."""
    push(built, place.url)
    notices: list[str] = []

    def notice(line: str) -> None:
        notices.append(line)
        time.sleep(0.2)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: pull(place.url, notice=notice), range(3)))
    assert sum("copying" in line for line in notices) == 1 and len(notices) > 1
    assert verify(pull(place.url)) == []


@on_a_hub
def test_what_a_hub_shows_of_a_set(built: Path, place: Place, hub: Hub, tmp_path: Path) -> None:
    """A private repository, the manifest in a commit after all files, and a card that is theirs once they changed it."""
    push(built, place.url)
    commits = hub.commits["datasets/org/set"]
    assert "a/manifest.json" not in commits[-2] and len(commits[-1]) == len(commits[-2]) + 2
    card, fingerprint = commits[-1]["a/README.md"].decode(), read_manifest(built).fingerprint
    command = "shards pull hf://datasets/org/set/a --out data/shards/a"
    assert all(part in card for part in ("| train | 3 | 60 | 9 |", "`bytes`, 257 entries", fingerprint, command))
    push(set_of(tmp_path / "newer", first=9), place.url, force=True)
    assert read_manifest(tmp_path / "newer").fingerprint in hub.files("datasets/org/set")["a/README.md"].decode()
    place.put("README.md", b"My own words")
    push(built, place.url, force=True)
    assert hub.files("datasets/org/set")["a/README.md"] == b"My own words"


@on_a_hub
def test_a_push_that_can_t_be_right_is_one_line(built: Path, place: Place, hub: Hub, tmp_path: Path) -> None:
    for url, message in (
        ("data/shards/set", "expected a URL such as hf://"),
        ("hf://org/model", "expected a data set, such as hf://datasets/USER/NAME/FOLDER"),
    ):
        with pytest.raises(InputError, match=message):
            push(built, url)
    with pytest.raises(InputError, match=r"^data/shards/set: expected a URL such as hf://"):
        pull("data/shards/set", tmp_path / "pulled")
    hub.ignored = ".idx"
    with pytest.raises(InputError, match=r"train-00000\.idx: expected .* found no such file; does a \.gitignore"):
        push(built, place.url)
    assert "a/manifest.json" not in hub.files("datasets/org/set")
    hub.ignored = "no such suffix"
    damaged = shutil.copytree(built, tmp_path / "damaged")
    flip(damaged / "val-00000.bin")
    with pytest.raises(InputError, match=r"val-00000\.bin"):
        push(damaged, place.url)


def test_push_and_pull(
    built: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, out = "hf://datasets/org/set/a", tmp_path / "out"
    for expected in ("complete", "up to date"):
        assert main(["push", str(built), url]) == 0
        assert capsys.readouterr().out == f"{url}: {expected}\n"
    assert main(["pull", url, "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{out}\n" and len(shown.err.splitlines()) == 1 and os.listdir(out)

    def talk(*_arguments: object, notice: Callable[[str], None], progress: Callable[[int], None], **_: Any) -> str:
        progress(1000)
        notice("another process copies it")
        return "out"

    monkeypatch.setattr(pull_module, "pull", talk)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    run_pull(SimpleNamespace(url="s3://b/a", out=None))  # type: ignore[arg-type]
    # The line isn't printed over the bar.
    assert re.search(r"copying: .*\r *\ranother process copies it\n", capsys.readouterr().err)
