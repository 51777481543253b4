"""Why a record can't be read, in words, and whether it only breaks off."""

from __future__ import annotations

import json
import re

from pipeline.records import INVALID_UTF8, LONE_SURROGATE, NOT_JSON

# What Python's parser says of a text that might go on.
_UNFINISHED = "Unterminated string"
_LONGEST_ESCAPE = len("\\ud83d\\ude00")


def is_unfinished(error: json.JSONDecodeError, text: str) -> bool:
    """Whether `text`, on which Python's parser failed with `error`, may be the beginning of a valid one."""
    return error.msg.startswith(_UNFINISHED) or error.pos >= len(text) - _LONGEST_ESCAPE


def breaks_off(line: bytes) -> bool:
    """Whether `line` is the beginning of a record."""
    text = line.decode("utf-8", "replace")
    try:
        json.loads(text)
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
        json.loads(text, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        return NOT_JSON, f"not valid JSON: {error.msg} at character {error.pos:,} of the record"
    except RecursionError:
        return NOT_JSON, "not valid JSON: nested too deeply"
    except ValueError as error:
        return NOT_JSON, f"not valid JSON: {error}"
    if re.search(r"\\u[dD][89a-fA-F]", text):
        return LONE_SURROGATE, "a lone surrogate (half of a \\uXXXX pair) is no text"
    return NOT_JSON, "not valid JSON, or nested too deeply"
