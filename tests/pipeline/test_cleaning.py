"""What becomes a document: the user's own function, the least length, Gopher's rules. What doesn't is counted and shown."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import shards
from pipeline import repetition
from pipeline.cleaning import load, read_transform
from pipeline.plan import plan_units
from pipeline.receipts import Receipt
from pipeline.settings import BuildSettings
from pipeline.worker import read_texts
from shards.common.errors import InputError
from shards.edit import merge
from shards.report.page import make_page
from shards.report.statistics import compute
from shards.tokenizer_files import read_vocabulary
from shards.verify import verify
from tests.conftest import REPOSITORY, write_corpus
from tests.pages import PageParser
from tests.pipeline.building import TEXTS, Builder, killed_before_publishing, stored, texts_in
from tests.pipeline.reading import find_sources

CLEAN = """
def transform(record):
    if record["n"] % 7 == 0:
        return None
    return [record["text"], "", str(record["n"])] if record["n"] % 5 == 0 else record["text"]

def fails(record):
    if record["n"] == 3:
        return record["title"]
    if record["n"] == 4:
        return ["x", 4]
    if record["n"] == 6:
        raise SystemExit(3)
    if record["n"] == 8:
        raise GeneratorExit
    return chr(0xD800) if record["n"] == 5 else record["text"]
