"""The numbers of the report: lengths, blocks, tokens, characters, duplicates, and how a large set is sampled."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shards
import shards.report
from shards.report import statistics as statistics_module
from shards.report.page import padding_classes, spans
from shards.report.plot import Axis, Bar, Chart, Line, count_axis, linear_axis, log_axis
from shards.report.statistics import bin_edges, compute, sample_blocks
from shards.report.tokens import script_of
from shards.tokenizer_files import read_vocabulary
from tests.pages import PageParser
from tests.shards.sets import MIXED, build_set, documents_of, page_of


def test_lengths(mixed_set: Path) -> None:
    lengths = compute(shards.open(mixed_set), seed=0).lengths
    recount = sorted(len(document) for document in documents_of(mixed_set))
    half, most = math.ceil(len(recount) / 2), math.ceil(len(recount) * 0.9)
    assert (lengths.num_documents, lengths.num_tokens) == (len(MIXED), sum(recount))
    assert [lengths.quantile(part) for part in (0, 50, 90, 100)] == [
        recount[number] for number in (0, half - 1, most - 1, -1)
    ]
    assert lengths.num_lost_tokens == sum(length % 64 for length in recount)
    bins = lengths.bins()
    assert [first for first, _, _ in bins[1:]] == [last + 1 for _, last, _ in bins[:-1]]
    for first, last, inside in bins:
        assert inside.counts == Counter(length for length in recount if first <= length <= last)
    assert sum(inside.num_documents for _, _, inside in bins) == len(recount)


def test_blocks(mixed_set: Path, tmp_path: Path, tokenizer_dir: Path) -> None:
    """By an owner for each token of each shard; in the second set a document is exactly as long as a block."""
    exact = build_set(tmp_path, tokenizer_dir, MIXED, block_tokens=len(documents_of(mixed_set)[5]) + 1)
    for shard_set in (shards.open(mixed_set), shards.open(exact)):
        sharing, padding, num_cut = Counter[int](), Counter[int](), 0
        for split in (shard_set["train"], shard_set["val"]):
            for number, shard in enumerate(split.shards):
                index = split.shard_index(number)
                owners = np.full(shard.num_blocks * split.block_tokens, -1)
                for sequence, (start, end) in enumerate(zip(index.starts, index.ends, strict=True)):
                    owners[start:end] = np.searchsorted(index.boundaries, sequence, side="right")
                blocks = owners.reshape(-1, split.block_tokens)
                sharing.update(len(set(block.tolist()) - {-1}) for block in blocks)
                padding.update(int((block == -1).sum()) for block in blocks)
                for document in set(owners.tolist()) - {-1}:
                    is_cut = (blocks == document).any(axis=1).sum() > 1
                    num_cut += is_cut and (owners == document).sum() <= split.block_tokens
        found = compute(shard_set, seed=0)
        assert (found.sharing, found.padding, found.num_cut_documents) == (sharing, padding, num_cut)
        assert (num_cut > 0) == (shard_set.manifest.packing == "concat")
        num_padding_tokens = sum(value * number for value, number in padding.items())
        assert num_padding_tokens == shard_set.manifest.total("num_padding_tokens")


def test_classes_of_padding_leave_no_block_out() -> None:
    padding = Counter({0: 7, 1: 1, 10: 2, 11: 4, 250: 8, 251: 16, 500: 32, 999: 64, 1000: 128})
    assert [number for _, number in padding_classes(padding, 1000)] == [7, 3, 4, 0, 8, 48, 192]


def test_tokens(mixed_set: Path) -> None:
    recount = Counter(itertools.chain.from_iterable(documents_of(mixed_set)))
    assert compute(shards.open(mixed_set), seed=0).tokens.ranking == sorted(
        recount.items(), key=lambda pair: (-pair[1], pair[0])
    )
    text = PageParser(page_of(mixed_set)).text
    counts = sorted(recount.values(), reverse=True)
    half = next(n for n, total in enumerate(itertools.accumulate(counts), 1) if 2 * total >= sum(counts))
    assert f"{len(recount)} of 599 entries of the vocabulary occur in the set" in text
    assert f"The {half} most frequent make up half of all tokens" in text


def test_characters(mixed_set: Path) -> None:
    """Shard by shard as the files are, since `best-fit` may cut a character in two."""
    shard_set = shards.open(mixed_set)
    vocabulary, recount = read_vocabulary(shard_set.tokenizer_path), Counter[str]()
    for path in sorted(mixed_set.glob("*.bin")):
        ids = np.fromfile(path, "<u4").tolist()
        content = b"".join(b"\xff" if token == shard_set.eos_id else vocabulary.piece(token) for token in ids)
        recount.update(map(script_of, content.decode("utf-8", "ignore")))
    assert compute(shard_set, seed=0).tokens.scripts() == recount
    if shard_set.manifest.packing == "concat":
        assert recount == Counter(map(script_of, "".join(MIXED)))
    assert {"Han", "Latin", "Cyrillic", "kana", "hangul", "other letters", "other", "white space"} <= set(recount)


PIECES = [b"a", "中".encode()[:2], "中".encode()[2:], "é".encode()[:1], "é".encode()[1:], b"<eos>"]
FAKE_VOCABULARY = cast(Any, SimpleNamespace(piece=PIECES.__getitem__))


@pytest.mark.parametrize(
    "ids, expected",
    [
        ([1, 2, 0], [("1 2", "中"), ("0", "a")]),
        ([2, 0, 1], [("2", "\\xad"), ("0", "a"), ("1", "\\xe4\\xb8")]),
        ([1, 0, 2], [("1", "\\xe4\\xb8"), ("0", "a"), ("2", "\\xad")]),
        ([3, 4, 1, 2], [("3 4", "é"), ("1 2", "中")]),
    ],
)
def test_tokens_that_make_a_character_together_share_a_span(ids: list[int], expected: list[tuple[str, str]]) -> None:
    assert spans(ids, FAKE_VOCABULARY) == expected


def test_scripts_of_characters() -> None:
    words = ["Han:漢𠀀々〇豈", "Latin:aÉßĀｚ", "Cyrillic:Жё", "kana:あアーｱ", "hangul:한ᄒ", "digits:7７٣"]
    words += [
        "punctuation:。,+€《🙂・",
        "other letters:Ωאक\u0301",
        "white space: \n\t\u3000",
        "other:½\x00\u200b\ufffe",
    ]
    for script, _, characters in (word.partition(":") for word in words):
        assert {script_of(character) for character in characters} == {script}


def test_duplicates(mixed_set: Path, tmp_path: Path, tokenizer_dir: Path) -> None:
    found = compute(shards.open(mixed_set), seed=0).duplicates
    copies = Counter(map(tuple, documents_of(mixed_set)))
    assert found.num_compared == copies.total()
    assert found.num_duplicates == copies.total() - len(copies) > 0
    assert found.num_repeated == sum(number > 1 for number in copies.values())
    assert found.most_copies == max(copies.values()) >= 3
    near = build_set(tmp_path, tokenizer_dir, ["天地玄黄" * 30, "天地玄黄" * 29 + "天地黄玄", "天", "地", "天地"])
    found = compute(shards.open(near), seed=0).duplicates
    assert (found.num_compared, found.num_duplicates, found.most_copies) == (5, 0, 1)


@given(block_tokens=st.integers(1, 5000), shortest=st.integers(0, 10**5), more=st.integers(0, 10**6))
def test_bins_cover_all_lengths_and_none_straddles_a_block(block_tokens: int, shortest: int, more: int) -> None:
    edges = bin_edges(block_tokens, shortest, shortest + more)
    assert edges == sorted(set(edges))
    assert edges[0] <= shortest and edges[-1] > shortest + more
    assert block_tokens in edges or not edges[0] < block_tokens < edges[-1]
    assert len(edges) < 60


# Charts


@given(low=st.floats(0.01, 1e6), factor=st.floats(1.01, 1e9), count=st.integers(0, 10**12))
def test_axes_have_a_few_round_ticks(low: float, factor: float, count: int) -> None:
    for axis in (linear_axis(low, low * factor), log_axis(low, low * factor)):
        assert 1 <= len(axis.ticks) <= 12
        assert all(-1e-6 <= axis.place(value) <= 1 + 1e-6 for value, _ in axis.ticks)
    counts = count_axis([Bar(left=0, right=1, parts=[(0, count)], tooltip="")])
    assert counts.ticks[0][0] == 0 and counts.ticks[-1][0] == counts.high >= count
    assert 2 <= len(counts.ticks) <= 7


def test_bars_are_stacked_and_lines_interrupted() -> None:
    x, y = Axis(low=0, high=10), Axis(low=1, high=100, is_log=True)
    bar = Bar(left=0, right=10, parts=[(0, 60), (1, 0), (2, 40)], tooltip="")
    chart = Chart(title="", description="", x=x, y=Axis(low=0, high=100), width=154, height=148)
    assert list(chart.rectangles(bar)) == [(0, 40.75, 54, 98.5, 60), (2, 40.75, 14, 98.5, 40)]
    tiny = next(chart.rectangles(Bar(left=0, right=1, parts=[(0, 0.001)], tooltip="")))
    assert tiny[4] == 0.75
    chart = Chart(title="", description="", x=x, y=y, width=154, height=148)
    line = Line(points=[(0, 1), (1, 10), (2, None), (3, 0), (4, 100)])
    assert chart.path(line) == "M40.0,114.0L50.0,64.0M80.0,14.0"


# Samples of large sets


@given(st.integers(1, 10**6), st.floats(1e-6, 1), st.integers(0, 2**64 - 1))
def test_samples_lie_within_the_shard_and_are_as_large_as_asked_for(num_blocks: int, share: float, seed: int) -> None:
    sample = sample_blocks(num_blocks, share, seed)
    assert 0 <= sample.start < sample.stop <= num_blocks
    assert len(sample) == max(1, int(num_blocks * share))


def test_a_large_set_is_sampled_and_the_page_says_so(mixed_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard_set, steps = shards.open(mixed_set), list[int]()
    num_blocks = shard_set.manifest.total("num_blocks")
    monkeypatch.setattr(statistics_module, "MAX_COUNTED_TOKENS", num_blocks * 64 // 10)
    tokens = compute(shard_set, seed=5, progress=steps.append).tokens
    assert sum(steps) == num_blocks
    assert 0 < tokens.num_counted_blocks <= num_blocks / 10 + len(shard_set.manifest.shards)
    num_tokens, text = tokens.num_counted_blocks * 64, PageParser(page_of(mixed_set, seed=5)).text
    assert f"From a sample of {num_tokens:,} of {num_blocks * 64:,} tokens: {tokens.num_counted_blocks} whole" in text
    assert "occur in the sample" in text
    assert compute(shard_set, seed=6).tokens.ranking != tokens.ranking


def test_equal_documents_are_sampled_together(tmp_path: Path, tokenizer_dir: Path, monkeypatch: Any) -> None:
    """Every text twice: then half of any sample that takes equal documents together are duplicates."""
    texts = sorted({*MIXED, *(f"{number} 只" for number in range(300))})
    directory = build_set(tmp_path, tokenizer_dir, texts * 2, packing="best-fit")
    monkeypatch.setattr(statistics_module, "MAX_COMPARED_DOCUMENTS", len(texts) // 2)
    found = compute(shards.open(directory), seed=1).duplicates
    assert len(texts) / 8 < found.num_compared < len(texts)
    assert 2 * found.num_duplicates == found.num_compared == 2 * found.num_repeated
    assert (
        f"Of a sample of {found.num_compared:,} of {2 * len(texts):,} documents" in PageParser(page_of(directory)).text
    )
