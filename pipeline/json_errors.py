"""Python's parser, where the fast one refuses: what it says of a record, why in words, and whether it only breaks off."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import orjson

from pipeline.records import INVALID_UTF8, LONE_SURROGATE, NOT_JSON

# What Python's parser says of a text that might go on.
_UNFINISHED = "Unterminated string"
_LONGEST_ESCAPE = len("\\ud83d\\ude00")
_DEPTH = 1200  # the fast parser takes 1,024 brackets within each other
_LONGEST_INT = 4000  # digits; Python takes 4,300


@contextlib.contextmanager
def room_for_depth() -> Iterator[None]:
    """Python's parser takes what the fast one takes, however deep the caller stands in the program."""
    before = sys.getrecursionlimit()
    depth = 0
    frame = sys._getframe()
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    sys.setrecursionlimit(max(before, depth + _DEPTH))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def whole_number(digits: str) -> int | float:
    """For `parse_int`: infinity for a number of more digits than Python reads, as for one with an exponent."""
    return int(digits) if len(digits) < _LONGEST_INT else float(digits)


def load_record(record: bytes) -> Any:
    """The value of a record, also where the fast parser refuses a valid one, for a number beyond a float's range.

    Raises `ValueError` if it isn't valid, or holds a lone surrogate, and `RecursionError`."""
    try:
        return orjson.loads(record)
    except orjson.JSONDecodeError:
        value = json.loads(record.decode("utf-8"), parse_constant=refuse_constant, parse_int=whole_number)
        json.dumps(value, ensure_ascii=False).encode()
        return value


def is_unfinished(error: json.JSONDecodeError, text: str) -> bool:
    """Whether `text`, on which Python's parser failed with `error`, may be the beginning of a valid one."""
    return error.msg.startswith(_UNFINISHED) or error.pos >= len(text) - _LONGEST_ESCAPE


def breaks_off(line: bytes) -> bool:
    """Whether `line` is the beginning of a record."""
    text = line.decode("utf-8", "replace")
    try:
        json.loads(text, parse_int=whole_number)
    except json.JSONDecodeError as error:
        return is_unfinished(error, text)
    except (ValueError, RecursionError):
        return False
    return False


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def diagnose(record: bytes) -> tuple[str, str]:
    """The kind of fault, and the fault in words, for which the fast parser refuses `record`."""
    try:
        text = record.decode("utf-8")
    except UnicodeDecodeError as error:
        return INVALID_UTF8, f"invalid UTF-8 at byte {error.start:,} of the record"
    try:
        json.loads(text, parse_constant=refuse_constant, parse_int=whole_number)
    except json.JSONDecodeError as error:
        return NOT_JSON, f"not valid JSON: {error.msg} at character {error.pos:,} of the record"
    except RecursionError:
        return NOT_JSON, "not valid JSON: nested too deeply"
    except ValueError as error:
        return NOT_JSON, f"not valid JSON: {error}"
    if re.search(r"\\u[dD][89a-fA-F]", text):
        return LONE_SURROGATE, "a lone surrogate (half of a \\uXXXX pair) is no text"
    return NOT_JSON, "not valid JSON, or nested too deeply"