"""
RECORDS: list[dict[str, Any]] = [{"n": number, "text": text} for number, text in enumerate(TEXTS[:60])]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.jsonl", RECORDS, layout="lines")


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "clean.py"
    path.write_text(CLEAN)
    return path


# ---- the user's function ----


def test_a_transform_makes_none_one_or_several_documents(corpus: Path, code: Path, run: Builder) -> None:
    """The same bytes for any number of workers; every record and text is counted once."""
    results = [
        run(corpus, corpus.parent / f"set-{n}", transform=str(code), val_fraction=0.0, num_workers=n) for n in (1, 3)
    ]
    manifest = results[0].manifest
    assert stored(results[0].out) == stored(results[1].out)
    texts = [[record["text"], str(record["n"])][: 2 - (record["n"] % 5 > 0)] for record in RECORDS if record["n"] % 7]
    assert texts_in(corpus.parent / "set-1") == [text for own in texts for text in own]
    num_lists = sum(record["n"] % 5 == 0 and record["n"] % 7 > 0 for record in RECORDS)
    assert manifest.left_out == {"dropped by the transform": 9, "empty": num_lists}
    assert manifest.num_records == 60 == sum(source.num_records for source in manifest.sources)
    assert manifest.total("num_documents") + 9 + num_lists == 60 + 2 * num_lists
    assert str(corpus.parent) not in json.dumps(manifest.settings)
    assert manifest.settings["transform"].startswith("clean.py:transform (BLAKE3 ")


def test_duplicates_are_found_among_the_transformed_texts(corpus: Path, run: Builder) -> None:
    code = corpus.with_name("clean.py")
    code.write_text("def two(record):\n    return [record['text'], str(record['n'] % 3), '']\n")
    run(corpus, corpus.parent / "set", transform=f"{code}:two", dedup="exact", val_fraction=0.0)
    texts = [text for record in RECORDS for text in (record["text"], str(record["n"] % 3))]
    assert texts_in(corpus.parent / "set") == list(dict.fromkeys(texts))


def test_what_is_dropped_need_not_be_json(corpus: Path, run: Builder) -> None:
    """Records nested as deeply as they may be, or changed by the function; those that can be shown are."""
    code = corpus.with_name("clean.py")
    code.write_text(
        "def drop(record):\n    if 'n' in record:\n        return record['text']\n    record[1, 2] = record\n"
    )
    with corpus.open("a") as file:
        file.write('{"deep": ' + "[" * 1000 + "]" * 1000 + '}\n{"a": "b"}\n')
    manifest = run(corpus, corpus.parent / "set", transform=f"{code}:drop").manifest
    assert manifest.left_out == {"dropped by the transform": 2} and manifest.total("num_documents") == 60


def test_a_changed_file_is_other_inputs(corpus: Path, code: Path, run: Builder) -> None:
    out, options = corpus.parent / "set", {"transform": str(code)}
    with killed_before_publishing():
        run(corpus, out, **options)
    code.write_text(CLEAN + "\n")
    line = r"unfinished build with other inputs \(transform was clean.py:transform \(BLAKE3"
    with pytest.raises(InputError, match=line):
        run(corpus, out, **options)
    code.write_text(CLEAN)
    assert run(corpus, out, **options).num_units_reused > 1
    assert run(corpus, out, **options).up_to_date
    code.write_text(CLEAN + "\n")
    for changed in (options, {}):
        with pytest.raises(InputError, match="a shard set from other inputs is there"):
            run(corpus, out, **changed)


def test_an_exception_names_the_record_which_can_be_skipped(corpus: Path, code: Path, run: Builder) -> None:
    out, options = corpus.parent / "set", {"transform": f"{code}:fails", "val_fraction": 0.0}
    offset = sum(map(len, corpus.read_bytes().splitlines(keepends=True)[:3]))
    with pytest.raises(InputError) as caught:
        run(corpus, out, **options)
    remedy = "mend the function, or leave such records out with --on-bad-record skip"
    assert str(caught.value) == f"{corpus}: line 4, byte {offset:,}: clean.py, line 9: KeyError: 'title'; {remedy}"
    manifest = run(corpus, out, on_bad_record="skip", **options).manifest
    assert manifest.rejected == {"transform failed": 5} and manifest.num_records == 60
    lines = list(map(json.loads, (out / "rejected.jsonl").read_text().splitlines()))
    assert [(entry["line"], json.loads(entry["record"])["n"]) for entry in lines] == [
        *((4, 3), (5, 4), (6, 5), (7, 6), (9, 8)),
    ]
    assert [entry["reason"] for entry in lines] == [
        "clean.py, line 9: KeyError: 'title'",
        "clean.py:fails: TypeError: expected a string, a list of strings or None, the function returned a list with int",
        r"clean.py:fails: UnicodeEncodeError: 'utf-8' codec can't encode character '\ud800' in position 0: "
        "surrogates not allowed",
        "clean.py, line 13: SystemExit: 3",
        "clean.py, line 15: GeneratorExit",
    ]
    assert texts_in(out) == [record["text"] for record in RECORDS if record["n"] not in (3, 4, 5, 6, 8)]


def test_all_columns_are_read_for_a_transform_whose_file_may_define_classes(tmp_path: Path, code: Path) -> None:
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"text": ["甲", "乙"], "title": ["一", "二"]}), path)
    code.write_text(
        "from __future__ import annotations\nimport dataclasses\n\n@dataclasses.dataclass\nclass Pair:\n    a: str\n\n"
        "def transform(record):\n    return record['title'] + Pair(record['text']).a\n"
    )
    ranges = [byte_range for unit in plan_units(find_sources([str(path)]), 10**9) for byte_range in unit.ranges]
    settings, transform = BuildSettings(transform=str(code)), read_transform(str(code))
    batches = read_texts(ranges, settings, Receipt(unit=0), transform=transform)
    assert [text for texts, _batch in batches for text in texts] == ["一甲", "二乙"]


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("def transform(record)\n    pass", "", r"transform clean\.py, line 1: SyntaxError: expected ':'"),
        ("raise SystemExit(3)", "", r"transform clean\.py, line 1: SystemExit: 3"),
        ("def convert(record): ...", "", r"transform clean\.py: has no function 'transform'"),
        ("def convert(record): ...", ":convrt", r"has no function 'convrt'; did you mean 'convert'\?"),
        ("x = '\0'", "", r"transform clean\.py.*: \w+Error: source code .*cannot contain null bytes"),
        (None, "", r"transform .*clean\.py: no such file"),
        ("", ":a:b", r"transform: expected FILE\.py or FILE\.py:NAME, found"),
    ],
)
def test_a_file_that_cannot_be_used_ends_in_a_line(tmp_path: Path, source: str | None, name: str, message: str) -> None:
    path = tmp_path / "clean.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(InputError, match=message) as caught:
        load(read_transform(f"{path}{name}"))
    assert "\n" not in str(caught.value)


def test_the_examples_of_the_recipes() -> None:
    page = (REPOSITORY / "docs" / "recipes.md").read_text(encoding="utf-8")
    found: dict[str, Any] = {}
    exec(page.partition("<<'END'\n")[2].partition("\nEND\n")[0], found)
    assert found["simplify"]({"text": "他們學習漢語。"}) == "他们学习汉语。"
    parts = [{"内容": "一", "是否重复": False}, {"内容": "二", "是否重复": True}, {"内容": "三", "是否重复": False}]
    assert found["mnbvc"]({"段落": parts}) == "一\n三"
    article, short, items = "长" * 100, "长" * 99, "长" * 80 + "\n\n短" * 20
    results = [found["articles"]({"title": "题", "text": text}) for text in (article, short, items)]
    assert results == [f"题\n{article}", None, None]


# ---- filters ----


def test_short_documents_are_left_out_and_shown(corpus: Path, tmp_path: Path, run: Builder) -> None:
    records = [
        {"text": "天地玄黄宇宙洪荒日月盈昃"[:length] + ("<b>" if length == 2 else "")} for length in range(12)
    ] * 3
    write_corpus(corpus, [*records, {"text": "同样的一句话。\n" * 9}], layout="lines")
    options = {"min_chars": 6, "drop_repetitive": True, "val_fraction": 0.0, "unit_bytes": 200}
    manifest = run(corpus, tmp_path / "set", **options).manifest
    assert verify(tmp_path / "set") == []
    reasons = {"empty": 3, "shorter than 6 characters": 15, "repetitive: duplicate lines": 1}
    assert {name: manifest.left_out[name] for name in reasons} == reasons
    lines = list(map(json.loads, (tmp_path / "set" / "left_out.jsonl").read_text().splitlines()))
    short = [line["text"] for line in lines if line["reason"] == "shorter than 6 characters"]
    assert short == ["天", "天地<b>", "天地玄", "天", "天地<b>"]  # three of a unit
    assert lines[-1]["text"] == "同样的一句话。\n" * 9
    shard_set = shards.open(tmp_path / "set")
    page = make_page(shard_set.manifest, compute(shard_set, seed=0), read_vocabulary(shard_set.tokenizer_path)).decode()
    text = PageParser(page).text
    assert "What was left out, and why of 37 records" in text and "<b>" not in page.partition("</style>")[2]
    assert "left out: shorter than 6 characters 15 40.5 %" in text and "天地<b>" in text


def test_a_merged_set_has_the_examples_of_its_parts(tmp_path: Path, corpus: Path, run: Builder) -> None:
    for name in ("a", "b"):
        run(corpus, tmp_path / name, min_chars=300 if name == "a" else 400)
    run(corpus, tmp_path / "c")
    parts = [tmp_path / name for name in ("a", "b", "c")]
    manifest = merge(parts, tmp_path / "abc")
    joined = b"".join((part / "left_out.jsonl").read_bytes() for part in parts[:2])
    assert joined and (tmp_path / "abc" / "left_out.jsonl").read_bytes() == joined
    assert not (parts[2] / "left_out.jsonl").exists() and verify(tmp_path / "abc") == []
    examples = compute(shards.open(tmp_path / "abc"), seed=0).examples
    assert set(examples) == set(manifest.left_out) == {"shorter than 300 characters", "shorter than 400 characters"}


def test_strange_examples_are_passed_over(tmp_path: Path, corpus: Path, run: Builder) -> None:
    run(corpus, tmp_path / "set", min_chars=300)
    shard_set, reason = shards.open(tmp_path / "set"), "shorter than 300 characters"
    strange = ["", "{", "[1]", "7", '{"reason": [], "text": ""}', '{"reason": "other", "text": "a"}', "[" * 9999]
    entries = [{"reason": reason, "text": text} for text in (5, *["x" * 999] * 9)]
    (tmp_path / "set" / "left_out.jsonl").write_text("\n".join([*strange, *map(json.dumps, entries)]))
    assert compute(shard_set, seed=0).examples == {reason: ["x" * 200] * 5}
    (tmp_path / "set" / "left_out.jsonl").unlink()
    with pytest.raises(InputError, match=r"left_out\.jsonl"):
        compute(shard_set, seed=0)


# ---- Gopher's rules ----


@pytest.mark.parametrize(("separator", "name"), [("\n", "lines"), ("\n\n", "paragraphs")])
def test_each_threshold_of_lines_and_paragraphs(separator: str, name: str) -> None:
    def reason(num_duplicates: int, num_chars: int, num_other_chars: int) -> str:
        """Of 100 parts, of which one is there again and again, between the others."""
        parts = [f"w{number:05}".ljust(num_other_chars, "x") for number in range(99 - num_duplicates)]
        for place in range(num_duplicates + 1):
            parts.insert(2 * place, "z" * num_chars)
        return repetition.repetition(separator.join(parts) + "\n \n")

    assert repetition.MAX_PARAGRAPHS == repetition.MAX_LINES == 0.30
    assert repetition.MAX_PARAGRAPH_CHARS == repetition.MAX_LINE_CHARS == 0.20
    assert [reason(number, 1, 40) for number in (30, 31)] == ["", f"repetitive: duplicate {name}"]
    # 450 of 2,275 characters, 460 of 2,286.
    assert [reason(10, chars, 20) for chars in (45, 46)] == ["", f"repetitive: characters in duplicate {name}"]


def phrases(n: int, times: int, gap: int, is_chinese: bool) -> str:
    """A phrase of `n` words that comes again after `gap` others; a Chinese word is two characters that are in no other."""
    places = [place for time in range(times) for place in (*range(n), *range(100 + gap * time, 100 + gap * (time + 1)))]
    return (
        "".join(chr(19968 + 2 * p) + chr(19969 + 2 * p) for p in places) if is_chinese else " ".join(map(str, places))
    )


PIECES = st.sampled_from(["a", "bb", "ccc", "一", "二二", "\n", "\n\n"])
MADE = st.builds(phrases, st.integers(2, 12), st.integers(1, 12), st.integers(1, 60), st.booleans())


@hypothesis_settings(max_examples=150)
@given(st.builds(str.join, st.sampled_from(["", " "]), st.lists(PIECES)) | MADE)
@example(phrases(5, 4, 20, True))  # as many characters in duplicates as there may be
def test_n_grams_are_counted_as_they_are_defined(text: str) -> None:
    """Against plain counting, of words or of twice as many characters."""
    reason = repetition.repetition(text)
    if "lines" in reason or "paragraphs" in reason:
        return
    chars = "".join(text.split())
    is_chinese = 2 * sum(char >= "一" for char in chars) > len(chars)
    units, size = (list(chars), 2) if is_chinese else (text.split(), 1)
    expected = ""
    for n in (*repetition.MAX_TOP, *repetition.MAX_DUPLICATE):
        grams = [tuple(units[place : place + n * size]) for place in range(len(units) - n * size + 1)]
        counts, firsts = Counter(grams), {gram: place for place, gram in reversed(list(enumerate(grams)))}
        if n in repetition.MAX_TOP:
            often = max(counts.values(), default=0)
            longest = max((len("".join(gram)) for gram, count in counts.items() if count == often), default=0)
            if often > 1 and often * longest > repetition.MAX_TOP[n] * len(chars):
                expected = expected or f"repetitive: the most frequent {n}-gram"
        else:
            again = {p + k for p, gram in enumerate(grams) if firsts[gram] < p for k in range(n * size)}
            if sum(len(units[place]) for place in again) > repetition.MAX_DUPLICATE[n] * len(chars):
                expected = expected or f"repetitive: duplicate {n}-grams"
    assert reason == expected
