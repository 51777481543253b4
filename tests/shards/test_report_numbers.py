"""The numbers of a report are those of a recount, in every packing, and a sample of a large set is even."""

from __future__ import annotations

import itertools
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shards.report.charts import nice_steps
from shards.report.sections import fill_classes, sharing_classes

import shards
import shards.report
from shards.index import Index, contiguous_index
from shards.packing import cut_lengths
from shards.report import statistics as statistics_module
from shards.report.documents import Filling, FillingCounter, LengthCounter, bin_edges, occupancy
from shards.report.page import _spans
from shards.report.statistics import compute
from shards.report.tokens import TokenCounter, sample_stretches, script_of
from shards.vocabulary import Vocabulary
from tests.shards.report_sets import MIXED, PageParser, build_set, documents, page_of


def test_lengths_are_those_of_a_recount(mixed_set: Path) -> None:
    lengths = compute(shards.open(mixed_set), seed=0).lengths
    recount = sorted(len(document) for document in documents(mixed_set))
    half, most = math.ceil(len(recount) / 2), math.ceil(len(recount) * 0.9)
    assert lengths.num_documents == len(recount) > 10
    assert lengths.num_tokens == sum(recount)
    assert (lengths.shortest, lengths.longest) == (recount[0], recount[-1])
    assert (lengths.median, lengths.percentile_90) == (recount[half - 1], recount[most - 1])
    assert lengths.num_short_documents == sum(length < 64 for length in recount)
    assert lengths.num_lost_tokens == sum(length % 64 for length in recount)
    assert [bin_.first for bin_ in lengths.bins[1:]] == [bin_.last + 1 for bin_ in lengths.bins[:-1]]
    assert any(bin_.first == 64 for bin_ in lengths.bins)
    for bin_ in lengths.bins:
        inside = [length for length in recount if bin_.first <= length <= bin_.last]
        assert bin_.num_documents == len(inside)
        assert bin_.num_tokens == sum(inside)
        assert bin_.num_lost_tokens == sum(length % 64 for length in inside)
    assert sum(bin_.num_documents for bin_ in lengths.bins) == len(recount)


@given(shards_lengths=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=30), min_size=1, max_size=4))
def test_lengths_of_any_documents_are_those_of_a_recount(shards_lengths: list[list[int]]) -> None:
    """Without tails: shards of whole documents, the EOS of each taken off."""
    counter = LengthCounter(8, 1)
    for lengths in shards_lengths:
        index = contiguous_index(np.array(lengths))
        counter.add(cast(Any, SimpleNamespace(index=index, continued={}, is_open=False)))
    result, recount = counter.result(), sorted(length - 1 for length in itertools.chain(*shards_lengths))
    assert result.num_documents == len(recount)
    assert (result.shortest, result.longest) == (recount[0], recount[-1])
    assert result.median == next(n for n in recount if 2 * sum(m <= n for m in recount) >= len(recount))
    assert result.percentile_90 == next(n for n in recount if 10 * sum(m <= n for m in recount) >= 9 * len(recount))
    assert [bin_.num_documents for bin_ in result.bins] == [
        sum(bin_.first <= length <= bin_.last for length in recount) for bin_ in result.bins
    ]
    assert sum(bin_.num_documents for bin_ in result.bins) == len(recount)


def test_the_loss_is_what_the_tutorial_packing_drops(tmp_path: Path, tokenizer_dir: Path) -> None:
    """Two sets of the same texts: one says what would be lost, the other has lost it."""
    whole = build_set(tmp_path / "whole", tokenizer_dir, MIXED)
    cut = build_set(tmp_path / "cut", tokenizer_dir, MIXED, packing="tutorial")
    lost = compute(shards.open(whole), seed=0).lengths.num_lost_tokens
    assert lost == sum(split.num_dropped_tokens for split in shards.open(cut).manifest.splits.values()) > 0
    assert f"tails of the others {lost:,} of" in PageParser(page_of(whole)).text
    text = PageParser(page_of(cut)).text
    short = sum(len(document) < 64 for document in documents(whole))
    assert f"That dropped {lost:,} of" in text
    assert f"all of {short} documents shorter than a block" in text


def test_token_counts_are_those_of_a_recount(mixed_set: Path) -> None:
    use = compute(shards.open(mixed_set), seed=0).tokens
    assert_token_use(use, documents(mixed_set))


