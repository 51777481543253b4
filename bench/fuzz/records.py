"""The readers of records against Python's parser: JSON Lines and arrays, whole and cut into units; plain text."""

from __future__ import annotations

import io
import json
import re
from typing import Any

from bench.fuzz.oracle import BYTE_ORDER_MARK, expect, is_deep, load, same
from pipeline.fields import TextOf
from pipeline.readers.base import BadRecord, Incomplete, ReadOptions, StreamReader, raise_bad
from pipeline.readers.json_array import JsonArrayReader
from pipeline.readers.json_lines import JsonLinesReader
from pipeline.readers.text import TextReader
from pipeline.sources import ByteRange, Source
from shards.common.errors import InputError

SEPARATOR = "----"
_LONG_WHITE_SPACE = re.compile(rb"[ \t\r\n,]{10}")
_TEXT_OF = [TextOf(name) for name in ("text", "a.b", "a[].b", "text[]", "a[][].text", "[]", ".")]
_TEXT_OF.append(TextOf("", "{text}-{a[].b}"))


class InMemory(StreamReader):
    """Reads `content` instead of a file."""

    content = b""
    format: Any = ""

    def __iter__(self) -> Any:
        self._file = io.BytesIO(self.content)
        yield from self._batches()


class _Lines(InMemory, JsonLinesReader):
    format = "json-lines"


class _Array(InMemory, JsonArrayReader):
    format = "json-array"


class _Text(InMemory, TextReader):
    format = "text"


def reader_of(
    kind: type[InMemory],
    content: bytes,
    start: int,
    stop: int,
    options: ReadOptions,
    chunk: int,
    first: int | None = None,
) -> InMemory:
    source = Source(path="memory", name="memory", format=kind.format, num_bytes=len(content), modified_ns=0)
    reader = kind(ByteRange(source=source, start=start, stop=stop, num_bytes=stop - start), options, first=first)
    reader.content, reader.chunk_bytes = content, chunk
    return reader


def values_of(reader: InMemory, text_of: TextOf | None = None) -> list[Any]:
    """All values of a byte range, each of which must stand at its place; with the texts taken out if `text_of` is given."""
    values: list[Any] = []
    for batch in reader:
        for number, value in enumerate(batch.values):
            offset, record = batch.place(number)
            if reader.format == "csv":
                continue
            expect(reader.content[offset : offset + len(record)] == record, "not at its place:", offset, record)
            if not isinstance(reader, _Text):
                expect(same(load(record) if not is_deep(record) else value, value), "not its own record:", record)
        values += batch.values
        if text_of is not None:
            texts = text_of.texts(batch, reader._options)
            expect(all(isinstance(text, str | None) for text in texts), "no text:", texts)
    return values


def _read_chain(kind: type[InMemory], content: bytes, cuts: list[int], options: ReadOptions, chunk: int) -> list[Any]:
    """All records, range by range, with false starts mended as the build does it."""
    values: list[Any] = []
    expected = 0
    for start, stop in zip([0, *cuts], [*cuts, len(content)], strict=True):
        reader = reader_of(kind, content, start, stop, options, chunk)
        true_start = expected if expected < stop else None
        try:
            own = values_of(reader)
        except BadRecord:
            if start == 0 or reader.first == expected or kind is _Lines:
                raise
        if start and reader.first != true_start:
            expect(kind is _Array, "a false start in JSON Lines at", start)
            reader = reader_of(kind, content, start, stop, options, chunk, expected)
            own = values_of(reader)
            expect(reader.first == true_start, "a second false start:", reader.first, true_start)
        if reader.last is not None and (reader.first is not None or start == 0):
            expected = reader.last
        values += own
    if expected != len(content):
        raise InputError("not read to the end")
    return values


def parameters(data: bytes) -> tuple[bytes, int, int]:
    """The content, the bytes of a chunk, and a place to cut: the first two bytes of the input choose them."""
    chunk, cut, content = data[0], data[1], data[2:]
    return content, chunk % 64 + 1 if chunk < 192 else 1 << 16, 1 + cut * len(content) // 256


