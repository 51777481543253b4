"""No damaged set passes, and each fault is one line that names the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

import shards
from shards import verify as verify_module
from shards.common.errors import InputError
from shards.verify import verify
from tests.conftest import assert_one_error_line, run_module
from tests.shards.sets import EOS, flip_a_bit, forge, write_set


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0\0\0\0")


def first(directory: Path, pattern: str) -> Path:
    return sorted(directory.glob(pattern))[0]


def swap(left: Path, right: Path) -> None:
    content = left.read_bytes()
    left.write_bytes(right.read_bytes())
    right.write_bytes(content)


def link_a_shard(directory: Path) -> None:
    path = first(directory, "train-*.bin")
    path.rename(directory.parent / "elsewhere.bin")
    path.symlink_to(directory.parent / "elsewhere.bin")


def make_directory(directory: Path) -> None:
    path = first(directory, "train-*.bin")
    path.unlink()
    path.mkdir()


def edit_tokens(directory: Path, edit: Callable[[np.ndarray], None], *, signs: bool) -> None:
    """Change the first shard's tokens; with `signs`, its digest too."""
    path = first(directory, "train-*.bin")
    tokens = np.fromfile(path, "<u4")
    edit(tokens)
    tokens.tofile(path)
    if signs:
        digest = blake3(path.read_bytes()).hexdigest()
        forge(directory, lambda content: content["shards"][0].update(digest=digest))


def set_token(position: int, value: int) -> Callable[[np.ndarray], None]:
    return lambda tokens: tokens.__setitem__(position, value)


def move_eos(tokens: np.ndarray) -> None:
    position = int(np.flatnonzero(tokens == EOS)[0])
    tokens[[position, position + 1]] = tokens[[position + 1, position]]


