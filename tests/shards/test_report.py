"""The report: its numbers are those of the set, and its page shows them and lets nothing of the texts act."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import itertools
import math
import pkgutil
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shards
import shards.exchange
import shards.report
from shards.__main__ import main
from shards.common.errors import InputError
from shards.common.text import printable
from shards.report import statistics as statistics_module
from shards.report.page import padding_classes, spans
from shards.report.plot import Axis, Bar, Chart, Line, count_axis, linear_axis, log_axis
from shards.report.statistics import bin_edges, compute, sample_blocks, script_of
from shards.tokenizer_files import read_vocabulary
from shards.unread import UnreadEntry
from shards.verify import verify
from tests.conftest import directory_bytes, flip
from tests.pages import PageParser, assert_harmless, look_at
from tests.shards.sets import MIXED, TEXTS, build_set, documents_of, forge, page_of, source, write_set


@pytest.fixture
def own_mixed_set(mixed_set: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(mixed_set, tmp_path / "set"))


# ---- the page ----


def test_the_page_in_a_browser(tmp_path: Path, tokenizer_dir: Path) -> None:
    look_at(page_of(build_set(tmp_path, tokenizer_dir, MIXED)).encode(), tmp_path)


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</style><script>alert(2)</script><!--",
    "红\x1b[31m色\x1b]0;title\x07 \x9b2J",
    "\u202etxet desrever\u202c \u2066\u200b\ufeff",
    "&lt;b&gt; &amp; ]]> --> {{ 7 * 7 }} {% raw %} \x00 \x7f",
]


def hostile(value: Any) -> Any:
    """`value` with all hostile texts in each string of it, names of settings included."""
    if isinstance(value, str):
        return value + " ".join(HOSTILE)
    if isinstance(value, list):
        return [hostile(item) for item in value]
    if isinstance(value, dict):
        return {hostile(key): hostile(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: hostile(item) for name, item in fields.items()})
    return value


def test_markup_in_any_field_shows_and_does_nothing(tmp_path: Path, tokenizer_dir: Path) -> None:
    shard_set = shards.open(build_set(tmp_path, tokenizer_dir, HOSTILE, block_tokens=1024, settings={"field": "text"}))
    statistics = dataclasses.replace(compute(shard_set, seed=0), examples=dict.fromkeys(HOSTILE, HOSTILE))
    shard_set.manifest = hostile(dataclasses.replace(shard_set.manifest, rejected={"kind": 1}))
    parser = assert_harmless(page_of(shard_set, statistics=statistics))
    excerpts = parser.text.replace(" ", "")
    assert all(printable(text).replace(" ", "") in excerpts for text in HOSTILE)
    shown = " ".join(map(printable, HOSTILE))
    for name in ("corpus.json", tokenizer_dir.name, "rejected: kind", "field", "train-00000"):
        assert name + shown in parser.text


def test_excerpts_are_the_blocks_token_by_token(mixed_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all blocks shown: the ids in the titles, EOS and padding are the set; each document begins and ends once."""
    shard_set = shards.open(mixed_set)
    blocks = [block.tolist() for name in ("train", "val") for block in shard_set[name][:]]
    for most in (10, 10**6):
        monkeypatch.setattr(statistics_module, "NUM_EXCERPTS", most)
        excerpts = compute(shard_set, seed=3).excerpts
        chosen = sorted(shards.epoch_order(len(blocks), 3, 0, range(min(most, len(blocks)))).tolist())
        kept = [[token for part in parts for token in part.tokens] for _split, _block, parts in excerpts]
        assert kept == [blocks[number] for number in chosen]
    assert [shard_set[split][block].tolist() for split, block, _parts in excerpts] == blocks
    parts = [part for _split, _block, parts in excerpts for part in parts]
    heads = {tuple(ids[:3]) for ids in documents_of(mixed_set)}
    assert all(part.tokens[:3] in heads for part in parts if part.begins and part.num_tokens > 3)
    assert all((shard_set.eos_id in part.tokens) == (part.ends or part.is_padding) for part in parts)
    assert sum(part.begins for part in parts) == sum(part.ends for part in parts) == len(MIXED)
    page, manifest = page_of(mixed_set), shard_set.manifest
    _head, *articles = page.split('<article class="excerpt">')
    assert [ids_shown(article, shard_set.eos_id) for article in articles] == blocks
    text = assert_harmless(page).text
    assert manifest.fingerprint in text and f"packed by {manifest.packing} ," in text
    assert "end of the document · EOS, id 599" in text


