"""Readers of files that can't be cut, against Python's own: JSON texts in a row, CSV, text in other encodings."""

from __future__ import annotations

import codecs
import csv
import io
from typing import Any

from bench.fuzz.oracle import BYTE_ORDER_MARK, expect, is_deep, is_utf8, load, parts, same
from bench.fuzz.records import InMemory, parameters, reader_of, reading, values_of
from pipeline.readers.base import BadRecord
from pipeline.readers.delimited import DelimitedReader
from pipeline.readers.encodings import Decoded, check_encoding, codec_name, to_utf8
from pipeline.readers.json_texts import JsonTextsReader
from shards.common.errors import InputError

ENCODINGS = ("gb18030", "big5", "utf-16-le", "utf-16-be", "utf-16", "utf-32-le", "shift_jis", "euc_kr")


class _Texts(InMemory, JsonTextsReader):
    format = "json-texts"


class _Csv(InMemory, DelimitedReader):
    format = "csv"


def json_texts(data: bytes) -> None:
    """JSON texts in a row are what Python's parser says of each; what isn't valid is refused, or counted and skipped."""
    if is_deep(data):
        return
    content, chunk, _cut = parameters(data)
    try:
        text = content.removeprefix(BYTE_ORDER_MARK).decode()
        expected: list[Any] | None = [load(part.encode()) for part in parts(text, " \t\r\n")]
    except ValueError:
        expected = None
    options, bad = reading(data[1] % 2)
    try:
        values = values_of(reader_of(_Texts, content, (0, len(content)), options, chunk))
    except BadRecord:
        expect(expected is None, "refused, and is valid:", expected)
    else:
        expect(not (bad and expected is not None), "skipped from valid texts")
        expect(bad or (expected is not None and same(expected, values)), "accepted:", values, expected)


def delimited(data: bytes) -> None:
    """CSV as Python's `csv` writes it is read as what was written; any other is records, or refused with a line."""
    content, chunk, _cut = parameters(data)
    options, bad = reading(data[1] % 2)
    expected = None
    if data[1] % 4 < 2:
        cells = content.decode("utf-8", "ignore").replace("\0", "").split("|")
        rows = [cells[start : start + 3] for start in range(0, len(cells) - 2, 3)]
        expected = [dict(zip("abc", row, strict=True)) for row in rows]
        file = io.StringIO()
        csv.writer(file, quoting=csv.QUOTE_ALL if data[0] % 2 else csv.QUOTE_MINIMAL).writerows(["abc", *rows])
        content = file.getvalue().encode()
    try:
        values = values_of(reader_of(_Csv, content, (0, len(content)), options, chunk))
    except (BadRecord, InputError) as error:
        expect(expected is None, "refused, and is valid:", str(error), content)
    else:
        expect(expected is None or (not bad and same(expected, values)), "other rows:", values, expected)


def encodings(data: bytes) -> None:
    """Text in another encoding becomes the UTF-8 that Python makes of it, in whatever steps it is read."""
    wanted, ask, content = ENCODINGS[data[0] % len(ENCODINGS)], data[1] + 1, data[2:]
    encoding = ""
    for name in (data[2:].decode("latin-1"), "", wanted):
        try:
            encoding = check_encoding("a file", content, codec_name(name))
        except InputError as error:
            expect(len(str(error)) < 500 and "\n" not in str(error), "no line:", str(error))
            encoding = ""
    if not encoding:
        return
    to_utf8(content, encoding)
    stream, found = Decoded(io.BytesIO(content), encoding), b""
    while part := stream.read(ask):
        expect(len(part) <= max(ask, 12), "more than asked for")
        found += part
    expect(stream.num_read == len(content), "not all is read")
    try:
        text = codecs.decode(content, encoding)
    except UnicodeDecodeError:
        expect(not is_utf8(found), "invalid, and became valid:", content)
        return
    expect(found == text.encode("utf-8", "surrogatepass"), "other text:", text)
