"""What `info` and `cat` show."""

from __future__ import annotations

from pathlib import Path

from shards import open as open_shard_set
from shards.show import differences, show_document
from shards.vocabulary import Vocabulary
from tests.conftest import assert_one_error_line, run_module, sample_records


def test_documents_are_shown_whole_also_where_they_are_cut(built_set: Path) -> None:
    shard_set = open_shard_set(built_set)
    vocabulary = Vocabulary(shard_set.tokenizer_path)
    texts = [vocabulary.text(document) for document in shard_set["train"].documents()]
    cut = next(number for number, text in enumerate(texts) if len(text) > 1500)
    shown = run_module("shards", "cat", built_set, "--document", cut)
    head, _, text = shown.stdout.partition("\n")
    assert head.startswith(f"document {cut:,} of {len(texts):,}, split train, ")
    assert text.removesuffix("\n") == texts[cut]
    assert texts[cut] in {record["text"] for record in sample_records()}
    with_ids = show_document(shard_set, "val", 0, with_ids=True).splitlines()
    assert len(with_ids) == 1 + len(next(shard_set["val"].documents()))


def test_a_document_that_is_not_there_is_refused(built_set: Path) -> None:
    assert_one_error_line(run_module("shards", "cat", built_set, "--document", "99999"), "no document 99,999")
    assert_one_error_line(run_module("shards", "cat", built_set, "--document", "-1"), "no document -1")


def test_info_of_two_sets_shows_what_they_differ_in(built_set: Path, tmp_path: Path, tokenizer_dir: Path) -> None:
    from pipeline.build import build
    from pipeline.settings import BuildSettings
    from tests.conftest import SAMPLE

    settings = BuildSettings(block_tokens=32, unit_bytes=100_000)
    build([str(SAMPLE)], tmp_path / "other", tokenizer_name=str(tokenizer_dir), settings=settings, num_workers=1)
    lines = differences(open_shard_set(built_set), open_shard_set(tmp_path / "other"))
    assert "settings.block_tokens: 64 → 32" in lines
    assert not any(line.startswith(("tokenizer", "splits.train.num_documents")) for line in lines)
    same = run_module("shards", "info", built_set, built_set)
    assert (same.returncode, same.stdout) == (0, "no difference\n")
    assert "settings.block_tokens: 64 → 32" in run_module("shards", "info", built_set, tmp_path / "other").stdout


def test_terminal_escapes_in_a_text_are_not_sent_to_the_terminal(tmp_path: Path, tokenizer_dir: Path) -> None:
    from pipeline.build import build
    from pipeline.settings import BuildSettings
    from tests.conftest import write_corpus

    corpus = write_corpus(tmp_path / "corpus.json", [{"text": "红\x1b[31m色\r\n行"}])
    settings = BuildSettings(block_tokens=32, val_fraction=0.0)
    build([str(corpus)], tmp_path / "set", tokenizer_name=str(tokenizer_dir), settings=settings, num_workers=1)
    shown = run_module("shards", "cat", tmp_path / "set").stdout
    assert "\x1b" not in shown and "红\\x1b[31m色" in shown
