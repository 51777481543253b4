"""`--dedup exact`: of equal texts the first in the corpus is kept, whatever the units and however many documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import dedup
from pipeline.dedup import decode_duplicates, find_duplicates, hash_texts
from shards.verify import verify
from tests.conftest import write_corpus
from tests.pipeline.building import Builder, texts_in


@given(
    units=st.lists(st.lists(st.integers(0, 9).map(str), max_size=8), max_size=8),
    documents_at_once=st.sampled_from([1, 3, 1 << 22]),
)
def test_duplicates_are_all_documents_but_the_first_and_each_is_sorted_once(
    units: list[list[str]], documents_at_once: int
) -> None:
    seen: set[str] = set()
    expected: dict[int, frozenset[int]] = {}
    for number, texts in enumerate(units):
        if again := frozenset(place for place, text in enumerate(texts) if text in seen or text in texts[:place]):
            expected[number] = again
        seen.update(texts)
    hashes, found, num_sorted = [hash_texts([texts]) for texts in units], dict[int, bytes](), 0
    find_in = dedup._find_in

    def counted(entries: Any, directory: Path) -> None:
        nonlocal num_sorted
        num_sorted += len(entries)
        find_in(entries, directory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "DOCUMENTS_AT_ONCE", documents_at_once)
        patch.setattr(dedup, "_find_in", counted)
        find_duplicates(len(units), hashes.__getitem__, found.__setitem__)
    assert {number: decode_duplicates(content) for number, content in found.items()} == expected
    assert all(np.all(np.diff(np.frombuffer(content, "<u4").astype(int)) > 0) for content in found.values())
    assert num_sorted == sum(map(len, units))


@pytest.mark.usefixtures("inline_engine")
@pytest.mark.parametrize("documents_at_once", [7, 1 << 22])
@pytest.mark.parametrize("unit_bytes", [500, 10**7])
def test_a_build_keeps_the_first_of_equal_texts(
    tmp_path: Path, run: Builder, unit_bytes: int, documents_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedup, "DOCUMENTS_AT_ONCE", documents_at_once)
    texts = [f"第{number * number % 37}篇" if number % 3 else "" for number in range(300)]
    corpus = write_corpus(tmp_path / "corpus.json", [{"text": text} for text in texts])
    manifest = run(corpus, tmp_path / "set", dedup="exact", unit_bytes=unit_bytes, val_fraction=0.0).manifest
    expected = list(dict.fromkeys(text for text in texts if text))
    assert texts_in(tmp_path / "set") == expected and verify(tmp_path / "set") == []
    assert manifest.num_duplicates == sum(map(bool, texts)) - len(expected)
    assert (manifest.num_records, manifest.num_empty) == (len(texts), texts.count(""))
