"""A kill at any instant loses no finished unit and no set, and the next run ends in the bytes of an undisturbed one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.outputs.local import LocalOutput
from shards.verify import verify
from tests.conftest import directory_bytes, sample_records, write_corpus
from tests.pipeline.building import Builder, Killed, killed_at, killed_before_publishing

pytestmark = pytest.mark.usefixtures("inline_engine")
# What changes a disk. `pathlib` and `shutil` call these too.
SYSTEM_CALLS = [(os, name) for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "open")]
OPTIONS: dict[str, Any] = {"unit_bytes": 12_000, "dedup": "exact", "on_bad_record": "skip"}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.json", [*sample_records()[:12], {"text": 5}, *sample_records()[:4]])


@pytest.mark.parametrize("replaces", [False, True])
def test_a_kill_at_each_system_call_of_publishing_loses_nothing(
    tmp_path: Path, corpus: Path, run: Builder, replaces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either set is complete at every instant, or all finished units are there; the next run reads nothing again."""
    out, options = tmp_path / "set", {**OPTIONS, "force": replaces}
    run(corpus, tmp_path / "whole", **OPTIONS)
    whole = directory_bytes(tmp_path / "whole")
    if replaces:
        run(corpus, tmp_path / "older", **OPTIONS, seed=7)
        shutil.copytree(tmp_path / "older", out)
    with killed_before_publishing():
        run(corpus, out, **options)
    begun = tmp_path / "begun"
    shutil.copytree(tmp_path / "set.partial", begun / "set.partial")
    num_units = len(list((begun / "set.partial" / "receipts").glob("*.json")))
    if replaces:
        shutil.copytree(out, begun / "set")
    publish = LocalOutput.publish
    for number in range(200):
        for name in ("set", "set.partial"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        shutil.copytree(begun, tmp_path, dirs_exist_ok=True)

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
        (tmp_path / ".set.lock").unlink(missing_ok=True)
        is_there, is_new = out.exists(), out.exists() and directory_bytes(out) == whole
        assert not is_there or verify(out) == []
        if killed:
            result = run(corpus, out, **options)
            if is_there != is_new or not (is_there or replaces):  # an older set is in its place, or none was
                assert result.num_units_reused == num_units > 1
        assert directory_bytes(out) == whole
        assert sorted(path.name for path in tmp_path.glob("*set*")) == ["set"]
        assert not (tmp_path / ".set.lock").exists()
        if not killed:
            assert number > 20
            return
    raise AssertionError("publishing never ended")


@pytest.mark.parametrize("force", [False, True])
def test_a_kill_at_each_system_call_of_a_build_changes_no_byte(
    tmp_path: Path, run: Builder, force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small one, each run of which is killed a little later than the one before; it goes on, or begins anew."""
    corpus = write_corpus(tmp_path / "corpus.json", sample_records()[:4])
    run(corpus, tmp_path / "whole", unit_bytes=2000)
    if force:
        run(corpus, tmp_path / "set", seed=7)
    for number in range(0, 2000, 7):
        try:
            with killed_at(number, SYSTEM_CALLS):
                run(corpus, tmp_path / "set", unit_bytes=2000, force=force)
            break
        except Killed:
            (tmp_path / ".set.lock").unlink(missing_ok=True)
    assert 7 < number < 1000
    assert directory_bytes(tmp_path / "set") == directory_bytes(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.glob("*set*")) == ["set"]
