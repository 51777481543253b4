"""Files and sets appear whole and flushed or not at all, whatever was left there, and one process works at a path."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shards
from shards.common.errors import InputError
from shards.common.files import FileLock, atomic_writer, write_atomically
from shards.edit import subset
from shards.index import contiguous_index
from shards.manifest import Packing, write_manifest
from shards.packing import PACKERS
from shards.set_writer import new_directories
from shards.verify import verify
from shards.writer import ShardWriter
from tests.conftest import directory_bytes
from tests.shards.sets import EOS, PACKINGS, names_in


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was flushed and renamed, in order: `flush file`, `flush directory`, and new names."""
    found: list[str] = []
    rename, fsync = os.rename, os.fsync

    def noted(old: Path, new: Path) -> None:
        found.append(new.name)
        rename(old, new)

    def flushed(descriptor: int) -> None:
        found.append("flush directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "flush file")
        fsync(descriptor)

    monkeypatch.setattr(os, "rename", noted)
    monkeypatch.setattr(os, "replace", noted)
    monkeypatch.setattr(os, "fsync", flushed)
    return found


def test_a_file_is_flushed_before_it_gets_its_name(built_set: Path, tmp_path: Path, events: list[str]) -> None:
    write_atomically(tmp_path / "a", b"content")
    assert events == ["flush file", "a", "flush directory"]
    assert (tmp_path / "a").read_bytes() == b"content" and names_in(tmp_path) == ["a"]
    events.clear()
    with pytest.raises(KeyboardInterrupt), atomic_writer(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert events == [] and (tmp_path / "a").read_bytes() == b"content" and names_in(tmp_path) == ["a"]
    with atomic_writer(tmp_path / "b", flush_parent=False):
        pass
    assert events == ["flush file", "b"]
    events.clear()
    write_manifest(tmp_path, shards.open(built_set).manifest)
    assert events == ["flush directory", "flush file", "manifest.json", "flush directory"]


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_shard_appears_whole_and_flushed_or_not_at_all(tmp_path: Path, packing: Packing, events: list[str]) -> None:
    tokens, lengths = np.array([1, 2, EOS], dtype=np.uint32), np.array([3])
    for finishes in (False, True):
        with ShardWriter(tmp_path, "train", 0, block_tokens=2) as writer:
            packer = PACKERS[packing](writer, EOS)
            packer.add(tokens, lengths, num_text_bytes=2, num_text_chars=2)
            assert not list(tmp_path.glob("*.bin"))
            entry = packer.finish() if finishes else None
        assert (entry is not None) == bool(names_in(tmp_path)) == finishes
    assert events == ["flush file", "train-00000.bin", "flush file", "train-00000.idx"]
    assert names_in(tmp_path) == ["train-00000.bin", "train-00000.idx"]


def test_a_write_that_takes_a_part_is_followed_by_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of more than 2 GiB does."""

    class Short(io.FileIO):
        def write(self, content: Any) -> int:
            return super().write(content[:5])

    monkeypatch.setattr("shards.writer.open", lambda path, *_mode, **_more: Short(path, "w"), raising=False)
    with ShardWriter(tmp_path, "train", 0, block_tokens=2) as writer:
        writer.write(np.arange(10, dtype=np.uint32))
        writer.finish(contiguous_index(np.array([10])), num_text_bytes=0, num_text_chars=0)
    assert np.fromfile(tmp_path / "train-00000.bin", "<u4").tolist() == list(range(10))


def test_the_lock_names_who_holds_it_and_goes_at_the_end(tmp_path: Path) -> None:
    with FileLock(tmp_path / "x", "busy"):
        with pytest.raises(InputError, match=rf"x: busy \(process {os.getpid()}\)"), FileLock(tmp_path / "x", "busy"):
            raise AssertionError
        with FileLock(tmp_path / "y", "busy"):
            assert names_in(tmp_path) == [".x.lock", ".y.lock"]
    assert names_in(tmp_path) == []


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / ".x.lock").write_text("999999\n")  # what one that was killed has left
    child = os.fork()
    if child == 0:
        FileLock(tmp_path / "x", "busy").__enter__()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (tmp_path / ".x.lock").exists()
    with FileLock(tmp_path / "x", "busy"):
        assert (tmp_path / ".x.lock").read_text() == f"{os.getpid()}\n"


def test_a_lock_removed_while_it_was_waited_for_is_taken_anew(tmp_path: Path) -> None:
    """The waiting one got the old file's lock, when the old file was gone: it must lock the one that others will see."""
    first, waits, order = FileLock(tmp_path / "x", "busy"), threading.Event(), []

    def wait() -> None:
        with FileLock(tmp_path / "x", "busy", wait=waits.set):
            with pytest.raises(InputError, match="busy"), FileLock(tmp_path / "x", "busy"):
                order.append("third")
            order.append("second")

    with first:
        thread = threading.Thread(target=wait)
        thread.start()
        assert waits.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"] and names_in(tmp_path) == []


# ---- new sets ----


def test_it_appears_only_when_the_block_ends(tmp_path: Path, events: list[str]) -> None:
    """And replaces none, also not one that another process finished meanwhile."""
    out = tmp_path / "deep" / "new"
    with new_directories([out]) as (directory,):
        (directory / "file").write_text("a")
        assert not out.exists()
        with pytest.raises(InputError, match="another process is writing it"), new_directories([out]):
            raise AssertionError
    assert names_in(out) == ["file"] and events == ["flush directory", "new", "flush directory"]
    with pytest.raises(InputError, match="exists already"), new_directories([out]):
        raise AssertionError
    with pytest.raises(OSError, match="not empty"), new_directories([tmp_path / "other"]):
        shutil.copytree(out, tmp_path / "other")
    assert names_in(out.parent) == ["new"] and names_in(tmp_path) == ["deep", "other"]


@pytest.mark.parametrize("last", ["a", "b", "c"])
def test_several_appear_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str) -> None:
    """Ctrl-C after the rename of any of them: none is left, and signals have the handlers that they had."""
    rename, before = os.rename, signal.getsignal(signal.SIGINT)

    def interrupted(source: Path, target: Path) -> None:
        rename(source, target)
        if Path(target).name == last:
            os.kill(os.getpid(), signal.SIGINT)

    outs = [tmp_path / name for name in "abc"]
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match="c: exists already"), new_directories(outs):
        raise AssertionError
    (tmp_path / "c").rmdir()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", interrupted)
        with new_directories(outs):
            assert signal.getsignal(signal.SIGINT) is before
    assert names_in(tmp_path) == [] and signal.getsignal(signal.SIGINT) is before
    with new_directories(outs):
        pass
    assert names_in(tmp_path) == ["a", "b", "c"]


