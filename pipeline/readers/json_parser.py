"""Python's JSON parser as it is used here: where a text ends, what is wrong with it in words, how texts lie in a file."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator

_LONGEST_ESCAPE = len("\\ud83d\\ude00")
_DEPTH = 1200  # the fast parser takes 1,024 brackets within each other
_LONGEST_INT = 4000  # digits; Python takes 4,300
_WHITE_SPACE = re.compile(r"[ \t\r\n]*")
_ANOTHER_TEXT = re.compile(r'[ \t\r]*(?:[{"]|,[ \t\r]*\{)')
_PYTHON = re.compile(r"'|None\b|True\b|False\b")


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


def end_of_text(text: str, place: int) -> int:
    """Where the JSON text at `place` ends. Raises `json.JSONDecodeError` or `RecursionError`."""
    with room_for_depth():
        return LENIENT_DECODER.raw_decode(text, place)[1]


def skip_white_space(text: str, place: int) -> int:
    """The next place that holds something."""
    match = _WHITE_SPACE.match(text, place)
    assert match is not None
    return match.end()


def is_unfinished(error: json.JSONDecodeError, text: str) -> bool:
    """Whether `text`, on which Python's parser failed with `error`, may be the beginning of a valid one."""
    if _PYTHON.match(text, error.pos):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(text) - _LONGEST_ESCAPE


def in_words(error: json.JSONDecodeError, place: str, begin: int = 0) -> str:
    """What is wrong with the record that begins at `begin`; `place` says where, in words."""
    text, found = error.doc, error.doc[error.pos : error.pos + 6]
    if found.startswith(",") and (error.pos == begin or error.msg.startswith("Extra data")):
        if text.startswith('"', begin):
            return "not valid JSON: a string, then a comma: is it CSV, whose name should end in .csv?"
        return "not valid JSON: a comma after the record: is it a JSON array without its '[' and ']'?"
    if _PYTHON.match(found):
        return f"not valid JSON: it is written as Python's print() does, not as json.dumps() does ({error.msg} {place})"
    return f"not valid JSON: {error.msg} {place}"


def is_in_lines(head: bytes) -> bool:
    """Whether each text in a file that begins with `head` has a line of its own, as far as can be seen.

    If not, texts go over several lines, or stand one after another in one line.
    """
    text = head.decode("latin-1")
    try:
        end = end_of_text(text, 0)
    except json.JSONDecodeError as error:
        goes_on = "\n" in text[: error.pos] and is_unfinished(error, text)
        return not goes_on and text.partition("\n")[0].strip() != "{"
    except RecursionError:
        return True
    return "\n" not in text[:end] and not _ANOTHER_TEXT.match(text, end)
