"""From a record to its text: a field, a path of fields, or a template over several. A record that is a string is its text.

Of `{"title": "T", "body": [{"p": "a"}, {"p": "b"}]}` the path `body[].p` takes two lines, a and b.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Iterator
from typing import Any

from pipeline.readers.base import INVALID_UTF8, NO_FIELD, NOT_A_STRING, NOT_AN_OBJECT, BadRecord, Batch, ReadOptions
from shards.common.errors import InputError
from shards.common.text import nearest, printable

_TEXT_OR_NULL = {str, type(None)}
_KINDS = {dict: "an object", list: "an array", str: "a string", type(None): "null", bool: "true or false"}


class TextOf:
    """Takes the text out of records: of `field` (`text`, or a path such as `page.body`), or composed by `template`."""

    def __init__(self, field: str, template: str = "") -> None:
        self._field, self._template = field, template
        self._parts: list[tuple[str, str | None]] = _parse_template(template) if template else [("", field)]

    @property
    def columns(self) -> tuple[str, ...]:
        """The top-level fields that may be needed: a name may be a path, or have dots and `[]` in it."""
        names = (name for _literal, name in self._parts if name is not None)
        return tuple(dict.fromkeys(column for name in names for column in _columns(name)))

    def texts(self, batch: Batch, options: ReadOptions) -> list[str | None]:
        """The text of each record, empty ones included, and None for null; bad records are reported and left out."""
        values = batch.values
        if not self._template:
            field = self._field
            try:
                texts: list[Any] = [value[field] for value in values]
                if set(map(type, texts)) <= _TEXT_OR_NULL:
                    return texts
            except (KeyError, TypeError, IndexError):
                pass
        good: list[str | None] = []
        for number, value in enumerate(values):
            try:
                good.append(self._text(value))
            except BadRecord as error:
                error.offset, error.content = batch.place(number)
                options.on_bad(error)
        return good

    def _text(self, record: Any) -> str | None:
        """The text of one record, None if all of its fields are null. Raises `BadRecord`, without the record's place."""
        if record is None or (isinstance(record, str) and not self._template):
            return record
        if not isinstance(record, dict):
            expected = "expected an object, whose fields the template names" if self._template else "expected an object"
            raise BadRecord(0, NOT_AN_OBJECT, f"{expected}, found {_kind(record)}")
        values = [_string(record, name) for _literal, name in self._parts if name is not None]
        if not any(values):
            return None if set(values) == {None} else ""
        found = iter(values)
        return "".join(literal + ((next(found) or "") if name is not None else "") for literal, name in self._parts)


def _columns(name: str) -> Iterator[str]:
    """`a[].b`, `a[]` and `a` for the path `a[].b`."""
    yield name
    step = name.split(".")[0]
    yield step
    while step.endswith("[]"):
        step = step.removesuffix("[]")
        yield step


def _string(record: dict[str, Any], name: str) -> str | None:
    """The field `name` of `record`; where there is none, `name` is a path with a dot between its steps. After a step that
    is an array stands `[]`: its elements are joined, a line each."""
    values, before = [record], ""
    for step in [name] if name in record else name.split("."):
        values = [found for value in values for found in _step(value, step, name, before)]
        before += f"{step}."
    strings = [_decoded(value, name) for value in values if value is not None]
    return "\n".join(strings) if strings or not values else None


def _step(value: Any, step: str, name: str, before: str) -> list[Any]:
    """The field `step` of `value`, or the elements of the array that `step` names with `[]`; null has null in it. In the
    path `name`, `before` leads to `value`."""
    if value is None:
        return [None]
    known = list(value) if isinstance(value, dict) else []
    if step in known:
        return [value[step]]
    if step.endswith("[]"):
        arrays = _step(value, step.removesuffix("[]"), name, before)
        for array in arrays:
            if not isinstance(array, list | None):
                raise BadRecord(0, NOT_A_STRING, f"field {name!r}: expected an array before '[]', found {_kind(array)}")
        return [element for array in arrays for element in ([None] if array is None else array)]
    if isinstance(value, list):
        raise BadRecord(
            0, NOT_A_STRING, f"field {name!r}: {step!r} is looked for in an array; write '[]' after its name"
        )
    fault, hint = _missing(name, before, step, tuple(known))
    raise BadRecord(0, NO_FIELD, fault + (hint or _wrapped(value)))


@functools.lru_cache(maxsize=16)  # where many records are refused, most have the fields of another
def _missing(name: str, before: str, step: str, known: tuple[str, ...]) -> tuple[str, str]:
    """What to say of a record without the field `name`, and the field that may be meant."""
    names = printable(", ".join(known[:12])) or "no fields at all"
    owner = repr(before.removesuffix(".")) if before else "this record"
    return f"no field {name!r}; {owner} has {names}", nearest(step, known, before, name[len(before + step) :])


def _wrapped(value: Any) -> str:
    """What to do where `value` is no record but holds an array of them."""
    for name, array in value.items() if isinstance(value, dict) else ():
        if isinstance(array, list) and isinstance(next(iter(array), None), dict):
            joined = printable(f"{name}[].FIELD")
            return f"; '{joined}' joins the texts of an array; if its elements are the records, take them out with jq"
    return ""


def _decoded(value: Any, name: str) -> str:
    """A string, as it is or in UTF-8."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise BadRecord(0, INVALID_UTF8, f"field {name!r}: invalid UTF-8 at byte {error.start:,}") from None
    joins = f" ('{printable(name)}[]' joins its strings)" if isinstance(value, list) else ""
    raise BadRecord(0, NOT_A_STRING, f"field {name!r}: expected a string, found {_kind(value)}{joins}")


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
    return _KINDS.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