def assert_token_use(use: Any, all_ids: Sequence[Sequence[int]]) -> None:
    recount = Counter(itertools.chain.from_iterable(all_ids))
    ordered = sorted(recount.items(), key=lambda pair: (-pair[1], pair[0]))
    assert use.num_tokens == recount.total()
    assert use.num_entries == 599  # without EOS
    assert use.num_used_entries == len(recount)
    assert use.num_once == sum(count == 1 for count in recount.values())
    assert list(use.most_frequent) == ordered[: len(use.most_frequent)]
    assert len(use.most_frequent) == min(40, len(ordered))
    assert use.ranks[0][0] == 1 and use.ranks[-1][0] == len(ordered)
    assert all(count == ordered[rank - 1][1] for rank, count in use.ranks)
    sums = list(itertools.accumulate(count for _token, count in ordered))
    assert use.entries_for_half == next(n for n, total in enumerate(sums, 1) if 2 * total >= recount.total())


def plain_script(character: str) -> str:
    """By ranges and categories, where the report goes by names."""
    code, category = ord(character), unicodedata.category(character)
    if character in "\n\t\u3000\xa0 ":
        return "white space"
    if character in "0123456789" or 0xFF10 <= code <= 0xFF19:
        return "digits"
    if category.startswith(("P", "S")):
        return "punctuation"
    ranges = {
        "Han": [(0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)],
        "kana": [(0x3040, 0x30FF)],
        "hangul": [(0x1100, 0x11FF), (0xAC00, 0xD7FF)],
        "Cyrillic": [(0x400, 0x52F)],
        "Latin": [(0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x250, 0x2AF), (0x1E00, 0x1EFF), (0xFF21, 0xFF5A)],
    }
    for name, pairs in ranges.items():
        if any(low <= code <= high for low, high in pairs):
            return name
    return "other letters" if category.startswith(("L", "M")) else "other"


def test_characters_are_those_of_a_recount(mixed_set: Path) -> None:
    """Shard by shard as the files lie, since a character may be cut in two by the edge of a block or a shard."""
    use = compute(shards.open(mixed_set), seed=0).characters
    shard_set = shards.open(mixed_set)
    vocabulary, recount, num_cut = Vocabulary(shard_set.tokenizer_path), Counter[str](), 0
    for path in sorted(mixed_set.glob("*.bin")):
        ids = np.fromfile(path, "<u4").tolist()
        content = b"".join(b"\xff" if token == shard_set.eos_id else vocabulary.piece(token) for token in ids)
        whole = content.decode("utf-8", "ignore")
        recount.update(map(plain_script, whole))
        num_cut += len(content) - content.count(b"\xff") - len(whole.encode())
    assert {name: number for name, number in use.scripts if number} == recount
    assert {"Han", "Latin", "digits", "punctuation"} <= set(recount)
    assert use.num_characters == recount.total()
    assert use.num_cut_bytes == num_cut


def test_all_characters_of_the_texts_are_counted(built_set: Path, tmp_path: Path, tokenizer_dir: Path) -> None:
    splits = shards.open(built_set).manifest.splits.values()
    use = compute(shards.open(built_set), seed=0).characters
    assert use.num_cut_bytes < 12
    assert 0 <= sum(split.num_text_chars for split in splits) - use.num_characters <= use.num_cut_bytes
    directory = build_set(tmp_path, tokenizer_dir, MIXED, unit_bytes=10**7, val_fraction=0.0, block_tokens=4096)
    use = compute(shards.open(directory), seed=0).characters
    if not use.num_cut_bytes:
        assert {name: number for name, number in use.scripts if number} == Counter(map(plain_script, "".join(MIXED)))
    assert {"Cyrillic", "kana", "hangul", "other letters", "other", "white space"} <= {n for n, c in use.scripts if c}


