"""One JSON record: its value, also where the fast parser refuses a valid one, or what is wrong with it in words."""

from __future__ import annotations

import json
from typing import Any

import orjson

from pipeline.readers.base import INVALID_UTF8, LONE_SURROGATE, NOT_JSON, BadRecord
from pipeline.readers.json_parser import (
    DECODER,
    LENIENT_DECODER,
    end_of_text,
    in_words,
    is_unfinished,
    skip_white_space,
)


def load_record(record: bytes, offset: int) -> Any:
    """The value of a record that lies at `offset`, also of one with a number beyond a float's range. Raises `BadRecord`."""
    try:
        return orjson.loads(record)
    except orjson.JSONDecodeError:
        pass
    try:
        value = DECODER.decode(record.decode("utf-8"))
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeDecodeError as error:
        kind, reason = INVALID_UTF8, f"invalid UTF-8 at byte {error.start:,} of the record"
    except UnicodeEncodeError:
        kind, reason = LONE_SURROGATE, "a lone surrogate (half of a \\uXXXX pair) is no text"
    except json.JSONDecodeError as error:
        kind, reason = NOT_JSON, in_words(error, f"at character {error.pos:,} of the record")
    except RecursionError:
        kind, reason = NOT_JSON, "not valid JSON: nested too deeply"
    except ValueError as error:
        kind, reason = NOT_JSON, f"not valid JSON: {error}"
    raise BadRecord(offset, kind, reason, record)


def breaks_off(line: bytes) -> bool:
    """Whether `line` is the beginning of a record."""
    text = line.decode("utf-8", "replace")
    try:
        LENIENT_DECODER.decode(text)
    except json.JSONDecodeError as error:
        return is_unfinished(error, text)
    except (ValueError, RecursionError):
        return False
    return False


def objects_in(line: bytes) -> list[tuple[int, bytes]]:
    """The place and content of each object of a line that holds several and nothing else; else none."""
    text, place = line.decode("latin-1").rstrip(), 0
    found: list[tuple[int, bytes]] = []
    while (place := skip_white_space(text, place)) < len(text):
        try:
            end = end_of_text(text, place)
        except (ValueError, RecursionError):
            return []
        if not text.startswith("{", place):
            return []
        found.append((place, line[place:end]))
        place = end
    return found if len(found) > 1 else []
