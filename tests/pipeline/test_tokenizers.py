"""The Qwen2 tokenizer is exact, from wherever it comes, and all encoders give the same ids."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import native, qwen2, tokenizers
from pipeline.__main__ import main
from pipeline.encode import Encoder
from pipeline.settings import BuildSettings
from pipeline.tokenizers import (
    PROBE_TEXTS,
    FastEncoder,
    choose_encoder,
    load_encoder,
    load_tokenizer_files,
    same_ids,
)
from pipeline.train_tokenizer import train_tokenizer
from shards.common.errors import InputError
from shards.tokenizer_files import TokenizerFiles
from tests.conftest import SAMPLE, sample_records, write_corpus
from tests.hub_server import Hub


@pytest.fixture(scope="module")
def qwen2_files() -> TokenizerFiles:
    return load_tokenizer_files("qwen2")


@pytest.fixture(scope="module")
def qwen2_encoders(qwen2_files: TokenizerFiles) -> tuple[Encoder, Encoder]:
    return loaded(qwen2_files)


def test_qwen2_has_the_published_tokens_and_ids(
    qwen2_files: TokenizerFiles, qwen2_encoders: tuple[Encoder, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids as the model's authors publish them: `tokenizer("Hello world!")` and the first words of the model card."""
    model = orjson.loads(qwen2_files.tokenizer_json)["model"]
    assert (len(model["vocab"]), len(model["merges"])) == (151_643, 151_387)
    assert model["merges"][:3] == ["Ġ Ġ", "ĠĠ ĠĠ", "i n"]
    assert (qwen2_files.entry.vocab_size, qwen2_files.entry.sha256) == (151_646, qwen2.TOKENIZER_SHA256)
    assert qwen2_files.eos_id == 151_643
    ids, _ = qwen2_encoders[1].encode(["Hello world!", "人工智能"])
    assert ids.tolist() == [9707, 1879, 0, 104455]
    monkeypatch.setattr(qwen2, "RANKS_SHA256", hashlib.sha256(b"other").hexdigest())
    with pytest.raises(InputError, match=r"expected sha256 .*, found "):
        qwen2.read_ranks()


def loaded(files: TokenizerFiles, *, parse_special: bool = False) -> tuple[Encoder, Encoder]:
    """Both encoders."""
    fast, slow = (
        load_encoder(name, files.tokenizer_json, parse_special=parse_special) for name in ("fastokens", "tokenizers")
    )
    return fast, slow


@pytest.fixture(scope="module")
def own_files(tokenizer_dir: Path) -> TokenizerFiles:
    """Of the tokenizer trained here, which normalizes and splits as Qwen2 does."""
    return load_tokenizer_files(str(tokenizer_dir))


def test_both_encoders_agree_on_sample_and_probes(
    qwen2_files: TokenizerFiles, own_files: TokenizerFiles, qwen2_encoders: tuple[Encoder, Encoder]
) -> None:
    texts = [record["text"] for record in sample_records()] + list(PROBE_TEXTS)
    for files, encoders in ((qwen2_files, qwen2_encoders), (own_files, loaded(own_files))):
        assert choose_encoder(files) in ("native", "fastokens")
        assert same_ids(*encoders, texts)


# Starters, marks of different classes, singletons, jamo, kana marks: what normalization moves, joins and takes apart.
_MARKED = st.text("ae<\u0301\u0323\u0338\u212a\u2126\uac00\u1100\u1161\u11a8か\u3099\uf900\ufb1d人。", max_size=12)


@given(
    texts=st.lists((_MARKED | st.text(st.characters(exclude_categories=["Cs"]))).filter(bool), min_size=1, max_size=6)
)
def test_documents_are_the_reference_s_ids_closed_by_eos(own_files: TokenizerFiles, texts: list[str]) -> None:
    encoder, reference = loaded(own_files)
    documents = encoder.encode_closed(texts, own_files.eos_id)
    expected = [[*reference.encode([text])[0].tolist(), own_files.eos_id] for text in texts]
    assert documents.ids.tolist() == list(itertools.chain(*expected))
    assert documents.counts.tolist() == [*map(len, expected)]
    assert list(documents.contents) == [text.encode() for text in texts]


def test_normalization_is_left_to_fastokens_where_something_is_cut_out_before_it(own_files: TokenizerFiles) -> None:
    content: bytes = own_files.tokenizer_json
    decomposed = ["e\u0301"]
    assert FastEncoder(content).normalized(decomposed) == ["\xe9"]
    assert FastEncoder(content, parse_special=True).normalized(decomposed) == decomposed
    tool = content.replace(b'"special":true', b'"special":false', 1)
    assert tool != content and FastEncoder(tool).normalized(decomposed) == decomposed
    text = ["<|endoftext|>\u0338"]  # `>` and the mark are one character, unless the special token is cut out before
    for parse in (False, True):
        assert same_ids(*loaded(own_files, parse_special=parse), text)


