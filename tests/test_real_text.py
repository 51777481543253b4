"""The sample corpus is what it is said to be, and of real text Qwen2's tokenizer makes the reference tokenizer's tokens,
from which the documents come back exactly.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer

import shards
from pipeline.build import build
from pipeline.settings import BuildSettings
from pipeline.tokenizers import ReferenceEncoder
from shards.verify import verify
from tests.conftest import SAMPLE, sample_records

REQUIRED_TITLES = {"人工智能", "牛顿", "北京市", "亚洲历史", "数学", "哲学", "文学", "历史", "计算机科学"}


def test_the_sample_has_the_published_shape_and_articles_of_all_lengths_that_hardly_repeat() -> None:
    lines, records = SAMPLE.read_text(encoding="utf-8").splitlines(), sample_records()
    assert lines[0] == "[" and lines[-1] == "]" and len(lines) == len(records) + 2 >= 102
    assert all([*record] == ["id", "title", "tags", "text"] for record in records)
    assert len({record["id"] for record in records}) == len({record["title"] for record in records}) == len(records)
    assert {record["title"] for record in records} >= REQUIRED_TITLES
    texts = [record["text"] for record in records]
    lengths = list(map(len, texts))
    assert sum(lengths) >= 50_000 and min(lengths) < 100 and 1500 < max(lengths) <= 2000
    pieces = Counter(text[start : start + 20] for text in texts for start in range(len(text) - 19))
    assert sum(count for count in pieces.values() if count > 1) < 0.01 * pieces.total()


def test_texts_come_back_exactly(tmp_path: Path) -> None:
    texts, out = [record["text"] for record in sample_records()], tmp_path / "set"
    build([str(SAMPLE)], out, tokenizer_name="qwen2", settings=BuildSettings(unit_bytes=1 << 20), num_workers=2)
    assert verify(out) == []
    shard_set = shards.open(out)
    assert shard_set.eos_id == 151_643
    reference = ReferenceEncoder((shard_set.tokenizer_path / "tokenizer.json").read_bytes())
    ids, offsets = reference.encode(texts)
    expected = sorted(ids[start:end].tobytes() for start, end in itertools.pairwise(offsets))
    documents = [document for name in ("train", "val") for document in shard_set[name].documents()]
    assert sorted(document.tobytes() for document in documents) == expected
    splits = shard_set.manifest.splits.values()
    assert sum(split.num_tokens for split in splits) == len(ids) + len(texts)

    decoder = Tokenizer.from_file(str(shard_set.tokenizer_path / "tokenizer.json"))
    decoded = decoder.decode_batch([document.tolist() for document in documents], skip_special_tokens=False)
    assert sorted(decoded) == sorted(unicodedata.normalize("NFC", text) for text in texts)
