"""A new set appears whole or not at all, whatever an earlier attempt has left, and whoever else writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from shards.new_set import new_directory

import shards
from shards.common.errors import InputError
from shards.verify import verify
from tests.conftest import assert_one_error_line, run_module


def test_it_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "new"
    with new_directory(out) as directory:
        (directory / "file").write_text("a")
        assert not out.exists()
        with pytest.raises(InputError, match="another process is writing it"), new_directory(out):
            raise AssertionError
    assert [path.name for path in out.iterdir()] == ["file"]
    with pytest.raises(InputError, match="exists already"), new_directory(out):
        raise AssertionError
    assert [path.name for path in out.parent.iterdir()] == ["new"]


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "new") as directory:
        (directory / "file").write_text("a")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_one_that_another_process_finished_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new"
    checks: list[int] = []

    def appear(descriptor: int, operation: int) -> None:
        if not checks:
            out.mkdir()
            (out / "theirs").write_text("a")
        checks.append(operation)

    monkeypatch.setattr("shards.new_set.fcntl.flock", appear)
    with pytest.raises(InputError, match="exists already"), new_directory(out):
        raise AssertionError
    assert [path.name for path in out.iterdir()] == ["theirs"]


def test_what_is_not_ours_is_left_alone(built_set: Path, tmp_path: Path) -> None:
    partial = tmp_path / "new.partial"
    shutil.copytree(built_set, partial)  # a build that was killed while it was published
    before = sorted(path.name for path in partial.iterdir())
    with pytest.raises(InputError, match="an unfinished build, or none of ours"), new_directory(tmp_path / "new"):
        raise AssertionError
    assert sorted(path.name for path in partial.iterdir()) == before


def test_leftovers_of_killed_attempts_are_replaced(built_set: Path, tmp_path: Path) -> None:
    out, partial = tmp_path / "new", tmp_path / "new.partial"
    partial.mkdir()
    (partial / ".new-set").touch()
    (partial / "train-00000.bin").write_bytes(b"half")
    subset = ("shards", "subset", built_set, "--documents", "20", "--out", out)
    assert run_module(*subset).returncode == 0
    assert verify(out) == []
    shutil.move(out, partial)  # as if killed just before it was renamed
    assert run_module(*subset).returncode == 0
    assert verify(out) == [] and shards.open(out)["train"].num_documents == 20
    assert not partial.exists()


def test_a_file_in_the_way_is_one_clear_line(built_set: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    for out in (tmp_path / "file" / "new", tmp_path / "file"):
        result = run_module("shards", "subset", built_set, "--documents", "20", "--out", out)
        assert_one_error_line(result, str(out))
