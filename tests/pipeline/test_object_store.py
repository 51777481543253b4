"""Sets in an object store: the bytes of those on a disk, whatever happens, and no file goes that isn't the build's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.outputs.object_store import ObjectStoreOutput
from shards.common.errors import InputError, TransientError
from shards.share.pull import pull
from shards.verify import verify
from tests.conftest import SAMPLE, directory_bytes, sample_records, write_corpus
from tests.pipeline.building import Builder, Killed, killed_at, killed_before_publishing
from tests.pipeline.store import BUCKET, file_system, ill_for, stored_bytes

OPTIONS: dict[str, Any] = {"unit_bytes": 15_000, "dedup": "exact", "on_bad_record": "skip"}
SET = "memory://bucket/set"
# What changes the object store.
CALLS = [(MemoryFileSystem, "pipe_file"), (MemoryFileSystem, "put_file"), (MemoryFileSystem, "rm_file")]


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def held(system: Any, name: str) -> dict[str, bytes]:
    """All files below `bucket/name/`."""
    prefix = f"/bucket/{name}/"
    return {path.removeprefix(prefix): system.cat_file(path) for path in system.store if path.startswith(prefix)}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    inner = [{"text": f"内{number}"} for number in range(1500)]  # units in which no record begins
    records = [*sample_records()[:20], {"refs": inner, "text": "长"}, {"text": 5}, *sample_records()[:9]]
    return write_corpus(tmp_path / "corpus.json", records)


@pytest.fixture
def whole(tmp_path: Path, run: Builder, corpus: Path, inline_engine: None) -> dict[str, bytes]:
    run(corpus, tmp_path / "whole", **OPTIONS)
    return directory_bytes(tmp_path / "whole")


@pytest.mark.parametrize("force", [False, True])
def test_a_kill_at_each_request_of_a_build_changes_no_byte(
    memory: Any, corpus: Path, run: Builder, whole: dict[str, bytes], force: bool
) -> None:
    """Each run is killed at a later request than the one before; each continues the one before."""
    if force:
        run(corpus, SET, **OPTIONS | {"unit_bytes": 5_000})
    for number in range(0, 500, 2):
        try:
            with killed_at(number, CALLS):
                run(corpus, SET, **OPTIONS, force=force)
            break
        except Killed:
            pass
    assert 4 < number < 300
    assert held(memory, "set") == whole and held(memory, "set.partial") == {}


def test_a_kill_at_each_request_of_publishing_loses_nothing(
    memory: Any, corpus: Path, run: Builder, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_before_publishing():
        run(corpus, SET, **OPTIONS)
    begun, publish = dict(memory.store), ObjectStoreOutput.publish
    num_units = sum(name.endswith(".json") for name in held(memory, "set.partial/receipts"))
    for number in range(200):
        memory.store.clear()
        memory.store.update(begun)

        def publish_killed(self: ObjectStoreOutput, directory: Path, number: int = number) -> None:
            with killed_at(number, CALLS):
                publish(self, directory)

        with monkeypatch.context() as patch:
            patch.setattr(ObjectStoreOutput, "publish", publish_killed)
            try:
                run(corpus, SET, **OPTIONS)
                assert number > 10
                return
            except Killed:
                pass
        if "manifest.json" not in held(memory, "set"):
            assert run(corpus, SET, **OPTIONS).statistics.num_units_reused == num_units > 3
        else:
            assert run(corpus, SET, **OPTIONS).up_to_date
        assert held(memory, "set") == whole and held(memory, "set.partial") == {}
    raise AssertionError("publishing never ended")


def test_only_units_whose_files_are_as_they_were_are_used(
    memory: Any, corpus: Path, run: Builder, whole: dict[str, bytes]
) -> None:
    with killed_before_publishing():
        run(corpus, SET, **OPTIONS)
    receipts = sorted(name for name in held(memory, "set.partial/receipts") if name.endswith(".json"))
    shards = sorted(name for name in held(memory, "set") if name.endswith(".bin"))
    content = memory.cat_file(f"/bucket/set/{shards[0]}")
    memory.pipe_file(f"/bucket/set/{shards[0]}", bytes([content[0] ^ 1]) + content[1:])  # same size
    memory.rm_file(f"/bucket/set/{shards[1]}")
    receipt = memory.cat_file(f"/bucket/set.partial/receipts/{receipts[-1]}")
    memory.pipe_file(
        f"/bucket/set.partial/receipts/{receipts[-1]}", receipt.replace(b'"num_empty": 0', b'"num_empty": 1')
    )
    with pytest.raises(InputError, match="--seed was 2333, now 7"):
        run(corpus, SET, **OPTIONS, seed=7)
    assert run(corpus, SET, **OPTIONS).statistics.num_units_reused == len(receipts) - 3 > 0
    assert held(memory, "set") == whole and held(memory, "set.partial") == {}


@pytest.mark.parametrize("state", ["nothing", "a set", "an unfinished build"])
def test_force_removes_only_what_a_manifest_or_receipt_names(
    memory: Any, corpus: Path, run: Builder, whole: dict[str, bytes], state: str
) -> None:
    if state == "a set":
        run(corpus, SET, **OPTIONS, seed=7)
    elif state == "an unfinished build":
        with killed_before_publishing():
            run(corpus, SET, **OPTIONS, seed=7)
    foreign = {
        "set/mine.txt": b"1",
        "set/train-77777.bin": b"2",
        "set/below/mine.txt": b"3",
        "set2/manifest.json": b"4",
    }
    for name, content in foreign.items():
        memory.pipe_file(f"/bucket/{name}", content)
    if state == "nothing":
        for force in (False, True):
            with pytest.raises(InputError, match="files are there that are not a shard set; choose another --out"):
                run(corpus, SET, **OPTIONS, force=force)
    else:
        run(corpus, SET, **OPTIONS, force=True)
        whole |= {name.removeprefix("set/"): content for name, content in foreign.items() if name.startswith("set/")}
        assert held(memory, "set") == whole and held(memory, "set.partial") == {}
    assert {name: memory.cat_file(f"/bucket/{name}") for name in foreign} == foreign
    memory.pipe_file("/bucket/other.partial/mine.txt", b"1")
    with pytest.raises(InputError, match=r"other\.partial/mine\.txt: not of an unfinished build"):
        run(corpus, "memory://bucket/other", **OPTIONS, force=True)


def test_of_two_builds_that_begin_at_once_with_other_inputs_one_is_refused(
    memory: Any, corpus: Path, run: Builder, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_before_publishing():
        run(corpus, "memory://bucket/other", **OPTIONS, seed=7)
    plan = memory.cat_file("/bucket/other.partial/plan.json")
    create_plan = ObjectStoreOutput._create_plan

    def create_second(self: ObjectStoreOutput, own: bytes) -> None:
        memory.pipe_file("/bucket/set.partial/plan.json", plan)
        create_plan(self, own)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStoreOutput, "_create_plan", create_second)
        with pytest.raises(InputError, match="another build with other inputs began at the same time"):
            run(corpus, SET, **OPTIONS)
    assert held(memory, "set") == {}


def test_a_set_whose_files_or_plan_changed_while_it_was_built_is_not_published(
    memory: Any, corpus: Path, run: Builder, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = ObjectStoreOutput.publish
    faults: dict[str, type[InputError]] = {"set/train-00000.bin": TransientError, "set.partial/plan.json": InputError}
    for name, kind in faults.items():

        def publish_without(self: ObjectStoreOutput, directory: Path, name: str = name) -> None:
            memory.rm_file(f"/bucket/{name}")
            publish(self, directory)

        with monkeypatch.context() as patch:
            patch.setattr(ObjectStoreOutput, "publish", publish_without)
            with pytest.raises(kind, match=r"was changed while the set was built|was removed by another build"):
                run(corpus, SET, **OPTIONS)
        assert "manifest.json" not in held(memory, "set")
        memory.store.clear()


@pytest.mark.usefixtures("inline_engine")
def test_sources_and_a_set_on_a_server_give_the_bytes_of_a_disk(
    illness: Path, tmp_path: Path, run: Builder, corpus: Path, whole: dict[str, bytes]
) -> None:
    file_system().put(str(corpus), f"{BUCKET}/corpus/corpus.json")
    run(f"s3://{BUCKET}/corpus", f"s3://{BUCKET}/set", **OPTIONS)
    found = stored_bytes("set")
    assert {name for name in whole if whole[name] != found.get(name)} == {".sources.json", "manifest.json"}
    assert found.keys() == whole.keys() and stored_bytes("set.partial") == {}
    assert verify(pull(f"s3://{BUCKET}/set", tmp_path / "pulled")) == []
    run(corpus, f"s3://{BUCKET}/own", **OPTIONS)
    assert stored_bytes("own") == whole
    assert run(corpus, f"s3://{BUCKET}/own", **OPTIONS).up_to_date
    run(corpus, f"s3://{BUCKET}/own", **OPTIONS, seed=7, force=True)
    run(corpus, f"s3://{BUCKET}/own", **OPTIONS, force=True)
    assert stored_bytes("own") == whole


def test_worker_processes_build_to_a_server_that_is_ill_for_a_while(
    illness: Path, tmp_path: Path, run: Builder, corpus: Path
) -> None:
    run(corpus, tmp_path / "set", **OPTIONS)
    recovery = ill_for(illness, 3)
    run(corpus, f"s3://{BUCKET}/ill", **OPTIONS)
    recovery.join()
    assert stored_bytes("ill") == directory_bytes(tmp_path / "set")


@pytest.mark.parametrize("url", ["nothing://here/set", "s3://no-such-bucket-here/set"])
def test_an_object_store_that_is_not_there_is_one_line(illness: Path, run: Builder, url: str) -> None:
    with pytest.raises(InputError, match=r"here/set"):
        run(SAMPLE, url)
