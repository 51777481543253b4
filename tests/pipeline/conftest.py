"""What tests of builds share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def illness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store, and the file that makes it ill while it exists (`tests.pipeline.store`)."""
    from tests.pipeline.store import s3_server

    with s3_server(tmp_path_factory.mktemp("store")) as path:
        yield path


class Killed(BaseException):
    """Nothing cleans up after this."""


@pytest.fixture
def kill_after_three_units(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Runs a build to a store, which is killed when three of its units are there."""
    from pipeline import remote_unit

    def run_and_kill(run: Callable[[], object]) -> None:
        put_files = remote_unit.put_files
        calls: list[object] = []

        def put_three(files: Any) -> Any:
            if len(calls) >= 6:  # two calls a unit: rejected records and shards
                raise Killed
            calls.append(files)
            return put_files(files)

        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(remote_unit, "put_files", put_three)
            run()

    return run_and_kill
