"""No damaged set passes, and each fault is one line that names the file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shards
from shards.common.errors import InputError
from shards.verify import verify
from tests.conftest import assert_one_error_line, run_module


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0\0\0\0")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def first(directory: Path, pattern: str) -> Path:
    return sorted(directory.glob(pattern))[0]


def swap(left: Path, right: Path) -> None:
    content = left.read_bytes()
    left.write_bytes(right.read_bytes())
    right.write_bytes(content)


def edit_manifest(directory: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def set_version(content: dict[str, Any]) -> None:
    content["format_version"] = 3


def climb_out(content: dict[str, Any]) -> None:
    content["shards"][0]["name"] = "../train-00000"


def link_a_shard(directory: Path) -> None:
    path = first(directory, "train-*.bin")
    path.rename(directory.parent / "elsewhere.bin")
    path.symlink_to(directory.parent / "elsewhere.bin")


def id_beyond_the_vocabulary(directory: Path) -> None:
    tokens = np.fromfile(first(directory, "train-*.bin"), "<u4")
    tokens[3] = 10**6
    tokens.tofile(first(directory, "train-*.bin"))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "bin truncated": (lambda d: truncate(first(d, "*.bin")), "truncated"),
    "bin extended": (lambda d: extend(first(d, "*.bin")), "too long"),
    "bin bit flipped": (lambda d: flip_a_bit(first(d, "train-*.bin")), "expected digest"),
    "bins swapped": (lambda d: swap(*sorted(d.glob("train-*.bin"))[:2]), "train-0000"),
    "bin missing": (lambda d: first(d, "*.bin").unlink(), "No such file"),
    "bin duplicated": (lambda d: (d / "train-09999.bin").write_bytes(first(d, "*.bin").read_bytes()), "not a part"),
    "bin of zero length": (lambda d: first(d, "*.bin").write_bytes(b""), "truncated"),
    "id beyond the vocabulary": (id_beyond_the_vocabulary, "expected ids below 600, found 1,000,000"),
    "link to another place": (link_a_shard, "a symbolic link"),
    "idx truncated": (lambda d: truncate(first(d, "*.idx")), "bytes"),
    "idx bit flipped": (lambda d: flip_a_bit(first(d, "*.idx")), "idx"),
    "idx of another shard": (lambda d: swap(*sorted(d.glob("train-*.idx"))[:2]), "idx"),
    "idx missing": (lambda d: first(d, "*.idx").unlink(), "No such file"),
    "manifest of another version": (lambda d: edit_manifest(d, set_version), "expected format version 1 or 2, found 3"),
    "manifest that climbs out": (lambda d: edit_manifest(d, climb_out), "manifest.json"),
    "manifest with an absolute path": (
        lambda d: edit_manifest(d, lambda content: content["shards"][0].update(name="/etc/passwd")),
        "manifest.json",
    ),
    "manifest cut short": (lambda d: truncate(d / "manifest.json"), "not valid JSON"),
    "manifest missing": (lambda d: (d / "manifest.json").unlink(), "no manifest.json"),
    "manifest with a number changed": (
        lambda d: edit_manifest(d, lambda content: content["splits"]["train"].update(num_documents=1)),
        "the fingerprint doesn't match",
    ),
    "tokenizer changed": (lambda d: extend(d / "tokenizer" / "tokenizer.json"), "the tokenizer was changed"),
    "tokenizer missing": (lambda d: (d / "tokenizer" / "tokenizer.json").unlink(), "No such file"),
    "strange file": (lambda d: (d / "notes.txt").write_text("x"), "not a part of this set"),
}


def test_a_whole_set_passes(built_set: Path) -> None:
    assert verify(built_set) == []
    assert verify(built_set, quick=True) == []


@pytest.mark.parametrize("name", DAMAGES)
def test_no_damaged_set_passes(own_set: Path, name: str) -> None:
    damage, expected = DAMAGES[name]
    damage(own_set)
    faults = verify(own_set)
    assert faults and any(expected in fault for fault in faults), faults
    assert all("\n" not in fault for fault in faults)


@pytest.mark.parametrize("name", [name for name in DAMAGES if name.split()[-1] not in {"flipped", "vocabulary"}])
def test_structure_alone_shows_most_damages(own_set: Path, name: str) -> None:
    if name in ("bins swapped", "idx of another shard") and len({p.stat().st_size for p in own_set.glob("*.bin")}) == 1:
        pytest.skip("the shards have the same size")
    DAMAGES[name][0](own_set)
    assert verify(own_set, quick=True)


def test_a_moved_eos_is_found_even_with_a_right_digest(own_set: Path) -> None:
    """The structure is checked by itself: a set whose manifest was made for wrong tokens doesn't pass either."""
    from blake3 import blake3

    from shards.manifest import canonical_json

    path = first(own_set, "train-*.bin")
    tokens = np.fromfile(path, "<u4")
    place = int(np.flatnonzero(tokens == 599)[0])
    tokens[[place, place + 1]] = tokens[[place + 1, place]]
    tokens.tofile(path)

    def forge(content: dict[str, Any]) -> None:
        content["shards"][0]["digest"] = blake3(path.read_bytes()).hexdigest()
        del content["fingerprint"]
        content["fingerprint"] = blake3(canonical_json(content)).hexdigest()

    edit_manifest(own_set, forge)
    (fault,) = verify(own_set)
    assert f"offset {place * 4:,}: no EOS at a document's end" in fault


@pytest.mark.parametrize("name", ["bin truncated", "idx missing", "manifest cut short", "link to another place"])
def test_a_damaged_set_does_not_open(own_set: Path, name: str) -> None:
    DAMAGES[name][0](own_set)
    with pytest.raises(InputError):
        shards.open(own_set)


def test_the_command_line_names_the_fault_with_status_2(own_set: Path) -> None:
    assert run_module("shards", "verify", own_set).returncode == 0
    os.unlink(first(own_set, "val-*.bin"))
    assert_one_error_line(run_module("shards", "verify", own_set), "val-0000", "No such file")
    assert_one_error_line(run_module("shards", "verify", own_set / "nowhere"), "no such shard set")
    assert_one_error_line(run_module("shards", "cat", own_set, "--block", "0"), "val-0000")
    manifest = own_set / "manifest.json"
    assert_one_error_line(run_module("shards", "info", manifest), "expected a shard set's directory", f"take {own_set}")


def test_cat_refuses_what_is_not_there(built_set: Path) -> None:
    assert_one_error_line(run_module("shards", "cat", built_set, "--block", "999999"), "no block 999,999")
    assert_one_error_line(run_module("shards", "cat", built_set, "--split", "vla"), "did you mean 'val'")
    shown = run_module("shards", "cat", built_set, "--block", "0", "--tokens")
    assert shown.returncode == 0 and len(shown.stdout.splitlines()) >= 64