Damage = Callable[[Path], object]
# Damage that sizes and names show.
VISIBLE: dict[str, tuple[Damage, str]] = {
    "bin truncated": (lambda d: truncate(first(d, "*.bin")), "truncated: the manifest says"),
    "bin extended": (lambda d: extend(first(d, "*.bin")), "too long: the manifest says"),
    "bin missing": (lambda d: first(d, "*.bin").unlink(), "no such file; the set is incomplete"),
    "bin of zero length": (lambda d: first(d, "*.bin").write_bytes(b""), "truncated"),
    "bin a directory": (make_directory, "expected a regular file, found something else"),
    "a link to another file": (link_a_shard, "a symbolic link"),
    "idx truncated": (lambda d: truncate(first(d, "*.idx")), "truncated"),
    "idx missing": (lambda d: first(d, "*.idx").unlink(), "no such file"),
    "manifest cut short": (lambda d: truncate(d / "manifest.json"), "not valid JSON"),
    "manifest missing": (lambda d: (d / "manifest.json").unlink(), "no manifest.json"),
    "tokenizer changed": (lambda d: flip_a_bit(d / "tokenizer" / "tokenizer.json"), "tokenizer.json: expected digest"),
    "configuration changed": (
        lambda d: extend(d / "tokenizer" / "tokenizer_config.json"),
        "tokenizer_config.json: expected digest",
    ),
    "tokenizer missing": (lambda d: (d / "tokenizer" / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
    "tokenizer of another digest": (
        lambda d: forge(d, lambda content: content["tokenizer"].update(sha256="0" * 64)),
        "expected sha256 0000",
    ),
    "an unknown file": (lambda d: (d / "notes.txt").write_text("x"), "notes.txt: not part of this set"),
    "an unknown shard": (lambda d: (d / "train-09999.bin").write_bytes(b""), "train-09999.bin: not part of this set"),
    "an unknown directory": (lambda d: (d / "more").mkdir(), "more: not part of this set"),
    "an unknown file of the tokenizer": (
        lambda d: (d / "tokenizer" / "merges.txt").write_text("x"),
        "tokenizer/merges.txt: not part of this set",
    ),
}
# Damage that only reading shows.
HIDDEN: dict[str, tuple[Damage, str]] = {
    "bin bit flipped": (lambda d: flip_a_bit(first(d, "train-*.bin")), "bin: expected digest"),
    "idx bit flipped": (lambda d: flip_a_bit(first(d, "*.idx")), "idx: expected digest"),
    "bins swapped": (lambda d: swap(d / "train-00000.bin", d / "train-00001.bin"), "bin: expected digest"),
    "indexes swapped": (lambda d: swap(d / "train-00000.idx", d / "train-00001.idx"), "idx: expected digest"),
    "an id beyond the vocabulary": (
        lambda d: edit_tokens(d, set_token(3, EOS + 1), signs=False),
        "train-00000.bin: offset 12: expected ids below 257, found 257",
    ),
    # With the right digests: the structure is checked by itself.
    "an EOS moved": (lambda d: edit_tokens(d, move_eos, signs=True), "no EOS at a document's end"),
    "an EOS inside": (lambda d: edit_tokens(d, set_token(2, EOS), signs=True), "offset 8: EOS inside a document"),
    "padding of another id": (lambda d: edit_tokens(d, set_token(-1, 5), signs=True), "expected EOS exactly where"),
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A set of shards of one size, so that they can be exchanged unnoticed."""
    units = [{"train": [[unit + 1] * (9 + unit), [2] * (10 - unit)]} for unit in range(3)] + [{"val": [[3] * 12]}]
    return write_set(tmp_path / "set", units, rejected={"no text": 1})  # type: ignore[arg-type]


def test_a_whole_set_passes(built_set: Path, own: Path) -> None:
    for directory in (built_set, own):
        done: list[int] = []
        assert verify(directory, progress=done.append) == verify(directory, quick=True) == []
        assert sum(done) == shards.open(directory).manifest.num_bytes
    (own / ".sources.json").write_text("{}")  # what a build may leave there
    assert verify(own) == []


@pytest.mark.parametrize("name", [*VISIBLE, *HIDDEN])
def test_no_damaged_set_passes(own: Path, name: str) -> None:
    damage, expected = (VISIBLE | HIDDEN)[name]
    damage(own)
    faults = verify(own)
    assert any(expected in fault for fault in faults), faults
    assert all("\n" not in fault for fault in faults)
    assert bool(verify(own, quick=True)) == (name in VISIBLE)


@pytest.mark.parametrize("name", ["bin truncated", "idx missing", "manifest cut short", "a link to another file"])
def test_a_damaged_set_does_not_open(own: Path, name: str) -> None:
    VISIBLE[name][0](own)
    with pytest.raises(InputError):
        shards.open(own)


def test_every_fault_is_reported(own: Path) -> None:
    for damage in ("bin missing", "idx bit flipped", "an unknown file", "tokenizer changed"):
        (VISIBLE | HIDDEN)[damage][0](own)
    (own / "rejected.jsonl").write_text("")
    faults = verify(own)
    for part in (
        "train-00000.bin: no such",
        "notes.txt: not part",
        "tokenizer.json: expected",
        "rejected.jsonl: expec",
    ):
        assert sum(part in fault for fault in faults) == 1, faults


def test_documents_may_hold_eos_where_special_tokens_are_parsed(tmp_path: Path) -> None:
    written = [[1, EOS, 2], [EOS]]
    assert verify(write_set(tmp_path / "a", [{"train": written}], settings={"special_tokens": "parse"})) == []
    (fault,) = verify(write_set(tmp_path / "b", [{"train": written}]))
    assert "train-00000.bin: offset 4: EOS inside a document" in fault


def test_faults_are_found_in_every_chunk(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "_CHUNK_TOKENS", 5)
    assert verify(own) == []
    for position in (4, 5, 19):
        edit_tokens(own, set_token(position, 300), signs=True)
        (fault,) = verify(own)
        assert f"offset {position * 4}: expected ids below 257, found 300" in fault
        edit_tokens(own, set_token(position, 2), signs=True)


def test_the_command_line_names_the_fault_with_status_2(own_set: Path) -> None:
    shown = run_module("shards", "verify", own_set)
    assert (shown.returncode, shown.stderr) == (0, "") and " bytes verified)" in shown.stdout
    os.unlink(first(own_set, "val-*.bin"))
    assert_one_error_line(run_module("shards", "verify", own_set), "val-0000", "no such file")
    assert_one_error_line(run_module("shards", "cat", own_set, "--block", "0"), "val-0000")
