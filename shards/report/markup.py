"""Text and numbers as HTML. Everything that comes from a shard set goes through `text`, `token` or a number's format.

None of them lets a character through that could end an element or an attribute, move a cursor, or turn the direction of
writing: markup is escaped, and whatever Unicode calls unprintable shows as `\\x1b` or `\\u202e`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from shards.common.text import printable

_MAX_TOKEN_CHARACTERS = 60
_VISIBLE = {"\n": "↵", "\t": "⇥", " ": "␣"}


def text(value: str) -> str:
    """`value` for an element's content or a quoted attribute."""
    return html.escape(printable(value), quote=True)


def token(value: str, *, keeps_spaces: bool = False) -> str:
    """The text of a token. Line feeds, tabs and (unless `keeps_spaces`) spaces show as signs, what is unprintable and
    bytes that are no character as escapes in `<i>`. Long ones are cut off.

    >>> token("<b>\\x1b")
    '&lt;b&gt;<i>\\\\x1b</i>'
    """
    shown, rest = value[:_MAX_TOKEN_CHARACTERS], value[_MAX_TOKEN_CHARACTERS:]
    return "".join(_character(c, keeps_spaces) for c in shown) + ("…" if rest else "") or "<i>(empty)</i>"


def _character(character: str, keeps_spaces: bool) -> str:
    if character == " " and keeps_spaces:
        return " "
    if character in _VISIBLE:
        return f"<i>{_VISIBLE[character]}</i>"
    if "\udc80" <= character <= "\udcff":  # a byte that belongs to no character here ("surrogateescape")
        return f"<i>\\x{ord(character) - 0xDC00:02x}</i>"
    return html.escape(character) if character.isprintable() else f"<i>{text(character)}</i>"


def decoded(piece: bytes) -> str:
    """A token's bytes as `token` takes them."""
    return piece.decode("utf-8", "surrogateescape")


def percent(part: float, whole: float) -> str:
    """
    >>> [percent(*pair) for pair in ((0, 5), (1, 5000), (1, 3), (4999, 5000), (0, 0))]
    ['0 %', '<0.1 %', '33.3 %', '>99.9 %', '–']
    """
    if not whole:
        return "–"
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "<0.1 %"
    if 99.9 < share < 100:
        return ">99.9 %"
    return f"{share:.1f} %" if part not in (0, whole) else f"{share:.0f} %"


def share(part: float, whole: float) -> str:
    """`percent`, escaped."""
    return html.escape(percent(part, whole))


def compact(value: float) -> str:
    """
    >>> [compact(value) for value in (0, 512, 1000, 25_000, 1_500_000, 2_000_000_000)]
    ['0', '512', '1k', '25k', '1.5M', '2B']
    """
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def ratio(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "–"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, kind: str = "") -> str:
    """Cells are HTML. The first column heads its rows; columns whose head begins with `#` hold numbers."""
    classes = ["number" if name.startswith("#") else "" for name in head]
    heads = "".join(
        f'<th scope="col"{_class(name)}>{title.removeprefix("#")}</th>' if title else "<td></td>"
        for name, title in zip(classes, head, strict=True)
    )
    lines = []
    for row in rows:
        cells = "".join(f"<td{_class(name)}>{cell}</td>" for name, cell in zip(classes[1:], row[1:], strict=True))
        lines.append(f'<tr><th scope="row"{_class(classes[0])}>{row[0]}</th>{cells}</tr>')
    body = "\n".join(lines)
    return f"<table{_class(kind)}><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def terms(pairs: Sequence[tuple[str, str]], *, kind: str = "terms") -> str:
    """A list of names and values, both HTML."""
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in pairs)
    return f'<dl class="{kind}">{items}</dl>'


def section(identifier: str, title: str, *content: str) -> str:
    """One part of the page."""
    body = "\n".join(part for part in content if part)
    return (
        f'<section id="{identifier}" aria-labelledby="{identifier}-title">'
        f'<h2 id="{identifier}-title">{title}</h2>\n{body}\n</section>'
    )