def ids_shown(article: str, eos_id: int) -> list[int]:
    """All ids of an excerpt on the page."""
    ids: list[int] = []
    for shown, eos, padding in re.findall(r'title="id ([\d ]+)"|"eos">(\d+)<|"padding">(\d+)', article):
        ids += [*map(int, (shown or eos).split()), *[eos_id] * int(padding or 0)]
    return ids


def test_small_and_odd_sets(tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = assert_harmless(page_of(build_set(tmp_path / "one", tokenizer_dir, ["一"]))).text
    assert "1 document in 1 block of 64 tokens" in one and "(100 %)" in one  # what the tutorial would drop
    assert "documents 1 0 tokens" in one and "bytes per token 3.000 –" in one  # an empty split
    empty = build_set(tmp_path / "empty", tokenizer_dir, [""])  # as an import may have it
    assert "0 of 599 entries" in assert_harmless(page_of(empty)).text
    forge(empty, lambda content: content.update(sources=[]))  # as a stranger's may be
    forge(empty, lambda content: content["tokenizer"].update(begin_id=7))
    assert "no source" in assert_harmless(page_of(empty)).text
    forge(empty, lambda content: content["tokenizer"].update(vocab_size=2**31))
    monkeypatch.setattr(statistics_module, "MAX_VOCAB_SIZE", 600)
    assert "0 of 2,147,483,646 entries" in PageParser(page_of(empty)).text
    long = build_set(tmp_path / "long", tokenizer_dir, TEXTS[:60], block_tokens=5000)
    assert "The first 1,024 of 5,000 tokens." in PageParser(page_of(long)).text
    for _split, _block, parts in compute(shards.open(long), seed=0).excerpts:
        assert sum(len(part.tokens) for part in parts) == 1024


def test_records_and_sources_are_listed(tmp_path: Path, tokenizer_dir: Path) -> None:
    sources = [source(f"{number:02}.json", 1000 * number, number) for number in range(1, 31)]
    shard_set = shards.open(build_set(tmp_path, tokenizer_dir, TEXTS[:3], sources=sources))
    changes: dict[str, Any] = {"num_records": 465, "left_out": {"empty": 1, "duplicate": 2}, "rejected": {"no text": 4}}
    changes["unread"] = [UnreadEntry(kind=kind, num_files=4, names=["a", "b"]) for kind in ("PDF", "")]
    shard_set.manifest = dataclasses.replace(shard_set.manifest, **changes)
    text = PageParser(page_of(shard_set)).text
    assert "left out: empty 1 0.2 % left out: duplicate 2 0.4 % rejected: no text 4 0.9 %" in text
    assert "8 files are no corpus: a, b and 2 more; PDF: a, b and 2 more." in text
    assert "30.json and 29 other sources" in text
    assert "share 30.json 30.00 kB 30 6.5 % 29.json 29.00 kB 29 6.2 %" in text
    assert "5 other sources 15.00 kB 15 3.2 %" in text


def test_the_same_set_and_seed_give_the_same_bytes(mixed_set: Path, tmp_path: Path) -> None:
    page = page_of(mixed_set)
    assert page_of(Path(shutil.copytree(mixed_set, tmp_path / "another name"))) == page
    assert not [part for part in (*mixed_set.parts[1:], *tmp_path.parts[1:]) if len(part) > 4 and part in page]


def test_a_damaged_shard_is_one_clear_line(own_mixed_set: Path) -> None:
    flip(own_mixed_set / "train-00000.bin", 403)
    with pytest.raises(InputError, match=r"expected ids below 600, found 16,777,\d+; see .*verify"):
        compute(shards.open(own_mixed_set), seed=0)


def test_where_it_lies(
    own_mixed_set: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the set, which stays whole; with another seed, over the page that is there."""
    before, page = directory_bytes(own_mixed_set), own_mixed_set.parent / "set.html"
    monkeypatch.chdir(own_mixed_set)
    main(["report", "."])
    first, numbers = capsys.readouterr().out.splitlines()
    assert first == str(page) and re.fullmatch(r"  \d+ documents; of \d+ compared, \d+ duplicates?", numbers)
    assert page.read_text(encoding="utf-8") == page_of(own_mixed_set)
    assert directory_bytes(own_mixed_set) == before and verify(own_mixed_set) == []
    main(["report", str(own_mixed_set), "--seed", "7"])
    assert page.read_text(encoding="utf-8") == page_of(own_mixed_set, seed=7)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("set --out other/../set/tokenizer/report.html", "lies inside the shard set"),
        ("set --out nowhere/report.html", "no directory"),
        ("set --out .", "is a directory"),
        ("set --out corpus.json", "exists and is no report"),
        ("set --seed -1", "seed: expected 0"),
        ("missing", "no such shard set"),
    ],
)
def test_what_is_refused(own_mixed_set: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str) -> None:
    monkeypatch.chdir(own_mixed_set.parent)
    Path("other").mkdir()
    Path("corpus.json").write_text("[]")
    before = directory_bytes(Path("."))
    with pytest.raises(InputError, match=message):
        main(["report", *line.split()])
    assert directory_bytes(Path(".")) == before


# ---- the numbers ----


def test_lengths(mixed_set: Path) -> None:
    lengths = compute(shards.open(mixed_set), seed=0).lengths
    recount = sorted(len(document) for document in documents_of(mixed_set))
    half, most = math.ceil(len(recount) / 2), math.ceil(len(recount) * 0.9)
    assert (lengths.num_documents, lengths.num_tokens) == (len(MIXED), sum(recount))
    quantiles = [lengths.quantile(part) for part in (0, 50, 90, 100)]
    assert quantiles == [recount[number] for number in (0, half - 1, most - 1, -1)]
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


def test_classes_of_padding_leave_no_block_out() -> None:
    padding = Counter({0: 7, 1: 1, 10: 2, 11: 4, 250: 8, 251: 16, 500: 32, 999: 64, 1000: 128})
    assert [number for _, number in padding_classes(padding, 1000)] == [7, 3, 4, 0, 8, 48, 192]


def test_tokens(mixed_set: Path) -> None:
    recount = Counter(itertools.chain.from_iterable(documents_of(mixed_set)))
    ranking = sorted(recount.items(), key=lambda pair: (-pair[1], pair[0]))
    assert compute(shards.open(mixed_set), seed=0).tokens.ranking == ranking
    text, totals = PageParser(page_of(mixed_set)).text, itertools.accumulate(count for _, count in ranking)
    half = next(n for n, total in enumerate(totals, 1) if 2 * total >= recount.total())
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


def test_bytes_with_a_token_between_them_make_no_character(tmp_path: Path) -> None:
    vocabulary = read_vocabulary(shards.open(write_set(tmp_path / "any", [{"train": [[1]]}])).tokenizer_path)
    id_of = {vocabulary.piece(number): number for number in range(256)}
    document = [id_of[piece] for piece in (b"\xe4", b"a", b"\xbd", b"\xa0", b"a", b"\xe4", b"\xbd", b"\xa0")]
    found = compute(shards.open(write_set(tmp_path / "set", [{"train": [document]}])), seed=0).tokens.scripts()
    assert found == Counter(map(script_of, "aa你"))


def test_scripts_of_characters() -> None:
    words = ["Han:漢𠀀々〇豈", "Latin:aÉßĀｚ", "Cyrillic:Жё", "kana:あアーｱ", "hangul:한ᄒ", "digits:7７٣"]
    words += [
        "punctuation:。,+€《🙂・",
        "other letters:Ωאק\u0301",
        "white space: \n\t\u3000",
        "other:½\x00\u200b\ufffe",
    ]
    for script, _, characters in (word.partition(":") for word in words):
        assert {script_of(character) for character in characters} == {script}


PIECES = [b"a", "中".encode()[:2], "中".encode()[2:], "é".encode()[:1], "é".encode()[1:], b"<eos>"]


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
    assert spans(ids, cast(Any, SimpleNamespace(piece=PIECES.__getitem__))) == expected


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
    assert edges[0] <= shortest < edges[1] and edges[-1] > shortest + more
    assert block_tokens in edges or not edges[0] < block_tokens < edges[-1]
    assert len(edges) < 60


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
    line = Line(points=[(0, 1), (1, 10), (2, None), (3, 0), (4, 100)])
    assert dataclasses.replace(chart, y=y).path(line) == "M40.0,114.0L50.0,64.0M80.0,14.0"


# ---- samples of large sets ----


@given(st.integers(1, 10**6), st.floats(1e-6, 1), st.integers(0, 2**64 - 1))
def test_samples_lie_within_the_shard(num_blocks: int, share: float, seed: int) -> None:
    sample = sample_blocks(num_blocks, share, seed)
    assert 0 <= sample.start < sample.stop <= num_blocks and len(sample) == max(1, int(num_blocks * share))


def test_a_large_set_is_sampled_and_the_page_says_so(mixed_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard_set, steps = shards.open(mixed_set), list[int]()
    num_blocks = shard_set.manifest.total("num_blocks")
    monkeypatch.setattr(statistics_module, "MAX_COUNTED_TOKENS", num_blocks * 64 // 10)
    statistics = compute(shard_set, seed=5, progress=steps.append)
    tokens, text = statistics.tokens, PageParser(page_of(mixed_set, statistics=statistics)).text
    assert sum(steps) == num_blocks
    assert 0 < tokens.num_counted_blocks <= num_blocks / 10 + len(shard_set.manifest.shards)
    sizes = f"{tokens.num_counted_blocks * 64:,} of {num_blocks * 64:,} tokens: {tokens.num_counted_blocks} whole"
    assert f"From a sample of {sizes}" in text and "occur in the sample" in text
    assert compute(shard_set, seed=6).tokens.ranking != tokens.ranking


def test_equal_documents_are_sampled_together(tmp_path: Path, tokenizer_dir: Path, monkeypatch: Any) -> None:
    """Every text twice: then half of any sample that takes equal documents together are duplicates."""
    texts = sorted({*MIXED, *(f"{number} 只" for number in range(300))})
    directory = build_set(tmp_path, tokenizer_dir, texts * 2, packing="best-fit")
    monkeypatch.setattr(statistics_module, "MAX_COMPARED_DOCUMENTS", len(texts) // 2)
    found = compute(shards.open(directory), seed=1).duplicates
    assert len(texts) / 8 < found.num_compared < len(texts)
    assert 2 * found.num_duplicates == found.num_compared == 2 * found.num_repeated
    sample = f"Of a sample of {found.num_compared:,} of {2 * len(texts):,} documents"
    assert sample in PageParser(page_of(directory)).text


@pytest.mark.parametrize("package", [shards.report, shards.exchange])
def test_the_examples_in_the_docstrings_hold(package: Any) -> None:
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    results = [doctest.testmod(importlib.import_module(f"{package.__name__}.{name}")) for name in names]
    assert sum(result.attempted for result in results) > 2
    assert not any(result.failed for result in results)
