"""One JSON record: its value, also where the fast parser refuses a valid one, or what is wrong with it in words."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import orjson

from pipeline.readers.base import INVALID_UTF8, LONE_SURROGATE, NOT_JSON, BadRecord

_LONGEST_ESCAPE = len("\\ud83d\\ude00")
_DEPTH = 1200  # the fast parser takes 1,024 brackets within each other
_LONGEST_INT = 4000  # digits; Python takes 4,300


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _whole_number(digits: str) -> int | float:
    """Infinity for a number of more digits than Python reads, as for one with an exponent."""
    return int(digits) if len(digits) < _LONGEST_INT else float(digits)


# Python's parser. Its `decode` takes a whole text, `raw_decode` the value that begins at a place.
DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_whole_number)
LENIENT_DECODER = json.JSONDecoder(parse_int=_whole_number)  # takes NaN and Infinity


@contextlib.contextmanager
def room_for_depth() -> Iterator[None]:
    """Python's parser takes what the fast one takes, however deep the caller stands in the program."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + _DEPTH)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


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
        kind, reason = NOT_JSON, f"not valid JSON: {error.msg} at character {error.pos:,} of the record"
    except RecursionError:
        kind, reason = NOT_JSON, "not valid JSON: nested too deeply"
    except ValueError as error:
        kind, reason = NOT_JSON, f"not valid JSON: {error}"
    raise BadRecord(offset, kind, reason, record)


def is_unfinished(error: json.JSONDecodeError, text: str) -> bool:
    """Whether `text`, on which Python's parser failed with `error`, may be the beginning of a valid one."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(text) - _LONGEST_ESCAPE


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
