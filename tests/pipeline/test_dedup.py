"""`--dedup exact` and `--dedup near`: what is left out follows from the corpus alone, by a rule that a page holds."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline import dedup
from pipeline.dedup import compute_signatures, encode_hashes, find_duplicates, hash_texts, hashes_name, read_duplicates
from pipeline.readers.base import RangeReader
from pipeline.receipts import Receipt
from shards.verify import verify
from tests.conftest import InlineEngine, directory_bytes, use_engine, write_corpus
from tests.pipeline.building import Builder, texts_in

NEAR: dict[str, Any] = {"dedup": "near", "unit_bytes": 3_000, "val_fraction": 0.0}


def found_in(units: Sequence[list[str]], num_at_once: int = 1 << 22, *, near: bool = True) -> list[dict[int, str]]:
    """What is left out of each unit, and why."""
    written = dict[str, bytes]()
    for number, texts in enumerate(units):
        written[hashes_name(number)] = encode_hashes(Receipt(unit=number), hash_texts([texts], near=near))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "DOCUMENTS_AT_ONCE", num_at_once)
        patch.setattr(dedup, "_PAIRS_AT_ONCE", min(num_at_once, 1 << 16))
        find_duplicates(len(units), written.get, written.__setitem__, near=near)
    found = [np.frombuffer(content, "<u4") for name, content in written.items() if name.endswith("duplicates")]
    assert all((numbers[1:] > numbers[:-1]).all() for numbers in found)
    return [read_duplicates(written.get, number) for number in range(len(units))]


# ---- The rule, written down once more, plainly and slowly ----


def plain_signature(text: str) -> bytes:
    shortened = "".join(text.split()).ljust(5, "\0")
    bins = dict[int, int]()
    for start in range(len(shortened) - 4):
        value = 0
        for character in shortened[start : start + 5]:
            value = (value * 0x9E3779B97F4A7C15 + ord(character)) % 2**64
        value = (value ^ value >> 32) * 0xD6E8FEB86659FD93 % 2**64
        value ^= value >> 32
        bins[value >> 57] = min(value, bins.get(value >> 57, value))
    return bytes(next(bins[b ^ step] for step in range(128) if b ^ step in bins) % 256 for b in range(128))


def plainly_found(units: Sequence[list[str]], *, near: bool = True) -> list[dict[int, str]]:
    seen, firsts = set[str](), dict[tuple[int, bytes], bytes]()
    found: list[dict[int, str]] = []
    for texts in units:
        found.append({})
        for number, text in enumerate(texts):
            if text in seen:
                found[-1][number] = "duplicate"
                continue
            seen.add(text)
            signature = plain_signature(text)
            for band in range(16 * near):
                first = firsts.setdefault((band, signature[8 * band : 8 * band + 8]), signature)
                if first is not signature and sum(map(int.__eq__, first, signature)) >= 103:
                    found[-1][number] = "near-duplicate"
    return found


@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text("哈\u3000 \n", max_size=99)
    ),
    chars_at_once=st.integers(1, 20),
)
def test_a_signature_is_that_of_the_plain_definition(texts: list[str], chars_at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "_CHARS_AT_ONCE", chars_at_once)
        patch.setattr(dedup, "_TEXTS_AT_ONCE", 3)
        assert [row.tobytes() for row in compute_signatures(texts)] == list(map(plain_signature, texts))


def chinese(rng: random.Random, length: int) -> str:
    """Text whose characters are about as frequent as those of Chinese: few make up half of it."""
    return "".join(chr(0x4E00 + int(3000 ** rng.random())) for _ in range(length))


def edited(rng: random.Random, text: str, share: float) -> str:
    """A copy in which that share of the characters is missing, replaced, or has another one after it."""
    changes = {place: rng.choice("-=+") for place in range(len(text)) if rng.random() < share}
    kept = {"-": "", "=": chinese(rng, 1), "+": "{}" + chinese(rng, 1)}
    return "".join(kept[changes[place]].format(own) if place in changes else own for place, own in enumerate(text))


@hypothesis_settings(max_examples=40)
@given(
    plans=st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=6), max_size=5),
    seed=st.integers(0, 999),
    documents_at_once=st.sampled_from([1, 4, 1 << 22]),
    near=st.booleans(),
)
def test_the_plain_rule(plans: list[list[tuple[int, int]]], seed: int, documents_at_once: int, near: bool) -> None:
    rng = random.Random(seed)
    originals = ["短", chinese(rng, 30), chinese(rng, 150)]
    units = [[edited(rng, originals[which], share / 50) for which, share in plan] for plan in plans]
    assert found_in(units, documents_at_once, near=near) == plainly_found(units, near=near)


# ---- What the rule is good for ----


def similarity(one: str, other: str) -> float:
    first, second = ({text[place : place + 5] for place in range(len(text) - 4)} for text in (one, other))
    return len(first & second) / len(first | second)


def test_edited_copies_are_found_and_others_are_not() -> None:
    """Of pairs with a similarity of 0.9 all but 1 in 200 are found, from 0.85 on 9 of 10; of those below 0.7 none but 1 in
    100. Unrelated texts never are."""
    rng = random.Random(1)
    originals = [chinese(rng, rng.choice([40, 100, 300])) for _ in range(1500)]
    copies = [edited(rng, text, rng.choice([0.004, 0.01, 0.02, 0.03, 0.06])) for text in originals]
    (found,) = found_in([originals + copies])
    assert min(found) >= len(originals)
    similarities = [similarity(*pair) for pair in zip(originals, copies, strict=True)]
    for low, high, least, most in ((0.9, 1.01, 0.995, 1), (0.85, 0.9, 0.9, 1), (0.7, 0.8, 0, 0.5), (0, 0.7, 0, 0.01)):
        chosen = [number for number, value in enumerate(similarities, len(originals)) if low <= value < high]
        assert len(chosen) > 50
        assert least <= sum(number in found for number in chosen) / len(chosen) <= most, (low, high)


def test_many_with_the_same_boilerplate_are_no_quadratic_work() -> None:
    """Comparing each of 10,000 with each would take a minute. All but the first are found, and what is different stays."""
    rng = random.Random(2)
    boilerplate = chinese(rng, 200)
    found = found_in([[f"{number:05}{boilerplate}" for number in range(10_000)], [chinese(rng, 200)]])
    assert found == [dict.fromkeys(range(1, 10_000), "near-duplicate"), {}]


def test_tiny_texts_are_near_duplicates_only_if_equal_but_for_white_space() -> None:
    texts = ["水", "火", "水火", "水 火", "\n水\u3000火", "水", "水火土木", "水火土木金", "水火土木 金", " ", "\u3000"]
    (found,) = found_in([texts])
    near = [text for number, text in enumerate(texts) if found.get(number) == "near-duplicate"]
    assert near == ["水 火", "\n水\u3000火", "水火土木 金", "\u3000"] and found[5] == "duplicate"


def test_signatures_stay_the_same_forever() -> None:
    """A build may be continued by another version of the program or of NumPy."""
    (signature,) = compute_signatures(["水是由氢和氧组成的化合物。它也叫 H2O。"])
    assert signature[::8].tobytes().hex() == "3737060630301919d7990d34cccc124a"


# ---- Builds ----


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(4)
    texts = [chinese(rng, rng.choice([3, 40, 150])) for _ in range(60)]
    texts += [edited(rng, rng.choice(texts), rng.choice([0, 0.01, 0.02])) for _ in range(60)] + ["", texts[0]]
    rng.shuffle(texts)
    return write_corpus(tmp_path_factory.mktemp("near") / "corpus.json", [{"text": text} for text in texts])


@pytest.mark.usefixtures("inline_engine")
@pytest.mark.parametrize("documents_at_once", [7, 1 << 22])
@pytest.mark.parametrize("unit_bytes", [500, 10**7])
def test_a_build_keeps_the_first(
    tmp_path: Path, run: Builder, unit_bytes: int, documents_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedup, "DOCUMENTS_AT_ONCE", documents_at_once)
    monkeypatch.setattr(RangeReader, "chunk_bytes", 300)  # so that a unit has many batches
    texts = [f"第{number * number % 37}篇" if number % 3 else "" for number in range(300)]
    texts[9:9] = [""] * 100  # a unit without a document is among the first
    corpus = write_corpus(tmp_path / "corpus.json", [{"text": text} for text in texts])
    manifest = run(corpus, tmp_path / "set", dedup="exact", unit_bytes=unit_bytes, val_fraction=0.0).manifest
    expected = list(dict.fromkeys(text for text in texts if text))
    assert texts_in(tmp_path / "set") == expected and verify(tmp_path / "set") == []
    assert manifest.left_out == {"duplicate": sum(map(bool, texts)) - len(expected), "empty": texts.count("")}
    assert manifest.num_records == len(texts)


def test_near_duplicates_in_builds(tmp_path: Path, run: Builder, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(corpus, tmp_path / "two", num_workers=2, **NEAR)
    use_engine(monkeypatch, InlineEngine(seed=1))
    manifest = run(corpus, tmp_path / "inline", **NEAR).manifest
    assert directory_bytes(tmp_path / "two") == directory_bytes(tmp_path / "inline") and len(manifest.shards) > 5
    texts = [record["text"] for record in json.loads(corpus.read_text("utf-8")) if record["text"]]
    (left_out,) = plainly_found([texts])
    assert texts_in(tmp_path / "two") == [text for number, text in enumerate(texts) if number not in left_out]
    assert manifest.left_out == Counter(left_out.values()) | {"empty": 1} and set(left_out.values()) == set(
        dedup.REASONS
    )
    run(corpus, tmp_path / "one-unit", **NEAR | {"unit_bytes": 10**7})
    assert texts_in(tmp_path / "one-unit") == texts_in(tmp_path / "two") and verify(tmp_path / "two") == []


def test_hashes_are_compared_in_all_of_their_bits() -> None:
    entries = np.array([(1, 1, 0), (1, 2, 1), (1, 2, 2), (2, 2, 3)], dedup._ENTRIES)
    assert dedup._firsts(entries).tolist() == [0, 1, 1, 3]
