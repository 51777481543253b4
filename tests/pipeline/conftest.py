"""What tests of builds share: a builder, an S3 server, a cluster of Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.building import Builder


@pytest.fixture
def run(tokenizer_dir: Path) -> Builder:
    return Builder(tokenizer_dir)


@pytest.fixture(scope="module")
def illness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An object store, and the file that makes it ill while it exists (`tests.pipeline.store`)."""
    from tests.pipeline.store import s3_server

    with s3_server(tmp_path_factory.mktemp("store")) as path:
        yield path


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A cluster of Ray on this machine (`tests.pipeline.ray_cluster`)."""
    from tests.pipeline.ray_cluster import two_nodes

    with two_nodes() as cluster:
        yield cluster
