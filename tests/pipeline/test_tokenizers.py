"""The Qwen2 tokenizer is exact, and both encoders give the same ids."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import qwen2
from pipeline.__main__ import main
from pipeline.encode import DocumentEncoder
from pipeline.tokenizers import (
    PROBE_TEXTS,
    FastEncoder,
    ReferenceEncoder,
    choose_encoder,
    load_encoder,
    load_tokenizer_files,
    same_ids,
)
from pipeline.train_tokenizer import train_tokenizer
from shards.common.errors import InputError
from shards.tokenizer_files import TokenizerFiles
from tests.conftest import REPOSITORY, SAMPLE, sample_records

SHARED_QWEN2 = REPOSITORY.parent / "shared" / "qwen2" / "tokenizer.json"


@pytest.fixture(scope="module")
def qwen2_files() -> TokenizerFiles:
    return load_tokenizer_files("qwen2")


def test_qwen2_has_the_published_size_and_special_tokens(qwen2_files: TokenizerFiles) -> None:
    content = json.loads(qwen2_files.tokenizer_json)
    assert len(content["model"]["vocab"]) == 151_643
    assert len(content["model"]["merges"]) == 151_387
    assert qwen2_files.entry.vocab_size == 151_646
    assert qwen2_files.eos_id == 151_643
    assert content["model"]["merges"][:3] == ["Ġ Ġ", "ĠĠ ĠĠ", "i n"]


def test_qwen2_gives_the_published_ids(qwen2_files: TokenizerFiles) -> None:
    """Ids as the model's authors publish them: `tokenizer("Hello world!")` and the first words of the model card."""
    ids, _ = ReferenceEncoder(qwen2_files.tokenizer_json).encode(["Hello world!", "人工智能"])
    assert ids.tolist() == [9707, 1879, 0, 104455]


@pytest.mark.skipif(not SHARED_QWEN2.exists(), reason="no reference copy of the tokenizer here")
def test_qwen2_is_the_reference_copy(qwen2_files: TokenizerFiles) -> None:
    assert json.loads(qwen2_files.tokenizer_json) == json.loads(SHARED_QWEN2.read_bytes())


def test_changed_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qwen2, "RANKS_SHA256", hashlib.sha256(b"other").hexdigest())
    with pytest.raises(InputError, match=r"expected sha256 .*, found "):
        qwen2.read_ranks()


def test_both_encoders_agree_on_the_sample_and_the_probes(qwen2_files: TokenizerFiles, tokenizer_dir: Path) -> None:
    texts = [record["text"] for record in sample_records()] + list(PROBE_TEXTS)
    for files in (qwen2_files, load_tokenizer_files(str(tokenizer_dir))):
        assert choose_encoder(files) == "fastokens"
        assert same_ids(FastEncoder(files.tokenizer_json), ReferenceEncoder(files.tokenizer_json), texts)


@given(texts=st.lists(st.text(max_size=40), max_size=6))
def test_both_encoders_agree_on_any_text(tokenizer_dir: Path, texts: list[str]) -> None:
    files = load_tokenizer_files(str(tokenizer_dir))
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    assert same_ids(FastEncoder(files.tokenizer_json), ReferenceEncoder(files.tokenizer_json), texts)


# Starters, marks of different classes, singletons, jamo, kana marks: what normalization moves, joins and takes apart.
_MARKED = st.text("ae<\u0301\u0323\u0338\u212a\u2126\uac00\u1100\u1161\u11a8か\u3099\uf900\ufb1d人。", max_size=12)


@given(texts=st.lists(_MARKED.filter(bool), min_size=1, max_size=6))
def test_documents_are_normalized_as_the_reference_does(qwen2_files: TokenizerFiles, texts: list[str]) -> None:
    content, eos_id = qwen2_files.tokenizer_json, qwen2_files.eos_id
    fast = DocumentEncoder(load_encoder("fastokens", content), content, eos_id).encode(texts)
    slow = DocumentEncoder(load_encoder("tokenizers", content), content, eos_id).encode(texts)
    assert fast.ids.tolist() == slow.ids.tolist() and fast.counts.tolist() == slow.counts.tolist()
    assert list(fast.contents) == list(slow.contents) == [text.encode() for text in texts]
    assert fast.num_chars == slow.num_chars == sum(map(len, texts))


