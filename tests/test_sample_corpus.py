"""The embedded corpus is what it is said to be: original, long enough, of the published file's shape."""

from __future__ import annotations

from collections import Counter

from tests.conftest import SAMPLE, sample_records

REQUIRED_TITLES = {"人工智能", "牛顿", "北京市", "亚洲历史", "数学", "哲学", "文学", "历史", "计算机科学"}
STRETCH_CHARS = 20


def test_one_record_a_line_in_the_published_shape() -> None:
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    records = sample_records()
    assert lines[0] == "[" and lines[-1] == "]" and len(lines) == len(records) + 2
    for record in records:
        assert list(record) == ["id", "title", "tags", "text"]
        assert all(isinstance(value, str) for value in record.values())
    assert len({record["id"] for record in records}) == len({record["title"] for record in records}) == len(records)


def test_enough_articles_of_all_lengths() -> None:
    lengths = [len(record["text"]) for record in sample_records()]
    assert len(lengths) >= 100
    assert sum(lengths) >= 50_000
    assert min(lengths) < 100 and max(lengths) <= 2000 and max(lengths) > 1500
    assert {record["title"] for record in sample_records()} >= REQUIRED_TITLES


def test_hardly_any_stretch_of_text_occurs_twice() -> None:
    stretches = Counter(
        record["text"][start : start + STRETCH_CHARS]
        for record in sample_records()
        for start in range(len(record["text"]) - STRETCH_CHARS + 1)
    )
    repeated = sum(count for count in stretches.values() if count > 1)
    assert repeated / sum(stretches.values()) < 0.01
