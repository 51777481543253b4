"""Whole builds: nothing lost, the same bytes whatever happens, every mistake one clear line."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import shards
from pipeline import build as build_module
from pipeline.build import build
from pipeline.settings import BuildSettings
from pipeline.sources import look_at
from pipeline.tokenizers import load_tokenizer_files
from shards.common.errors import InputError
from shards.verify import verify
from shards.vocabulary import Vocabulary
from tests.conftest import SAMPLE, assert_one_error_line, directory_bytes, run_module, sample_records, write_corpus

SETTINGS = BuildSettings(block_tokens=64, unit_bytes=20_000)


def texts_in(directory: Path) -> list[str]:
    """The texts of all documents, both splits, read back from the shards."""
    shard_set = shards.open(directory)
    vocabulary = Vocabulary(shard_set.tokenizer_path)
    return [vocabulary.text(document) for split in ("train", "val") for document in shard_set[split].documents()]


def build_sample(out: Path, tokenizer_dir: Path, **options: Any) -> shards.ShardSet:
    options = {"settings": SETTINGS, "num_workers": 1, "tokenizer_name": str(tokenizer_dir), **options}
    build([str(SAMPLE)], out, **options)
    return shards.open(out)


@pytest.mark.usefixtures("inline_engine")
def test_every_document_is_read_back(tmp_path: Path, tokenizer_dir: Path) -> None:
    build_sample(tmp_path / "set", tokenizer_dir)
    expected = [unicodedata.normalize("NFC", record["text"]) for record in sample_records()]
    assert sorted(texts_in(tmp_path / "set")) == sorted(expected)
    assert verify(tmp_path / "set") == []


@pytest.mark.usefixtures("inline_engine")
def test_documents_come_in_the_order_of_the_corpus(tmp_path: Path, tokenizer_dir: Path) -> None:
    build_sample(tmp_path / "set", tokenizer_dir, settings=dataclasses.replace(SETTINGS, val_fraction=0.0))
    assert texts_in(tmp_path / "set") == [record["text"] for record in sample_records()]


@pytest.mark.usefixtures("inline_engine")
def test_token_count_is_the_reference_tokenizers_and_one_eos_a_document(tmp_path: Path, tokenizer_dir: Path) -> None:
    from tokenizers import Tokenizer

    manifest = build_sample(tmp_path / "set", tokenizer_dir).manifest
    reference = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    expected = sum(len(reference.encode(record["text"]).ids) + 1 for record in sample_records())
    assert sum(split.num_tokens for split in manifest.splits.values()) == expected
    assert sum(split.num_documents for split in manifest.splits.values()) == len(sample_records())
    assert sum(split.num_text_chars for split in manifest.splits.values()) == sum(
        len(record["text"]) for record in sample_records()
    )


@pytest.mark.usefixtures("inline_engine")
@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_is_lost_for_any_corpus_block_and_unit_size(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path, data: st.DataObject
) -> None:
    texts = data.draw(st.lists(st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace").decode()), max_size=20))
    texts.append("至少一篇")
    settings = BuildSettings(
        block_tokens=data.draw(st.integers(2, 40)),
        unit_bytes=data.draw(st.integers(10, 500)),
        val_fraction=data.draw(st.sampled_from([0.0, 0.3, 0.9])),
    )
    directory = tmp_path_factory.mktemp("any")
    layout = data.draw(st.sampled_from(["lines", "array", "pretty", "compact"]))
    corpus = write_corpus(directory / "corpus", [{"text": text} for text in texts], layout)
    build([str(corpus)], directory / "set", tokenizer_name=str(tokenizer_dir), settings=settings, num_workers=1)
    assert verify(directory / "set") == []
    assert sorted(texts_in(directory / "set")) == sorted(unicodedata.normalize("NFC", text) for text in texts if text)


@pytest.mark.usefixtures("inline_engine")
def test_only_the_last_block_of_a_split_is_filled_up(tmp_path: Path, tokenizer_dir: Path) -> None:
    shard_set = build_sample(tmp_path / "set", tokenizer_dir)
    for name in ("train", "val"):
        split = shard_set[name]
        fillings = [s.num_blocks * shard_set.block_tokens - s.num_tokens for s in split.shards]
        assert not any(fillings[:-1])
        assert fillings[-1] == split.num_fill_tokens < shard_set.block_tokens
        last = split[len(split) - 1]
        assert (last[len(last) - split.num_fill_tokens :] == shard_set.eos_id).all()


@pytest.mark.usefixtures("inline_engine")
def test_a_document_cannot_forge_the_end_of_a_document(tmp_path: Path, tokenizer_dir: Path) -> None:
    texts = ["前<|endoftext|>后", "<|endoftext|>"]
    corpus = write_corpus(tmp_path / "corpus", [{"text": text} for text in texts])
    build([str(corpus)], tmp_path / "set", tokenizer_name=str(tokenizer_dir), settings=SETTINGS, num_workers=1)
    assert sorted(texts_in(tmp_path / "set")) == sorted(texts)


@pytest.mark.usefixtures("inline_engine")
def test_equal_texts_fall_on_the_same_side(tmp_path: Path, tokenizer_dir: Path) -> None:
    texts = [record["text"] for record in sample_records()[:60]] * 2
    corpus = write_corpus(tmp_path / "corpus", [{"text": text} for text in texts])
    settings = dataclasses.replace(SETTINGS, val_fraction=0.5)
    build([str(corpus)], tmp_path / "set", tokenizer_name=str(tokenizer_dir), settings=settings, num_workers=1)
    shard_set = shards.open(tmp_path / "set")
    sides = [{document.tobytes() for document in shard_set[name].documents()} for name in ("train", "val")]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_same_bytes_for_any_number_of_workers(tmp_path: Path, tokenizer_dir: Path) -> None:
    for num_workers in (1, 2):
        build_sample(tmp_path / str(num_workers), tokenizer_dir, num_workers=num_workers)
    assert len(list((tmp_path / "1").glob("train-*.bin"))) > 10
    assert directory_bytes(tmp_path / "1") == directory_bytes(tmp_path / "2")


class Stop(KeyboardInterrupt):
    """Stands for Ctrl-C."""


@pytest.mark.usefixtures("inline_engine")
def test_an_interrupted_build_goes_on_to_the_same_bytes(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_sample(tmp_path / "whole", tokenizer_dir)
    run_tasks = vars(build_module)["run_tasks"]

    def stop_after_five(job: Any, tasks: Any, *others: Any) -> Any:
        for number, ended in enumerate(run_tasks(job, tasks, *others)):
            if number == 5:
                raise Stop
            yield ended

    monkeypatch.setattr(build_module, "run_tasks", stop_after_five)
    with pytest.raises(Stop, match="units are kept; the same command goes on"):
        build_sample(tmp_path / "set", tokenizer_dir)
    assert not (tmp_path / "set").exists()
    kept = len(list((tmp_path / "set.partial" / "receipts").iterdir()))
    assert kept == 6  # the sixth was finished, though not yet heard of
    monkeypatch.setattr(build_module, "run_tasks", run_tasks)
    result = build([str(SAMPLE)], tmp_path / "set", tokenizer_name=str(tokenizer_dir), settings=SETTINGS, num_workers=1)
    assert result.statistics.num_units_reused == kept
    assert directory_bytes(tmp_path / "set") == directory_bytes(tmp_path / "whole")
    assert not (tmp_path / "set.partial").exists() and not (tmp_path / "set.lock").exists()


@pytest.mark.usefixtures("inline_engine")
def test_a_second_build_with_nothing_changed_does_nothing(tmp_path: Path, tokenizer_dir: Path) -> None:
    build_sample(tmp_path / "set", tokenizer_dir)
    before = directory_bytes(tmp_path / "set")
    again = build([str(SAMPLE)], tmp_path / "set", tokenizer_name=str(tokenizer_dir), settings=SETTINGS, num_workers=1)
    assert again.up_to_date
    copy = write_corpus(tmp_path / SAMPLE.name, [])
    copy.write_bytes(SAMPLE.read_bytes())  # other place and time, same content
    again = build([str(copy)], tmp_path / "set", tokenizer_name=str(tokenizer_dir), settings=SETTINGS, num_workers=1)
    assert again.up_to_date
    del before[".sources.json"]
    after = directory_bytes(tmp_path / "set")
    del after[".sources.json"]
    assert after == before


@pytest.mark.usefixtures("inline_engine")
def test_changed_inputs_are_refused_and_force_builds_anew(tmp_path: Path, tokenizer_dir: Path) -> None:
    first = build_sample(tmp_path / "set", tokenizer_dir)
    other = dataclasses.replace(SETTINGS, seed=7)
    with pytest.raises(InputError, match=r"--seed was 2333, now 7.*--force"):
        build_sample(tmp_path / "set", tokenizer_dir, settings=other)
    assert shards.open(tmp_path / "set").fingerprint == first.fingerprint
    second = build_sample(tmp_path / "set", tokenizer_dir, settings=other, force=True)
    assert second.fingerprint != first.fingerprint
    corpus = write_corpus(tmp_path / SAMPLE.name, [{"title": "no text"}])
    with pytest.raises(InputError, match="no field 'text'"):
        build(
            [str(corpus)],
            tmp_path / "set",
            tokenizer_name=str(tokenizer_dir),
            settings=other,
            num_workers=1,
            force=True,
        )
    assert shards.open(tmp_path / "set").fingerprint == second.fingerprint  # the old set stays until a new one is whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "set.partial", SAMPLE.name]
    corpus = write_corpus(tmp_path / SAMPLE.name, sample_records()[:-1])
    with pytest.raises(InputError, match="the sources have changed"):
        build([str(corpus)], tmp_path / "set", tokenizer_name=str(tokenizer_dir), settings=other, num_workers=1)


@pytest.mark.usefixtures("inline_engine")
def test_a_running_build_keeps_others_out(tmp_path: Path, tokenizer_dir: Path) -> None:
    from pipeline.place import Place

    with Place(tmp_path / "set").lock(), pytest.raises(InputError, match=r"another build .process [0-9]+. is writing"):
        build_sample(tmp_path / "set", tokenizer_dir)
    (tmp_path / "set.lock").write_text("99999999\n")  # left behind by a process that is gone
    build_sample(tmp_path / "set", tokenizer_dir)


@pytest.mark.usefixtures("inline_engine")
@pytest.mark.parametrize("layout", ["compact", "array", "pretty"])
def test_false_starts_are_mended(
    tmp_path: Path, tokenizer_dir: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts that look like records: a unit begins inside one and must be done again."""
    records: list[dict[str, Any]] = [
        {"text": '0"}, {"text": "1"}, {"text": "2"}, {"' * 5 + f"第{n}篇"} for n in range(40)
    ]
    records += [{"refs": [{"text": "a"}, {"text": "b"}], "text": f"另{n}"} for n in range(40)]
    corpus = write_corpus(tmp_path / "corpus", records, layout)
    build(
        [str(corpus)],
        tmp_path / "set",
        tokenizer_name=str(tokenizer_dir),
        settings=BuildSettings(block_tokens=16, unit_bytes=333, val_fraction=0.0),
        num_workers=1,
    )
    assert texts_in(tmp_path / "set") == [record["text"] for record in records]


