"""A page as one HTML file that needs nothing else: its frame, and the file that it may replace.

It loads nothing, and its policy forbids that: the texts on it are other people's. Nor does a script run but one that the
program brings itself, known by its digest.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from shards.common.errors import InputError
from shards.report.markup import text


def page_start(program: str) -> str:
    """How every page of `program` begins; no file that begins otherwise is overwritten."""
    return f'<!doctype html>\n<html lang="en" data-made-by="{program}">\n'


def document(start: str, *, title: str, style: str, body: Sequence[str], script: str = "") -> bytes:
    """The page in UTF-8. `start` is a `page_start`, `title` a text, `body` HTML; `script` runs behind it."""
    sources = ""
    if script:
        sources = f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'; "
        body = [*body, f"<script>{script}</script>"]
    policy = f"default-src 'none'; style-src 'unsafe-inline'; {sources}base-uri 'none'; form-action 'none'"
    head = (
        f'<head>\n<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{text(title)}</title>\n<style>{style}</style>\n</head>\n"
    )
    content = "\n".join(part for part in body if part)
    return f"{start}{head}<body>\n{content}\n</body>\n</html>\n".encode()


def check_page(out: Path, start: str, *, refusal: str) -> None:
    """Raise `InputError` unless a page that begins with `start` may be written to `out`; `refusal`: for another file."""
    if out.is_dir():
        raise InputError(f"--out {out}: is a directory; name a file in it")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: no directory {out.parent}; make it, or choose another file")
    if out.exists():
        with open(out, "rb") as file:
            found = file.read(len(start.encode()))
        if found != start.encode():
            raise InputError(refusal)
