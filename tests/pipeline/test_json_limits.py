"""What is valid JSON at the edges is the same in every layout, wherever chunks and units end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pipeline.records import BadRecord, ReadOptions, StretchReader, raise_bad

from pipeline.build import build
from pipeline.settings import BuildSettings, OnBadRecord
from shards.common.errors import InputError
from shards.verify import verify
from tests.pipeline.test_records import read_all

LAYOUTS = ["lines", "array", "compact"]


def corpus(path: Path, records: list[str], layout: str) -> Path:
    separator = {"lines": "\n", "array": ",\n", "compact": ","}[layout]
    content = separator.join(records)
    path.write_text(content if layout == "lines" else f"[{content}]", encoding="utf-8")
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "1" * 400, "1" * 5000, "18446744073709551616", "1e-400", "-0", "-0.0"]
)
def test_numbers_of_any_size_are_valid(tmp_path: Path, layout: str, number: str) -> None:
    record = f'{{"text": "字 \\ud83d\\ude00", "n": {number}}}'
    path = corpus(tmp_path / "corpus", ['{"text": "a"}', record, '{"text": "b"}'], layout)
    for unit_bytes in (10**6, 20):
        values = read_all(path, unit_bytes)
        assert [value["text"] for value in values] == ["a", "字 😀", "b"]
        assert values[1]["n"] == float(number) or str(values[1]["n"]) == number


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_number_beyond_range_excuses_no_other_fault(tmp_path: Path, layout: str) -> None:
    for text in ('"\\ud800"', "NaN", "1e400, }"):
        path = corpus(tmp_path / "corpus", ['{"text": "a"}', f'{{"n": 1e400, "x": {text}}}', '{"text": "b"}'], layout)
        with pytest.raises(BadRecord):
            read_all(path, 10**6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("depth", "is_read"), [(900, True), (1000, True), (1015, True), (1100, False), (100_000, False)]
)
@pytest.mark.parametrize("chunk_bytes", [700, 1 << 21])
def test_depth_is_the_same_in_every_layout(
    tmp_path: Path, layout: str, depth: int, is_read: bool, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Python's parser, which takes less by default, has to look at the record."""
    monkeypatch.setattr(StretchReader, "chunk_bytes", chunk_bytes)
    deep = '{"text": "d", "x": ' + "[" * depth + "]" * depth + "}"
    path = corpus(tmp_path / "corpus", ['{"text": "a"}', deep, '{"text": "b"}'], layout)
    if is_read:
        assert [value["text"] for value in read_all(path, 10**6)] == ["a", "d", "b"]
    else:
        with pytest.raises(BadRecord, match="nested too deeply"):
            read_all(path, 10**6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_deep_record_without_text_is_named_and_no_traceback(
    tmp_path: Path, tokenizer_dir: Path, layout: str, inline_engine: None
) -> None:
    deep = '{"other": ' + "[" * 1010 + "]" * 1010 + "}"
    path = corpus(tmp_path / "corpus", ['{"text": "a"}', deep, '{"text": "b"}'], layout)
    with pytest.raises(InputError, match="no field 'text'; this record has other"):
        build([str(path)], tmp_path / "set", tokenizer_name=str(tokenizer_dir), settings=BuildSettings(), num_workers=1)


@pytest.mark.parametrize("on_bad_record", ["fail", "skip"])
def test_a_comma_behind_the_last_record(
    tmp_path: Path, tokenizer_dir: Path, on_bad_record: OnBadRecord, inline_engine: None
) -> None:
    (tmp_path / "corpus").write_text('[{"text": "a"}, {"text": "b"}, ]\n')
    settings = BuildSettings(block_tokens=4, val_fraction=0.0, on_bad_record=on_bad_record)
    arguments: dict[str, Any] = {"tokenizer_name": str(tokenizer_dir), "settings": settings, "num_workers": 1}
    if on_bad_record == "fail":
        with pytest.raises(InputError, match="expected a record behind the comma, found ']'"):
            build([str(tmp_path / "corpus")], tmp_path / "set", **arguments)
        return
    build([str(tmp_path / "corpus")], tmp_path / "set", **arguments)
    assert verify(tmp_path / "set") == []
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_bytes())
    assert (manifest["num_records"], manifest["splits"]["train"]["num_documents"]) == (3, 2)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_byte_order_mark_cut_by_the_first_unit(tmp_path: Path, mark: bytes, cut: int) -> None:
    (tmp_path / "corpus").write_bytes(mark + b'[{"text": "a"},{"text": "b"}]')
    assert read_all(tmp_path / "corpus", cut) == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize("chunk_bytes", [8, 64, 1 << 20])
def test_small_documents_under_a_limit_smaller_than_a_chunk(
    tmp_path: Path, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--max-record-bytes` is of a document, not of what is read at once."""
    from pipeline.units import plan_units

    from pipeline.readers import open_stretch
    from pipeline.sources import find_sources

    monkeypatch.setattr(StretchReader, "chunk_bytes", chunk_bytes)
    texts = ["x" * (number % 20 + 1) for number in range(100)]
    (tmp_path / "corpus.txt").write_text("\n----\n".join(texts))
    (source,) = find_sources([str(tmp_path / "corpus.txt")])
    (unit,) = plan_units([source], 1 << 30)
    options = ReadOptions(on_bad=raise_bad, max_record_bytes=20, document_separator="----")
    batches = list(open_stretch(source, unit.stretches[0], options))
    assert [value["text"] for batch in batches for value in batch.values] == texts
