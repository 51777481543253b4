"""A page as one HTML file that needs nothing else, made from templates.

Whatever a template shows is escaped, and what Unicode calls unprintable (control characters, changes of the writing
direction) is written as `\\x1b` or `\\u202e`: the texts on a page are other people's. No page loads anything or has a
script, and its Content-Security-Policy forbids both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from shards.common.errors import InputError
from shards.common.text import compact, percent, plural, printable, size_text
from shards.report.plot import NUM_COLORS
from shards.unread import unread_text


def render(template: str, *, package: str, program: str, **values: Any) -> bytes:
    """The page in UTF-8, from a template in `package`, which may extend and import those of `shards.report`."""
    loaders = [jinja2.PackageLoader(name) for name in dict.fromkeys((package, "shards.report"))]
    environment = jinja2.Environment(
        autoescape=True,
        finalize=_printable,
        loader=jinja2.ChoiceLoader(loaders),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "compact": compact,
        "number": "{:,}".format,
        "percent": percent,
        "plural": plural,
        "printable_lines": _printable_lines,
        "size": size_text,
        "unread": unread_text,
    }
    environment.globals["num_colors"] = NUM_COLORS
    return environment.get_template(template).render(start=_start(program), **values).encode() + b"\n"


def check_out(out: Path, program: str, what: str) -> None:
    """Raise `InputError` unless a page of `program`, which is called `what`, may be written to `out`."""
    if out.is_dir():
        raise InputError(f"--out {out}: is a directory; name a file in it")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: no directory {out.parent}; make it, or choose another file")
    if out.exists():
        start = _start(program).encode()
        with open(out, "rb") as file:
            found = file.read(len(start))
        if found != start:
            raise InputError(f"--out {out}: exists and is no {what}; choose another file, or move it elsewhere")


def _start(program: str) -> Markup:
    """How every page of `program` begins; no file that begins otherwise is overwritten."""
    return Markup('<!doctype html>\n<html lang="en" data-made-by="{}">\n').format(program)


def _printable(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _printable_lines(value: str) -> Markup:
    """`printable`, but line feeds stay."""
    return Markup("\n").join(printable(line) for line in value.split("\n"))
