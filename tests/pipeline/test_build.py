"""What is in a set: every document with its own ids, in the corpus's order, the same bytes whoever does the units."""

from __future__ import annotations

import errno
import gzip
import itertools
import os
import re
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import shards
from pipeline import worker
from pipeline.__main__ import main
from pipeline.encode import Documents
from pipeline.native import NativeEncoder
from pipeline.progress import summary
from pipeline.tokenizers import FastEncoder, ReferenceEncoder
from shards.common.errors import InputError
from shards.layout import SPLITS
from shards.verify import verify
from tests.conftest import (
    REPOSITORY,
    SAMPLE,
    InlineEngine,
    directory_bytes,
    needs_compiler,
    sample_records,
    use_engine,
    write_corpus,
)
from tests.pipeline.building import TEXTS, Builder, Heard, texts_in

FORGED = '0"}, {"text": "1"}, {"'  # looks like the end of a record and the beginning of the next
KINDS = ("lines", "array", "pretty", "compact", "escaped", "gz", "parquet", "txt")


def write_source(directory: Path, number: int, kind: str, texts: list[str]) -> list[Path]:
    """A source, or one for each text where a file is a document."""
    path, records = directory / f"source{number}", [{"text": text} for text in texts]
    if kind == "txt":
        paths = [directory / f"{number}-{place:03}.txt" for place in range(len(texts))]
        for own, text in zip(paths, texts, strict=True):
            own.write_bytes(text.encode())
        return paths
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=3)
        return [path]
    write_corpus(path, records, "lines" if kind == "gz" else kind)
    if kind == "gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    return [path]


@hypothesis_settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_documents_are_the_corpus_and_the_bytes_the_same_in_any_order_of_units(
    tmp_path_factory: pytest.TempPathFactory, run: Builder, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60) | st.just(FORGED * 3)
    sources = data.draw(
        st.lists(st.tuples(st.sampled_from(KINDS), st.lists(text, min_size=1, max_size=12)), max_size=4)
    )
    sources.append(("compact", ["至少一篇", FORGED * 9, "完"]))
    directory = tmp_path_factory.mktemp("any")
    paths = [path for number, source in enumerate(sources) for path in write_source(directory, number, *source)]
    options = {
        "block_tokens": data.draw(st.integers(2, 40)),
        "unit_bytes": data.draw(st.integers(10, 500)),
        "val_fraction": data.draw(st.sampled_from([0.0, 0.5])),
        "packing": data.draw(st.sampled_from(["concat", "best-fit"])),
    }
    for seed in (0, 1):
        use_engine(monkeypatch, InlineEngine(seed=data.draw(st.integers(0, 99))))
        manifest = run(paths, directory / f"set{seed}", **options).manifest
        assert manifest.packing == options["packing"]
    expected = [unicodedata.normalize("NFC", own) for _kind, texts in sources for own in texts]
    found = texts_in(directory / "set0")
    assert found == expected if not options["val_fraction"] else sorted(found) == sorted(expected)
    assert verify(directory / "set0") == []
    assert directory_bytes(directory / "set0") == directory_bytes(directory / "set1")


