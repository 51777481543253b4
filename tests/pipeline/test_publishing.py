"""A kill at any instant loses no finished unit and no set, and the next run ends in the bytes of an undisturbed one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.outputs.local import LocalOutput
from shards.verify import verify
from tests.conftest import directory_bytes, sample_records, write_corpus
from tests.pipeline.building import Builder, Killed, killed_at, killed_before_publishing, stored

pytestmark = pytest.mark.usefixtures("inline_engine")
# What changes a disk. `pathlib` and `shutil` call these too.
SYSTEM_CALLS = [(os, name) for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "open")]
# What changes an object store.
REQUESTS = [(MemoryFileSystem, name) for name in ("pipe_file", "put_file", "rm_file")]
OPTIONS: dict[str, Any] = {"unit_bytes": 6_000, "dedup": "exact", "on_bad_record": "skip"}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.json", [*sample_records()[:5], {"text": 5}, *sample_records()[:2]])


@pytest.mark.parametrize("replaces", [False, True])
def test_a_kill_at_each_system_call_of_publishing_loses_nothing(
    tmp_path: Path, corpus: Path, run: Builder, replaces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either set is complete at every instant, or all finished units are there; the next run reads nothing again."""
    run(corpus, tmp_path / "whole", **OPTIONS)
    whole, begun = directory_bytes(tmp_path / "whole"), tmp_path / "begun"
    if replaces:
        run(corpus, tmp_path / "older", **OPTIONS, seed=7)
        shutil.copytree(tmp_path / "older", begun / "set")
    options = {**OPTIONS, "force": replaces}
    with killed_before_publishing():
        run(corpus, begun / "set", **options)
    num_units = len(list((begun / "set.partial" / "receipts").glob("*.json")))
    publish = LocalOutput.publish
    for number in range(200):
        there = tmp_path / f"killed at {number}"
        shutil.copytree(begun, there)
        out = there / "set"

        def publish_killed(self: LocalOutput, directory: Path, number: int = number) -> None:
            with killed_at(number, SYSTEM_CALLS) as seen:
                publish(self, directory)
            assert len(seen) <= number

        with monkeypatch.context() as patch:
            patch.setattr(LocalOutput, "publish", publish_killed)
            try:
                run(corpus, out, **options)
                killed = False
            except Killed:
                killed = True
        (there / ".set.lock").unlink(missing_ok=True)
        is_there, is_new = out.exists(), out.exists() and directory_bytes(out) == whole
        assert not is_there or verify(out) == []
        if killed:
            result = run(corpus, out, **options)
            if is_there != is_new or not (is_there or replaces):  # an older set is in its place, or none was
                assert result.num_units_reused == num_units > 1
        assert directory_bytes(out) == whole
        assert [path.name for path in there.iterdir()] == ["set"]
        if not killed:
            assert number > 20
            return
    raise AssertionError("publishing never ended")


def test_what_a_power_failure_takes_is_not_counted_on(
    tmp_path: Path, corpus: Path, run: Builder, not_flushed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receipt comes after its unit's shards, the set's name after all of the set, the end of the state after that."""
    rename, replace, remove, out = os.rename, os.replace, LocalOutput._remove_partial, tmp_path / "set"
    lost: list[str] = []

    def renamed(source: Path, target: Path) -> None:
        lost.extend(not_flushed(source))
        rename(source, target)

    def replaced(source: Path, target: Path) -> None:
        if target.parent.name == "receipts" and target.suffix == ".json":
            lost.extend(not_flushed(out.with_name("set.partial") / "set"))
        replace(source, target)

    def removed(self: LocalOutput) -> None:
        lost.extend(one for one in not_flushed(tmp_path) if one == str(tmp_path))
        remove(self)

    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(LocalOutput, "_remove_partial", removed)
    run(corpus, out, **OPTIONS)
    assert lost == [] and verify(out) == []


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("is_remote", [False, True])
def test_a_kill_at_any_call_of_a_build(
    tmp_path: Path, memory: Any, corpus: Path, run: Builder, is_remote: bool, force: bool
) -> None:
    """Each run is killed a little later than the one before, which it continues, or begins anew."""
    options = OPTIONS | {"unit_bytes": 2_000}
    run(corpus, tmp_path / "whole", **options)
    out, calls = ("memory://bucket/set", REQUESTS) if is_remote else (str(tmp_path / "set"), SYSTEM_CALLS)
    if force:
        run(corpus, out, **options, seed=7)
    num_runs = num_finished = 0
    for number in range(0, 2000, 1 if is_remote else 7):
        num_runs += 1
        try:
            with killed_at(number, calls):
                run(corpus, out, **options, force=force)
            break
        except Killed:
            (tmp_path / ".set.lock").unlink(missing_ok=True)
            before, num_finished = (
                num_finished,
                sum(name.endswith(".json") for name in stored(f"{out}.partial/receipts")),
            )
            assert num_finished >= before or force or "manifest.json" in stored(out)
    assert 5 < num_runs < 200
    assert stored(out) == directory_bytes(tmp_path / "whole") and stored(f"{out}.partial") == {}
    assert sorted(path.name for path in tmp_path.glob("*set*")) == ([] if is_remote else ["set"])


@pytest.mark.usefixtures("inline_engine")
def test_of_two_sets_that_a_killed_replacement_has_left_a_whole_one_is_taken(tmp_path: Path, run: Builder) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", sample_records()[:20]), tmp_path / "set"
    run(corpus, out)
    old, new = tmp_path / "set.partial" / "replaced", tmp_path / "set.partial" / "set"
    for damaged in (False, True):
        shutil.copytree(out, new)
        shutil.move(out, old)
        expected = (old if damaged else new).stat().st_ino
        if damaged:
            (new / "train-00000.bin").write_bytes(b"")
        LocalOutput(out).existing()
        assert out.stat().st_ino == expected
        shutil.rmtree(out.with_name("set.partial"))


def test_what_a_killed_worker_has_left_goes_when_the_build_goes_on(tmp_path: Path) -> None:
    output = LocalOutput(tmp_path / "set")
    for _ in range(2):
        output.prepare(b"{}", replace=False)
        (left := tmp_path / "set.partial" / "scratch").joinpath("tmpleft").mkdir()
        (left / "tmpleft" / "train-00000.bin.tmp").touch()
    output.prepare(b"{}", replace=False)
    assert not any(left.iterdir())
