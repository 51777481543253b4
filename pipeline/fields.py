"""From a record to its text: a field, a path of fields, or a template over several."""

from __future__ import annotations

import string
from typing import Any

from pipeline.readers.base import NO_FIELD, NOT_A_STRING, NOT_AN_OBJECT, BadRecord, Batch, ReadOptions
from shards.common.errors import InputError
from shards.common.text import nearest, printable

_KINDS = {dict: "an object", list: "an array", str: "a string", type(None): "null", bool: "true or false"}


class TextOf:
    """Takes the text out of records: of `field` (`text`, or the path `page.body`), or composed by `template`."""

    def __init__(self, field: str, template: str = "") -> None:
        self._field, self._template = field, template
        self._parts = _parse_template(template) if template else [("", field)]

    @property
    def columns(self) -> tuple[str, ...]:
        """The top-level fields that are needed; each may be the first step of a path, or a name with dots in it."""
        names = [name for _literal, name in self._parts if name is not None]
        return tuple(dict.fromkeys(step for name in names for step in (name, name.split(".")[0])))

    def texts(self, batch: Batch, options: ReadOptions) -> list[str]:
        """The text of each record, empty ones included; bad records are reported and left out."""
        values = batch.values
        if not self._template:
            field = self._field
            try:
                texts: list[Any] = [value[field] for value in values]
                if set(map(type, texts)) <= {str}:
                    return texts
            except (KeyError, TypeError, IndexError):
                pass
        good: list[str] = []
        for number, value in enumerate(values):
            try:
                good.append(self._text(value))
            except BadRecord as error:
                error.offset, error.content = batch.place(number)
                options.on_bad(error)
        return good

    def _text(self, record: Any) -> str:
        """The text of one record. Raises `BadRecord`, without the record's place."""
        if not isinstance(record, dict):
            raise BadRecord(0, NOT_AN_OBJECT, f"expected an object, found {_kind(record)}")
        values = ["" if name is None else _string(record, name) for _literal, name in self._parts]
        if not any(values):
            return ""
        text = "".join(literal + value for (literal, _name), value in zip(self._parts, values, strict=True))
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRecord(0, NOT_A_STRING, "a lone surrogate is no text") from None
        return text


def _string(record: dict[str, Any], name: str) -> str:
    """The field `name` of `record`; where there is none, `name` is a path with a dot between its steps."""
    value: Any = record
    for step in [name] if name in record else name.split("."):
        known = list(value) if isinstance(value, dict) else []
        if step not in known:
            names = printable(", ".join(known[:12])) or "no fields at all"
            hint = nearest(step, known)
            raise BadRecord(0, NO_FIELD, f"no field {name!r}; this record has {names}{hint} (set text_field)")
        value = value[step]
    if not isinstance(value, str):
        raise BadRecord(0, NOT_A_STRING, f"field {name!r}: expected a string, found {_kind(value)}")
    return value


def _parse_template(template: str) -> list[tuple[str, str | None]]:
    """Pairs of literal text and the field after it. `\\n` and `\\t` may be written as two characters."""
    unescaped = template.replace("\\n", "\n").replace("\\t", "\t")
    try:
        parts = list(string.Formatter().parse(unescaped))
    except ValueError as error:
        raise InputError(f"template: {error}; write a field as {{name}}, a brace as {{{{ or }}}}") from None
    if not any(name for _literal, name, _spec, _conversion in parts):
        raise InputError(f"template: expected at least one field such as {{text}}, found {template!r}")
    for _literal, name, spec, conversion in parts:
        if name == "" or spec or conversion:
            raise InputError("template: expected plain fields such as {text}, without ':' or '!'")
    return [(literal, name) for literal, name, _spec, _conversion in parts]


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "a number")
