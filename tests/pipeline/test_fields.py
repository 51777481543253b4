"""The text of a record: fields, paths, arrays, templates, null, bytes; and what every error about a record ends with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.fields import TextOf
from pipeline.readers import base
from pipeline.readers.base import BadRecord, Batch, Incomplete, ReadOptions, locate, raise_bad
from shards.common.errors import InputError
from tests.pipeline.building import Builder, texts_in
from tests.pipeline.reading import find, texts_and_bad, texts_of
from tests.pipeline.test_inputs import write_table

pytestmark = pytest.mark.usefixtures("inline_engine")
RECORD: dict[str, Any] = {
    "文件名": "甲",
    "段落": [{"行号": 1, "内容": "一"}, {"行号": 2, "内容": None}, {"行号": 3, "内容": "二"}],
    "lines": ["x", "", "y"],
    "pages": [{"lines": ["p", "q"]}, {"lines": []}, {"lines": None}, {"lines": ["r"]}],
    "grid": [["a", "b"], ["c"]],
    "none": [],
    "null": None,
    "nulls": [None, None],
    "page": {"body": "text", "null": None},
}
TEXTS: dict[str, str | None] = {
    "段落[].内容": "一\n二",
    "lines[]": "x\n\ny",
    "pages[].lines[]": "p\nq\nr",
    "grid[][]": "a\nb\nc",
    "none[]": "",
    "null": None,
    "null[]": None,
    "null.body": None,
    "null[].body": None,
    "nulls[]": None,
    "page.body": "text",
    "page.null": None,
}


def text_of(record: Any, field: str = "text", template: str = "") -> Any:
    (text,) = TextOf(field, template).texts(Batch([record], 1, lambda: [(0, b"")]), ReadOptions(on_bad=raise_bad))
    return text


@pytest.mark.parametrize("field", TEXTS)
def test_a_path_may_lead_through_arrays(field: str) -> None:
    assert text_of(RECORD, field) == TEXTS[field]
    assert text_of(RECORD, template=f"{{{field}}}") == TEXTS[field]
    assert text_of(RECORD, template=f"<{{文件名}}|\\n{{{{{{{field}}}}}}}>") == f"<甲|\n{{{TEXTS[field] or ''}}}>"


@pytest.mark.parametrize("field", [name for name in TEXTS if not name.startswith("null")])
@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow-stream"])
def test_in_tables_the_columns_that_it_needs_are_read(tmp_path: Path, kind: str, field: str) -> None:
    rows = [{**RECORD, "none": ["x"]}, {**RECORD, "none": []}]
    path = write_table(tmp_path / "corpus", kind, pa.Table.from_pylist(rows))
    assert texts_of(path, field=field)[1] == texts_of(path, template=f"{{{field}}}")[1] == TEXTS[field]


def test_columns_are_all_that_a_name_may_mean() -> None:
    assert TextOf("a[].b").columns == ("a[].b", "a[]", "a")
    assert TextOf("a[][]").columns == ("a[][]", "a[]", "a")
    assert TextOf("text", "{a.b}{c[]}").columns == ("a.b", "a", "c[]", "c")


def test_a_name_counts_before_a_path() -> None:
    record = {"a[].b": "1", "a[]": "2", "a": [{"b": "3"}], "c": {"d[]": "4", "d": ["5"]}, "e.f": "6", "e": {"f": "7"}}
    assert [text_of(record, field) for field in ("a[].b", "a[]", "c.d[]", "e.f")] == ["1", "2", "4", "6"]
    assert text_of(record, template="{e.f}") == "6"
    del record["a[].b"], record["a[]"], record["e.f"]
    assert [text_of(record, field) for field in ("a[].b", "e.f")] == ["3", "7"]


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("lines", r"field 'lines': expected a string, found an array \('lines\[\]' joins its strings\)"),
        ("文件名[]", r"field '文件名\[\]': expected an array before '\[\]', found a string"),
        ("段落.内容", r"field '段落.内容': '内容' is looked for in an array; write '\[\]' after its name"),
        ("段落[].行号", r"expected a string, found a number"),
        ("段落[].内溶", r"no field '段落\[\].内溶'; '段落\[\]' has 行号, 内容"),
        ("段[]", r"no field '段\[\]'; this record has 文件名, 段落.*; did you mean '段落\[\]'"),
        ("pge.body", r"no field 'pge\.body'; this record has .*; did you mean 'page\.body'"),
        ("page.bdy", r"no field 'page\.bdy'; 'page' has body, null; did you mean 'page\.body'"),
        ("标题", r"; '段落\[\]\.FIELD' joins the texts of an array; if its elements are the records, take them out"),
        ("grid[]", r"expected a string, found an array"),
    ],
)
def test_a_path_that_leads_nowhere(field: str, reason: str) -> None:
    with pytest.raises(BadRecord, match=reason):
        text_of(RECORD, field)


@pytest.mark.parametrize("template", ["{", "no field", "{}", "{text!r}", "{text:5}"])
def test_a_template_that_is_none(template: str) -> None:
    with pytest.raises(InputError, match="template: "):
        TextOf("text", template)


def test_null_is_counted_apart_from_empty_texts(tmp_path: Path, run: Builder) -> None:
    """In a template null is empty, and the text is null where all fields are."""
    corpus = tmp_path / "corpus"
    records = [{"text": text, "title": title} for text in (None, "", "甲") for title in (None, "", "乙")]
    corpus.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert texts_of(corpus) == [record["text"] for record in records]
    templated = [None, "", "乙|", "", "", "乙|", "|甲", "|甲", "乙|甲"]
    assert texts_of(corpus, template="{title}|{text}") == templated
    for settings, empty, null in (({}, 3, 3), ({"template": "{title}|{text}"}, 3, 1), ({"dedup": "exact"}, 3, 3)):
        options: Any = {"val_fraction": 0.0, **settings}
        manifest = run(corpus, tmp_path / "set", force=True, **options).manifest
        assert (manifest.left_out["empty"], manifest.left_out["null"]) == (empty, null)
        assert manifest.num_records == 9 and len(texts_in(tmp_path / "set")) == 9 - sum(manifest.left_out.values())
    line = r"no field 'txt'.*; did you mean 'text'\? Set --text-field or --template, or leave such records out"
    with pytest.raises(InputError, match=line):
        run(corpus, tmp_path / "set", force=True, text_field="txt")


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow-stream"])
def test_text_of_every_type_of_column(tmp_path: Path, kind: str) -> None:
    texts = ["甲", "", None, "乙" * 50, "甲"]
    encoded = [None if text is None else text.encode() for text in texts]
    types = {"large": pa.large_string(), "binary": pa.binary(), "large binary": pa.large_binary()}
    columns = {name: pa.array(texts).cast(kind) for name, kind in types.items()}
    columns |= {"string": pa.array(texts), "inner": pa.array([{"text": text} for text in encoded])}
    columns |= {"words": pa.array(texts).dictionary_encode(), "of bytes": pa.array(encoded).dictionary_encode()}
    path = write_table(tmp_path / "corpus", kind, pa.table(columns))
    for name in columns:
        assert texts_of(path, field="inner.text" if name == "inner" else name) == texts, name
    rows = [{"text": text, "inner": {"text": text}} for text in (b"a", b"b\xff", None, "甲".encode())]
    write_table(path, kind, pa.Table.from_pylist(rows))
    for name in ("text", "inner.text"):
        found, (error,) = texts_and_bad(path, field=name)
        assert found == ["a", None, "甲"]
        assert (error.offset, error.kind) == (1, "invalid UTF-8") and "invalid UTF-8 at byte 1" in error.reason


KINDS = [value for name, value in vars(base).items() if name.isupper() and isinstance(value, str)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_about_a_record_ends_with_what_to_do(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "corpus"
    path.write_text('{"text": 1}\n')
    source = find(path)
    line = str(locate(source, BadRecord(0, kind, "the reason")))
    assert line.startswith(f"{path}: line 1, byte 0: the reason; ")
    assert line.endswith(", or leave such records out with --on-bad-record skip")
    assert "? Mend it, or" in str(locate(source, BadRecord(0, base.NOT_JSON, "is it?")))
    assert str(locate(source, Incomplete(0))).endswith("the download is incomplete, fetch it again")
