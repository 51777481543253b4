"""The page of a report shows what the set holds, and lets nothing of its texts act; the command overwrites nothing else."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import json
import pkgutil
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from shards.entries import TailList

import shards
import shards.report
from pipeline.build import build
from pipeline.settings import BuildSettings
from shards.common.errors import InputError
from shards.manifest import encode_manifest
from shards.report import statistics as statistics_module
from shards.report.command import default_out
from shards.report.statistics import compute
from shards.verify import verify
from tests.conftest import directory_bytes, write_corpus
from tests.shards.report_sets import MIXED, TEXTS, PageParser, build_set, documents, page_of, report

ELEMENTS = """
    html head meta title style body header footer main nav section article figure figcaption h1 h2 h3 p ul li a dl div dt dd
    table caption thead tbody tr th td details summary span i strong code svg desc g rect line circle polyline text
"""


def assert_harmless(page: str) -> PageParser:
    """Nothing is loaded, nothing runs, nothing moves the cursor or turns the writing."""
    parser = PageParser(page)
    assert set(parser.tags) <= set(ELEMENTS.split())
    assert parser.tags["style"] == 1
    for tag, name, value in parser.attributes:
        assert not name.startswith("on") and name not in ("src", "srcset", "action", "style", "xlink:href"), (tag, name)
        if name == "href":
            assert tag == "a" and value.startswith("#")
        assert "javascript:" not in value and "url(" not in value
    assert all(character.isprintable() or character in "\n" for character in page)
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style and "//" not in style
    ids = [value for _tag, name, value in parser.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for _tag, name, value in parser.attributes:
        if name == "aria-labelledby":
            assert set(value.split()) <= set(ids)
        if name == "href":
            assert value[1:] in ids
    return parser


def test_every_packing_has_a_page_that_needs_nothing_else(mixed_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_module, "NUM_EXCERPTS", 500)  # enough to see a document's end
    parser = assert_harmless(page_of(mixed_set))
    policies = [value for tag, name, value in parser.attributes if (tag, name) == ("meta", "content")]
    assert any(value.startswith("default-src 'none'; style-src 'unsafe-inline'") for value in policies)
    labelled = [value for tag, name, value in parser.attributes if (tag, name) == ("svg", "aria-labelledby")]
    assert len(labelled) == 4
    manifest = shards.open(mixed_set).manifest
    assert manifest.fingerprint in parser.text
    assert f"packed by {manifest.packing}" in parser.text
    assert "end of the document" in parser.text
    assert ("end of the document · EOS, id 599" in parser.text) == (manifest.packing != "tutorial")


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</style><script>alert(2)</script><!--",
    "红\x1b[31m色\x1b]0;title\x07 \x9b2J",
    "\u202etxet desrever\u202c \u2066\u200b\ufeff",
    "&lt;b&gt; &amp; ]]> --> \x00 \x7f",
]


def test_hostile_texts_show_and_do_nothing(tmp_path: Path, tokenizer_dir: Path) -> None:
    name, field = '"><img src=x onerror=alert(3)>', "<script>'\"\u202e\x1b"
    shutil.copytree(tokenizer_dir, tmp_path / name)
    records = [{field: text} for text in HOSTILE]
    corpus = write_corpus(tmp_path / "<svg onload=alert(4)>\x1b\u202e&amp;.json", records)
    settings = BuildSettings(block_tokens=1024, val_fraction=0.2, text_field=field)
    build([str(corpus)], tmp_path / "set", tokenizer_name=str(tmp_path / name), settings=settings, num_workers=1)
    assert len(documents(tmp_path / "set")) == len(HOSTILE)
    parser = assert_harmless(page_of(tmp_path / "set"))
    assert "<script>alert(1)</script>" in parser.text
    assert '"><img src=x onerror=alert(1)>' in parser.text
    assert "红\\x1b[31m色\\x1b]0;title\\x07 \\x9b2J" in parser.text
    assert "\\u202etxet desrever\\u202c \\u2066\\u200b\\ufeff" in parser.text
    assert "&lt;b&gt; &amp; ]]> --> \\x00 \\x7f" in parser.text
    assert "<svg onload=alert(4)>\\x1b\\u202e&amp;.json" in parser.text
    assert name in parser.text
    assert json.dumps(field, ensure_ascii=False).replace("\u202e", "\\u202e") in parser.text


def test_excerpts_are_the_blocks_token_by_token(tmp_path: Path, tokenizer_dir: Path) -> None:
    """Fewer than ten blocks: all are shown. The ids in the titles, EOS and filling are the block."""
    directory = build_set(tmp_path, tokenizer_dir, [*TEXTS[1:3], "🙂𠮷 龘", "短"], unit_bytes=10**7, block_tokens=256)
    shard_set = shards.open(directory)
    blocks = [block.tolist() for name in ("train", "val") for block in shard_set[name][:]]
    assert 2 < len(blocks) <= 10
    _head, *articles = page_of(directory).split('<article class="excerpt">')
    shown = []
    for article in articles:
        parser = ExcerptParser(article.partition("</article>")[0])
        ids = [int(word) for word in " ".join(parser.ids).replace("ids", "").replace("id", "").split()]
        shown.append(ids + [shard_set.eos_id] * parser.num_filling)
    assert shown == blocks
    assert "🙂" in "".join(articles) and "𠮷" in "".join(articles)


class ExcerptParser(HTMLParser):
    """The ids in an excerpt, in order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.num_filling = 0
        self._kind = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["title"] or ""] if "title" in values else []
        self._kind = values.get("class") or ""

    def handle_data(self, data: str) -> None:
        if self._kind == "eos":
            self.ids.append(data)
        if self._kind == "filling":
            self.num_filling += int(data.split()[0].replace(",", ""))
        self._kind = ""


