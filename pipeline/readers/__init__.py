"""Records with their places, from files of every format. Each format's reader is loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.readers.base import RangeReader, ReadOptions
    from pipeline.sources import ByteRange


def open_range(byte_range: ByteRange, options: ReadOptions, *, first: int | None = None) -> RangeReader:
    """A reader of the records in `byte_range`; `first` is the offset of its first record where that is known."""
    reader: type[RangeReader]
    if byte_range.source.format == "json-lines":
        from pipeline.readers.json_lines import JsonLinesReader as reader
    elif byte_range.source.format == "json-texts":
        from pipeline.readers.json_texts import JsonTextsReader as reader
    elif byte_range.source.format in ("json-array", "json-strings"):
        from pipeline.readers.json_array import JsonArrayReader as reader
    elif byte_range.source.format == "text":
        from pipeline.readers.text import TextReader as reader
    elif byte_range.source.format in ("csv", "tsv"):
        from pipeline.readers.delimited import DelimitedReader as reader
    else:
        from pipeline.readers.tables import TableReader as reader
    return reader(byte_range, options, first=first)
