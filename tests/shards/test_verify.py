"""No damaged set passes, each fault is one line that names the file; and what `info` and `cat` show of a whole one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

import shards
from shards.__main__ import main
from shards.common import files
from shards.common.errors import InputError
from shards.show import describe, differences, show_block, show_document, table_text
from shards.tokenizer_files import read_vocabulary
from shards.verify import verify
from tests.conftest import flip
from tests.shards.sets import EOS, MIXED, TEXTS, build_set, forge, source, write_set
from tests.shards.test_manifest import updated

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
        forge(directory, updated("shards", 0, digest=blake3((directory / BIN).read_bytes()).hexdigest()))


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
    "tokenizer of another digest": (lambda d: forge(d, updated("tokenizer", sha256="0" * 64)), "expected sha256 0000"),
    "an unknown file": (lambda d: (d / "notes.txt").touch(), "notes.txt: not part of this set"),
    "an unknown shard": (lambda d: (d / "train-09999.bin").touch(), "train-09999.bin: not part of this set"),
    "an unknown directory": (lambda d: (d / "more").mkdir(), "more: not part of this set"),
    "another file of a tokenizer": (lambda d: (d / "tokenizer" / "x").touch(), "tokenizer/x: not part of this set"),
}
# Damage that only reading shows.
HIDDEN: dict[str, tuple[Damage, str]] = {
    "bin bit flipped": (lambda d: flip(d / BIN), "bin: expected digest"),
    "idx bit flipped": (lambda d: flip(d / IDX), "idx: expected digest"),
    "bins swapped": (lambda d: swap(d / BIN, d / "train-00001.bin"), "bin: expected digest"),
    "indexes swapped": (lambda d: swap(d / IDX, d / "train-00001.idx"), "idx: expected digest"),
    "an id too large": (
        lambda d: set_tokens(d, {3: 257}, signs=False),
        "bin: offset 12: expected ids below 257, found",
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
    set_tokens(tmp_path / "a", {3: 2})
    (fault,) = verify(tmp_path / "a")
    assert "train-00000.bin: offset 12: no EOS at a document's end" in fault


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


# ---- info and cat ----


def test_info_is_plain_text_in_columns(tmp_path: Path, tokenizer_dir: Path) -> None:
    sources = [source("[bold]数据\x1b[31m:smile:.json", 2_000, 3), source("b" * 200, 40_000_000, 1)]
    shard_set = shards.open(build_set(tmp_path, tokenizer_dir, TEXTS[:10], sources=sources))
    about, splits, files = (part.splitlines() for part in describe(shard_set).split("\n\n"))
    assert about[-1] == f"fingerprint  {shard_set.manifest.fingerprint}"
    train, val = shard_set["train"], shard_set["val"]
    assert splits[0].split() == ["split", "documents", "tokens", "blocks", "padding", "text", "tokens/char"]
    numbers = f"train 8 {train.num_tokens:,} {len(train):,} {train.num_padding_tokens}"
    assert splits[1].split()[:5] == numbers.split()
    assert len({len(line) for line in splits}) == 1 and splits[2].split()[:2] == ["val", str(val.num_documents)]
    assert files[1].split() == ["[bold]数据\\x1b[31m:smile:.json", "json", "2.00", "kB", "3"]
    assert files[2].startswith("b" * 200 + "  json") and all(line == line.rstrip() for line in files)


def test_numbers_line_up_at_the_right_also_beside_chinese() -> None:
    lines = table_text([("运行", "5"), ("b", "1,000")], "name", "#number").splitlines()
    assert lines == ["name  number", "运行       5", "b      1,000"]


def test_documents_are_shown_whole(mixed_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard_set = shards.open(mixed_set)
    vocabulary = read_vocabulary(shard_set.tokenizer_path)
    texts = [vocabulary.text(document) for document in shard_set["train"].documents()]
    number = next(number for number, text in enumerate(texts) if len(text) > 500)
    assert main(["cat", str(mixed_set), "--document", str(number)]) == 0
    head, _, text = capsys.readouterr().out.partition("\n")
    assert head.startswith(f"document {number:,} of {len(texts):,}, split train, ")
    assert text.removesuffix("\n") == texts[number] and texts[number] in MIXED
    with_ids = show_document(shard_set, "val", 0, with_ids=True).splitlines()
    assert len(with_ids) == 1 + len(shard_set["val"].document(0))


def test_each_document_ends_once_and_padding_is_one_line(mixed_set: Path) -> None:
    shard_set = shards.open(mixed_set)
    blocks = [show_block(shard_set, "train", number).splitlines() for number in range(len(shard_set["train"]))]
    lines = [line for block in blocks for line in block]
    assert lines.count("── end of document ──") == shard_set["train"].num_documents
    padding = [int(match[1]) for line in lines if (match := re.fullmatch(r"── (\d+) padding tokens? ──", line))]
    assert sum(padding) == shard_set["train"].num_padding_tokens
    assert max(sum("padding token" in line for line in block) for block in blocks) == 1


@pytest.mark.parametrize(
    ("show", "number", "message"),
    [
        (show_document, 99_999, "no document 99,999 in split 'train': expected 0 to"),
        (show_document, -1, "no document -1"),
        (show_block, 99_999, "no block 99,999 in split 'train': expected 0 to"),
    ],
)
def test_what_is_not_there_is_refused(mixed_set: Path, show: object, number: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        show(shards.open(mixed_set), "train", number)  # type: ignore[operator]
    with pytest.raises(InputError, match="split: expected train or val, found 'vall'; did you mean 'val'"):
        show(shards.open(mixed_set), "vall", 0)  # type: ignore[operator]


def test_info_of_two_sets(tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = build_set(tmp_path / "one", tokenizer_dir, TEXTS[:10], settings={"dedup": "none", "seed": 1})
    options = {"settings": {"dedup": "exact", "seed": 1}, "block_tokens": 32}
    two = build_set(tmp_path / "two", tokenizer_dir, TEXTS[:10], **options)
    lines = differences(shards.open(one), shards.open(two))
    assert {"block_tokens: 64 → 32", "settings.dedup: none → exact"} <= set(lines)
    assert not any(line.startswith(("tokenizer", "splits.train.num_documents", "settings.seed")) for line in lines)
    assert main(["info", str(one), str(one)]) == main(["info", str(one), str(two)]) == 0
    assert capsys.readouterr().out.splitlines() == ["no difference", *lines]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{set}", "--tokens", "5"], "--tokens: expected several shard sets"),
        (["{set}:1,{set}:2", "--json"], "several sets, --json and OTHER: expected at most one of these"),
        (["{set}:1,{set}:2", "{set}"], "several sets, --json and OTHER: expected at most one of these"),
        (["{set}", "{set}", "--json"], "several sets, --json and OTHER: expected at most one of these"),
    ],
)
def test_an_option_that_says_nothing_is_refused(mixed_set: Path, options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(["info", *(option.format(set=mixed_set) for option in options)])


def test_a_mistyped_command_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"COMMAND: expected info, .*, found 'verfy'; did you mean 'verify'\?"):
        main(["verfy"])


def test_terminal_escapes_in_a_text_are_not_sent_to_the_terminal(tmp_path: Path, tokenizer_dir: Path) -> None:
    shard_set = shards.open(build_set(tmp_path, tokenizer_dir, ["红\x1b[31m色\r\n行"]))
    assert "红\\x1b[31m色\\r\n行" in show_block(shard_set, "train", 0)