@pytest.mark.parametrize("chunk_tokens", [1, 7, 64])
def test_characters_are_whole_also_between_chunks(
    mixed_set: Path, chunk_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = compute(shards.open(mixed_set), seed=0)
    monkeypatch.setattr("shards.report.tokens._CHUNK_TOKENS", chunk_tokens)
    assert compute(shards.open(mixed_set), seed=0) == before


PIECES = [b"a", "中".encode()[:2], "中".encode()[2:], "é".encode()[:1], "é".encode()[1:], b"<eos>"]


class FakeVocabulary:
    """Tokens that hold parts of characters; EOS is the last."""

    def piece(self, token: int) -> bytes:
        return PIECES[token]


@given(ids=st.lists(st.integers(0, 5), max_size=60))
def test_parts_of_characters_are_joined_only_where_they_follow_each_other(ids: list[int]) -> None:
    shard_set = SimpleNamespace(vocab_size=6, eos_id=5, block_tokens=1, path=Path("set"))
    counter = TokenCounter(cast(Any, shard_set), cast(Any, FakeVocabulary()), len(ids))
    assert sum(counter.add(np.array(ids, dtype=np.uint32))) == len(ids)
    use = counter.characters()
    content = b"".join(PIECES[token] if token != 5 else b"\xff" for token in ids)
    text = content.decode("utf-8", "ignore")
    assert {name: number for name, number in use.scripts if number} == Counter(map(plain_script, text))
    assert use.num_cut_bytes == len(content) - content.count(b"\xff") - len(text.encode())


@pytest.mark.parametrize(
    "ids, spans",
    [
        ([1, 2, 0], ["ids 1 2:中", "id 0:a"]),
        ([2, 0, 1], ["id 2:\\xad", "id 0:a", "id 1:\\xe4\\xb8"]),
        ([1, 0, 2], ["id 1:\\xe4\\xb8", "id 0:a", "id 2:\\xad"]),
        ([3, 4, 1, 2], ["ids 3 4:é", "ids 1 2:中"]),
    ],
)
def test_tokens_that_make_a_character_together_share_a_span(ids: list[int], spans: list[str]) -> None:
    content = "".join(_spans(ids, cast(Any, FakeVocabulary()))).replace("<i>", "").replace("</i>", "")
    shown = [part.replace('">', ":").removesuffix("</span>") for part in content.split('<span title="')[1:]]
    assert shown == spans


def test_scripts_of_characters() -> None:
    expected = {
        "Han": "漢𠀀々〇豈",
        "Latin": "aÉßĀｚ",
        "Cyrillic": "Жё",
        "kana": "あアーｱ",
        "hangul": "한ᄒ",
        "other letters": "Ωאक\u0301",
        "digits": "7７٣",
        "punctuation": "。,+€《🙂・",
        "white space": " \n\t\u3000",
        "other": "½\x00\u200b\ufffe",
    }
    assert {name: "".join(c for c in characters if script_of(c) == name) for name, characters in expected.items()} == (
        expected
    )


def test_duplicates_are_those_of_a_recount(mixed_set: Path) -> None:
    found = compute(shards.open(mixed_set), seed=0).duplicates
    copies = Counter(map(tuple, documents(mixed_set)))
    assert found.num_documents == found.num_compared == copies.total()
    assert found.num_duplicates == copies.total() - len(copies) > 0
    assert found.num_repeated == sum(number > 1 for number in copies.values())
    assert found.most_copies == max(copies.values()) >= 3


def test_documents_that_differ_in_one_token_are_no_duplicates(tmp_path: Path, tokenizer_dir: Path) -> None:
    directory = build_set(tmp_path, tokenizer_dir, ["天地玄黄" * 30, "天地玄黄" * 29 + "天地黄玄", "天", "地", "天地"])
    found = compute(shards.open(directory), seed=0).duplicates
    assert (found.num_compared, found.num_duplicates, found.most_copies) == (5, 0, 1)


def pieces_by_hand(directory: Path) -> Iterator[tuple[str, int, list[tuple[int, int]]]]:
    """Of each shard its name, its tokens and its pieces (first token, tokens), read as the format says."""
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    for shard in manifest["shards"]:
        content = (directory / f"{shard['name']}.idx").read_bytes()
        (number,) = np.frombuffer(content, "<u8", 1, 18).tolist()
        lengths = np.frombuffer(content, "<i4", number, 34).tolist()
        offsets = np.frombuffer(content, "<i8", number, 34 + 4 * number).tolist()
        num_tokens = (directory / f"{shard['name']}.bin").stat().st_size // 4
        yield shard["name"], num_tokens, [(offset // 4, n) for offset, n in zip(offsets, lengths, strict=True)]


def test_sharing_and_filling_are_those_of_a_recount(mixed_set: Path) -> None:
    filling = compute(shards.open(mixed_set), seed=0).filling
    sharing, fill = Counter[int](), Counter[int]()
    for _name, num_tokens, pieces in pieces_by_hand(mixed_set):
        owners: list[int | None] = [None] * num_tokens
        for number, (start, length) in enumerate(pieces):
            owners[start : start + length] = [number] * length
        for start in range(0, num_tokens, 64):
            block = owners[start : start + 64]
            sharing[len(set(block) - {None})] += 1
            fill[block.count(None)] += 1
    assert dict(filling.documents_per_block) == sharing
    assert dict(filling.fill_tokens) == fill
    assert filling.num_blocks == sharing.total()
    manifest = shards.open(mixed_set).manifest
    num_fill = sum(split.num_fill_tokens for split in manifest.splits.values())
    assert sum(value * number for value, number in filling.fill_tokens) == num_fill
    assert sum(number for _name, number in fill_classes(filling, 64)) == filling.num_blocks
    assert sum(number for _first, _last, number in sharing_classes(filling)) == filling.num_blocks


def test_classes_of_blocks_leave_none_out() -> None:
    fill = {0: 7, 1: 1, 10: 2, 11: 4, 250: 8, 251: 16, 500: 32, 999: 64, 1000: 128}
    sharing = {0: 1, 1: 2, 8: 4, 9: 8, 12: 16, 13: 32, 18: 64, 40: 128}
    filling = Filling(
        num_blocks=sum(fill.values()),
        documents_per_block=tuple(sharing.items()),
        fill_tokens=tuple(fill.items()),
        num_cut_documents=0,
    )
    assert [number for _name, number in fill_classes(filling, 1000)] == [7, 3, 4, 0, 8, 48, 192]
    assert sharing_classes(filling) == [
        *((number, number, sharing.get(number, 0)) for number in range(9)),
        (9, 12, 24),
        (13, 18, 96),
        (19, 27, 0),
        (28, 41, 128),
    ]


@pytest.mark.parametrize("block_tokens", [64, 100, 300])
def test_cut_documents_are_those_of_a_recount(tmp_path: Path, tokenizer_dir: Path, block_tokens: int) -> None:
    """In one unit the documents lie as in one stream, so that a document's place says whether an edge cuts it."""
    options = {"unit_bytes": 10**7, "val_fraction": 0.0, "block_tokens": block_tokens}
    directory = build_set(tmp_path, tokenizer_dir, MIXED, **options)
    place, num_cut = 0, 0
    for ids in documents(directory):
        end = place + len(ids) + 1
        num_cut += end - place <= block_tokens and place // block_tokens != (end - 1) // block_tokens
        place = end
    assert compute(shards.open(directory), seed=0).filling.num_cut_documents == num_cut > 0


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=40), size=st.integers(2, 9))
def test_cut_documents_of_any_lengths_are_those_of_a_recount(lengths: list[int], size: int) -> None:
    """A unit's whole blocks in its shard, what is left over in the last one, as the packing does it."""
    num_shard_tokens = sum(lengths) // size * size
    cut = cut_lengths(np.array(lengths), num_shard_tokens)
    counter, is_first = FillingCounter(size), num_shard_tokens > 0
    if is_first:
        index, is_open = contiguous_index(cut.shard_pieces), cut.continues
        part = SimpleNamespace(index=index, num_blocks=num_shard_tokens // size, unit=0, is_open=is_open, continued={})
        counter.add(cast(Any, part))
    if len(cut.tail_pieces):
        index, continued = contiguous_index(cut.tail_pieces), {0: 0} if cut.continues else {}
        counter.add(cast(Any, SimpleNamespace(index=index, num_blocks=1, unit=1, is_open=False, continued=continued)))
    ends = list(itertools.accumulate(lengths))
    spans = [(end - length, end) for end, length in zip(ends, lengths, strict=True) if length <= size]
    assert counter.result().num_cut_documents == sum(start // size != (end - 1) // size for start, end in spans)


def test_best_fit_and_tutorial_cut_no_document_that_fits(mixed_set: Path) -> None:
    shard_set = shards.open(mixed_set)
    num_cut = compute(shard_set, seed=0).filling.num_cut_documents
    assert (num_cut == 0) == (shard_set.manifest.packing != "concat")


@given(st.data())
def test_occupancy_is_that_of_a_recount(data: st.DataObject) -> None:
    size, num_blocks = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12))
    edges = sorted(data.draw(st.sets(st.integers(0, size * num_blocks), min_size=2)))
    spans = [span for span in itertools.pairwise(edges) if data.draw(st.booleans())]
    lengths = np.array([end - start for start, end in spans], dtype=np.int64)
    starts = np.array([start for start, _end in spans], dtype=np.int64)
    pieces, tokens = occupancy(Index(lengths, starts, np.arange(len(spans) + 1)), num_blocks, size)
    for number in range(num_blocks):
        block = range(number * size, (number + 1) * size)
        assert pieces[number] == sum(any(start <= place < end for place in block) for start, end in spans)
        assert tokens[number] == sum(start <= place < end for place in block for start, end in spans)


@given(block_tokens=st.integers(1, 5000), shortest=st.integers(0, 10**5), more=st.integers(0, 10**6))
def test_bins_cover_all_lengths_and_none_straddles_a_block(block_tokens: int, shortest: int, more: int) -> None:
    edges = bin_edges(block_tokens, shortest, shortest + more)
    assert edges == sorted(set(edges))
    assert edges[0] <= shortest and edges[-1] > shortest + more
    assert block_tokens in edges or not edges[0] < block_tokens < edges[-1]
    assert len(edges) < 60


@given(st.integers(0, 10**12))
def test_round_numbers_reach_the_largest_value(largest: int) -> None:
    steps = nice_steps(largest)
    assert steps[0] == 0 and steps[-1] >= largest and 2 <= len(steps) <= 7
    assert len(set(np.diff(steps).tolist())) == 1


# Samples of large sets


@given(st.integers(1, 10**6), st.integers(1, 1000), st.integers(0, 2**64 - 1), st.integers(1, 10**6))
def test_samples_are_whole_blocks_evenly_spread(num_blocks: int, size: int, seed: int, most_blocks: int) -> None:
    stretches = sample_stretches(num_blocks, size, max_tokens=most_blocks * size, seed=seed)
    if num_blocks <= most_blocks:
        assert stretches == [range(num_blocks)]
        return
    lengths = {len(stretch) for stretch in stretches}
    assert len(lengths) == 1 and most_blocks / 2 < sum(map(len, stretches)) <= most_blocks
    assert stretches[0].start >= 0 and stretches[-1].stop <= num_blocks
    for number, stretch in enumerate(stretches):  # one in each part of the set
        assert number * num_blocks // len(stretches) <= stretch.start
        assert stretch.stop <= (number + 1) * num_blocks // len(stretches)
    assert stretches == sample_stretches(num_blocks, size, max_tokens=most_blocks * size, seed=seed)


def test_a_large_set_is_sampled_and_the_page_says_so(mixed_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_module, "MAX_COUNTED_TOKENS", 20 * 64 + 63)
    shard_set = shards.open(mixed_set)
    num_blocks = len(shard_set["train"]) + len(shard_set["val"])
    use = compute(shard_set, seed=5).tokens
    assert (use.num_counted_blocks, use.num_blocks) == (20, num_blocks)
    blocks = np.concatenate([shard_set["train"][:], shard_set["val"][:]])
    stretches = sample_stretches(num_blocks, 64, max_tokens=20 * 64 + 63, seed=5)
    sampled = [blocks[number].tolist() for stretch in stretches for number in stretch]
    assert len(sampled) == 20
    assert_token_use(use, [[token for token in block if token != shard_set.eos_id] for block in sampled])
    text = PageParser(page_of(mixed_set, seed=5)).text
    assert f"From a sample of 1,280 of {num_blocks * 64:,} tokens: 20 whole blocks" in text
    assert "occur in the sample" in text
    assert compute(shard_set, seed=6).tokens != use


def test_a_whole_count_is_not_called_a_sample(built_set: Path) -> None:
    text = PageParser(page_of(built_set)).text
    assert "a sample of" not in text and "occur in the set" in text


def test_equal_documents_are_sampled_together(tmp_path: Path, tokenizer_dir: Path, monkeypatch: Any) -> None:
    """Every text twice: then half of any sample that takes equal documents together are duplicates."""
    texts = sorted({*MIXED, *(f"{number} 只" for number in range(300))})
    for packing in ("concat", "best-fit"):
        directory = build_set(tmp_path / packing, tokenizer_dir, texts * 2, packing=packing, unit_bytes=7000)
        monkeypatch.setattr(statistics_module, "MAX_COMPARED_DOCUMENTS", len(texts) // 2)
        found = compute(shards.open(directory), seed=1).duplicates
        assert len(texts) / 8 < found.num_compared < len(texts)
        assert 2 * found.num_duplicates == found.num_compared == 2 * found.num_repeated
        expected = f"Of a sample of {found.num_compared:,} of {2 * len(texts):,} documents, {found.num_duplicates:,}"
        assert expected in PageParser(page_of(directory, seed=1)).text
        assert compute(shards.open(directory), seed=2).duplicates != found