def _lines(content: bytes, limit: int = 1 << 20) -> list[bytes]:
    """The records: lines, or the objects of a line that holds several and nothing else."""
    lines = content.removeprefix(BYTE_ORDER_MARK).split(b"\n")
    return [part for line in lines if line and not line.isspace() for part in _objects(line, limit)]


def _objects(line: bytes, limit: int) -> list[bytes]:
    text, place, found, decoder = line.decode("latin-1").rstrip(" \t\r"), 0, list[bytes](), json.JSONDecoder()
    try:
        load(line)
        return [line]
    except ValueError:
        pass
    try:
        while len(line) <= limit and place < len(text):
            place += len(text[place:]) - len(text[place:].lstrip(" \t\r"))
            end = decoder.raw_decode(text, place)[1]
            if text[place] != "{":
                return [line]
            found.append(line[place:end])
            place = end
    except (ValueError, RecursionError):
        return [line]
    return found if len(found) > 1 else [line]


def json_lines(data: bytes) -> None:
    """Each line is what Python's parser says; bad ones are refused, or counted and skipped; whole or in two units."""
    if len(data) < 4:
        return
    content, chunk, cut = parameters(data)
    good: list[Any] = []
    num_bad, last_is_bad, deep = 0, False, is_deep(content)
    limit = 24 if data[1] % 5 == 0 else 1 << 20
    for line in _lines(content, limit):
        last_is_bad = False
        try:
            value = load(line)
            if len(line) > limit:
                raise ValueError("too large")
            good.append(value)
        except ValueError:
            num_bad += 1
            last_is_bad = not content.endswith(b"\n")
    cuts = [cut] if data[0] % 2 and cut < len(content) else []
    bad: list[BadRecord] = []
    if data[1] % 2:
        options = ReadOptions(on_bad=lambda error: note(bad, error), max_record_bytes=limit)
        try:
            values = _read_chain(_Lines, content, cuts, options, chunk)
        except Incomplete:
            expect(last_is_bad or deep, "incomplete, and isn't")
        else:
            expect(
                deep or (same(good, values) and (len(bad) == num_bad or limit == 24)), "other records:", good, values
            )
        return
    options = ReadOptions(on_bad=raise_bad, max_record_bytes=limit)
    try:
        values = _read_chain(_Lines, content, cuts, options, chunk)
    except BadRecord:
        expect(num_bad or deep or limit == 24, "refused, and is valid")
    else:
        expect(deep or (not num_bad and same(good, values)), "accepted, and isn't valid")


def note(bad: list[BadRecord], error: BadRecord) -> None:
    if isinstance(error, Incomplete):
        raise error
    bad.append(error)


def _array(content: bytes) -> list[Any] | None:
    """The records of an array, or None if it isn't valid."""
    try:
        value = load(content.removeprefix(BYTE_ORDER_MARK))
    except ValueError:
        return None
    return value if isinstance(value, list) else None


def _records(content: bytes) -> list[bytes]:
    """The records of a valid array as they stand."""
    text, decoder = content.removeprefix(BYTE_ORDER_MARK).decode(), json.JSONDecoder()
    found: list[bytes] = []
    place = text.index("[") + 1
    while text[place:].strip(" \t\r\n]"):
        place += len(text[place:]) - len(text[place:].lstrip(" \t\r\n,"))
        _value, end = decoder.raw_decode(text, place)
        found.append(text[place:end].encode())
        place = end
    return found


def _is_array(content: bytes) -> bool:
    """Whether the file would be taken for an array (`pipeline.sources.look_at`)."""
    return content.removeprefix(BYTE_ORDER_MARK).lstrip()[:1] == b"[" and content.rstrip().endswith(b"]")


def _check_array(content: bytes, cuts: list[int], chunk: int, expected: list[Any] | None, deep: bool) -> None:
    try:
        values = _read_chain(_Array, content, cuts, ReadOptions(on_bad=raise_bad), chunk)
    except (BadRecord, InputError) as error:
        expect(expected is None or deep, "refused, and is valid:", str(error), cuts)
    else:
        expect(deep or (expected is not None and same(expected, values)), "accepted:", values, expected, cuts)


