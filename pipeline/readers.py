"""The right reader for a stretch."""

from __future__ import annotations

from pipeline.json_array import JsonArrayReader
from pipeline.json_lines import JsonLinesReader
from pipeline.plain_text import PlainTextReader
from pipeline.records import ReadOptions, StretchReader
from pipeline.sources import Source
from pipeline.units import Stretch


def open_stretch(source: Source, stretch: Stretch, options: ReadOptions, *, first: int | None = None) -> StretchReader:
    """A reader of the records in `stretch`; `first` is the offset of its first record where that is known."""
    reader: type[StretchReader]
    if source.format == "json-lines":
        reader = JsonLinesReader
    elif source.format == "json-array":
        reader = JsonArrayReader
    elif source.format == "text":
        reader = PlainTextReader
    elif source.format == "hub":
        from pipeline.hub import HubReader

        reader = HubReader
    else:
        from pipeline.tables import TableReader  # pyarrow takes a while to load

        reader = TableReader
    return reader(source, stretch, options, first=first)
