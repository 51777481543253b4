"""The right reader for a unit."""

from __future__ import annotations

from pipeline.json_array import JsonArrayReader
from pipeline.json_lines import JsonLinesReader
from pipeline.records import UnitReader
from pipeline.sources import Source, Unit


def open_unit(source: Source, unit: Unit, *, first: int | None = None) -> UnitReader:
    """A reader of the records in `unit`; `first` is the offset of its first record where that is known."""
    reader = JsonLinesReader if source.format == "json-lines" else JsonArrayReader
    return reader(source, unit, first=first)