def json_array(data: bytes) -> None:
    """An array is what Python's parser says of the whole file, in one unit and in two; and bad records can be skipped."""
    if len(data) < 4:
        return
    content, chunk, cut = parameters(data)
    if not _is_array(content):
        return
    deep = is_deep(content)
    expected = _array(content)
    way = data[1] % 4
    if way < 2:
        _check_array(content, [cut] if way and cut < len(content) else [], chunk, expected, deep)
        return
    limit = 24 if way == 2 and expected is not None and not deep else 1 << 20
    if limit == 24:
        longest = max(map(len, _records(content)), default=0)
        options = ReadOptions(on_bad=raise_bad, max_record_bytes=limit)
        try:
            values = _read_chain(_Array, content, [], options, chunk)
        except BadRecord:
            # White space after a record is held with it until it is known what follows.
            expect(longest > limit or _LONG_WHITE_SPACE.search(content), "too large, and isn't")
        else:
            expect(longest <= limit and same(expected, values), "larger than the limit:", longest)
        return
    bad: list[BadRecord] = []
    options = ReadOptions(on_bad=lambda error: note(bad, error))
    try:
        values = values_of(reader_of(_Array, content, 0, len(content), options, chunk))
    except Incomplete:
        expect(expected is None or deep, "incomplete, and isn't")
    else:
        expect(deep or expected is None or (same(expected, values) and not bad), "skipped from a valid array:", bad)


def json_cuts(data: bytes) -> None:
    """Two units, cut at every byte: lines or an array."""
    if len(data) < 4:
        return
    content, chunk, _cut = parameters(data[:402])
    if is_deep(content):
        return
    if _is_array(content):
        expected = _array(content)
        for cut in range(1, len(content)):
            _check_array(content, [cut], chunk, expected, False)
        return
    try:
        good: list[Any] | None = [load(line) for line in _lines(content)]
    except ValueError:
        good = None
    for cut in range(1, len(content)):
        try:
            values = _read_chain(_Lines, content, [cut], ReadOptions(on_bad=raise_bad), chunk)
        except BadRecord:
            expect(good is None, "refused, and is valid:", cut)
        else:
            expect(good is not None and same(good, values), "other records:", values, good, cut)


def fields(data: bytes) -> None:
    """The text of any record is a string, or the record is one of the bad ones; also with a small limit for records."""
    if len(data) < 4:
        return
    content, chunk, _cut = parameters(data)
    bad: list[BadRecord] = []
    for kind in (_Lines, _Array):
        if kind is _Array and not _is_array(content):
            continue
        options = ReadOptions(on_bad=lambda error: note(bad, error), max_record_bytes=24)
        try:
            values_of(reader_of(kind, content, 0, len(content), options, chunk), _TEXT_OF[data[1] % len(_TEXT_OF)])
        except Incomplete:
            continue


def plain_text(data: bytes) -> None:
    """Documents are what `str.split` makes of the text; with a limit none is longer."""
    if len(data) < 4:
        return
    content, chunk, cut = parameters(data)
    for separator in (SEPARATOR, ""):
        limit = cut if cut % 2 else 1 << 20
        bad: list[BadRecord] = []
        options = ReadOptions(on_bad=bad.append, document_separator=separator, max_record_bytes=limit)
        values = [value["text"] for value in values_of(reader_of(_Text, content, 0, 1, options, chunk))]
        expect(all(len(value.encode()) <= limit for value in values), "longer than the limit")
        documents = _documents(content.removeprefix(BYTE_ORDER_MARK), separator)
        good = [text.decode() for text in documents if len(text) <= limit and _is_utf8(text)]
        # Nothing between two separators is an empty document; these are counted and go nowhere.
        expect([text for text in values if text] == [text for text in good if text], "other documents:", values, good)
        expect(len(bad) == len(documents) - len(good), "other bad ones:", bad, documents)


def _documents(content: bytes, separator: str) -> list[bytes]:
    """Between lines that hold the separator alone."""
    if not separator:
        return [content]
    documents: list[list[bytes]] = [[]]
    newline = b"\r\n" if content.partition(b"\n")[0].endswith(b"\r") else b"\n"
    for line in content.split(newline):
        if line == separator.encode():
            documents.append([])
        else:
            documents[-1].append(line)
    return [newline.join(parts) for parts in documents]


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
