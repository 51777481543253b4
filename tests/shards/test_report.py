"""The page of a report shows what the set holds, and lets nothing of its texts act."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import pkgutil
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import shards
import shards.report
from shards.__main__ import main
from shards.common.errors import InputError
from shards.common.text import printable
from shards.report import statistics as statistics_module
from shards.report.statistics import compute
from shards.unread import UnreadEntry
from shards.verify import verify
from tests.conftest import directory_bytes, flip
from tests.pages import PageParser, assert_harmless, look_at
from tests.shards.sets import MIXED, TEXTS, build_set, documents_of, page_of, source


def report(*arguments: object) -> None:
    assert main(["report", *map(str, arguments)]) == 0


@pytest.fixture
def own_mixed_set(mixed_set: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(mixed_set, tmp_path / "set"))


def test_every_packing_has_a_page_that_needs_nothing_else(mixed_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_module, "NUM_EXCERPTS", 500)  # enough to see a document's end
    parser = assert_harmless(page_of(mixed_set))
    manifest = shards.open(mixed_set).manifest
    assert manifest.fingerprint in parser.text and f"packed by {manifest.packing} ," in parser.text
    assert "end of the document · EOS, id 599" in parser.text
    assert parser.tags["figure"] == 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(tmp_path: Path, tokenizer_dir: Path, scheme: str) -> None:
    look_at(page_of(build_set(tmp_path, tokenizer_dir, MIXED)).encode(), scheme, tmp_path)


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
    rejected = {"kind": 1}
    statistics = dataclasses.replace(compute(shard_set, seed=0), examples=dict.fromkeys(HOSTILE, HOSTILE))
    shard_set.manifest = hostile(dataclasses.replace(shard_set.manifest, rejected=rejected))
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
    _head, *articles = page_of(mixed_set).split('<article class="excerpt">')
    assert [ids_shown(article, shard_set.eos_id) for article in articles] == blocks


def ids_shown(article: str, eos_id: int) -> list[int]:
    """All ids of an excerpt on the page."""
    ids: list[int] = []
    for shown, eos, padding in re.findall(r'title="id ([\d ]+)"|"eos">(\d+)<|"padding">(\d+)', article):
        ids += [*map(int, (shown or eos).split()), *[eos_id] * int(padding or 0)]
    return ids


def test_small_and_odd_sets(tmp_path: Path, tokenizer_dir: Path) -> None:
    one = assert_harmless(page_of(build_set(tmp_path / "one", tokenizer_dir, ["一"]))).text
    assert "1 document in 1 block of 64 tokens" in one and "(100 %)" in one  # what the tutorial would drop
    assert "documents 1 0 tokens" in one and "bytes per token 3.000 –" in one  # an empty split
    empty = build_set(tmp_path / "empty", tokenizer_dir, [""])  # as an import may have it
    assert "0 of 599 entries" in assert_harmless(page_of(empty)).text
    long = build_set(tmp_path / "long", tokenizer_dir, TEXTS[:60], block_tokens=5000)
    assert "The first 1,024 of 5,000 tokens." in PageParser(page_of(long)).text
    for _split, _block, parts in compute(shards.open(long), seed=0).excerpts:
        assert sum(len(part.tokens) for part in parts) == 1024


def test_records_and_sources_are_listed(tmp_path: Path, tokenizer_dir: Path) -> None:
    sources = [source(f"{number:02}.json", 1000 * number, number) for number in range(1, 31)]
    shard_set = shards.open(build_set(tmp_path, tokenizer_dir, TEXTS[:3], sources=sources))
    left_out, rejected = {"empty": 1, "duplicate": 2}, {"no text": 4}
    changes: dict[str, Any] = {"num_records": 465, "left_out": left_out, "rejected": rejected}
    changes["unread"] = [UnreadEntry(kind=kind, num_files=4, names=["a", "b"]) for kind in ("PDF", "")]
    shard_set.manifest = dataclasses.replace(shard_set.manifest, **changes)
    text = PageParser(page_of(shard_set)).text
    assert "left out: empty 1 0.2 % left out: duplicate 2 0.4 % rejected: no text 4 0.9 %" in text
    assert "8 files are no corpus: a, b and 2 more; PDF: a, b and 2 more." in text
    assert "30.json and 29 other sources" in text
    assert "share 30.json 30.00 kB 30 6.5 % 29.json 29.00 kB 29 6.2 %" in text
    assert "5 other sources 15.00 kB 15 3.2 %" in text


def test_the_same_set_and_seed_give_the_same_bytes(mixed_set: Path, tmp_path: Path) -> None:
    shutil.copytree(mixed_set, tmp_path / "another name")
    page = page_of(mixed_set)
    assert page_of(tmp_path / "another name") == page
    assert page_of(mixed_set, seed=1) != page
    for part in (*mixed_set.parts[1:], *tmp_path.parts[1:]):
        assert len(part) < 5 or part not in page


def test_a_damaged_shard_is_one_clear_line(own_mixed_set: Path) -> None:
    flip(own_mixed_set / "train-00000.bin", 403)
    with pytest.raises(InputError, match=r"expected ids below 600, found 16,777,\d+; see .*verify"):
        compute(shards.open(own_mixed_set), seed=0)


def test_the_page_is_beside_the_set_which_stays_whole(
    own_mixed_set: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, page = directory_bytes(own_mixed_set), own_mixed_set.parent / "set.html"
    report(own_mixed_set)
    assert capsys.readouterr().out == f"{page}\n"
    assert page.read_text(encoding="utf-8") == page_of(own_mixed_set)
    assert directory_bytes(own_mixed_set) == before and verify(own_mixed_set) == []
    report(own_mixed_set, "--seed", 7)  # over the page that is there
    assert page.read_text(encoding="utf-8") == page_of(own_mixed_set, seed=7)
    page.unlink()
    monkeypatch.chdir(own_mixed_set)
    report(".")
    assert page.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["set", "--out", "set/report.html"], "lies inside the shard set"),
        (["set", "--out", "other/../set/tokenizer/report.html"], "lies inside the shard set"),
        (["set", "--out", "nowhere/report.html"], "no directory"),
        (["set", "--out", "."], "is a directory"),
        (["set", "--out", "corpus.json"], "exists and is no report"),
        (["set", "--seed", "-1"], "seed: expected 0"),
        (["missing"], "no such shard set"),
    ],
)
def test_what_is_refused(
    own_mixed_set: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(own_mixed_set.parent)
    Path("other").mkdir()
    Path("corpus.json").write_text("[]")
    before = directory_bytes(Path("."))
    with pytest.raises(InputError, match=message):
        report(*options)
    assert directory_bytes(Path(".")) == before


def test_the_examples_in_the_docstrings_hold() -> None:
    names = [module.name for module in pkgutil.iter_modules(shards.report.__path__)]
    results = [doctest.testmod(importlib.import_module(f"shards.report.{name}")) for name in names]
    assert sum(result.attempted for result in results) > 5
    assert not any(result.failed for result in results)
