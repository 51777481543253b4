"""Text that isn't UTF-8 is read as what it is when that was said, and never otherwise."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.plan import plan_units
from pipeline.readers.base import RangeReader
from pipeline.readers.encodings import Decoded, invalid_bytes
from pipeline.receipts import Receipt
from pipeline.settings import BuildSettings
from pipeline.sources import Source
from pipeline.worker import read_texts
from shards.common.errors import InputError
from tests.pipeline.building import Builder, texts_in
from tests.pipeline.reading import find_sources, read_source
from tests.pipeline.test_inputs import write_table
from tests.pipeline.test_packed import PACK
from tests.pipeline.test_records import join

SIMPLIFIED = "数学是研究数量、结构、变化、空间以及信息等概念的一门学科。"
TRADITIONAL = "數學是研究數量、結構、變化、空間以及資訊等概念的一門學科。"
TEXTS = dict.fromkeys(["gb18030", "utf-16", "utf-16-le"], SIMPLIFIED) | dict.fromkeys(["big5", "utf-32"], TRADITIONAL)
LAYOUTS = ("lines", "array", "text")


def encoded(texts: list[str], encoding: str, layout: str) -> bytes:
    if layout == "text":
        return "\n---\n".join(texts).encode(encoding)
    objects = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts]
    return join(objects, layout).decode().encode(encoding)


def find_in(path: Path, encoding: str) -> Source:
    (source,) = find_sources([str(path)], BuildSettings(encoding=encoding).encoding)
    return source


def read(path: Path, *, chunk_bytes: int = 60, **options: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """The texts as a build reads them, in small pieces, and the lines of rejected.jsonl."""
    settings = BuildSettings(document_separator="---", **options)
    (unit,) = plan_units(find_sources([str(path)], settings.encoding), 10**9)
    log = path.with_name("rejected.jsonl")
    log.unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RangeReader, "chunk_bytes", chunk_bytes)
        texts = [text for part, _ in read_texts(unit.ranges, settings, Receipt(unit=0), rejected=log) for text in part]
    return texts, [json.loads(line) for line in log.read_bytes().splitlines()] if log.exists() else []


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", TEXTS)
@pytest.mark.parametrize("kind", ["", "gzip", "zstd"])
def test_an_encoding_that_is_named_is_read(tmp_path: Path, encoding: str, layout: str, kind: str) -> None:
    texts = [f"{number} {TEXTS[encoding]}" for number in range(30)]
    path = tmp_path / ("corpus.txt" if layout == "text" else "corpus")
    path.write_bytes(PACK.get(kind, bytes)(encoded(texts, encoding, layout)))
    assert read(path, encoding=encoding.upper()) == (texts, [])


def test_a_set_says_what_its_sources_were_in(tmp_path: Path, run: Builder) -> None:
    texts = [f"{number} {SIMPLIFIED}" for number in range(300)]
    for name, encoding in (("a.txt", "gb18030"), ("b.txt", "utf-16")):
        (tmp_path / name).write_bytes(encoded(texts, encoding, "text"))
    options: dict[str, Any] = {"document_separator": "---", "unit_bytes": 1000, "encoding": "GB18030"}
    manifest = run(tmp_path, tmp_path / "set", val_fraction=0, **options).manifest
    assert [source.format for source in manifest.sources] == ["text+gb18030", "text+utf-16-le"]
    assert manifest.settings["encoding"] == "gb18030" and texts_in(tmp_path / "set") == texts * 2
    assert run(tmp_path, tmp_path / "set", val_fraction=0, **options).up_to_date


@pytest.mark.parametrize("layout", ["lines", "text"])
@pytest.mark.parametrize("kind", ["", "gzip"])
@pytest.mark.parametrize(("encoding", "bad"), [("gb18030", b"\xff\xff"), ("utf-16", b"\x00\xd8")])
def test_bad_records_stand_where_the_file_has_them(
    tmp_path: Path, encoding: str, bad: bytes, layout: str, kind: str
) -> None:
    texts = [f"{number} {SIMPLIFIED}" for number in range(20)]
    content, codec = encoded(texts, encoding, layout), encoding.replace("16", "16-le")
    at = content.index("数量".encode(codec), len(content) // 2)
    content = content[:at] + bad + content[at + 2 :]
    path = tmp_path / ("corpus.txt" if layout == "text" else "corpus")
    path.write_bytes(PACK.get(kind, bytes)(content))
    separator = ('{"text": ' if layout == "lines" else "\n---\n").encode(codec)
    begin = content.rindex(separator, 0, at) + (0 if layout == "lines" else len(separator))
    line = content[:begin].decode(encoding).count("\n") + 1
    reason = f"invalid {codec} at byte {at - begin} of the record"
    with pytest.raises(InputError) as caught:
        read(path, encoding=encoding)
    assert str(caught.value).startswith(f"{path}: line {line}, byte {begin:,}: {reason}; mend it, or leave ")
    found, (entry,) = read(path, encoding=encoding, on_bad_record="skip")
    assert len(texts) - len(found) == 1 and set(found) < set(texts)
    assert (entry["line"], entry["byte"], entry["reason"]) == (line, begin, reason)
    assert "".join(f"\\x{byte:02x}" for byte in bad) + "量" in entry["record"]


def test_a_bad_record_of_an_array_is_left_out_alone(tmp_path: Path) -> None:
    texts = [f"{number} {SIMPLIFIED}" for number in range(2000)]
    content = encoded(texts, "gb18030", "array").replace('"700 数'.encode("gb18030"), b'"700 \xff\xff', 1)
    (tmp_path / "corpus").write_bytes(content)
    options: dict[str, Any] = {"encoding": "gb18030", "on_bad_record": "skip", "chunk_bytes": 1 << 21}
    found, (entry, *_more) = read(tmp_path / "corpus", **options)
    assert found == [*texts[:700], *texts[701:]]
    begin = content.index(b'{"text": "700 ')
    assert (entry["byte"], entry["reason"]) == (begin, "invalid gb18030 at byte 14 of the record")
    for num_cut in range(3):  # what follows it is kept with it in part
        kept = ("a\udcff" + SIMPLIFIED).encode("utf-8", "surrogatepass")[: 40 - num_cut]
        assert invalid_bytes(kept, "gb18030")[1].startswith(f"a\\xff{SIMPLIFIED[:11]}".encode())


CODECS = ("gb18030", "big5hkscs", "utf-16-le", "utf-16-be", "shift_jisx0213", "euc_kr", "cp1251", "latin-1")


@given(text=st.text("a\n文か\u309aКÊ\u0304éア𠮷€", max_size=300), encoding=st.sampled_from(CODECS))
@example(text="か\u309a" * 20, encoding="shift_jisx0213")
def test_every_place_is_found_again(text: str, encoding: str) -> None:
    text = text.encode(encoding, "ignore").decode(encoding)
    content = text.encode(encoding)
    combining = "\u309a\u0304"  # some encodings have them and what they stand on as one character
    for place in (number for number in range(0, len(text), 7) if text[number] not in combining):
        before, decoded = text[:place], Decoded(io.BytesIO(content), encoding)
        missing = len(before.encode())
        while missing > 0:
            missing -= len(decoded.read(missing))
        assert (missing, decoded.num_read) == (0, len(before.encode(encoding)))


def test_a_text_of_any_length_takes_bounded_memory() -> None:
    decoded = Decoded(io.BytesIO("文".encode("gb18030") * 12_500_000), "gb18030")
    num_bytes = 0
    tracemalloc.start()
    try:
        while content := decoded.read(1 << 21):
            num_bytes += len(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_bytes == 37_500_000 and peak < 8e6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("encoding", "option"),
    [
        ("gb18030", "isn't UTF-8 but probably GB18030; build with --encoding gb18030"),
        ("big5", "isn't UTF-8 but probably BIG5; build with --encoding big5"),
        *((name, f"is in {name.upper()}; build with --encoding {name}") for name in ("utf-16", "utf-32")),
        *((name, f"; build with --encoding {name}") for name in ("utf-16-le", "utf-16-be")),
    ],
)
def test_without_the_option_the_error_names_it(tmp_path: Path, encoding: str, option: str, layout: str) -> None:
    """Given by name or in a directory; also where the look ends inside a character."""
    text, suffix = TRADITIONAL if encoding == "big5" else SIMPLIFIED, ".txt" * (layout == "text")
    for number in (1, 2000):
        content = encoded([text] * number, encoding, layout)
        for path, packed in ((tmp_path / f"a{suffix}", content), (tmp_path / f"a{suffix}.gz", gzip.compress(content))):
            path.write_bytes(packed)
            for name in (path, tmp_path):
                with pytest.raises(InputError) as caught:
                    find_sources([str(name)])
                assert str(caught.value).startswith(f"{path}: the file") and str(caught.value).endswith(option)
            assert find_in(path, option.split()[-1]).encoding
            path.unlink()


@pytest.mark.parametrize("text", ["né à l'été", "Привет, как дела", "日本語のテキスト", "文" + chr(0xFFFD)])
def test_nothing_is_named_that_it_hardly_is(tmp_path: Path, text: str) -> None:
    encodings = {"n": "latin-1", "П": "cp1251", "日": "shift_jis", "文": "utf-8"}
    (tmp_path / "a.txt").write_bytes(text.encode(encodings[text[0]]) * 20 + b"\xe6")
    assert find_in(tmp_path / "a.txt", "").encoding == ""


def test_a_record_in_another_encoding_far_back_is_named_in_its_error(tmp_path: Path) -> None:
    good, path = encoded(["plain ASCII"] * 5000, "ascii", "lines"), tmp_path / "corpus"
    option = "if the file is in GB18030, build with --encoding gb18030, or leave "
    for bad, encoding, fault, rest in (
        (encoded([SIMPLIFIED], "gb18030", "lines"), "", "UTF-8 at byte 10", option),
        (b'{"text": "\xe6\x96"}\n', "", "UTF-8 at byte 10", "convert the file to UTF-8, or "),
        (encoded(["镕" + SIMPLIFIED], "gb18030", "lines"), "gb2312", "gb2312 at byte 10", option),
        (encoded(["全" + SIMPLIFIED], "gb18030", "lines"), "big5", "big5 at byte 10", option),
    ):
        path.write_bytes(good + bad)
        with pytest.raises(InputError, match=f"line 5,001, byte {len(good):,}: invalid {fault} of the record; {rest}"):
            read(path, encoding=encoding)


def test_utf_8_is_not_read_as_anything_else(tmp_path: Path) -> None:
    """By a byte order mark it is known; without one, it is an error. Tables have no encoding. UTF-16 needs its order."""
    path = tmp_path / "a"
    path.write_bytes(encoded([SIMPLIFIED], "utf-8", "lines"))
    with pytest.raises(InputError, match="the file is in UTF-8, not gb18030; build it apart"):
        find_in(path, "gb18030")
    assert find_in(path, "UTF8").encoding == ""
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert read_source(find_in(path, "gb18030")) == [{"text": SIMPLIFIED}]
    path.write_bytes(encoded(["ASCII"], "ascii", "lines"))
    assert read_source(find_in(path, "gb18030")) == [{"text": "ASCII"}]
    assert find_in(write_table(path, "parquet"), "utf-16").encoding == ""
    path = path.with_suffix(".txt")
    path.write_bytes(SIMPLIFIED.encode("utf-16-be"))
    with pytest.raises(InputError, match="no byte order mark; name the order of the bytes, as in --encoding utf-16-le"):
        find_in(path, "utf-16")


@pytest.mark.parametrize(
    "name", ["base64", "zip", "rot13", "idna", "unicode_escape", "utf-7", "x\0y", "mbcs", "undefined"]
)
def test_only_encodings_of_text_are_taken(name: str) -> None:
    with pytest.raises(InputError, match="encoding: expected one such as gb18030, big5 or utf-16, found "):
        BuildSettings(encoding=name)
    names = {"GB18030": "gb18030", "UTF_16": "utf-16", "utf8": "", "cp936": "gbk"}  # which have one name each
    assert [BuildSettings(encoding=name).encoding for name in names] == [*names.values()]


def test_csv_is_decoded_too_and_goes_with_plain_text(tmp_path: Path) -> None:
    """Which has no fields, so it is the text whatever field is asked for."""
    for name, content in (("a.csv", f"标题,正文\n甲,{SIMPLIFIED}\n"), ("b.txt", SIMPLIFIED[1:])):
        (tmp_path / name).write_bytes(content.encode("gb18030"))
    assert read(tmp_path, encoding="gb18030", text_field="正文") == ([SIMPLIFIED, SIMPLIFIED[1:]], [])
    with pytest.raises(InputError, match="isn't UTF-8 but probably GB18030; build with --encoding gb18030"):
        read(tmp_path, text_field="正文")
    (tmp_path / "a.csv").write_bytes("正文\n镕\n".encode("gb18030"))
    with pytest.raises(
        InputError, match=r"row 2: field '正文': .*; give another --encoding than gb2312, or leave such"
    ):
        read(tmp_path / "a.csv", encoding="gb2312", text_field="正文")
