"""Subsets and splits: every document whole, once and in order, in the bytes that a build of them gives."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from shards.entries import SPLITS
from shards.merge import merge
from shards.regroup import split, subset

import shards
from shards import regroup
from shards.common.errors import InputError
from shards.manifest import read_manifest
from shards.verify import verify
from tests.conftest import directory_bytes
from tests.shards.regroup_sets import (
    PACKINGS,
    TEXTS,
    build_packings,
    build_set,
    content,
    documents,
    flip_a_bit,
    is_part_in_order,
    names_in,
)

pytestmark = pytest.mark.usefixtures("inline_engine")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> dict[str, Path]:
    return build_packings(tmp_path_factory.mktemp("sets"), tokenizer_dir)


@pytest.fixture
def own_copy(sets: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the set in the packing `concat` that the test may damage."""
    return Path(shutil.copytree(sets["concat"], tmp_path / "set"))


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_part_with_everything_is_the_set_itself(tmp_path: Path, sets: dict[str, Path], packing: str) -> None:
    """Packing documents anew gives the very shards, indexes and tails of the build."""
    whole = read_manifest(sets[packing])
    subset(sets[packing], tmp_path / "a", fraction=Fraction(1))
    subset(sets[packing], tmp_path / "b", num_documents=whole.splits["train"].num_documents, seed=7)
    subset(sets[packing], tmp_path / "c", num_tokens=whole.splits["train"].num_tokens)
    split(sets[packing], [tmp_path / "d"], [Fraction(1)])
    for name in "abcd":
        assert verify(tmp_path / name) == []
        assert content(tmp_path / name) == content(sets[packing])
        found = read_manifest(tmp_path / name)
        assert (found.shards, found.tails) == (whole.shards, whole.tails)
        if packing != "tutorial":  # whose counts of text include what it drops
            assert found.splits == whole.splits
        (source,) = found.sources
        assert (source.path, source.format, source.digest) == (packing, "shard-set", whole.fingerprint)
        assert source.num_bytes == sum(path.stat().st_size for path in sets[packing].glob("*.bin"))
        assert source.num_records == found.num_records == sum(s.num_documents for s in whole.splits.values())


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_subset_has_as_much_as_asked_for(
    tmp_path: Path, sets: dict[str, Path], packing: str, seed: int | None
) -> None:
    train, val = (documents(sets[packing], name) for name in SPLITS)
    for number in (1, 7, len(train) - 1):
        out = tmp_path / f"documents-{number}"
        subset(sets[packing], out, num_documents=number, seed=seed)
        assert verify(out) == []
        taken, held_out = (documents(out, name) for name in SPLITS)
        assert len(taken) == number and len(held_out) == -(-number * len(val) // len(train))
        assert is_part_in_order(taken, train) and is_part_in_order(held_out, val)
        assert (taken == train[:number]) == (seed is None)
    num_closing = 0 if packing == "tutorial" else 1
    for number in (1, 500, 5000, 20_000):
        out = tmp_path / f"tokens-{number}"
        manifest = subset(sets[packing], out, num_tokens=number, seed=seed)
        taken = documents(out, "train")
        lengths = [len(document) // 4 + num_closing for document in taken]
        assert manifest.splits["train"].num_tokens == sum(lengths) >= number
        # One document less would be too few: it is the one that the next smaller subset leaves out.
        if len(taken) > 1:
            fewer = subset(sets[packing], tmp_path / f"fewer-{number}", num_documents=len(taken) - 1, seed=seed)
            assert fewer.splits["train"].num_tokens < number
    for fraction in (Fraction(1, 10), Fraction(1, 3)):
        out = tmp_path / f"fraction-{fraction.denominator}"
        subset(sets[packing], out, fraction=fraction, seed=seed)
        assert len(documents(out, "train")) == -(-len(train) * fraction.numerator // fraction.denominator)


def test_the_tokens_are_counted_right_however_many_stretches_there_are(
    tmp_path: Path, sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = shards.open(sets["concat"])["train"]
    lengths = np.array([len(document) + 1 for document in train.documents()])
    for num_stretches in (1, 2, 7, 1000):
        monkeypatch.setattr(regroup, "_NUM_STRETCHES", num_stretches)
        for seed in (None, 3):
            ranks = np.arange(len(lengths))
            order = ranks if seed is None else np.argsort(shards.epoch_order(len(lengths), seed, 0, ranks))
            ends = np.cumsum(lengths[order])
            for number in [1, *ends[:-1:40].tolist(), *(ends[:-1:40] + 1).tolist(), int(ends[-1])]:
                expected = int(np.searchsorted(ends, number)) + 1
                assert regroup._num_documents_with(train, number, seed) == expected


def test_smaller_subsets_lie_within_larger_ones_and_other_seeds_take_others(
    tmp_path: Path, sets: dict[str, Path]
) -> None:
    def taken(number: int, seed: int) -> Counter[bytes]:
        out = tmp_path / f"{number}-{seed}"
        subset(sets["concat"], out, num_documents=number, seed=seed)
        return Counter(documents(out, "train"))

    small = taken(20, 1)
    assert small < taken(60, 1)
    assert small != taken(20, 2)


def test_many_parts_are_what_few_at_a_time_are(
    tmp_path: Path, sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def parts(number: int) -> list[dict[str, bytes]]:
        monkeypatch.setattr(regroup, "_PARTS_AT_ONCE", number)
        outs = [tmp_path / str(number) / f"part-{part}" for part in range(5)]
        split(sets["concat"], outs, [Fraction(1, 5)] * 5)
        return list(map(directory_bytes, outs))

    assert parts(2) == parts(8)


@pytest.mark.parametrize("packing", PACKINGS)
def test_parts_are_disjoint_and_together_the_whole(tmp_path: Path, sets: dict[str, Path], packing: str) -> None:
    fractions = [Fraction(1, 2), Fraction(3, 10), Fraction(1, 5)]
    outs = [tmp_path / f"part-{number}" for number in range(3)]
    manifests = split(sets[packing], outs, fractions, seed=11)
    assert manifests == [read_manifest(out) for out in outs]
    assert [verify(out) for out in outs] == [[], [], []]
    whole = read_manifest(sets[packing])
    for name in SPLITS:
        originals = documents(sets[packing], name)
        parts = [documents(out, name) for out in outs]
        assert Counter(document for part in parts for document in part) == Counter(originals)
        assert all(is_part_in_order(part, originals) for part in parts)
        for part, fraction in zip(parts, fractions, strict=True):
            assert abs(len(part) - fraction * len(originals)) < 1
        for field in ("num_documents", "num_tokens", *(["num_text_bytes", "num_text_chars"] * (packing != "tutorial"))):
            total = sum(getattr(manifest.splits[name], field) for manifest in manifests)
            assert total == getattr(whole.splits[name], field)
    assert [manifest.settings["part"] for manifest in manifests] == [0, 1, 2]
    assert manifests[0].settings["set"] == whole.fingerprint
    # The first part is the subset of this share, and the parts merged are all documents again.
    subset(sets[packing], tmp_path / "subset", fraction=fractions[0], seed=11)
    assert content(tmp_path / "subset") == content(outs[0])
    merge(outs, tmp_path / "merged")
    for name in SPLITS:
        assert Counter(documents(tmp_path / "merged", name)) == Counter(documents(sets[packing], name))


def test_the_choice_is_random_and_does_not_follow_the_corpus() -> None:
    """Of 10,000 documents in two equal parts, each stretch of 100 has about 50 of each; val has a choice of its own."""

    @dataclasses.dataclass
    class AnySplit:
        name: str
        num_documents: int = 10_000

    train, val = (regroup._ranks(AnySplit(name), range(10_000), 2333) for name in SPLITS)  # type: ignore[arg-type]
    for ranks in (train, val):
        counts = (ranks < 5000).reshape(100, 100).sum(axis=1)
        assert counts.sum() == 5000
        # Chi-square with 99 degrees of freedom: 99 on average, with a standard deviation of 14.
        assert 43 < ((counts - 50) ** 2 / 25).sum() < 160
    assert abs(np.corrcoef(train, val)[0, 1]) < 0.04


@hypothesis_settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_parts_of_any_set_hold_every_document_once(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path, data: st.DataObject
) -> None:
    tmp_path = tmp_path_factory.mktemp("any")
    texts = data.draw(st.lists(st.text("ab 中文\n", max_size=60), max_size=25))
    whole = build_set(
        tmp_path / "whole" / "set",
        [*texts, "至少一篇" * 9],
        tokenizer_dir,
        packing=data.draw(st.sampled_from(PACKINGS)),
        block_tokens=data.draw(st.integers(2, 12)),
        unit_bytes=data.draw(st.sampled_from([100, 500, 5000])),
        val_fraction=data.draw(st.sampled_from([0.0, 0.5])),
    )
    shares = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    fractions = [Fraction(share, sum(shares)) for share in shares]
    outs = [tmp_path / f"part-{number}" for number in range(len(shares))]
    try:
        split(whole, outs, fractions, seed=data.draw(st.integers(0, 2**64 - 1)))
    except InputError as error:
        assert "would be empty" in str(error)
        assert names_in(tmp_path) == ["whole"]
        return
    for name in SPLITS:
        originals = documents(whole, name)
        assert Counter(one for out in outs for one in documents(out, name)) == Counter(originals)
        assert all(is_part_in_order(documents(out, name), originals) for out in outs)
    assert all(verify(out) == [] for out in outs)


def test_documents_that_hold_eos_are_taken_as_they_are(tmp_path: Path, tokenizer_dir: Path) -> None:
    texts = ["甲<|endoftext|>乙", "丙丁", "<|endoftext|>"] * 5
    whole = build_set(tmp_path / "set", texts, tokenizer_dir, special_tokens="parse", block_tokens=4, val_fraction=0.0)
    merge([whole, whole], tmp_path / "merged")
    subset(tmp_path / "merged", tmp_path / "subset", fraction=Fraction(2, 3), seed=1)
    split(tmp_path / "subset", [tmp_path / "p-0", tmp_path / "p-1"], [Fraction(1, 2)] * 2)
    for name in ("merged", "subset", "p-0", "p-1"):
        assert verify(tmp_path / name) == []
    assert documents(tmp_path / "merged", "train") == documents(whole, "train") * 2


def test_a_set_without_val_has_parts_without_val(tmp_path: Path, tokenizer_dir: Path) -> None:
    whole = build_set(tmp_path / "a" / "set", TEXTS[:40], tokenizer_dir, val_fraction=0.0)
    subset(whole, tmp_path / "subset", num_documents=10)
    split(whole, [tmp_path / "p-0", tmp_path / "p-1"], [Fraction(1, 2)] * 2)
    for name in ("subset", "p-0", "p-1"):
        assert verify(tmp_path / name) == []
    assert read_manifest(tmp_path / "subset").splits["val"].num_blocks == 0


def test_only_documents_of_val(tmp_path: Path, sets: dict[str, Path], tokenizer_dir: Path) -> None:
    """Such sets are legal: a part may get them by chance."""
    text = next(text for text in TEXTS if is_held_out(tmp_path, tokenizer_dir, text))
    only_val = tmp_path / "only-val" / "set"
    with pytest.raises(InputError, match="train is empty"):
        subset(only_val, tmp_path / "subset", num_documents=1)
    merge([only_val, sets["concat"]], tmp_path / "merged")
    assert verify(tmp_path / "merged") == []
    assert len(documents(tmp_path / "merged", "val")) == 1 + len(documents(sets["concat"], "val")), text


def is_held_out(tmp_path: Path, tokenizer_dir: Path, text: str) -> bool:
    shutil.rmtree(tmp_path / "only-val", ignore_errors=True)
    out = build_set(tmp_path / "only-val" / "set", [text], tokenizer_dir)
    return read_manifest(out).splits["train"].num_documents == 0


@pytest.mark.parametrize("pattern", ["train-00000.bin", "train-*.bin", "val-*.idx", "tokenizer/tokenizer.json"])
def test_damage_does_not_get_into_parts(tmp_path: Path, own_copy: Path, pattern: str) -> None:
    path = sorted(own_copy.glob(pattern))[-1]
    flip_a_bit(path)
    with pytest.raises(InputError, match=rf"{path.name}: expected"):
        split(own_copy, [tmp_path / "p-0", tmp_path / "p-1"], [Fraction(1, 2)] * 2)
    assert names_in(tmp_path) == ["set"]


def test_memory_is_that_of_a_batch(tmp_path: Path, sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the batches, the bytes are the same; and none holds more than it must."""
    monkeypatch.setattr(regroup, "_BATCH_TOKENS", 100)
    sizes: list[int] = []
    right = regroup._batch

    def watched(name: Any, own: Any) -> Any:
        sizes.append(sum(map(len, own[:-1])))
        return right(name, own)

    monkeypatch.setattr(regroup, "_batch", watched)
    subset(sets["best-fit"], tmp_path / "set", fraction=Fraction(1))
    assert content(tmp_path / "set") == content(sets["best-fit"])
    assert len(sizes) > 20 and max(sizes) < 100