def test_what_is_not_ours_is_left_alone(own_set: Path, tmp_path: Path) -> None:
    partial = tmp_path / "new.partial"
    own_set.rename(partial)  # a build that was killed while it was published
    before = names_in(partial)
    with pytest.raises(InputError, match="an unfinished build, or not ours"), new_directories([tmp_path / "new"]):
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


def test_where_no_set_can_be_made_is_one_line(own_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own_set)
    for name in ("file", "one.partial"):
        (tmp_path / name).write_text("a")
    (tmp_path / "two.partial").symlink_to(own_set)
    before = directory_bytes(tmp_path)
    for out, expected in (
        (tmp_path / "one", "one.partial: expected a directory, or nothing there; move it elsewhere"),
        (tmp_path / "two", "two.partial: expected a directory, or nothing there; move it elsewhere"),
        (tmp_path / "file" / "new", "can't write here"),
        (tmp_path / "file", "exists already"),
        (own_set / "new", f"lies within the shard set {own_set}"),
        (own_set / "tokenizer" / "new", f"lies within the shard set {own_set}"),
        *((Path(out), "expected the name of a directory to make") for out in (".", "..", "/")),
    ):
        with pytest.raises(InputError, match=expected), new_directories([out]):
            raise AssertionError
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with (
        pytest.raises(InputError, match="can't write here: Function not implemented"),
        new_directories([tmp_path / "new"]),
    ):
        raise AssertionError
    (tmp_path / ".new.lock").unlink()
    assert directory_bytes(tmp_path) == before


def no_locks(_descriptor: int, _operation: int) -> None:
    """As on a file system that has none."""
    raise OSError(errno.ENOSYS, "Function not implemented")