def test_same_bytes_for_any_number_of_workers(tmp_path: Path, run: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [*sample_records()[:60], {"text": 7}, *sample_records()[:30]]
    corpus = write_corpus(tmp_path / "corpus.json", records)
    options: dict[str, Any] = {"on_bad_record": "skip", "dedup": "exact", "unit_bytes": 6_000}
    for num_workers in (1, 2):
        run(corpus, tmp_path / f"with{num_workers}", num_workers=num_workers, **options)
    use_engine(monkeypatch, InlineEngine())
    result = run(corpus, tmp_path / "inline", **options)
    expected = directory_bytes(tmp_path / "inline")
    assert len(list((tmp_path / "inline").glob("train-*.bin"))) > 10 and "rejected.jsonl" in expected
    assert directory_bytes(tmp_path / "with1") == directory_bytes(tmp_path / "with2") == expected
    splits, size = [shards.open(tmp_path / "inline")[name] for name in SPLITS], result.manifest.block_tokens
    lengths = [len(document) for split in splits for document in split.documents()]
    assert result.num_short_documents == sum(length < size for length in lengths)
    assert result.num_remainder_tokens == sum(length % size for length in lengths) > 0


def reference_ids(tokenizer_dir: Path, texts: list[str]) -> list[list[int]]:
    ids, offsets = ReferenceEncoder((tokenizer_dir / "tokenizer.json").read_bytes()).encode(texts)
    return [ids[start:end].tolist() for start, end in itertools.pairwise(offsets.tolist())]


@pytest.mark.usefixtures("inline_engine")
@pytest.mark.parametrize("packing", ["concat", "best-fit"])
def test_the_ids_are_those_of_the_reference(tmp_path: Path, run: Builder, tokenizer_dir: Path, packing: str) -> None:
    """And the summary says what cutting each document by itself would drop."""
    result = run(SAMPLE, tmp_path / "set", val_fraction=0.0, packing=packing)
    expected = reference_ids(tokenizer_dir, TEXTS)
    assert [document.tolist() for document in shards.open(tmp_path / "set")["train"].documents()] == expected
    manifest, split = result.manifest, result.manifest.splits["train"]
    assert (split.num_documents, split.num_tokens) == (len(TEXTS), sum(map(len, expected)) + len(TEXTS))
    assert (split.num_text_chars, split.num_text_bytes) == (len("".join(TEXTS)), len("".join(TEXTS).encode()))
    assert sum(source.num_records for source in manifest.sources) == manifest.num_records == len(TEXTS)
    lost, num_tokens = sum(len(ids) % 64 for ids in expected), sum(map(len, expected))
    line = f"cutting each document by itself would drop {lost:,} tokens ({100 * lost / num_tokens:.1f} %)"
    assert summary(result)["nothing lost"] == line
    assert result.num_short_documents == sum(len(ids) < 64 for ids in expected)


@pytest.mark.usefixtures("inline_engine")
def test_special_token_strings_are_text_unless_they_are_to_be_parsed(tmp_path: Path, run: Builder) -> None:
    texts = ["前<|endoftext|>后", "<|endoftext|>", "丙", "e\u0301<|endoftext|>"]  # the last is normalized
    corpus = write_corpus(tmp_path / "corpus", [{"text": text} for text in texts])
    run(corpus, tmp_path / "text", val_fraction=0.0)
    assert texts_in(tmp_path / "text") == [unicodedata.normalize("NFC", text) for text in texts]
    run(corpus, tmp_path / "parse", val_fraction=0.0, special_tokens="parse", block_tokens=4)
    assert verify(tmp_path / "parse") == []
    shard_set = shards.open(tmp_path / "parse")
    counts = [int((document == shard_set.eos_id).sum()) for document in shard_set["train"].documents()]
    assert counts == [1, 1, 0, 1]  # besides the one that closes each


@pytest.mark.usefixtures("inline_engine")
def test_equal_texts_are_in_the_same_split_which_the_seed_decides(tmp_path: Path, run: Builder) -> None:
    corpus = write_corpus(tmp_path / "corpus", [{"text": text} for text in TEXTS[:60] * 2])
    splits = run(corpus, tmp_path / "set", val_fraction=0.5).manifest.splits
    train, val = (texts_in(tmp_path / "set", name) for name in ("train", "val"))
    assert train and val and not set(train) & set(val)
    assert len(train) + len(val) == 120
    for split, joined in ((splits["train"], "".join(train)), (splits["val"], "".join(val))):
        assert (split.num_text_chars, split.num_text_bytes) == (len(joined), len(joined.encode()))
    run(corpus, tmp_path / "other", val_fraction=0.5, seed=7)
    assert texts_in(tmp_path / "other", "train") != train


@pytest.mark.usefixtures("inline_engine")
@pytest.mark.parametrize(("check_every", "least"), [(1, len(TEXTS)), (1000, 5), (0, 0)])
def test_a_sample_is_checked_against_the_reference(tmp_path: Path, run: Builder, check_every: int, least: int) -> None:
    num_checked = run(SAMPLE, tmp_path / "set", check_every=check_every).num_checked
    assert least <= num_checked <= len(TEXTS) * bool(check_every)


@pytest.mark.usefixtures("inline_engine")
@pytest.mark.parametrize("encoder", [NativeEncoder, FastEncoder])
def test_one_wrong_id_ends_a_build(tmp_path: Path, run: Builder, monkeypatch: pytest.MonkeyPatch, encoder: Any) -> None:
    if encoder is NativeEncoder:
        needs_compiler()
    encode = encoder.encode_closed

    def encode_wrong(*given: Any) -> Documents:
        documents: Documents = encode(*given)
        ids = documents.ids.copy()
        ids[5] = 7
        return documents._replace(ids=ids)

    monkeypatch.setattr(encoder, "encode_closed", encode_wrong)
    corpus = write_corpus(tmp_path / "corpus", [{"text": "爱因斯坦是物理学家。"}])
    with pytest.raises(InputError, match="differs from the reference tokenizer at token 5 of this text"):
        run(corpus, tmp_path / "set", encoder=encoder.name)


@pytest.mark.usefixtures("inline_engine")
def test_the_same_bytes_by_any_encoder(tmp_path: Path, run: Builder) -> None:
    needs_compiler()
    for encoder in ("native", "fastokens", "tokenizers"):
        assert run(SAMPLE, tmp_path / encoder, encoder=encoder).encoder == encoder
    expected = directory_bytes(tmp_path / "tokenizers")
    assert directory_bytes(tmp_path / "native") == directory_bytes(tmp_path / "fastokens") == expected


@pytest.mark.usefixtures("inline_engine")
def test_the_sample_has_its_share_of_characters(tmp_path: Path, run: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference takes some 200 bytes of memory a character: more than there is for a record of a gigabyte."""
    checked, encode = list[str](), ReferenceEncoder.encode

    def noted(self: ReferenceEncoder, given: list[str]) -> Any:
        checked.extend(given)
        return encode(self, given)

    monkeypatch.setattr(ReferenceEncoder, "encode", noted)
    monkeypatch.setattr(worker, "_MAX_CHECKED_CHARS", 30_000)
    corpus = write_corpus(tmp_path / "few", [{"text": text} for text in ("短文", "长" * 30_001, "文" * 30_000)])
    assert run(corpus, tmp_path / "set", check_every=1).num_checked == 2 == len(set(map(len, checked)))
    checked.clear()
    corpus = write_corpus(tmp_path / "many", [{"text": text} for text in ["短" * 10] * 4_999 + ["长" * 20_000]])
    run(corpus, tmp_path / "other", check_every=5000, unit_bytes=1 << 20)
    assert 0 < sum(map(len, checked)) < 40_000
    # In units of a kilobyte only the first is looked at, closely.
    assert 5 < run(corpus, tmp_path / "units", check_every=5000, unit_bytes=1 << 10).num_checked < 50


# ---- the command ----


def num_receipts(out: Path) -> int:
    return len(list((out.with_name(out.name + ".partial") / "receipts").glob("*.json")))


def test_a_signal_ends_the_build_at_once_and_keeps_finished_units(tmp_path: Path, tokenizer_dir: Path) -> None:
    records = [{"text": record["text"] + str(number)} for number in range(5) for record in sample_records()]
    corpus, out = write_corpus(tmp_path / "corpus.json", records), tmp_path / "out" / "set"
    arguments = ["build", corpus, "--out", out, "--tokenizer", tokenizer_dir, "--unit-bytes", "60000", "--workers", "2"]
    command, pipe = [sys.executable, "-m", "pipeline", *map(str, arguments)], subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=REPOSITORY)
    deadline = time.monotonic() + 60
    while num_receipts(out) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _output, errors = process.communicate(timeout=60)
    assert time.monotonic() - begin < 20  # two seconds on an idle machine
    assert process.returncode == 130
    said = re.search(r": (\d+) of \d\d units are kept; the same command continues$", errors, re.MULTILINE)
    assert said is not None and 1 <= int(said[1]) <= num_receipts(out) and "Traceback" not in errors, errors
    assert [path.name for path in out.parent.iterdir()] == ["set.partial"]


@pytest.mark.usefixtures("inline_engine")
def test_a_full_disk_keeps_finished_units(tmp_path: Path, run: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """And names the file that it has no room for, as the system doesn't."""

    def fail(descriptor: int, fsync: Any = os.fsync) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("train-00005.idx.tmp"):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    corpus = write_corpus(tmp_path / "corpus.jsonl", sample_records(), "lines")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(
            InputError, match=r"/train-00005\.idx: No space .*; make room, then the same command continues"
        ):
            run(corpus, tmp_path / "set")
    kept = num_receipts(tmp_path / "set")
    assert not list((tmp_path / "set.partial").rglob("*.tmp")) and not any((tmp_path / "set.partial/scratch").iterdir())
    assert run(corpus, tmp_path / "set").num_units_reused == kept > 3
    assert verify(tmp_path / "set") == []


@pytest.mark.usefixtures("inline_engine")
def test_a_source_that_is_written_to_after_its_last_unit_is_noticed(tmp_path: Path, run: Builder) -> None:
    corpus, out = write_corpus(tmp_path / "corpus.jsonl", sample_records(), "lines"), tmp_path / "set"

    class Late(Heard):
        def finished(self) -> None:
            corpus.write_bytes(corpus.read_bytes() + b"\n")

    with pytest.raises(InputError, match="the file was changed while it was read"):
        run(corpus, out, reporter=Late())
    assert not out.exists()


MISTAKES: dict[str, tuple[str | None, list[str], str]] = {
    "missing file": (None, [], "corpus.json: no such file"),
    "truncated lines": ('{"text": "甲"}\n{"text": "乙', [], "line 2, byte 16.*download is incomplete"),
    "mistyped field": ('{"text": "a"}\n', ["--text-field", "txet"], "no field 'txet'.*did you mean 'text'"),
    "empty array": ("[]", [], "no text in 0 records"),
    "no text that is long enough": (
        '{"text": "ab"}\n',
        ["--min-chars", "1234"],
        r"no text in 1 record; nothing to build \(1 shorter than 1,234 characters\)",
    ),
    "a template without a field": ("", ["--template", "title"], "template: expected at least one field such as {text}"),
    "a transform and a field": ("", ["--transform", "x.py", "--text-field", "a"], "leave out text_field and template"),
    "a template and a field": ("", ["--template", "{a}", "--text-field", "a"], "template: .* leave out text_field"),
    "block of nothing": ('{"text": "a"}\n', ["--block-tokens", "0"], "block_tokens: expected 2 to"),
    "no workers": ('{"text": "a"}\n', ["--workers", "0"], "num_workers: expected at least 1, found 0"),
    "no number": ('{"text": "a"}\n', ["--seed", "x"], "--seed: expected a whole number, found 'x'"),
    "mistyped option": ('{"text": "a"}\n', ["--blok-tokens", "5"], "--blok-tokens.*did you mean '--block-tokens'"),
    "mistyped choice": ('{"text": "a"}\n', ["--packing", "concta"], "packing: expected concat or best-fit, found"),
    "a check of nothing": ('{"text": "a"}\n', ["--check-tokenizer", "0"], "--check-tokenizer: expected all, off or"),
    "a template that isn't UTF-8": ("", ["--template", "{text}\udcff"], "template: expected text in UTF-8, found"),
    "a cluster without its engine": ("", ["--ray-address", "auto"], "--ray-address: expected --engine ray beside it"),
    "a hub": ('{"text": "a"}\n', ["--out", "hf://datasets/a/b"], "build in a directory, then `python -m shards push"),
}


@pytest.mark.usefixtures("inline_engine")
@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_one_clear_line(tmp_path: Path, tokenizer_dir: Path, name: str) -> None:
    content, options, line = MISTAKES[name]
    if content is not None:
        (tmp_path / "corpus.json").write_text(content, encoding="utf-8")
    out = str(tmp_path / "set")
    with pytest.raises(InputError, match=line) as error:
        main(["build", str(tmp_path / "corpus.json"), "--out", out, "--tokenizer", str(tokenizer_dir), *options])
    assert "\n" not in str(error.value) and not (tmp_path / "set").exists()


def test_the_command_builds_the_sample(tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "有 空格" / "set"
    command = ["build", os.path.relpath(SAMPLE), "--out", str(out), "--tokenizer", str(tokenizer_dir)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert f"documents     {len(sample_records())}\n" in shown
    assert f"python -m train --config FILE.yaml --shards '{out}'" in shown
    assert main(command) == 0 and "up to date (fingerprint " in capsys.readouterr().out
    assert main([*command, "--force", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "") and verify(out) == []