def test_a_tokenizer_that_fastokens_does_not_take_falls_back(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    files = load_tokenizer_files(str(tmp_path))
    assert files.entry.eos_token == "</s>" and files.eos_id == 2
    assert choose_encoder(files) == "tokenizers"


def test_training_gives_the_same_tokenizer_every_time(tmp_path: Path, tokenizer_dir: Path) -> None:
    assert train_tokenizer([str(SAMPLE)], tmp_path, vocab_size=600) == 600
    assert (tmp_path / "tokenizer.json").read_bytes() == (tokenizer_dir / "tokenizer.json").read_bytes()
    for vocab_size in (256, 2**25):
        with pytest.raises(InputError, match="vocab_size: expected 257 to"):
            train_tokenizer([str(SAMPLE)], tmp_path, vocab_size=vocab_size)
    with pytest.raises(InputError, match="every: expected at least 1"):
        train_tokenizer([str(SAMPLE)], tmp_path, vocab_size=600, every=0)
    empty = write_corpus(tmp_path / "empty", [{"text": ""}, {"text": None}], "lines")
    with pytest.raises(InputError, match="empty: no text; nothing to learn"):
        train_tokenizer([str(empty)], tmp_path / "never", vocab_size=600)
    assert not (tmp_path / "never").exists()


def test_a_tokenizer_is_trained_on_the_texts_of_a_set(tmp_path: Path) -> None:
    records = [{"title": record["text"][:9], "lines": [record["text"], None]} for record in sample_records()]
    corpus = write_corpus(tmp_path / "corpus", [*records, {"title": "x"}], "lines")
    settings = BuildSettings(template="{title}{lines[]}", on_bad_record="skip")
    lines: list[str] = []
    made = train_tokenizer([str(corpus)], tmp_path / "made", vocab_size=500, settings=settings, notice=lines.append)
    assert made == 500 and lines == ["1 record rejected: no text field"]
    with pytest.raises(InputError, match="no field"):
        train_tokenizer([str(corpus)], tmp_path / "made", vocab_size=500)


def test_one_in_so_many_documents_is_enough(tmp_path: Path) -> None:
    texts = [record["text"] for record in sample_records()]
    some, all_ = (
        write_corpus(tmp_path / name, [{"text": text} for text in found], "lines")
        for name, found in (("some", texts[::3]), ("all", texts))
    )
    for source, every in ((some, 1), (all_, 3)):
        train_tokenizer([str(source)], tmp_path / str(every), vocab_size=500, every=every)
    assert len({(tmp_path / name / "tokenizer.json").read_bytes() for name in "13"}) == 1


def test_fewer_entries_than_were_asked_for_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write_corpus(tmp_path / "corpus", [{"text": "abab"}], "lines")
    main(["tokenizer", str(corpus), "--vocab-size", "400", "--out", str(tmp_path / "made")])
    line = "tokenizer.json: 259 entries; the corpus has no more pairs to merge, 400 were asked for\n"
    assert capsys.readouterr().out == f"{tmp_path}/made/{line}"


def test_a_tokenizer_in_place_of_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in ("file", "file/below"):
        with pytest.raises(InputError, match="expected a directory, or nothing"):
            main(["tokenizer", str(SAMPLE), "--vocab-size", "300", "--out", str(tmp_path / out)])


# ---- tokenizers of a hub ----


both = pytest.mark.parametrize("name", ["hf:org/model", "ms:org/model"])
OWN = {"model": {"type": "WordLevel", "vocab": {"a": 0, "</s>": 1}}}


@pytest.fixture
def served(hub: Hub) -> Hub:
    files = {"tokenizer.json": orjson.dumps(OWN), "tokenizer_config.json": b'{"eos_token": "</s>"}'}
    hub.commit("models/org/model", files)
    return hub


@pytest.fixture(scope="module")
def built_in() -> dict[str, Any]:
    content: dict[str, Any] = orjson.loads(qwen2.qwen2_tokenizer_json())
    return content


@both
def test_it_has_the_repository_s_name_and_needs_no_network_the_second_time(served: Hub, name: str) -> None:
    """Both files are of one commit."""
    commit = served.head("models/org/model")
    first = load_tokenizer_files(name)
    assert (first.entry.name, first.entry.eos_token, first.entry.vocab_size) == ("org/model", "</s>", 2)
    assert name[:2] == "ms" or not [one for one in served.questions if "/resolve/" in one and commit not in one]
    served.put("models/org/model", "tokenizer.json", b"changed")
    served.status = 503
    assert load_tokenizer_files(name) == first


def test_a_published_qwen2_is_the_built_in_one(hub: Hub, built_in: dict[str, Any], qwen2_files: TokenizerFiles) -> None:
    """In the words of newer files: merges as pairs, other defaults, another order of keys."""
    changes = {"merges": [merge.split(" ") for merge in built_in["model"]["merges"]], "ignore_merges": False}
    model = built_in["model"] | changes | {"continuing_subword_prefix": None}
    content = {**built_in, "model": dict(reversed(model.items()))}
    config = b'{"eos_token": "<|endoftext|>", "chat_template": "x"}'
    spelled_otherwise = orjson.dumps(dict(reversed(content.items())), option=orjson.OPT_INDENT_2)
    hub.commit("models/org/model", {"tokenizer.json": spelled_otherwise, "tokenizer_config.json": config})
    assert load_tokenizer_files("hf:org/model") == qwen2_files


def test_what_is_not_qwen2_is_not_taken_for_it(built_in: dict[str, Any]) -> None:
    content, model = built_in, built_in["model"]
    assert qwen2.canonical_tokenizer_json(content) == orjson.dumps(content)
    changes: list[tuple[str, Any]] = [
        ("normalizer", {"type": "NFKC"}),
        ("added_tokens", content["added_tokens"][:2]),
        ("added_tokens", [{**token, "normalized": True} for token in content["added_tokens"]]),
        ("pre_tokenizer", content["pre_tokenizer"]["pretokenizers"][1]),
        ("truncation", {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}),
        *(("model", model | change) for change in ({"merges": model["merges"][::-1]}, {"dropout": 0.5})),
        ("model", {**model, "vocab": {**model["vocab"], "!": 1, '"': 0}}),
        ("model", None),
    ]
    for key, value in changes:
        assert qwen2.canonical_tokenizer_json({**content, key: value}) is None, (key, str(value)[:60])


def test_another_eos_is_another_tokenizer(hub: Hub, built_in: dict[str, Any]) -> None:
    """The chat models have the same `tokenizer.json`, and end a text with another token."""
    hub.put("models/org/model", "tokenizer.json", orjson.dumps(built_in))
    hub.put("models/org/model", "tokenizer_config.json", b'{"eos_token": "<|im_end|>"}')
    entry = load_tokenizer_files("hf:org/model").entry
    assert (entry.name, entry.eos_token, entry.eos_id) == ("org/model", "<|im_end|>", 151_645)


@both
def test_without_a_configuration_the_end_is_found_as_in_a_directory(hub: Hub, name: str) -> None:
    own = {**OWN, "added_tokens": [{"content": "</s>", "id": 1}]}
    hub.put("models/org/model", "tokenizer.json", orjson.dumps(own))
    assert load_tokenizer_files(name).entry.eos_token == "</s>"
    hub.status = 503  # it is known that there is none
    assert name.startswith("ms") or load_tokenizer_files(name).entry.eos_token == "</s>"


@pytest.mark.parametrize("content", [b"[]", b"", b'{"model": {"vocab": {"a": "b"}}}', b"\xff"])
def test_a_file_that_is_no_tokenizer_is_refused(served: Hub, content: bytes) -> None:
    served.put("models/org/model", "tokenizer.json", content)
    with pytest.raises(InputError, match=r"hf:org/model: not a tokenizer\.json that can be read"):
        load_tokenizer_files("hf:org/model")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("qwen", "did you mean 'qwen2'"),
        ("Qwen/Qwen2-0.5B", "on a hub it is hf:Qwen/Qwen2-0.5B"),
        ("hf:qwen2", "hf:ORG/NAME"),
        ("{beside}/qwen", "did you mean '{beside}/qwen3'"),
    ],
)
def test_a_mistyped_tokenizer_suggests_the_right_one(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / "qwen3").mkdir()
    with pytest.raises(InputError) as raised:
        load_tokenizer_files(name.format(beside=tmp_path))
    assert hint.format(beside=tmp_path) in str(raised.value)


def test_without_a_compiler(tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = load_tokenizer_files(str(tokenizer_dir))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    native.compiled.cache_clear()
    tokenizers._load_native.cache_clear()
    try:
        lines: list[str] = []
        assert choose_encoder(files, notice=lines.append) == "fastokens"
        assert len(lines) == 1 and "no C compiler" in lines[0] and "fastokens" in lines[0]
        assert choose_encoder(files, num_bytes=1000, notice=lines.append) == "fastokens" and len(lines) == 1
        with pytest.raises(InputError, match="--encoder native: no C compiler"):
            choose_encoder(files, wanted="native")
    finally:
        native.compiled.cache_clear()
