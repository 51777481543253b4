"""Python's JSON parser as it is used here: where a text ends, what is wrong with it in words, how texts lie in a file.

Texts are bytes decoded as Latin-1: a character is a byte, and what JSON is made of is ASCII.
"""

from __future__ import annotations

import json
import re
import sys

_LONGEST_ESCAPE = len("\\ud83d\\ude00")
_DEPTH = 1200  # the fast parser takes 1,024 brackets within each other
_LONGEST_INT = 4000  # digits; Python takes 4,300
_ANOTHER_TEXT = re.compile(r'[ \t\r]*(?:[{"]|,[ \t\r]*\{)')
_WHITE_SPACE = re.compile(r"[ \t\r\n]*")
_PYTHON = re.compile(r"'|None\b|True\b|False\b")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _whole_number(digits: str) -> int | float:
    """Infinity for a number of more digits than Python reads, as for one with an exponent."""
    return int(digits) if len(digits) < _LONGEST_INT else float(digits)


DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_whole_number)
_LENIENT_DECODER = json.JSONDecoder(parse_int=_whole_number)  # takes NaN and Infinity


def end_of_text(text: str, place: int) -> int:
    """Where the JSON text at `place` ends. Raises `json.JSONDecodeError` or `RecursionError`.

    It takes what the fast parser takes, however deep the caller stands in the program.
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + _DEPTH)
    try:
        return _LENIENT_DECODER.raw_decode(text, place)[1]
    finally:
        sys.setrecursionlimit(before)


def skip_white_space(text: str, place: int) -> int:
    """The next place that holds something."""
    match = _WHITE_SPACE.match(text, place)
    assert match is not None
    return match.end()


def is_unfinished(error: json.JSONDecodeError) -> bool:
    """Whether the text on which Python's parser failed with `error` may be the beginning of a valid one."""
    if _PYTHON.match(error.doc, error.pos):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(error.doc) - _LONGEST_ESCAPE


def breaks_off(error: json.JSONDecodeError) -> bool:
    """Whether a source that ends with this text ends inside a record: nothing closes it after the fault."""
    is_open = error.msg.startswith("Unterminated string") or not error.doc.rstrip().endswith(("}", "]", ","), error.pos)
    return is_open and is_unfinished(error)


def in_words(error: json.JSONDecodeError, begin: int = 0) -> str:
    """What is wrong with the record that begins at `begin`."""
    text, found = error.doc, error.doc[error.pos : error.pos + 6]
    if found.startswith(",") and (error.pos == begin or error.msg.startswith("Extra data")):
        if text.startswith('"', begin):
            return "not valid JSON: a string, then a comma: is it CSV, whose name should end in .csv?"
        return "not valid JSON: a comma after the record: is it a JSON array without its '[' and ']'?"
    if found.startswith("]") and error.pos == begin:
        return "not valid JSON: a comma before the array's closing ']': expected a record after it"
    fault = f"{error.msg.removesuffix(' at')} at byte {error.pos - begin:,} of the record"
    if _PYTHON.match(found):
        return f"not valid JSON: it is written as Python's print() does, not as json.dumps() does ({fault})"
    return f"not valid JSON: {fault}"


def is_in_lines(head: bytes) -> bool:
    """Whether each text in a file that begins with `head` has a line of its own, as far as can be seen.

    If not, texts go over several lines, or stand one after another in one line.
    """
    text = head.decode("latin-1")
    try:
        end = end_of_text(text, 0)
    except json.JSONDecodeError as error:
        goes_on = "\n" in text[: error.pos] and is_unfinished(error)
        return not goes_on and text.partition("\n")[0].strip() != "{"
    except RecursionError:
        return True
    return "\n" not in text[:end] and not _ANOTHER_TEXT.match(text, end)
