"""Text in other encodings than UTF-8: read as UTF-8 in constant memory, recognized where nobody said which it is.

An encoding is the one that was named, or the one that a byte order mark names. It is never guessed: a guess only says what
to name.
"""

from __future__ import annotations

import codecs
import functools
import re

from pipeline.readers.compression import Readable
from shards.common.errors import InputError
from shards.common.text import printable

_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Byte order marks, the longer ones first, and ASCII in UTF-16.
_SIGNS = {
    rb"\xef\xbb\xbf": "utf-8",
    rb"\xff\xfe\0\0": "utf-32-le",
    rb"\0\0\xfe\xff": "utf-32-be",
    rb"\xff\xfe|(?:[\t\n\r -~]\0){2}": "utf-16-le",
    rb"\xfe\xff|(?:\0[\t\n\r -~]){2}": "utf-16-be",
}
# Python's for domain names, for source code and for mail: not what a file of text is in.
_REFUSED = {"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape", "utf-7"}
_CANDIDATES = ("gb18030", "big5", "utf-16-le", "utf-16-be")
_LEAST_SHARE = 0.7
_SURE_CHARS = 8
_HINT_BYTES = 1 << 12
_INVALID = f"{__name__}.invalid"
_STAND_IN = "[\udc00-\udcff]"


def codec_name(name: str) -> str:
    """How Python calls the encoding `name`; empty for UTF-8. Raises `InputError` for what is no encoding of text."""
    try:
        "x".encode(name)  # which only encodings of text do
        found = codecs.lookup(name).name
    except (LookupError, ValueError, UnicodeError):
        found = ""
    if not found or found in _REFUSED:
        raise InputError(f"encoding: expected one such as gb18030, big5 or utf-16, found {printable(name)[:80]!r}")
    return "" if found in ("utf-8", "utf-8-sig") else found


def encoding_of(head: bytes, wanted: str) -> str:
    """The encoding of a file that begins with `head`: by its byte order mark, by the signs of UTF-16, or as `wanted`."""
    return next((encoding for sign, encoding in _SIGNS.items() if re.match(sign, head)), wanted or "utf-8")


def check_encoding(path: str, head: bytes, wanted: str) -> str:
    """The encoding to read a file of text with, empty for UTF-8. Raises `InputError` unless it is the `wanted` one.

    A byte order mark counts for more than what is `wanted`, but without that only UTF-8 is read.
    """
    found, is_marked = encoding_of(head, wanted), head.startswith(_MARKS)
    fault = ""
    if found != "utf-8" and not wanted:
        option = found[:6] if is_marked else found
        fault = f"the file is in {option.upper()}; build with --encoding {option}"
    elif found in ("utf-16", "utf-32"):
        fault = f"no byte order mark; name the order of the bytes, as in --encoding {found}-le"
    elif found == "utf-8" and not is_marked and (probable := _probably(head, _SURE_CHARS)):
        fault = f"the file isn't UTF-8 but probably {probable.upper()}; build with --encoding {probable}"
    elif found != "utf-8" and not is_marked and sum(map("\x7f".__lt__, _text(head, "utf-8") or "")) >= _SURE_CHARS:
        fault = f"the file is in UTF-8, not {found}; build it apart from the others, without --encoding"
    if fault:
        raise InputError(f"{path}: {fault}")
    return "" if found == "utf-8" else found


def to_utf8(head: bytes, encoding: str) -> bytes:
    """The first bytes of a file, which may break off inside a character."""
    if encoding == "utf-8":
        return head
    encoding = f"{encoding}-le" if encoding in ("utf-16", "utf-32") else encoding  # without a mark Python reads nothing
    return codecs.getincrementaldecoder(encoding)("replace").decode(head).encode("utf-8", "replace")


