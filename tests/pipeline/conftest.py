"""What tests of builds share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def illness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store, and the file that makes it ill while it exists (`tests.pipeline.store`)."""
    from tests.pipeline.store import s3_server

    with s3_server(tmp_path_factory.mktemp("store")) as path:
        yield path
