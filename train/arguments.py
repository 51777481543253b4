"""The names and types of transformers' `TrainingArguments`, without importing it.

Importing `TrainingArguments` takes seconds, because torch comes with it. Its source is on disk all the same, so the
fields and their annotations are read from there: a misspelt setting is an error within milliseconds, and the fields
are those of the version that is installed.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shards.common.errors import InputError
from shards.common.text import nearest, printable

FieldTypes = dict[str, frozenset[str]]

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@functools.cache
def training_argument_types() -> FieldTypes:
    """For each field of `TrainingArguments`, the names of the types its annotation allows.

    `eval_steps: float | None` gives `{"eval_steps": {"float", "None"}}`. Raises `InputError` without transformers.
    """
    for node in _classes("training_args.py"):
        if node.name == "TrainingArguments":
            return {
                statement.target.id: type_names(statement.annotation)
                for statement in node.body
                if isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and not statement.target.id.startswith("_")
            }
    raise AssertionError("transformers has no class TrainingArguments")


@functools.cache
def _classes(file: str) -> tuple[ast.ClassDef, ...]:
    """The classes in a file of transformers. Raises `InputError` without transformers."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise InputError("transformers is not installed; `make setup` installs it")
    tree = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
    return tuple(node for node in tree.body if isinstance(node, ast.ClassDef))


def training_argument_choices(keys: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Those of `keys` whose values are members of one enumeration of transformers, and these values."""
    named = {key: training_argument_types()[key] - {"str", "None"} for key in keys}
    enumerations = {key: next(iter(names)) for key, names in named.items() if len(names) == 1}
    choices = _choices()
    return {key: choices[name] for key, name in enumerations.items() if name in choices}


@functools.cache
def _choices() -> dict[str, tuple[str, ...]]:
    """The values of transformers' enumerations of strings, by the names of their classes."""
    return {
        node.name: tuple(
            statement.value.value
            for statement in node.body
            if isinstance(statement, ast.Assign)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        )
        for file in ("training_args.py", "trainer_utils.py")
        for node in _classes(file)
        if any(isinstance(base, ast.Name) and base.id == "ExplicitEnum" for base in node.bases)
    }


def type_names(annotation: ast.expr) -> frozenset[str]:
    """The types in an annotation: `None | str | list[str]` gives `{"None", "str", "list"}`."""
    match annotation:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return type_names(left) | type_names(right)
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return type_names(inner) | {"None"}
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=members)):
            return frozenset().union(*map(type_names, members))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Constant(value=bool())):
            return frozenset({"bool"})
        case ast.Subscript(value=value):
            return type_names(value)
        case ast.Constant(value=None):
            return frozenset({"None"})
        case ast.Constant(value=str() as text):
            return type_names(ast.parse(text, mode="eval").body)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return frozenset({name.lower() if name in ("Dict", "List") else name})
    return frozenset({"str"})


def convert(value: Any, types: frozenset[str], where: str) -> Any:
    """`value`, from YAML or (a string) from the command line, as one of `types`. Raises `InputError`.

    YAML reads `5e-4` as a string, so strings that spell numbers are numbers where a number is wanted. A type that
    isn't a plain one (an enumeration of transformers) is passed on as a string for transformers to check.
    """
    if isinstance(value, str):
        return _convert_text(value, types, where)
    kind = "None" if value is None else type(value).__name__
    if kind in types:
        return _finite(value, where) if kind == "float" else value
    if kind == "int" and "float" in types:
        return float(value)
    if kind == "float" and "int" in types and value.is_integer():
        return int(value)
    raise InputError(f"{where}: expected {describe(types)}, found {printable(repr(value))[:80]}")


def _convert_text(text: str, types: frozenset[str], where: str) -> Any:
    word = text.strip().lower()
    if "None" in types and word in ("none", "null"):
        return None
    if "bool" in types and word in _WORDS:
        return _WORDS[word]
    for name, number in (("int", int), ("float", float)):
        if name in types:
            try:
                return _finite(number(word), where)
            except (ValueError, OverflowError):
                pass
    if ("dict" in types and word.startswith("{")) or ("list" in types and word.startswith("[")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: expected {describe(types)}, found bad JSON ({error})") from None
    if types - {"None", "bool", "int", "float", "dict", "list"}:
        return text
    raise InputError(f"{where}: expected {describe(types)}, found {printable(repr(text))[:80]}")


def _finite(number: float, where: str) -> float:
    if not math.isfinite(number):
        raise InputError(f"{where}: expected a finite number, found {number}")
    return number


def describe(types: frozenset[str]) -> str:
    """`"a number or none"` for `{"float", "None"}`."""
    kinds = {
        "float": "a number",
        "int": "a whole number",
        "bool": "true or false",
        "str": "text",
        "dict": "a mapping",
        "list": "a list",
        "None": "none",
    }
    names = types - {"int"} if "float" in types else types
    words = [kinds[name] for name in kinds if name in names]
    return " or ".join(words) if words else "text"


def require(condition: bool, where: str, expected: str, found: object) -> None:
    """Raise `InputError` unless `condition` holds."""
    if not condition:
        raise InputError(f"{where}: expected {expected}, found {printable(repr(found))[:80]}")


def require_one_of(choices: Sequence[str], value: object, where: str) -> None:
    """Raise `InputError`, with the nearest one, unless `value` is one of `choices`."""
    if value not in choices:
        found = f"{printable(repr(value))}{nearest(str(value), choices)}"
        raise InputError(f"{where}: expected one of {', '.join(choices)}, found {found}")