def hint(content: bytes, wanted: str) -> str:
    """What to do about the record `content`, which isn't UTF-8; empty if no encoding comes to mind.

    Where the encoding `wanted` was named, `content` is as `Decoded` gave it.
    """
    if wanted:
        text, place = _with_stand_ins(content)
        content = b"".join(_in_original(character, wanted) for character in text[place : place + _HINT_BYTES])
    try:
        content.decode()
        return ""
    except UnicodeDecodeError as error:
        probable = _probably(content[error.start : error.start + _HINT_BYTES], 1)
    is_other = probable not in ("", wanted)
    return f"if the file is in {probable.upper()}, build with --encoding {probable}" if is_other else ""


def _probably(content: bytes, at_least: int) -> str:
    """The encoding in which `content` has the largest share of common characters, if that is large; empty for UTF-8.

    Common are the characters of the first levels of GB 2312 and Big5. Of Chinese text they are nearly all, of what comes of
    it in another encoding a half at most.
    """
    if _text(content, "utf-8") is not None:
        return ""
    best, probable = _LEAST_SHARE, ""
    for encoding in _CANDIDATES:
        foreign = [character for character in _text(content, encoding) or "" if character > "\x7f"]
        share = sum(map(_is_common, foreign)) / max(1, len(foreign))
        if len(foreign) >= at_least and share > best:
            best, probable = share, encoding
    return probable


def _text(content: bytes, encoding: str) -> str | None:
    """`content`, which may break off inside a character; None if it isn't valid."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(content)
    except UnicodeDecodeError:
        return None


@functools.cache
def _is_common(character: str) -> bool:
    """Whether a standard has it in its first level, where the characters in common use are, or among the punctuation."""
    simplified, traditional = character.encode("gb2312", "ignore")[:1], character.encode("big5", "ignore")[:1]
    return b"\xb0" <= simplified <= b"\xd7" or b"\xa1" <= simplified <= b"\xa3" or b"\xa1" <= traditional <= b"\xc6"


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    """For each byte that is invalid in its encoding a character that isn't valid in UTF-8: a surrogate with its number.

    Unlike `surrogateescape` for bytes below 0x80, too: any can be half of a character.
    """
    assert isinstance(error, UnicodeDecodeError)
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error(_INVALID, _stand_in)


class Decoded:
    """A stream of text in `encoding` as UTF-8, in which the record that invalid bytes are in isn't valid UTF-8 either.

    `num_read` is how many bytes of the original are read. If `read` is asked for what is missing to the end of a
    character, until that is there, `num_read` is the character's end exactly.
    """

    def __init__(self, file: Readable, encoding: str) -> None:
        self._file, self._decoder = file, codecs.getincrementaldecoder(encoding)(_INVALID)
        self.num_read = 0

    def read(self, num_bytes: int) -> bytes:
        """Some of the next bytes, at most `num_bytes`: one byte can be the last of a character (or two) of six."""
        while True:
            content = self._file.read(max(1, num_bytes // 6)) or b""
            self.num_read += len(content)
            text = self._decoder.decode(content, not content)
            if text or not content:
                return text.encode("utf-8", "surrogatepass")


def invalid_bytes(content: bytes, encoding: str) -> tuple[int, bytes]:
    """Of a record that `Decoded` gave and that isn't valid UTF-8: the number of the first invalid byte in the original, and
    the record in UTF-8 with `\\xff` for an invalid byte."""
    text, place = _with_stand_ins(content)
    shown = re.sub(_STAND_IN, lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", text)
    return len(text[:place].encode(encoding, "replace")), shown.encode("utf-8", "backslashreplace")


def _with_stand_ins(content: bytes) -> tuple[str, int]:
    """What `Decoded` gave, which may be cut short, and where its first invalid byte is."""
    text = codecs.getincrementaldecoder("utf-8")("surrogatepass").decode(content)
    found = re.search(_STAND_IN, text)
    return text, found.start() if found else len(text)


def _in_original(character: str, encoding: str) -> bytes:
    is_stand_in = re.match(_STAND_IN, character)
    return bytes([ord(character) - 0xDC00]) if is_stand_in else character.encode(encoding, "ignore")
