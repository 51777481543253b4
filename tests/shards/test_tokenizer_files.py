"""A tokenizer is read from its files, or refused in one clear line; one from a stranger's set brings nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shards
from shards.common.errors import InputError
from shards.tokenizer_files import Vocabulary, copy_tokenizer, load_tokenizer, read_vocabulary
from tests.shards.sets import EOS, byte_fallback_tokenizer, byte_tokenizer, write_tokenizer

PIECES = [["<unk>", 0.0], ['é\x7f\u2028"\\', -1.5e-5], ["b", -1e-7], ["c", -12345678901234567.0]]


@pytest.mark.parametrize(
    ("vocabulary", "eos_id", "config", "expected"),
    [
        (PIECES, 4, None, (5, 4, "</s>")),
        ({"a": 0, "b": 3}, 1, '{"eos_token": {"content": "b"}, "x": "é"}', (4, 3, "b")),
        ({"a": 0}, 7, None, (8, 7, "</s>")),
    ],
    ids=["unigram", "named in the config", "known by name"],
)
def test_it_is_read_and_brought_to_one_form(
    tmp_path: Path, vocabulary: Any, eos_id: int, config: str | None, expected: tuple[int, int, str]
) -> None:
    added = [{"id": eos_id, "content": "</s>", "special": True}]
    content = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "added_tokens": added}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(config)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        found = load_tokenizer(path)
        entry = found.entry
        assert (entry.vocab_size, entry.eos_id, entry.eos_token, entry.name) == (*expected, tmp_path.name)
        assert entry.sha256 == hashlib.sha256(found.tokenizer_json).hexdigest()
        assert json.loads(found.tokenizer_json) == content and b"\n" not in found.tokenizer_json
        assert "eos_token" in found.contents["tokenizer_config.json"].decode()
    # In this form it stays.
    assert load_tokenizer(write_tokenizer(tmp_path, found)).tokenizer_json == found.tokenizer_json


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_sets_tokenizer_is_taken_as_the_manifest_says(own_set: Path, name: str) -> None:
    (own_set / "tokenizer" / "vocab.json").write_text("not listed, so not taken")
    for path in (own_set, own_set / "tokenizer"):
        found = load_tokenizer(path)
        assert found.entry == shards.open(own_set).manifest.tokenizer == byte_tokenizer().entry
        assert found.contents == byte_tokenizer().contents
    path = own_set / "tokenizer" / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(InputError, match=f"{name}: expected digest .* the file was changed"):
        load_tokenizer(own_set)
    shutil.move(path, own_set / "elsewhere")
    path.symlink_to(own_set / "elsewhere")
    with pytest.raises(InputError, match=f"{name}: expected a regular file, found a symbolic link"):
        load_tokenizer(own_set)


@pytest.mark.parametrize(
    ("content", "config", "expected"),
    [
        ("{", "{}", "not a tokenizer.json that can be read"),
        ('{"model": {"vocab": {}}}', "{}", "not a tokenizer.json that can be read"),
        ('{"model": {"vocab": {"a": 16777216}}}', "{}", "expected ids below 16,777,216, found 16777216"),
        ('{"model": {"vocab": {"a": 0}}}', "{}", "nothing says which token ends a document"),
        ('{"model": {"vocab": {"a": 0}}}', '{"eos_token": "b"}', "the EOS token 'b' is not in the vocabulary"),
        ('{"model": {"vocab": {"a": 0}}}', "{", "tokenizer_config.json: not valid JSON"),
        ('{"model": {"vocab": {"a": 0}}}', "[]", "tokenizer_config.json: expected an object, found list"),
    ],
)
def test_one_that_cannot_be_read_is_refused(tmp_path: Path, content: str, config: str, expected: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(InputError, match=expected):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("number", [2**24, 10**18, -1, 2.0, "2", True, None])
def test_ids_that_are_no_ids_are_refused_in_a_sets_tokenizer(number: Any) -> None:
    """Nobody has looked at the tokenizer of a stranger's set before."""
    content = {"model": {"vocab": {"a": 0, "b": number}}}
    with pytest.raises(InputError, match=r"t: not a tokenizer\.json that can be read"):
        Vocabulary(json.dumps(content).encode(), "t")


def test_only_a_tokenizers_files_are_copied_and_no_link_is_followed(tmp_path: Path) -> None:
    source, target, secret = tmp_path / "source", tmp_path / "target", tmp_path / "secret"
    secret.write_text("secret")
    source.mkdir()
    target.mkdir()
    for name in ("tokenizer.json", "merges.txt", "config.json", "model.safetensors", "README.md"):
        (source / name).write_text(f"theirs: {name}")
    (source / "vocab.json").symlink_to(secret)
    (source / "added_tokens.json").mkdir()
    (target / "config.json").write_text("ours")
    copy_tokenizer(source, target)
    found = {path.name: path.read_text() for path in target.iterdir()}
    names = ("tokenizer.json", "merges.txt")
    assert found == {"config.json": "ours"} | {name: f"theirs: {name}" for name in names}


def test_text_and_its_size_follow_from_the_ids(tmp_path: Path) -> None:
    text = "Grüße, 你好 🙂\n"
    ids = list(text.encode())
    own = byte_tokenizer().vocabulary
    assert own.text(ids) == text and own.text_sizes(np.array([*ids, EOS])) == (len(text.encode()), len(text))
    assert own.piece(EOS) == b"</s>" and own.piece(999) == b"<999>"
    # Byte fallback: 你 as three byte tokens is three bytes and one character.
    fallback = byte_fallback_tokenizer().vocabulary
    assert fallback.text([0, 1, 2, 3]) == "hello你" and fallback.text_sizes(np.array([0, 1, 2, 3, 4])) == (8, 6)
    # Without the model's word for it, `<0xE4>` is six characters.
    model = {"type": "BPE", "vocab": {"▁a": 0, "<0xE4>": 1}, "merges": []}
    plain = Vocabulary(json.dumps({"model": model}).encode(), "here")
    assert plain.text([0, 1]) == " a<0xE4>" and plain.text_sizes(np.array([0, 1])) == (8, 8)
    with pytest.raises(InputError, match=r"tokenizer\.json: no such file"):
        read_vocabulary(tmp_path)
