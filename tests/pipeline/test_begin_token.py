"""A begin token stands before each document and is no text; a set says which it is, and only alike sets go together."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import pytest

import shards
from shards.common.errors import InputError
from shards.edit import merge, subset
from shards.manifest import Packing, read_manifest
from shards.mixture import Mixture
from shards.report.statistics import compute
from shards.show import describe, show_block, show_document
from shards.verify import verify
from tests.conftest import SAMPLE, write_corpus
from tests.pipeline.building import Builder, stored
from tests.shards.sets import PACKINGS, documents_of, forge, shard_files

BEGIN = 600


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Builder:
    """With the token `<s>`, and a special one that begins like it."""
    directory = tmp_path_factory.mktemp("begin") / "tokenizer"
    shutil.copytree(tokenizer_dir, directory)
    content = json.loads((directory / "tokenizer.json").read_bytes())
    for number, token in enumerate(("<s>", "<start>")):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        content["added_tokens"].append({"id": BEGIN + number, "content": token, "special": True, **flags})
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return Builder(directory)


@pytest.fixture(scope="module")
def plain(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(builder(SAMPLE, tmp_path_factory.mktemp("sets") / "plain").out)


@pytest.fixture(scope="module")
def begun(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(builder(SAMPLE, tmp_path_factory.mktemp("sets") / "begun", begin_token="<s>").out)


@pytest.mark.parametrize("packing", PACKINGS)
def test_it_stands_before_each_document(builder: Builder, plain: Path, tmp_path: Path, packing: Packing) -> None:
    outs = [tmp_path / "1", tmp_path / "3"]
    for out in outs:
        builder(SAMPLE, out, begin_token="<s>", packing=packing, num_workers=int(out.name), check_every=1)
    assert stored(str(outs[0])) == stored(str(outs[1]))
    assert documents_of(outs[0]) == [[BEGIN, *document] for document in documents_of(plain)]
    assert verify(outs[0]) == []
    before, now = read_manifest(plain), read_manifest(outs[0])
    for field in ("num_documents", "num_text_bytes", "num_text_chars"):
        assert now.total(field) == before.total(field)
    assert now.tokenizer.begin_id == BEGIN and now.settings["begin_token"] == "<s>"


def test_a_set_without_one_has_no_field_for_it(plain: Path, builder: Builder) -> None:
    content = json.loads((plain / "manifest.json").read_bytes())
    assert "begin_id" not in content["tokenizer"] and "begin_token" not in content["settings"]
    with pytest.raises(InputError, match=r"other inputs is there \(begin_token was none, now <s>\)"):
        builder(SAMPLE, plain, begin_token="<s>")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("<strt>", "begin_token: '<strt>' is not in the tokenizer 'tokenizer'; did you mean '<start>'?"),
        ("\udce4", "begin_token: expected text in UTF-8, found '\\udce4'"),
        ("<|endoftext|>", "begin_token: '<|endoftext|>' is EOS"),
    ],
)
def test_another_token_is_refused_before_all_else(builder: Builder, tmp_path: Path, token: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        builder(SAMPLE, tmp_path / "out", begin_token=token)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [BEGIN + 2, 1 << 40, None, "eos"])
def test_a_manifest_with_another_id_is_refused(begun: Path, tmp_path: Path, value: object) -> None:
    shutil.copytree(begun, tmp_path / "set")
    eos_id = read_manifest(begun).tokenizer.eos_id
    wrong = eos_id if value == "eos" else value
    forge(tmp_path / "set", lambda content: content["tokenizer"].update(begin_id=wrong))
    with pytest.raises(InputError, match="tokenizer: begin_id"):
        read_manifest(tmp_path / "set")


def test_a_document_without_it_is_a_fault(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "set")
    forge(tmp_path / "set", lambda content: content["tokenizer"].update(begin_id=BEGIN))
    faults = verify(tmp_path / "set")
    assert len(faults) == len(read_manifest(plain).shards)
    assert all(f"expected the begin token {BEGIN}, found " in fault for fault in faults)


def test_parts_keep_it_and_only_alike_sets_go_together(plain: Path, begun: Path, tmp_path: Path) -> None:
    whole = subset(begun, tmp_path / "whole", fraction=Fraction(1))
    assert shard_files(tmp_path / "whole") == shard_files(begun)
    assert (whole.tokenizer, whole.shards) == (read_manifest(begun).tokenizer, read_manifest(begun).shards)
    assert merge([begun, begun], tmp_path / "twice").tokenizer.begin_id == BEGIN
    with pytest.raises(InputError, match=rf"differs in tokenizer.begin_id \(expected {BEGIN}, found None\)"):
        merge([begun, plain], tmp_path / "mixed")
    with pytest.raises(
        InputError, match=r"plain: can't be mixed with .*begun, .*begin_id \(expected 600, found None\)"
    ):
        Mixture([("", [(shards.open(begun), "1"), (shards.open(plain), "1")])])


def test_a_set_by_such_a_sets_tokenizer_has_none(builder: Builder, plain: Path, begun: Path, tmp_path: Path) -> None:
    assert builder(SAMPLE, tmp_path / "set", tokenizer_name=str(begun)).manifest == read_manifest(plain)


def test_the_report_measures_text_without_it(plain: Path, begun: Path) -> None:
    with_it, without = (compute(shards.open(path), seed=0) for path in (begun, plain))
    assert with_it.lengths == without.lengths and with_it.tokens.ranking == without.tokens.ranking


def test_it_is_shown_but_is_no_text(builder: Builder, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.json", [{"text": "水"}, {"text": "火"}])
    builder(corpus, tmp_path / "set", begin_token="<s>", val_fraction=0)
    shard_set = shards.open(tmp_path / "set")
    assert "EOS 599 <|endoftext|>, documents begin with 600 <s>" in describe(shard_set)
    for text in (show_document(shard_set, "train", 1), show_block(shard_set, "train", 0)):
        assert "\n火" in text and "<s>" not in text
    assert "     600  '<s>'" in show_document(shard_set, "train", 0, with_ids=True)