def test_excerpts_say_where_documents_begin_and_end(mixed_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(compute(shards.open(mixed_set), seed=3).excerpts) == 10
    shard_set = shards.open(mixed_set)
    num_blocks = len(shard_set["train"]) + len(shard_set["val"])
    monkeypatch.setattr(statistics_module, "NUM_EXCERPTS", num_blocks)  # all of them
    closing = shard_set.manifest.packing != "tutorial"
    known = {name: list(split) for name, split in ((n, shard_set[n].documents()) for n in ("train", "val"))}
    heads = {tuple(ids[:3].tolist()) for name in known for ids in known[name]}
    excerpts = compute(shard_set, seed=3).excerpts
    assert len({(block.split, block.block) for block in excerpts}) == len(excerpts) == num_blocks
    for block in excerpts:
        tokens = [token for segment in block.segments for token in segment.tokens]
        assert tokens == shard_set[block.split][block.block].tolist()
        for segment in block.segments:
            assert segment.num_tokens == len(segment.tokens)
            if segment.is_filling:
                assert set(segment.tokens) == {shard_set.eos_id}
                continue
            assert (shard_set.eos_id in segment.tokens) == (segment.ends and closing)
            if segment.begins and segment.num_tokens > 3:
                assert segment.tokens[:3] in heads
        assert all(left.ends for left in block.segments[:-1] if not left.is_filling)
    segments = [segment for block in excerpts for segment in block.segments if not segment.is_filling]
    num_documents = shard_set["train"].num_documents + shard_set["val"].num_documents
    assert sum(segment.begins for segment in segments) == sum(segment.ends for segment in segments) == num_documents


def test_long_blocks_are_shown_in_part(tmp_path: Path, tokenizer_dir: Path) -> None:
    directory = build_set(tmp_path, tokenizer_dir, TEXTS[:60], block_tokens=5000, val_fraction=0.0)
    text = PageParser(page_of(directory)).text
    assert "The first 1,024 of 5,000 tokens." in text


def test_an_empty_split_is_no_fault(tmp_path: Path, tokenizer_dir: Path) -> None:
    directory = build_set(tmp_path, tokenizer_dir, MIXED[:5], val_fraction=0.0)
    parser = assert_harmless(page_of(directory))
    assert shards.open(directory).manifest.splits["val"].num_blocks == 0
    assert compute(shards.open(directory), seed=0).lengths.num_documents == 5
    assert "–" in parser.text


def test_one_short_document_is_a_set_too(tmp_path: Path, tokenizer_dir: Path) -> None:
    directory = build_set(tmp_path, tokenizer_dir, ["一"], val_fraction=0.0)
    parser = assert_harmless(page_of(directory))
    assert "1 document in 1 block" in parser.text
    assert "(100 %)" in parser.text  # what the tutorial would drop


def test_parsed_special_tokens_are_no_fault(tmp_path: Path, tokenizer_dir: Path) -> None:
    texts = ["甲<|endoftext|>乙", "丙" * 50]
    directory = build_set(tmp_path, tokenizer_dir, texts, special_tokens="parse", block_tokens=8, val_fraction=0.0)
    assert compute(shards.open(directory), seed=0).lengths.num_tokens == sum(map(len, documents(directory)))
    assert_harmless(page_of(directory))


def test_records_left_out_are_listed_by_kind(tmp_path: Path, tokenizer_dir: Path) -> None:
    records = [{"text": "甲乙丙丁"}, {"text": ""}, {"text": 5}, {"body": "丙"}, {"text": 6}, {"text": "甲乙丙丁"}]
    corpus = write_corpus(tmp_path / "corpus.json", records)
    settings = BuildSettings(block_tokens=4, val_fraction=0.0, dedup="exact", on_bad_record="skip")
    build([str(corpus)], tmp_path / "set", tokenizer_name=str(tokenizer_dir), settings=settings, num_workers=1)
    manifest = shards.open(tmp_path / "set").manifest
    assert {entry.num_records for entry in manifest.rejected} == {1, 2}
    text = " ".join(PageParser(page_of(tmp_path / "set")).words)
    for entry in manifest.rejected:
        assert f"rejected: {entry.kind} {entry.num_records} {100 * entry.num_records / 6:.1f} %" in text
    assert "empty texts 1 16.7 %" in text and "duplicates left out 1 16.7 %" in text


def test_shares_of_sources(tmp_path: Path, tokenizer_dir: Path) -> None:
    for number in range(30):
        write_corpus(tmp_path / f"{number:02}.json", [{"text": TEXTS[number]}] * (number + 1))
    settings = BuildSettings(block_tokens=64, val_fraction=0.0)
    names = [str(tmp_path / f"{number:02}.json") for number in range(30)]
    build(names, tmp_path / "set", tokenizer_name=str(tokenizer_dir), settings=settings, num_workers=1)
    sizes = {path: Path(path).stat().st_size for path in names}
    largest = max(names, key=lambda path: sizes[path])
    text = " ".join(PageParser(page_of(tmp_path / "set")).words)
    number = int(Path(largest).stem) + 1
    assert (
        f"{Path(largest).name} {sizes[largest] / 1000:.2f} kB {number} {100 * sizes[largest] / sum(sizes.values()):.1f} %"
        in text
    )
    smallest = sorted(names, key=lambda path: sizes[path])[:5]
    assert f"5 other sources {sum(sizes[path] for path in smallest) / 1000:.2f} kB" in text


def test_the_same_set_and_seed_give_the_same_bytes(built_set: Path, tmp_path: Path) -> None:
    shutil.copytree(built_set, tmp_path / "another name")
    page = page_of(built_set)
    assert page_of(tmp_path / "another name") == page
    assert page_of(built_set, seed=1) != page
    picked = [compute(shards.open(built_set), seed=seed).excerpts for seed in (1, 2333)]
    assert picked[0] != picked[1]
    for part in (*built_set.parts[1:], *tmp_path.parts[1:]):
        assert len(part) < 5 or part not in page


def test_a_damaged_shard_is_one_clear_line(own_set: Path) -> None:
    path = sorted(own_set.glob("train-*.bin"))[0]
    content = bytearray(path.read_bytes())
    content[400:404] = b"\xff\xff\xff\x7f"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"expected ids below 600, found 2,147,483,647; see .*verify"):
        compute(shards.open(own_set), seed=0)


