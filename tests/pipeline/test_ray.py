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
pytest.importorskip("s3fs", reason="needs the packages of requirements-s3.lock")
pytest.importorskip("moto.server", reason="needs the packages of requirements-s3.lock")

from pipeline.build import build
from shards.errors import InputError
from shards.pull import pull
from shards.verify import verify
from tests.conftest import REPOSITORY, SAMPLE, directory_bytes, sample_records, write_corpus
from tests.hub_server import Hub, hub
from tests.pipeline.store import SETTINGS, URL, ill_for, stored_bytes

__all__ = ["hub"]


@pytest.fixture(scope="module")
def cluster(illness: Path) -> Iterator[Any]:
    """A head without cores, and two nodes of one core each, either of which may be lost."""
    import ray
    from ray.cluster_utils import Cluster

    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(REPOSITORY))
    patch.setenv("RAY_worker_register_timeout_seconds", "300")  # a busy machine takes its time
    cluster = Cluster()
    try:
        start_node(cluster, num_cpus=0, include_dashboard=False)
        for _ in range(2):
            start_node(cluster, num_cpus=1)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        patch.undo()


def start_node(cluster: Any, **options: Any) -> Any:
    """On a machine that does much else, a node may miss Ray's 30 seconds."""
    for _ in range(2):
        try:
            return cluster.add_node(**options)
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    pytest.skip("this machine is too busy: no node of Ray starts within 30 seconds")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [{"text": record["text"] + str(number)} for number in range(6) for record in sample_records()]
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.json", records)


@pytest.fixture(scope="module")
def expected(corpus: Path, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that the local engine makes."""
    out = tmp_path_factory.mktemp("local") / "set"
    build([str(corpus)], out, tokenizer_name=str(tokenizer_dir), settings=SETTINGS, num_workers=1)
    return directory_bytes(out)


def command(corpus: Path, out: str, tokenizer_dir: Path, address: str) -> list[str]:
    options = ["--tokenizer", str(tokenizer_dir), "--unit-bytes", str(SETTINGS.unit_bytes), "--block-tokens", "64"]
    return [
        *(sys.executable, "-m", "pipeline", "build", str(corpus), "--out", out, *options),
        *("--engine", "ray", "--ray-address", address),
    ]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)


def finish(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, cwd=REPOSITORY, check=False)


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
