"""A cluster of Ray on this machine, and builds on it. To be imported after `pytest.importorskip("ray")`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, sample_records, write_corpus
from tests.pipeline.store import SETTINGS


@contextlib.contextmanager
def two_nodes() -> Iterator[Any]:
    """A head without cores, and two nodes of one core each, either of which may be lost."""
    import ray
    from ray.cluster_utils import Cluster

    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(REPOSITORY), prepend=os.pathsep)
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


def write_large_corpus(directory: Path, *, times: int = 6) -> Path:
    """The sample's texts several times, never the same."""
    records = [{"text": record["text"] + str(number)} for number in range(times) for record in sample_records()]
    return write_corpus(directory / "corpus.json", records)


def command(corpus: Path | str, out: str, tokenizer_dir: Path, address: str) -> list[str]:
    options = ["--tokenizer", str(tokenizer_dir), "--unit-bytes", str(SETTINGS.unit_bytes), "--block-tokens", "64"]
    return [
        *(sys.executable, "-m", "pipeline", "build", str(corpus), "--out", out, *options),
        *("--engine", "ray", "--ray-address", address),
    ]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)


def finish(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, cwd=REPOSITORY, check=False)
