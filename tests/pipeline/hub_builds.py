"""What the tests of builds to `hf://` share: a repository on a hub on loopback, and the commands."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec", reason="needs the package fsspec")

from pipeline.build import BuildResult, Reporter, build
from tests.conftest import REPOSITORY as PROJECT
from tests.conftest import SAMPLE
from tests.hub_server import Hub
from tests.pipeline.store import SETTINGS

REPOSITORY = "datasets/org/name"
URL = f"hf://{REPOSITORY}/sets/zh"
CARD = b"# A data set\n"


@pytest.fixture(autouse=True)
def repository(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A repository with a card and another folder, and a user who may write there."""
    from huggingface_hub import HfFileSystem

    hub.lists_files, hub.token = True, "hf_right"
    hub.put(REPOSITORY, "README.md", CARD)
    hub.put(REPOSITORY, "photos/1.jpg", b"mine")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    HfFileSystem.clear_instance_cache()
    yield
    HfFileSystem.clear_instance_cache()


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """Where sets lie until the hub has them."""
    return tmp_path / "cache" / "tokenize-once" / "uploads"


class Listener(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def notice(self, line: str) -> None:
        self.lines.append(line)


def run(out: Path | str, tokenizer_dir: Path, *, source: Path = SAMPLE, **options: Any) -> BuildResult:
    options = {"settings": SETTINGS, "num_workers": 1, **options}
    return build([str(source)], out, tokenizer_name=str(tokenizer_dir), **options)


def command(tokenizer_dir: Path, *more: object, out: str = URL) -> list[object]:
    options = ["--tokenizer", tokenizer_dir, "--unit-bytes", "60000", "--block-tokens", "64", "--workers", "1", *more]
    return ["pipeline", "build", SAMPLE, "--out", out, *options]


def uploaded(hub: Hub, folder: str = "sets/zh", revision: str = "main") -> dict[str, bytes]:
    """The files below `folder`, as a reader sees them."""
    files = hub.files(REPOSITORY, revision)
    return {
        path.removeprefix(f"{folder}/"): content for path, content in files.items() if path.startswith(f"{folder}/")
    }


def kinds(hub: Hub) -> list[str]:
    return [line.split()[0] for line in hub.writes]


def start(tokenizer_dir: Path, *more: object) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", *map(str, command(tokenizer_dir, *more))]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_until(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()
