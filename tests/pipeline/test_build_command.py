"""`python -m pipeline build`: what it prints, its exit statuses, and that the same command continues after any end."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import main
from shards.common.errors import InputError
from shards.verify import verify
from shards.writer import ShardWriter
from tests.conftest import REPOSITORY, SAMPLE, sample_records, write_corpus
from tests.pipeline.building import Builder


def num_receipts(out: Path) -> int:
    return len(list((out.with_name(out.name + ".partial") / "receipts").glob("*.json")))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_build_at_once_and_keeps_finished_units(
    tmp_path: Path, tokenizer_dir: Path, number: signal.Signals, status: int
) -> None:
    records = [{"text": record["text"] + str(number)} for number in range(5) for record in sample_records()]
    corpus, out = write_corpus(tmp_path / "corpus.json", records), tmp_path / "out" / "set"
    arguments = ["build", corpus, "--out", out, "--tokenizer", tokenizer_dir, "--unit-bytes", "60000", "--workers", "2"]
    command, pipe = [sys.executable, "-m", "pipeline", *map(str, arguments)], subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=REPOSITORY)
    deadline = time.monotonic() + 60
    while num_receipts(out) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    begin = time.monotonic()
    process.send_signal(number)
    _output, errors = process.communicate(timeout=60)
    assert time.monotonic() - begin < 20  # two seconds on an idle machine
    assert process.returncode == status
    said = re.search(r": (\d+) of \d\d units are kept; the same command continues$", errors, re.MULTILINE)
    assert said is not None and 1 <= int(said[1]) <= num_receipts(out) and "Traceback" not in errors, errors
    assert [path.name for path in out.parent.iterdir()] == ["set.partial"]


@pytest.mark.usefixtures("inline_engine")
def test_a_full_disk_is_one_line_and_keeps_finished_units(
    tmp_path: Path, run: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ShardWriter, tokens: Any, write: Any = ShardWriter.write) -> None:
        if self._name == "train-00005":
            raise OSError(errno.ENOSPC, "No space left on device", str(self._path))
        write(self, tokens)

    corpus = write_corpus(tmp_path / "corpus.jsonl", sample_records(), "lines")
    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", fail)
        with pytest.raises(InputError, match="No space left on device; make room, then the same command continues"):
            run(corpus, tmp_path / "set")
    kept = num_receipts(tmp_path / "set")
    assert not list((tmp_path / "set.partial").rglob("*.tmp")) and not any((tmp_path / "set.partial/scratch").iterdir())
    assert run(corpus, tmp_path / "set").num_units_reused == kept > 3
    assert verify(tmp_path / "set") == []


MISTAKES: dict[str, tuple[str | None, list[str], str]] = {
    "missing file": (None, [], "corpus.json: no such file"),
    "empty file": ("", [], "corpus.json: the file is empty"),
    "truncated array": ('[\n{"text": "甲"},\n{"text": "乙', [], "truncated.*download is incomplete"),
    "truncated lines": ('{"text": "甲"}\n{"text": "乙', [], "line 2, byte 16.*download is incomplete"),
    "no text field": ('{"title": "a"}\n', [], "line 1, byte 0.*no field 'text'; this record has title"),
    "mistyped field": ('{"text": "a"}\n', ["--text-field", "txet"], "no field 'txet'.*did you mean 'text'"),
    "empty array": ("[]", [], "no text in 0 records"),
    "nothing but empty texts": ('{"text": ""}\n', [], "no text in 1 records"),
    "no text that is long enough": (
        '{"text": "ab"}\n',
        ["--min-chars", "1234"],
        r"no text in 1 records; nothing to build \(1 shorter than 1,234 characters\)",
    ),
    "a transform and a template": (
        "",
        ["--transform", "x.py", "--template", "{a}"],
        "leave out text_field and template",
    ),
    "a transform and a field": ("", ["--transform", "x.py", "--text-field", "a"], "leave out text_field and template"),
    "a template and a field": ("", ["--template", "{a}", "--text-field", "a"], "template: .* leave out text_field"),
    "unknown tokenizer": ('{"text": "a"}\n', ["--tokenizer", "gwen2"], "tokenizer 'gwen2'.*qwen2"),
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


def test_the_embedded_sample_builds_with_the_command_line(
    tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "有 空格" / "set"
    command = ["build", os.path.relpath(SAMPLE), "--out", str(out), "--tokenizer", str(tokenizer_dir)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert f"documents     {len(sample_records())}\n" in shown
    assert f"python -m train --config FILE.yaml --shards '{out}'" in shown
    assert main(command) == 0 and "up to date (fingerprint " in capsys.readouterr().out
    assert main([*command, "--force", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "") and verify(out) == []
