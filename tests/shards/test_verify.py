"""No damaged set passes, and each fault is one line that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

import shards
from shards.__main__ import main
from shards.common import files
from shards.common.errors import InputError
from shards.verify import verify
from tests.conftest import flip
from tests.shards.sets import EOS, forge, write_set

BIN, IDX, TOKENIZER = "train-00000.bin", "train-00000.idx", "tokenizer/tokenizer.json"
Damage = Callable[[Path], object]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def swap(left: Path, right: Path) -> None:
    content = left.read_bytes()
    left.write_bytes(right.read_bytes())
    right.write_bytes(content)


def link(path: Path) -> None:
    path.rename(path.parents[1] / "elsewhere")
    path.symlink_to(path.parents[1] / "elsewhere")


def set_tokens(directory: Path, tokens: dict[int, int], *, signs: bool = True) -> None:
    """Change the first shard's tokens; with `signs`, its digest too."""
    found = np.fromfile(directory / BIN, "<u4")
    for position, token in tokens.items():
        found[position] = token
    found.tofile(directory / BIN)
    if signs:
        digest = blake3((directory / BIN).read_bytes()).hexdigest()
        forge(directory, lambda content: content["shards"][0].update(digest=digest))


# Damage that sizes and names show.
VISIBLE: dict[str, tuple[Damage, str]] = {
    "bin truncated": (lambda d: truncate(d / BIN), "truncated: the manifest says"),
    "bin extended": (lambda d: (d / BIN).write_bytes(bytes(1000)), "too long: the manifest says"),
    "bin missing": (lambda d: (d / BIN).unlink(), "no such file; the set is incomplete"),
    "bin a link": (lambda d: link(d / BIN), "a symbolic link"),
    "idx truncated": (lambda d: truncate(d / IDX), "truncated"),
    "idx missing": (lambda d: (d / IDX).unlink(), "no such file"),
    "manifest cut short": (lambda d: truncate(d / "manifest.json"), "not valid JSON"),
    "manifest missing": (lambda d: (d / "manifest.json").unlink(), "no manifest.json"),
    "tokenizer changed": (lambda d: flip(d / TOKENIZER), "tokenizer.json: expected digest"),
    "tokenizer a link": (lambda d: link(d / TOKENIZER), "a symbolic link"),
    "tokenizer missing": (lambda d: (d / TOKENIZER).unlink(), "tokenizer.json: no such file"),
    "tokenizer of another digest": (
        lambda d: forge(d, lambda content: content["tokenizer"].update(sha256="0" * 64)),
        "expected sha256 0000",
    ),
    "an unknown file": (lambda d: (d / "notes.txt").touch(), "notes.txt: not part of this set"),
    "an unknown shard": (lambda d: (d / "train-09999.bin").touch(), "train-09999.bin: not part of this set"),
    "an unknown directory": (lambda d: (d / "more").mkdir(), "more: not part of this set"),
    "an unknown file of the tokenizer": (
        lambda d: (d / "tokenizer" / "x").touch(),
        "tokenizer/x: not part of this set",
    ),
}
# Damage that only reading shows.
HIDDEN: dict[str, tuple[Damage, str]] = {
    "bin bit flipped": (lambda d: flip(d / BIN), "bin: expected digest"),
    "idx bit flipped": (lambda d: flip(d / IDX), "idx: expected digest"),
    "bins swapped": (lambda d: swap(d / BIN, d / "train-00001.bin"), "bin: expected digest"),
    "indexes swapped": (lambda d: swap(d / IDX, d / "train-00001.idx"), "idx: expected digest"),
    "an id beyond the vocabulary": (
        lambda d: set_tokens(d, {3: EOS + 1}, signs=False),
        "train-00000.bin: offset 12: expected ids below 257, found 257",
    ),
    # With the right digests: the structure is checked by itself.
    "an EOS moved": (lambda d: set_tokens(d, {9: 2, 10: EOS}), "no EOS at a document's end"),
    "an EOS inside": (lambda d: set_tokens(d, {2: EOS}), "offset 8: EOS inside a document"),
    "padding of another id": (lambda d: set_tokens(d, {-1: 5}), "expected EOS exactly where"),
}
DO_NOT_OPEN = ("bin truncated", "bin a link", "idx missing", "manifest cut short")


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
    if name in DO_NOT_OPEN:
        with pytest.raises(InputError):
            shards.open(own)


def test_every_fault_is_reported(own: Path) -> None:
    for damage in ("bin missing", "idx bit flipped", "an unknown file", "tokenizer changed"):
        (VISIBLE | HIDDEN)[damage][0](own)
    (own / "rejected.jsonl").write_text("")
    faults = verify(own)
    for part in ("0.bin: no such", "notes.txt: not part", "tokenizer.json: expected", "rejected.jsonl: expec"):
        assert sum(part in fault for fault in faults) == 1, faults


def test_documents_may_hold_eos_where_special_tokens_are_parsed(tmp_path: Path) -> None:
    written = [[1, EOS, 2], [EOS]]
    assert verify(write_set(tmp_path / "a", [{"train": written}], settings={"special_tokens": "parse"})) == []
    (fault,) = verify(write_set(tmp_path / "b", [{"train": written}]))
    assert "train-00000.bin: offset 4: EOS inside a document" in fault


def test_faults_are_found_in_every_chunk(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_READ_BYTES", 4 * 5)
    assert verify(own) == []
    for position in (4, 5, 19):
        set_tokens(own, {position: 300})
        (fault,) = verify(own)
        assert f"offset {position * 4}: expected ids below 257, found 300" in fault
        set_tokens(own, {position: 2})


def test_the_command_line_names_the_fault(own_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(own_set)]) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and " bytes verified)" in shown.out
    (own_set / BIN).unlink()
    for command in (["verify"], ["cat", "--block", "0"]):
        with pytest.raises(InputError, match=f"{BIN}: no such file"):
            main([command[0], str(own_set), *command[1:]])
