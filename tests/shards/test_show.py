"""What `info` and `cat` show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import shards
from shards.__main__ import main
from shards.common.errors import InputError
from shards.show import describe, differences, show_block, show_document, table_text
from shards.tokenizer_files import read_vocabulary
from tests.shards.sets import MIXED, TEXTS, build_set, source


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


def test_info_of_two_sets_shows_what_they_differ_in(
    tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
        (["{set}:1,{set}:2", "--json"], "--json and OTHER: expected one shard set"),
        (["{set}:1,{set}:2", "{set}"], "--json and OTHER: expected one shard set"),
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