def test_a_bad_record_in_a_late_unit_is_certain(tmp_path: Path, tokenizer_dir: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.json", [{"text": f"第{n}篇"} for n in range(500)])
    content = corpus.read_text(encoding="utf-8").replace('{"text": "第321篇"}', '{"text": "第321篇}')
    corpus.write_text(content, encoding="utf-8")
    offset = content.encode().index('{"text": "第321篇}'.encode())
    with pytest.raises(InputError, match=f"line 323, byte {offset:,}: "):
        build(
            [str(corpus)],
            tmp_path / "set",
            tokenizer_name=str(tokenizer_dir),
            settings=BuildSettings(block_tokens=16, unit_bytes=1000),
            num_workers=2,
        )


MISTAKES: dict[str, tuple[str | None, list[str], list[str]]] = {
    "missing file": (None, [], ["corpus.json: no such file"]),
    "empty file": ("", [], ["corpus.json: the file is empty"]),
    "white space": (" \n", [], ["found only white space"]),
    "truncated array": ('[\n{"text": "甲"},\n{"text": "乙', [], ["truncated", "download is incomplete"]),
    "truncated lines": ('{"text": "甲"}\n{"text": "乙', [], ["line 2, byte 16", "download is incomplete"]),
    "no text field": ('{"title": "a"}\n', [], ["line 1, byte 0", "no field 'text'; this record has title"]),
    "mistyped field": ('{"text": "a"}\n', ["--text-field", "txet"], ["no field 'txet'", "did you mean 'text'"]),
    "broken line": ('{"text": "a"}\nnonsense\n', [], ["line 2, byte 14", "not valid JSON"]),
    "not JSON": ("hello\n", [], ["expected JSON Lines", "found 'h'"]),
    "a PDF": ("%PDF-1.7\n", [], ["is a PDF, not text", "convert it to text first"]),
    "an office document": ("PK\x03\x04", [], ["an office document (docx", "not text"]),
    "a tar archive": ("a" * 257 + "ustar", [], ["is a tar archive, not text; unpack it first"]),
    "empty array": ("[]", [], ["no text in 0 records"]),
    "unknown tokenizer": ('{"text": "a"}\n', ["--tokenizer", "gwen2"], ["tokenizer 'gwen2'", "qwen2"]),
    "block of nothing": ('{"text": "a"}\n', ["--block-tokens", "0"], ["--block-tokens: expected 2 to"]),
    "no number": ('{"text": "a"}\n', ["--seed", "x"], ["--seed", "'x'"]),
    "mistyped option": ('{"text": "a"}\n', ["--blok-tokens", "5"], ["--blok-tokens", "did you mean '--block-tokens'"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_one_clear_line(tmp_path: Path, tokenizer_dir: Path, name: str) -> None:
    content, options, parts = MISTAKES[name]
    if content is not None:
        (tmp_path / "corpus.json").write_text(content, encoding="utf-8")
    arguments = [tmp_path / "corpus.json", "--out", tmp_path / "set", "--tokenizer", tokenizer_dir, *options]
    assert_one_error_line(run_module("pipeline", "build", *arguments), *parts)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", ["corpus.json", "corpus.txt"])
def test_text_in_utf_16_is_told_as_such(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"text": "甲"}', encoding="utf-16")
    with pytest.raises(InputError, match=r"is text in UTF-16; convert it to UTF-8 first"):
        look_at(str(tmp_path / name), name)


def test_a_tokenizer_in_place_of_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in ("file", "file/below"):
        arguments = ["tokenizer", SAMPLE, "--vocab-size", "300", "--out", tmp_path / out]
        assert_one_error_line(run_module("pipeline", *arguments), "expected a directory, or nothing")


def test_the_published_file_that_is_not_there_is_told_with_how_to_fetch_it(tmp_path: Path) -> None:
    name = "wikipedia-zh-cn-20240820.json"
    with pytest.raises(InputError, match=r"no such file; fetch it with `make data`"):
        look_at(str(tmp_path / name), name)


def test_an_output_directory_that_is_something_else_is_left_alone(tmp_path: Path, tokenizer_dir: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "precious").write_text("keep me")
    for option in ([], ["--force"]):
        result = run_module(
            "pipeline", "build", SAMPLE, "--out", tmp_path / "set", "--tokenizer", tokenizer_dir, *option
        )
        assert_one_error_line(result, "exists and is no shard set")
    assert (tmp_path / "set" / "precious").read_text() == "keep me"


@pytest.mark.parametrize("out", ["/proc/nowhere/set", "file/set"])
def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path, tokenizer_dir: Path, out: str) -> None:
    (tmp_path / "file").write_text("no directory")
    result = run_module("pipeline", "build", SAMPLE, "--out", tmp_path / out, "--tokenizer", tokenizer_dir)
    assert_one_error_line(result, "can't write here", "choose another --out")


def test_what_was_done_before_a_mistake_is_kept(tmp_path: Path, tokenizer_dir: Path) -> None:
    """A bad record in the last unit: mended, the same command does the missing units alone."""
    corpus = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"text": record["text"]}, ensure_ascii=False) for record in sample_records()]
    corpus.write_text("\n".join([*lines, "broken"]) + "\n", encoding="utf-8")
    arguments = ["build", corpus, "--out", tmp_path / "set", "--tokenizer", tokenizer_dir, "--unit-bytes", "50000"]
    assert_one_error_line(run_module("pipeline", *arguments, "--workers", "1"), f"line {len(lines) + 1:,}, byte ")
    assert len(list((tmp_path / "set.partial" / "receipts").iterdir())) >= 5


def test_the_embedded_sample_builds_with_the_command_line(tmp_path: Path, tokenizer_dir: Path) -> None:
    out = tmp_path / "有 空格" / "set"
    result = run_module("pipeline", "build", SAMPLE, "--out", out, "--tokenizer", tokenizer_dir)
    assert result.returncode == 0, result.stderr
    assert "documents    208" in result.stdout
    again = run_module("pipeline", "build", SAMPLE, "--out", out, "--tokenizer", tokenizer_dir)
    assert again.returncode == 0 and "up to date" in again.stdout
    assert run_module("shards", "verify", out).returncode == 0
    info = json.loads(run_module("shards", "info", out, "--json").stdout)
    assert info["tokenizer"]["vocab_size"] == load_tokenizer_files(str(tokenizer_dir)).entry.vocab_size
    shown = run_module("shards", "cat", out, "--split", "train", "--block", "0")
    assert shown.returncode == 0 and "── end of document ──" in shown.stdout
    assert sample_records()[0]["text"][:20] in shown.stdout
