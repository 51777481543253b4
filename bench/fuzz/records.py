"""The readers of records against Python's parser: JSON Lines and arrays, whole and cut into units; plain text."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any, NamedTuple

from bench.fuzz.oracle import BYTE_ORDER_MARK, expect, is_deep, is_utf8, load, parts, same
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
    span: tuple[int, int],
    options: ReadOptions,
    chunk: int,
    first: int | None = None,
) -> InMemory:
    start, stop = span
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
        reader = reader_of(kind, content, (start, stop), options, chunk)
        true_start = expected if expected < stop else None
        try:
            own = values_of(reader)
        except BadRecord:
            if start == 0 or reader.first == expected or kind is _Lines:
                raise
        if start and reader.first != true_start:
            expect(kind is _Array, "a false start in JSON Lines at", start)
            reader = reader_of(kind, content, (start, stop), options, chunk, expected)
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


def reading(skips: object, limit: int = 1 << 20) -> tuple[ReadOptions, list[BadRecord]]:
    """Options, and where the bad records are noted if they are skipped, and not raised."""
    bad: list[BadRecord] = []

    def note(error: BadRecord) -> None:
        if isinstance(error, Incomplete):
            raise error
        bad.append(error)

    return ReadOptions(on_bad=note if skips else raise_bad, max_record_bytes=limit), bad


class _Expected(NamedTuple):
    """Of lines: the values of the good ones, how many are bad, and whether the last is and isn't ended."""

    good: list[Any]
    num_bad: int
    last_is_bad: bool
    limit: int


def _lines(content: bytes, limit: int = 1 << 20) -> _Expected:
    good: list[Any] = []
    num_bad, last_is_bad = 0, False
    for line in content.removeprefix(BYTE_ORDER_MARK).split(b"\n"):
        for part in _objects(line, limit) if line and not line.isspace() else ():
            last_is_bad = False
            try:
                if len(part) > limit:
                    raise ValueError("too large")
                good.append(load(part))
            except ValueError:
                num_bad += 1
                last_is_bad = not content.endswith(b"\n")
    return _Expected(good, num_bad, last_is_bad, limit)


def _objects(line: bytes, limit: int) -> list[bytes]:
    """The line, or the objects of one that holds several and nothing else."""
    try:
        load(line)
    except ValueError:
        try:
            found = list(parts(line.decode("latin-1"), " \t\r")) if len(line) <= limit else []
        except (ValueError, RecursionError):
            return [line]
        if len(found) > 1 and all(part.startswith("{") for part in found):
            return [part.encode("latin-1") for part in found]
    return [line]


def _check_lines(content: bytes, cuts: list[int], chunk: int, expected: _Expected, skips: bool) -> None:
    options, bad = reading(skips, expected.limit)
    is_small, deep = expected.limit == 24, is_deep(content)
    try:
        values = _read_chain(_Lines, content, cuts, options, chunk)
    except BadRecord:
        may_be = expected.last_is_bad if skips else expected.num_bad or is_small
        expect(may_be or deep, "refused, and is valid:", cuts)
    else:
        all_bad = len(bad) == expected.num_bad or (skips and is_small)
        expect(deep or (same(expected.good, values) and all_bad), "other records:", expected.good, values, cuts)


def json_lines(data: bytes) -> None:
    """Each line is what Python's parser says; bad ones are refused, or counted and skipped; whole or in two units."""
    content, chunk, cut = parameters(data)
    cuts = [cut] if data[0] % 2 and cut < len(content) else []
    _check_lines(content, cuts, chunk, _lines(content, 24 if data[1] % 5 == 0 else 1 << 20), data[1] % 2 == 1)


def _array(content: bytes) -> list[Any] | None:
    """The records of an array, or None if it isn't valid."""
    try:
        value = load(content.removeprefix(BYTE_ORDER_MARK))
    except ValueError:
        return None
    return value if isinstance(value, list) else None


