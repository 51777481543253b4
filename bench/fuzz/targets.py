"""The targets by name, each with words that its inputs are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bench.fuzz import packed, records, sets, streams

Check = Callable[[bytes], None]

_JSON = (
    b'{"text": "', b'"}', b"},{", b"}, {", b"},\n{", b"[", b"]", b"[]", b"{}", b'{"a":1}', b",", b":", b"\n", b"\r\n", b" ",
    b"null", b"true", b"false", b"NaN", b"Infinity", b"-0", b"1e400", b"1E-5", b"18446744073709551616", b"0.1",
    b"\\", b"\\u0000", b"\\ud800", b"\\udc00", b"\\ud83d\\ude00", b'\\"', b"\xef\xbb\xbf", b"\xe5\xad\x97",
    b"\xed\xa0\x80", b"\xff", b"\x00", b"\x1b", b'"text"', b'"text":"a","text":"b"', b"\xc2\x85", b"\xe2\x80\xa8",
    b"\x0b", b'"},{"', b'{"a":[{"b":"', b'"}]}', b'"b":',
)  # fmt: skip
_TEXT = (b"----", b"\n----\n", b"-----", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xe5\xad\x97", b"\xff", b" ")
_CSV = (b"a,b,c\n", b",", b'"', b'""', b'","', b"\n", b"\r\n", b"\r", b"|", *_TEXT)
_ENCODED = (b"\xff\xfe", b"\xfe\xff", b"\0", b"\xd8\x3d\xde\x00", b"\x816\xa5\x30", b"\xb5\xc4", b"\xa4\xa4", *_TEXT)
_SPECS = tuple(b", : epochs epoch 0.7 1e308 1e-308 1e999 0 a a:1,b:2 .. -1 nan | 3steps 70tokens".split())
_SCRIPTS = (b"\xff", *(
    word.encode()
    for word in (
        "<|endoftext|>", "<|", "|>", "<", "字", "e\u0301", "\u212b", " ", "\n", "12345", "😀",
        "的", "人工智能", "，", "。\n", "'s", "'Re", "'ſ", "ab", " the", "  ", "\t", "\r\n", "١", "½", "이",
        "か\u3099", "사\u11a8", "\u1100\u1161", "e\u0301\u0323", "\u0345", "Ω", "Ж", "א", "ก็", "नि", "\U00020000",
        "👩\u200d👧", "\u3000", "\u2028", "—", "——", "==", "http://", "\u0e48", "\u09be", "龘", "哈哈",
    )
))  # fmt: skip
_NUMBERS = tuple(bytes([number]) for number in (0, 1, 2, 3, 4, 8, 15, 16, 252, 253, 254, 255))


class Target(NamedTuple):
    """A check, words for its inputs, and the fewest bytes that mean something to it."""

    check_bytes: Check
    words: tuple[bytes, ...]
    least: int = 4

    def check(self, data: bytes) -> None:
        """Raises what it finds."""
        if len(data) >= self.least:
            self.check_bytes(data)


TARGETS: dict[str, Target] = {
    "json-lines": Target(records.json_lines, _JSON),
    "json-array": Target(records.json_array, _JSON),
    "json-texts": Target(streams.json_texts, _JSON),
    "csv": Target(streams.delimited, _CSV),
    "encodings": Target(streams.encodings, _ENCODED),
    "json-cuts": Target(records.json_cuts, _JSON),
    "fields": Target(records.fields, _JSON),
    "plain-text": Target(records.plain_text, _TEXT),
    "packed": Target(packed.packed, _NUMBERS),
    "native-ids": Target(packed.native_ids, _SCRIPTS, 0),
    "index": Target(sets.index, _NUMBERS, 6),
    "manifest": Target(sets.manifest, (*_NUMBERS, *_JSON), 1),
    "order": Target(sets.order, _NUMBERS, 24),
    "mixture": Target(sets.mixture, _SPECS, 2),
}
