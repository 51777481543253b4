"""Sets built from and to `gs://` (an emulator) and `oss://` (a server of our own): the bytes of a build on a disk."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec", reason="needs the package fsspec")

import shards
from pipeline import build as build_module
from pipeline import remote_unit
from pipeline.build import BuildResult, build
from pipeline.sources import find_sources
from shards import oss
from shards.common.errors import InputError
from shards.common.urls import exists, listing, read_bytes, write_bytes
from shards.pull import pull
from shards.verify import verify
from tests.conftest import SAMPLE, directory_bytes, run_module, sample_records, write_corpus
from tests.pipeline.store import SETTINGS


@dataclasses.dataclass
class Store:
    url: str
    refuse: Callable[[], contextlib.AbstractContextManager[None]]
    be_ill: Callable[[], None]  # for a moment

    def stored_bytes(self, prefix: str) -> dict[str, bytes]:
        url = f"{self.url}/{prefix}"
        return {name: read_bytes(f"{url}/{name}") or b"" for name in listing(url)}


@contextlib.contextmanager
def _gs(directory: Path) -> Iterator[Store]:
    pytest.importorskip("gcsfs", reason="needs the packages of requirements-s3.lock")
    pytest.importorskip("gcp_storage_emulator", reason="needs the packages of requirements-s3.lock")
    from tests.pipeline.gcs_store import URL, gcs_server

    @contextlib.contextmanager
    def refuse() -> Iterator[None]:
        (directory / "refuses").touch()
        yield
        (directory / "refuses").unlink()

    def be_ill() -> None:
        (directory / "ill").touch()
        threading.Timer(0.3, (directory / "ill").unlink).start()

    with gcs_server(directory):
        yield Store(URL, refuse, be_ill)


@contextlib.contextmanager
def _oss(directory: Path) -> Iterator[Store]:
    pytest.importorskip("ossfs", reason="needs the package ossfs")
    from tests.pipeline.oss_store import URL, oss_server

    with oss_server() as server, pytest.MonkeyPatch.context() as patch:

        @contextlib.contextmanager
        def refuse() -> Iterator[None]:
            server.refuses = True
            yield
            server.refuses = False

        def be_ill() -> None:
            server.num_ill = 3

        patch.setattr(oss, "_PAUSES", (0.01,) * 6)
        yield Store(URL, refuse, be_ill)


STORES = {"gs": _gs, "oss": _oss}


@pytest.fixture(scope="module", params=sorted(STORES))
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with STORES[request.param](tmp_path_factory.mktemp("store")) as store:
        yield store


def run(source: Path | str, out: Path | str, tokenizer_dir: Path, **options: Any) -> BuildResult:
    options = {"settings": SETTINGS, "num_workers": 1, **options}
    return build([str(source)], out, tokenizer_name=str(tokenizer_dir), **options)


@pytest.mark.usefixtures("inline_engine")
def test_a_set_built_from_and_to_a_store_has_the_bytes_of_one_on_a_disk(
    store: Store, tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "inner").mkdir(parents=True)
    write_corpus(corpus / "a.json", [*sample_records(), {"text": 7}])
    lines = "".join(json.dumps(record) + "\n" for record in sample_records()[:40])
    (corpus / "inner" / "b.jsonl").write_text(lines)
    for path in (path for path in corpus.rglob("*") if path.is_file()):
        write_bytes(f"{store.url}/corpus/{path.relative_to(corpus)}", path.read_bytes())
    settings = dataclasses.replace(SETTINGS, on_bad_record="skip", dedup="exact")
    run(corpus, tmp_path / "set", tokenizer_dir, settings=settings)
    run(f"{store.url}/corpus", f"{store.url}/equal", tokenizer_dir, settings=settings)
    expected, found = directory_bytes(tmp_path / "set"), store.stored_bytes("equal")
    assert expected.pop(".sources.json") != found.pop(".sources.json")
    assert found == expected
    assert store.stored_bytes("equal.partial") == {}
    assert verify(pull(f"{store.url}/equal", tmp_path / "pulled")) == []
    assert run(f"{store.url}/corpus", f"{store.url}/equal", tokenizer_dir, settings=settings).up_to_date
    run(f"{store.url}/corpus/a.json", f"{store.url}/equal", tokenizer_dir, settings=settings, force=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened = shards.open_data(f"{store.url}/equal")  # what `train --shards` does
    assert isinstance(opened, shards.ShardSet) and opened.path.parent == tmp_path / "cache" / "tokenize-once"
    assert [source.name for source in find_sources([f"{store.url}/corpus/*/*.jsonl"])] == ["b.jsonl"]


@pytest.mark.usefixtures("inline_engine")
def test_a_build_goes_on_from_receipts_whose_files_are_as_they_were(
    store: Store, tmp_path: Path, tokenizer_dir: Path, kill_after_three_units: Callable[[Callable[[], object]], None]
) -> None:
    kill_after_three_units(lambda: run(SAMPLE, f"{store.url}/resumed", tokenizer_dir))
    before = store.stored_bytes("resumed")
    changed = sorted(name for name in before if name.endswith(".bin"))[0]
    content = before[changed]
    write_bytes(f"{store.url}/resumed/{changed}", bytes([content[0] ^ 1]) + content[1:])  # same size
    write_bytes(f"{store.url}/resumed/train-77777.bin", b"left over")
    store.be_ill()
    assert run(SAMPLE, f"{store.url}/resumed", tokenizer_dir).statistics.num_units_reused == 2
    run(SAMPLE, tmp_path / "whole", tokenizer_dir)
    assert store.stored_bytes("resumed") == directory_bytes(tmp_path / "whole")
    assert store.stored_bytes("resumed.partial") == {}


@pytest.mark.usefixtures("inline_engine")
def test_what_is_not_there_and_what_is_refused_is_one_line(store: Store, tmp_path: Path, tokenizer_dir: Path) -> None:
    elsewhere = store.url.replace("bucket", "nobucket")
    for url in (f"{store.url}/nothing.json", f"{elsewhere}/corpus", f"{elsewhere}/*.json"):
        with pytest.raises(InputError, match="no such file, and no file below it"):
            run(url, tmp_path / "set", tokenizer_dir)
        with pytest.raises(InputError, match="no complete set is there"):
            pull(url)
    with pytest.raises(InputError, match=r"no such bucket .*; make it, or choose another place"):
        run(SAMPLE, f"{elsewhere}/set", tokenizer_dir)
    write_bytes(f"{store.url}/photos/1.jpg", b"mine")
    with pytest.raises(InputError, match="exists and is no shard set"):
        run(SAMPLE, f"{store.url}/photos", tokenizer_dir, force=True)
    assert exists(f"{store.url}/photos/1.jpg") and not exists(f"{store.url}/photos")
    with store.refuse():
        for source, out in ((f"{store.url}/photos", tmp_path / "set"), (SAMPLE, f"{store.url}/photos")):
            with pytest.raises(InputError, match="; check the credentials in the environment"):
                run(source, out, tokenizer_dir)
        for ask in (exists, listing, read_bytes):
            with pytest.raises(InputError, match="; check the credentials in the environment"):
                ask(f"{store.url}/photos/1.jpg")
        result = run_module("shards", "pull", f"{store.url}/set")
        assert result.returncode == 2 and result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")
    assert store.stored_bytes("photos") == {"1.jpg": b"mine"}


@pytest.mark.parametrize("when", ["read", "done"])
def test_a_source_that_is_removed_meanwhile_is_one_line(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = tmp_path / "corpus.json"
    path.write_bytes(SAMPLE.read_bytes())
    name = {"read": "plan_units", "done": "_run_all"}[when]
    function = getattr(build_module, name)

    def remove_behind(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        path.unlink()
        return result

    monkeypatch.setattr(build_module, name, remove_behind)
    with pytest.raises(InputError, match=r"corpus\.json: was removed while it was read; put it back"):
        run(path, tmp_path / "set", tokenizer_dir)


def test_large_files_go_to_oss_in_parts_whatever_the_server_says_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ossfs", reason="needs the package ossfs")
    from tests.pipeline.oss_store import URL, oss_server

    monkeypatch.setenv("HOME", str(tmp_path))  # oss2 notes there which parts are done
    monkeypatch.setattr(oss, "_PAUSES", (0.01,) * 6)
    path = tmp_path / "large"
    path.write_bytes(bytes(3 << 20))
    monkeypatch.setattr("ossfs.core.SIMPLE_TRANSFER_THRESHOLD", 1 << 20)
    monkeypatch.setattr("oss2.defaults.multipart_threshold", 1 << 20)
    monkeypatch.setattr("oss2.defaults.part_size", 1 << 20)
    with oss_server() as server:
        server.num_ill = 2
        assert remote_unit.put_files({path: f"{URL}/large"})[path][0] == 3 << 20
        assert server.files["large"][0] == path.read_bytes()
        assert sum("partNumber" in request for request in server.requests) > 1


def test_oss_without_a_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ossfs", reason="needs the package ossfs")
    monkeypatch.delenv("OSS_ENDPOINT", raising=False)
    with pytest.raises(InputError, match="oss://bucket/set: no server is named; set OSS_ENDPOINT"):
        read_bytes("oss://bucket/set")