@pytest.mark.parametrize("field, value", [("unit", 99), ("num_pieces", 1000)])
def test_tails_that_fit_no_shard_are_one_clear_line(own_set: Path, field: str, value: int) -> None:
    manifest = shards.open(own_set).manifest
    assert manifest.tails[0].continues
    change: dict[str, Any] = {field: value}
    tails = TailList.of([dataclasses.replace(manifest.tails[0], **change), *manifest.tails[1:]])
    changed = dataclasses.replace(manifest, tails=tails).with_fingerprint()
    (own_set / "manifest.json").write_bytes(encode_manifest(changed))
    with pytest.raises(InputError, match="train: the tails don’t fit the shards"):
        compute(shards.open(own_set), seed=0)


def test_progress_adds_up(mixed_set: Path) -> None:
    steps: list[int] = []
    compute(shards.open(mixed_set), seed=0, progress=steps.append)
    assert sum(steps) == statistics_module.num_steps(shards.open(mixed_set).manifest)


# The command


def test_the_page_lies_beside_the_set_and_the_set_stays_whole(
    own_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = directory_bytes(own_set)
    assert report(own_set) == 0
    page = own_set.parent / "set.html"
    first_line, *rest = capsys.readouterr().out.splitlines()
    assert first_line == str(page)
    lengths = compute(shards.open(own_set), seed=0).lengths
    assert f"would drop {lengths.num_lost_tokens:,} of {lengths.num_tokens:,} tokens" in "\n".join(rest)
    assert page.read_text(encoding="utf-8") == page_of(own_set)
    assert directory_bytes(own_set) == before and verify(own_set) == []
    assert sorted(path.name for path in own_set.parent.iterdir()) == ["set", "set.html"]
    assert report(own_set, "--seed", 7) == 0  # over the page that is there
    assert page.read_text(encoding="utf-8") == page_of(own_set, seed=7)


def test_pages_where_none_may_be_are_refused(own_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="lies inside the shard set"):
        report(own_set, "--out", own_set / "report.html")
    with pytest.raises(InputError, match="lies inside the shard set"):
        report(own_set, "--out", tmp_path / "set" / ".." / "set" / "tokenizer" / "report.html")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="lies inside the shard set"):
        report("set", "--out", own_set / "report.html")
    with pytest.raises(InputError, match="no directory"):
        report(own_set, "--out", tmp_path / "nowhere" / "report.html")
    with pytest.raises(InputError, match="is a directory"):
        report(own_set, "--out", tmp_path)
    (tmp_path / "corpus.json").write_text("[]")
    with pytest.raises(InputError, match="exists and is no report"):
        report(own_set, "--out", tmp_path / "corpus.json")
    assert (tmp_path / "corpus.json").read_text() == "[]"
    with pytest.raises(InputError, match="--seed"):
        report(own_set, "--seed", -1)
    with pytest.raises(InputError, match="no such shard set"):
        report(tmp_path / "missing")


def test_the_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_out(Path("data/shards/wiki.zh")) == Path("data/shards/wiki.zh.html")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert default_out(Path(".")) == tmp_path / "here.html"


def test_the_examples_in_the_docstrings_hold() -> None:
    names = [module.name for module in pkgutil.iter_modules(shards.report.__path__)]
    results = [doctest.testmod(importlib.import_module(f"shards.report.{name}")) for name in names]
    assert sum(result.attempted for result in results) > 5
    assert not any(result.failed for result in results)
