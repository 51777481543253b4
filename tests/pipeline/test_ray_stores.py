"""The engine ray from and to `gs://` (an emulator) and `oss://` (a server of our own): the bytes of the local engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs the package ray: pip install '.[ray]'")
pytest.importorskip("fsspec", reason="needs the package fsspec")

from pipeline.build import build
from shards.common.urls import listing, read_bytes, write_bytes
from shards.pull import pull
from shards.verify import verify
from tests.conftest import directory_bytes
from tests.pipeline.ray_cluster import command, finish, two_nodes, write_large_corpus
from tests.pipeline.store import SETTINGS
from tests.pipeline.test_more_stores import STORES


@pytest.fixture(scope="module", params=sorted(STORES))
def store_and_cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Any]]:
    """A store's URL and the nodes' cluster, which is started when the environment names the store."""
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(STORES[request.param](tmp_path_factory.mktemp("store")))
        yield store.url, stack.enter_context(two_nodes())


def test_the_bytes_of_the_local_engine(store_and_cluster: tuple[str, Any], tmp_path: Path, tokenizer_dir: Path) -> None:
    url, cluster = store_and_cluster
    corpus = write_large_corpus(tmp_path, times=2)
    build([str(corpus)], tmp_path / "set", tokenizer_name=str(tokenizer_dir), settings=SETTINGS, num_workers=1)
    write_bytes(f"{url}/corpus.json", corpus.read_bytes())
    result = finish(command(f"{url}/corpus.json", f"{url}/by-ray", tokenizer_dir, cluster.address))
    assert result.returncode == 0, result.stderr
    expected = directory_bytes(tmp_path / "set")
    found = {name: read_bytes(f"{url}/by-ray/{name}") for name in listing(f"{url}/by-ray")}
    assert found.pop(".sources.json") != expected.pop(".sources.json")  # a store has no inodes
    assert found == expected
    assert listing(f"{url}/by-ray.partial") == {}
    assert verify(pull(f"{url}/by-ray", tmp_path / "pulled")) == []
