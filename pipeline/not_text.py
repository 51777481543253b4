"""Files that hold no text yet, by the bytes they begin with: a PDF, an office document, an archive, a picture."""

from __future__ import annotations

from shards.common.errors import InputError

_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"%PDF-", "a PDF", "convert it to text first, as with pdftotext"),
    (b"PK\x03\x04", "a zip archive or an office document (docx, xlsx, epub)", "unpack it, or save it as text, first"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an office document (doc, xls, ppt)", "save it as text first"),
    (b"Rar!\x1a\x07", "a rar archive", "unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"\x89PNG\r\n\x1a\n", "a picture (PNG)", "recognize its text first, or leave it out"),
    (b"\xff\xd8\xff", "a picture (JPEG)", "recognize its text first, or leave it out"),
    (b"GIF8", "a picture (GIF)", "recognize its text first, or leave it out"),
    (b"\x7fELF", "a program", "leave it out"),
    (b"SQLite format 3\x00", "an SQLite database", "export its texts as JSON Lines first"),
    (b"{\\rtf", "an RTF document", "save it as text first"),
)
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_TAR_OFFSET, _TAR_MARK = 257, b"ustar"


def check_text(name: str, head: bytes) -> None:
    """Raise `InputError` if a file that begins with `head` is none of text, saying what it is and what to do."""
    if head.startswith(_UTF_16):
        raise InputError(f"{name}: is text in UTF-16; convert it to UTF-8 first: iconv -f UTF-16 -t UTF-8")
    found = [("a tar archive", "unpack it first")] if head[_TAR_OFFSET:].startswith(_TAR_MARK) else []
    found += [(what, cure) for beginning, what, cure in _BEGINNINGS if head.startswith(beginning)]
    for what, cure in found:
        raise InputError(f"{name}: is {what}, not text; {cure}")
