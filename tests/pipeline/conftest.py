"""What tests of builds share: a builder, and an S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.building import Builder


@pytest.fixture
def run(tokenizer_dir: Path) -> Builder:
    return Builder(tokenizer_dir)


@pytest.fixture(scope="module")
def illness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An object store, and the file that makes it ill while it exists (`tests.pipeline.store`)."""
    for package in ("s3fs", "moto.server"):
        pytest.importorskip(package, reason="needs the packages of requirements-dev.lock")
    from tests.pipeline.store import s3_server

    with s3_server(tmp_path_factory.mktemp("store")) as path:
        yield path