def test_normalization_is_left_to_fastokens_where_something_is_cut_out_before_it(qwen2_files: TokenizerFiles) -> None:
    content: bytes = qwen2_files.tokenizer_json
    decomposed = ["e\u0301"]
    assert FastEncoder(content).normalized(decomposed) == ["\xe9"]
    assert FastEncoder(content, parse_special=True).normalized(decomposed) == decomposed
    tool = content.replace(b'"special":true', b'"special":false', 1)
    assert tool != content and FastEncoder(tool).normalized(decomposed) == decomposed
    text = ["<|im_end|>\u0338"]  # `>` and the mark are one character, unless the special token is cut out before
    for parse in (False, True):
        fast, slow = FastEncoder(content, parse_special=parse), ReferenceEncoder(content, parse_special=parse)
        assert same_ids(fast, slow, text)


def test_joining_gives_what_each_text_has_alone(qwen2_files: TokenizerFiles, tokenizer_dir: Path) -> None:
    texts = [record["text"] for record in sample_records()]
    texts += ["a<b", "<", "<|", "x<|endoftext", " ", "\n", "e\u0301", "\u0301e"]
    for files in (qwen2_files, load_tokenizer_files(str(tokenizer_dir))):
        content = files.tokenizer_json
        fast = DocumentEncoder(FastEncoder(content), content, files.eos_id)
        slow = DocumentEncoder(ReferenceEncoder(content), content, files.eos_id)
        assert fast._joins and not slow._joins
        for batch in (texts, ["<|endoftext|>"], ["a", "b<|im_start|>c", "<|endoftext|>d"], ["a"]):
            left, right = fast.encode(batch), slow.encode(batch)
            assert left.ids.tolist() == right.ids.tolist() and left.counts.tolist() == right.counts.tolist()
            assert [bytes(content) for content in left.contents] == [text.encode() for text in batch]


def test_an_eos_that_overlaps_itself_is_not_looked_for_in_joined_texts(qwen2_files: TokenizerFiles) -> None:
    content: bytes = qwen2_files.tokenizer_json.replace(b'"<|endoftext|>"', b'"=<>="')
    encoder = DocumentEncoder(load_encoder("fastokens", content), content, qwen2_files.eos_id)
    slow = DocumentEncoder(load_encoder("tokenizers", content), content, qwen2_files.eos_id)
    texts = ["e\u0301=<>", "b"]  # not NFC, so its UTF-8 is not looked through
    assert encoder.encode(texts).ids.tolist() == slow.encode(texts).ids.tolist()


def test_special_token_strings_are_ordinary_text(tokenizer_dir: Path) -> None:
    files = load_tokenizer_files(str(tokenizer_dir))
    for encoder in (FastEncoder(files.tokenizer_json), ReferenceEncoder(files.tokenizer_json)):
        ids, offsets = encoder.encode(["<|endoftext|>", ""])
        assert files.eos_id not in ids.tolist() and len(ids) > 1
        assert offsets.tolist() == [0, len(ids), len(ids)]
        assert ids.dtype == np.uint32


def test_a_tokenizer_that_fastokens_does_not_take_falls_back(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    files = load_tokenizer_files(str(tmp_path))
    assert files.entry.eos_token == "</s>" and files.eos_id == 2
    assert choose_encoder(files) == "tokenizers"


def test_training_gives_the_same_tokenizer_every_time(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        assert train_tokenizer([str(SAMPLE)], tmp_path / name, vocab_size=700) == 700
        contents.append((tmp_path / name / "tokenizer.json").read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("vocab_size", [0, 256, 2**25])
def test_impossible_vocabulary_sizes_are_refused(tmp_path: Path, vocab_size: int) -> None:
    with pytest.raises(InputError, match="vocab_size: expected 257 to"):
        train_tokenizer([str(SAMPLE)], tmp_path, vocab_size=vocab_size)


@pytest.mark.parametrize("content", ["", "{}", '{"model": {"vocab": {}}}', "[1]"])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        load_tokenizer_files(str(tmp_path))


def test_a_tokenizer_in_place_of_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in ("file", "file/below"):
        with pytest.raises(InputError, match="expected a directory, or nothing"):
            main(["tokenizer", str(SAMPLE), "--vocab-size", "300", "--out", str(tmp_path / out)])
