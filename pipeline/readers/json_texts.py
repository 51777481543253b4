"""JSON texts one after another: over several lines each, as `jq .` prints them, or several in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pipeline.readers.base import NOT_JSON, BadRecord, Batch, Incomplete, StreamReader
from pipeline.readers.json_parser import end_of_text, in_words, is_unfinished, skip_white_space
from pipeline.readers.json_record import load_record
from pipeline.sources import BYTE_ORDER_MARK

_LOOK_BACK_BYTES = 4096
# Where an object seems to begin.
_OBJECT = re.compile(r"(?:\}[ \t\r\n]*|\n)(?=\{)")


class JsonTextsReader(StreamReader):
    """All texts of the file. After one that can't be parsed, the next place counts where an object seems to begin."""

    _is_lost = False  # whether that place is still looked for

    def _batches(self) -> Iterator[Batch]:
        content = self._read_up_to(len(BYTE_ORDER_MARK)).removeprefix(BYTE_ORDER_MARK)
        offset = self.first = self._position - len(content)
        while True:
            batch, place = self._parse(content, offset)
            yield batch
            offset, content = offset + place, content[place:]
            if self._at_end:
                break
            content += self._read_next(len(content))
        self.last = self._position

    def _parse(self, content: bytes, offset: int) -> tuple[Batch, int]:
        """The texts in `content`, which begins at `offset`, and the place in it from which on more must be read."""
        text = content.decode("latin-1")  # a character is a byte, and what JSON is made of is ASCII
        values: list[Any] = []
        good: list[tuple[int, bytes]] = []
        place = 0
        while True:
            if self._is_lost and (match := _OBJECT.search(text, place)):
                place, self._is_lost = match.end(), False
            elif self._is_lost:
                place = max(place, len(text) - _LOOK_BACK_BYTES)
                break
            place = skip_white_space(text, place)
            if place == len(text):
                break
            try:
                end = self._end_of(text, place, offset)
            except BadRecord as error:
                if isinstance(error, Incomplete):
                    raise
                error.content = content[place : place + (1 << 16)]
                self._is_lost = not text.startswith(",", place)
                place += 1
                self._options.on_bad(error)
                continue
            if end is None:
                break
            try:
                values.append(load_record(content[place:end], offset + place))
                good.append((offset + place, content[place:end]))
            except BadRecord as error:
                self._options.on_bad(error)
            place = end
        return Batch(values, place, lambda: good), place

    def _end_of(self, text: str, place: int, offset: int) -> int | None:
        """Where the JSON text at `place` ends; None if more must be read first. Raises `BadRecord`."""
        try:
            end = end_of_text(text, place)
        except json.JSONDecodeError as fault:
            if not self._at_end and is_unfinished(fault, text):
                end = len(text)
            else:
                rest = text[fault.pos :].rstrip() if is_unfinished(fault, text) else "}"
                if fault.msg.startswith("Unterminated string") or not rest.endswith(("}", ",")):
                    raise Incomplete(offset + place, self._position) from None
                reason = in_words(fault, f"at byte {fault.pos - place:,} of the record", place)
                raise BadRecord(offset + place, NOT_JSON, reason) from None
        except RecursionError:
            raise BadRecord(offset + place, NOT_JSON, "not valid JSON: nested too deeply") from None
        if end - place > self._options.max_record_bytes:
            raise self._too_large(offset + place, b"")
        # A number may go on where what is read ends, also after `1.` or `1e-`.
        breaks_off = len(text) - end <= 2 and not text[end:].strip(".eE+-")
        return None if breaks_off and not self._at_end else end
