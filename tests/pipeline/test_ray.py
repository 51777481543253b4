"""The engine `ray` on a real cluster of two nodes: the bytes of the local engine, whatever dies."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs the package ray: pip install '.[ray]'")
pytest.importorskip("s3fs", reason="needs the packages of requirements-dev.lock")
pytest.importorskip("moto.server", reason="needs the packages of requirements-dev.lock")

from pipeline.build import build
from shards.common.errors import InputError
from shards.share.pull import pull
from shards.verify import verify
from tests.conftest import SAMPLE, directory_bytes, sample_records, write_corpus
from tests.hub_server import Hub, hub
from tests.pipeline.ray_cluster import command, finish, start, start_node, two_nodes, write_large_corpus
from tests.pipeline.store import SETTINGS, URL, ill_for, stored_bytes

__all__ = ["hub"]


@pytest.fixture(scope="module")
def cluster(illness: Path) -> Iterator[Any]:
    with two_nodes() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_large_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def expected(corpus: Path, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that the local engine makes."""
    out = tmp_path_factory.mktemp("local") / "set"
    build([str(corpus)], out, tokenizer_name=str(tokenizer_dir), settings=SETTINGS, num_workers=1)
    return directory_bytes(out)


def wait_for_receipts(name: str, number: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if sum(path.endswith(".json") for path in stored_bytes(f"{name}.partial/receipts")) >= number:
            return
        time.sleep(0.1)


def test_the_bytes_of_the_local_engine_on_a_shared_disk(
    tmp_path: Path, tokenizer_dir: Path, corpus: Path, expected: dict[str, bytes], cluster: Any
) -> None:
    result = finish(command(corpus, str(tmp_path / "set"), tokenizer_dir, cluster.address))
    assert result.returncode == 0, result.stderr
    assert directory_bytes(tmp_path / "set") == expected
    assert verify(tmp_path / "set") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
    bad = write_corpus(tmp_path / "bad.json", [*sample_records(), {"text": 7}])
    failed = finish(command(bad, str(tmp_path / "bad"), tokenizer_dir, cluster.address))
    assert failed.returncode == 2 and "Traceback" not in failed.stderr
    assert "field 'text': expected a string, found a number" in failed.stderr


def test_the_bytes_of_the_local_engine_in_a_commit_on_a_hub(
    hub: Hub,
    tmp_path: Path,
    tokenizer_dir: Path,
    corpus: Path,
    expected: dict[str, bytes],
    cluster: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The units' files come back to the machine of the command."""
    hub.lists_files, hub.token = True, "hf_right"
    hub.put("datasets/org/name", "README.md", b"# A data set")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = finish(command(corpus, "hf://datasets/org/name/zh", tokenizer_dir, cluster.address))
    assert result.returncode == 0, result.stderr
    files = hub.files("datasets/org/name")
    assert {name.removeprefix("zh/"): content for name, content in files.items() if name != "README.md"} == expected
    assert len(hub.commits) == 1 and list((tmp_path / "cache" / "tokenize-once" / "uploads").iterdir()) == []


@pytest.mark.slow
def test_a_node_that_is_killed_in_the_middle_changes_no_byte(
    tmp_path: Path, tokenizer_dir: Path, corpus: Path, expected: dict[str, bytes], cluster: Any
) -> None:
    lost = start_node(cluster, num_cpus=1)
    process = start(command(corpus, f"{URL}/node", tokenizer_dir, cluster.address))
    wait_for_receipts("node", 3, process)
    assert process.poll() is None
    cluster.remove_node(lost, allow_graceful=False)
    _output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert stored_bytes("node") == expected
    assert verify(pull(f"{URL}/node", tmp_path / "node")) == []


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on_where_it_was(
    tokenizer_dir: Path, corpus: Path, expected: dict[str, bytes], cluster: Any
) -> None:
    process = start(command(corpus, f"{URL}/driver", tokenizer_dir, cluster.address))
    wait_for_receipts("driver", 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "manifest.json" not in stored_bytes("driver")
    again = finish(command(corpus, f"{URL}/driver", tokenizer_dir, cluster.address))
    assert again.returncode == 0, again.stderr
    assert "units from an earlier run" in again.stdout
    assert stored_bytes("driver") == expected
    assert stored_bytes("driver.partial") == {}


@pytest.mark.slow
def test_a_store_that_is_ill_for_a_while_changes_no_byte(
    tokenizer_dir: Path, corpus: Path, expected: dict[str, bytes], cluster: Any, illness: Path
) -> None:
    process = start(command(corpus, f"{URL}/ill", tokenizer_dir, cluster.address))
    wait_for_receipts("ill", 2, process)
    recovery: threading.Thread = ill_for(illness, 10)
    _output, errors = process.communicate(timeout=400)
    recovery.join()
    assert process.returncode == 0, errors
    assert stored_bytes("ill") == expected


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path, tokenizer_dir: Path) -> None:
    result = finish(command(SAMPLE, str(tmp_path / "set"), tokenizer_dir, "127.0.0.1:1"))
    assert result.returncode == 2, result.stderr
    assert "--ray-address 127.0.0.1:1: can't connect to a Ray cluster there" in result.stderr


def test_without_ray_the_error_says_what_to_install(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install '.\[ray\]'"):
        build([str(SAMPLE)], tmp_path / "set", tokenizer_name=str(tokenizer_dir), settings=SETTINGS, engine="ray")
