"""A tokenizer is read from its files as where texts are tokenized, or refused in one clear line."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

import shards
from pipeline.tokenizers import load_tokenizer_files
from shards.common.errors import InputError
from shards.tokenizer_files import load_tokenizer
from tests.shards.foreign_files import (
    write_tokenizer,
)


@pytest.mark.parametrize("kind", ["trained", "unigram", "named in the config", "known by name"])
def test_the_tokenizer_is_read_as_where_texts_are_tokenized(tmp_path: Path, tokenizer_dir: Path, kind: str) -> None:
    if kind == "trained":
        shutil.copytree(tokenizer_dir, tmp_path, dirs_exist_ok=True)
    elif kind == "unigram":
        pieces = [["<unk>", 0.0], ['é\x7f\u2028"\\', -1.5e-5], ["b", -1e-7], ["c", -12345678901234567.0]]
        write_tokenizer(tmp_path, pieces, 4)
    elif kind == "named in the config":
        write_tokenizer(tmp_path, {"a": 0, "b": 3}, 1)
        (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "b"}, "x": "é"}')
    else:
        write_tokenizer(tmp_path, {"a": 0}, 7)
    expected = load_tokenizer_files(str(tmp_path))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        found = load_tokenizer(path)
        assert found.entry == expected.entry
        assert found.contents == expected.contents


def test_a_sets_tokenizer_is_taken_as_it_is(own_set: Path, tmp_path: Path) -> None:
    for path in (own_set, own_set / "tokenizer"):
        found = load_tokenizer(path)
        assert found.entry == shards.open(own_set).manifest.tokenizer
        assert found.contents == {file.name: file.read_bytes() for file in (own_set / "tokenizer").iterdir()}
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(own_set / "tokenizer" / "tokenizer.json", other)
    assert dataclasses.replace(load_tokenizer(other).entry, name="tokenizer") == dataclasses.replace(
        found.entry, name="tokenizer"
    )
    (own_set / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"expected sha256 .* the tokenizer was changed"):
        load_tokenizer(own_set)


@pytest.mark.parametrize(
    ("content", "config", "expected"),
    [
        ("{", None, "not a tokenizer.json that can be read"),
        ("[]", None, "not a tokenizer.json that can be read"),
        ('{"model": {"vocab": {}}}', None, "not a tokenizer.json that can be read"),
        ('{"model": {"vocab": {"a": 0}}}', None, "nothing says which token ends a document"),
        ('{"model": {"vocab": {"a": 0}}}', '{"eos_token": "b"}', "the EOS token 'b' is not in the vocabulary"),
        ('{"model": {"vocab": {"a": 0}}}', "{", "tokenizer_config.json: not valid JSON"),
        ('{"model": {"vocab": {"a": 0}}}', "[]", "tokenizer_config.json: expected an object, found list"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_refused(
    tmp_path: Path, content: str, config: str | None, expected: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(InputError, match=expected):
        load_tokenizer(tmp_path)
