"""Qwen2's tokenizer on real text: documents come back exactly, and the tokens are the reference tokenizer's own.

The embedded sample always runs; larger corpora run where they lie beside the checkout.
"""

from __future__ import annotations

import gzip
import itertools
import json
import unicodedata
from pathlib import Path

import pytest

import shards
from pipeline.build import build
from pipeline.settings import BuildSettings
from pipeline.tokenizers import ReferenceEncoder, load_tokenizer_files
from shards.verify import verify
from tests.conftest import REPOSITORY, SAMPLE

CORPORA = REPOSITORY.parent / "shared" / "corpus"


def check_exact(corpus: Path, texts: list[str], out: Path) -> None:
    build([str(corpus)], out, tokenizer_name="qwen2", settings=BuildSettings(unit_bytes=1 << 20), num_workers=2)
    assert verify(out) == []
    shard_set = shards.open(out)
    reference = ReferenceEncoder((shard_set.tokenizer_path / "tokenizer.json").read_bytes())
    ids, offsets = reference.encode(texts)
    expected = sorted(ids[start:end].tobytes() for start, end in itertools.pairwise(offsets))
    documents = [document for name in ("train", "val") for document in shard_set[name].documents()]
    assert sorted(document.tobytes() for document in documents) == expected
    splits = shard_set.manifest.splits.values()
    assert sum(split.num_tokens for split in splits) == len(ids) + len(texts)

    from tokenizers import Tokenizer

    decoder = Tokenizer.from_file(str(shard_set.tokenizer_path / "tokenizer.json"))
    decoded = decoder.decode_batch([document.tolist() for document in documents], skip_special_tokens=False)
    assert sorted(decoded) == sorted(unicodedata.normalize("NFC", text) for text in texts)


def test_the_sample_comes_back_exactly(tmp_path: Path) -> None:
    texts = [record["text"] for record in json.loads(SAMPLE.read_text(encoding="utf-8"))]
    check_exact(SAMPLE, texts, tmp_path / "set")


@pytest.mark.slow
@pytest.mark.skipif(not CORPORA.exists(), reason="no larger corpus beside the checkout")
def test_wikipedia_paragraphs_come_back_exactly(tmp_path: Path) -> None:
    corpus = CORPORA / "wiki-zh.json"
    texts = [record["text"] for record in json.loads(corpus.read_text(encoding="utf-8"))]
    check_exact(corpus, texts, tmp_path / "set")
    assert load_tokenizer_files("qwen2").eos_id == shards.open(tmp_path / "set").eos_id == 151_643


@pytest.mark.slow
@pytest.mark.skipif(not CORPORA.exists(), reason="no larger corpus beside the checkout")
def test_prose_comes_back_exactly(tmp_path: Path) -> None:
    corpus = tmp_path / "prose.jsonl"
    corpus.write_bytes(gzip.decompress((CORPORA / "prose-zh.jsonl.gz").read_bytes()))
    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    check_exact(corpus, texts, tmp_path / "set")
