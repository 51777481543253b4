"""A new set appears whole or not at all, whatever an earlier attempt has left, and whoever else writes."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

import shards
from shards.common.errors import InputError
from shards.edit.parts import subset
from shards.set_writer import new_directories, new_directory
from shards.verify import verify
from tests.shards.sets import names_in


def test_it_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "new"
    with new_directory(out) as directory:
        (directory / "file").write_text("a")
        assert not out.exists()
        with pytest.raises(InputError, match="another process is writing it"), new_directory(out):
            raise AssertionError
    assert names_in(out) == ["file"]
    with pytest.raises(InputError, match="exists already"), new_directory(out):
        raise AssertionError
    assert names_in(out.parent) == ["new"]


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "new") as directory:
        (directory / "file").write_text("a")
        raise KeyboardInterrupt
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("last", ["a", "b", "c"])
def test_several_appear_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str) -> None:
    """Ctrl-C after the rename of any of them: none is left, and signals have the handlers that they had."""
    rename, before = os.rename, signal.getsignal(signal.SIGINT)

    def interrupted(source: Path, target: Path) -> None:
        rename(source, target)
        if Path(target).name == last:
            os.kill(os.getpid(), signal.SIGINT)

    outs = [tmp_path / name for name in "abc"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", interrupted)
        with new_directories(outs):
            assert signal.getsignal(signal.SIGINT) is before
    assert names_in(tmp_path) == [] and signal.getsignal(signal.SIGINT) is before
    with new_directories(outs):
        pass
    assert names_in(tmp_path) == ["a", "b", "c"]


def test_one_of_several_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match="b: exists already"), new_directories([tmp_path / "a", tmp_path / "b"]):
        raise AssertionError
    assert names_in(tmp_path) == ["b"]


def test_one_that_another_process_finished_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def appear(source: Path, target: Path) -> None:
        Path(target).mkdir()
        (Path(target) / "theirs").write_text("a")
        rename(source, target)

    monkeypatch.setattr(os, "rename", appear)
    with pytest.raises(OSError, match="not empty"), new_directory(tmp_path / "new"):
        pass
    assert names_in(tmp_path) == ["new"] and names_in(tmp_path / "new") == ["theirs"]


def test_what_is_not_ours_is_left_alone(own_set: Path, tmp_path: Path) -> None:
    partial = tmp_path / "new.partial"
    own_set.rename(partial)  # a build that was killed while it was published
    before = names_in(partial)
    with pytest.raises(InputError, match="an unfinished build, or not ours"), new_directory(tmp_path / "new"):
        raise AssertionError
    assert names_in(partial) == before


def test_what_killed_attempts_left_is_replaced(built_set: Path, tmp_path: Path) -> None:
    out, partial = tmp_path / "new", tmp_path / "new.partial"
    partial.mkdir()
    (partial / ".new-set").touch()
    (partial / "train-00000.bin").write_bytes(b"half")
    subset(built_set, out, num_documents=20)
    assert verify(out) == []
    shutil.move(out, partial)  # as if killed just before it was renamed
    subset(built_set, out, num_documents=20)
    assert verify(out) == [] and shards.open(out)["train"].num_documents == 20
    assert not partial.exists()


def test_no_set_is_made_within_another(own_set: Path) -> None:
    before = names_in(own_set)
    for out in (own_set / "new", own_set / "tokenizer" / "new"):
        with pytest.raises(InputError, match=f"lies within the shard set {own_set}"), new_directory(out):
            raise AssertionError
    assert names_in(own_set) == before


def test_a_file_in_the_way_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    for out, expected in ((tmp_path / "file" / "new", "can't write here"), (tmp_path / "file", "exists already")):
        with pytest.raises(InputError, match=expected), new_directory(out):
            raise AssertionError
