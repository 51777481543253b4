"""What Python's own parser says of a record, and how a reader's answer is compared with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Fault(AssertionError):
    """A reader did what it must not do."""


def expect(condition: object, *what: object) -> None:
    if not condition:
        raise Fault(" ".join(part if isinstance(part, str) else repr(part) for part in what))


def load(content: bytes) -> Any:
    """The value of `content`, by Python's parser. Raises `ValueError` for what is refused: also for `NaN`, for a lone
    surrogate, and for more brackets within each other than the parser takes."""
    try:
        text = content.decode("utf-8")
        value = _DECODER.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _refuse(name: str) -> None:
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def parts(text: str, between: str) -> Iterator[str]:
    """JSON values one after another as they stand, with the characters `between` among them. Raises `ValueError`."""
    place = 0
    while (place := len(text) - len(text[place:].lstrip(between))) < len(text):
        _value, end = json.JSONDecoder().raw_decode(text, place)
        yield text[place:end]
        place = end


def is_deep(content: bytes) -> bool:
    """Whether it may be nested more deeply than every parser takes."""
    return content.count(b"[") + content.count(b"{") > 500


def is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def same(expected: Any, found: Any) -> bool:
    """Whether two values are one. A whole number of 2**64 and above may have become the nearest float."""
    if type(expected) is not type(found):
        return isinstance(expected, int) and abs(expected) >= 2**63 and float(expected) == found
    if isinstance(expected, dict):
        return list(expected) == list(found) and all(same(value, found[key]) for key, value in expected.items())
    if isinstance(expected, list):
        return len(expected) == len(found) and all(map(same, expected, found))
    return bool(expected == found)
