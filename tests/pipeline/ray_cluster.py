"""A cluster of Ray on this machine. To be imported after `pytest.importorskip("ray")`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import REPOSITORY


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