def _is_array(content: bytes) -> bool:
    """Whether the file would be taken for an array (`pipeline.sources.look_at`)."""
    return content.removeprefix(BYTE_ORDER_MARK).lstrip()[:1] == b"[" and content.rstrip().endswith(b"]")


def _check_array(content: bytes, cuts: list[int], chunk: int, expected: list[Any] | None) -> str:
    """What is wrong with the array, and where; nothing if it is read."""
    deep = is_deep(content)
    try:
        values = _read_chain(_Array, content, cuts, reading(skips=False)[0], chunk)
    except (BadRecord, InputError) as error:
        expect(expected is None or deep, "refused, and is valid:", str(error), cuts)
        return f"{error} {vars(error).get('offset')}"
    expect(deep or (expected is not None and same(expected, values)), "accepted:", values, expected, cuts)
    return ""


def json_array(data: bytes) -> None:
    """An array is what Python's parser says of the whole file, in one unit and in two; and bad records can be skipped."""
    content, chunk, cut = parameters(data)
    if not _is_array(content):
        return
    deep, expected, way = is_deep(content), _array(content), data[1] % 4
    if way < 2:
        _check_array(content, [cut] if way and cut < len(content) else [], chunk, expected)
    elif way == 2 and expected is not None and not deep:
        text = content.removeprefix(BYTE_ORDER_MARK).decode().strip(" \t\r\n")
        longest = max((len(part.encode()) for part in parts(text[1:-1], " \t\r\n,")), default=0)
        try:
            values = _read_chain(_Array, content, [], reading(False, 24)[0], chunk)
        except BadRecord:
            # White space after a record is held with it until it is known what follows.
            expect(longest > 24 or _LONG_WHITE_SPACE.search(content), "too large, and isn't")
        else:
            expect(longest <= 24 and same(expected, values), "larger than the limit:", longest)
    else:
        options, bad = reading(skips=True)
        try:
            values = values_of(reader_of(_Array, content, (0, len(content)), options, chunk))
        except Incomplete:
            expect(expected is None or deep, "incomplete, and isn't")
        else:
            expect(deep or expected is None or (same(expected, values) and not bad), "skipped from a valid array:", bad)


def json_cuts(data: bytes) -> None:
    """Two units, cut at every byte: lines, or an array, of which the same is wrong that is wrong with it as a whole."""
    content, chunk, _cut = parameters(data[:402])
    if is_deep(content):
        return
    is_array, lines, array, faults = _is_array(content), _lines(content), _array(content), set[str]()
    for cuts in [[], *([cut] for cut in range(1, len(content)))]:
        if is_array:
            faults.add(_check_array(content, cuts, chunk, array))
        else:
            _check_lines(content, cuts, chunk, lines, skips=False)
    expect(len(faults) <= 1, "cut elsewhere, other faults:", faults)


def fields(data: bytes) -> None:
    """The text of any record is a string, or the record is one of the bad ones; also with a small limit for records."""
    content, chunk, _cut = parameters(data)
    for kind in (_Lines, _Array) if _is_array(content) else (_Lines,):
        reader = reader_of(kind, content, (0, len(content)), reading(True, 24)[0], chunk)
        with contextlib.suppress(Incomplete):
            values_of(reader, _TEXT_OF[data[1] % len(_TEXT_OF)])


def plain_text(data: bytes) -> None:
    """Documents are what `str.split` makes of the text; with a limit none is longer."""
    content, chunk, cut = parameters(data)
    for separator in (SEPARATOR, ""):
        limit = cut if cut % 2 else 1 << 20
        bad: list[BadRecord] = []
        options = ReadOptions(on_bad=bad.append, document_separator=separator, max_record_bytes=limit)
        values = [value["text"] for value in values_of(reader_of(_Text, content, (0, 1), options, chunk))]
        expect(all(len(value.encode()) <= limit for value in values), "longer than the limit")
        documents = _documents(content.removeprefix(BYTE_ORDER_MARK), separator)
        good = [text.decode() for text in documents if len(text) <= limit and is_utf8(text)]
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
