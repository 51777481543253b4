"""Values from YAML files and command lines: read, brought to the type of their field, and refused in one line.

A field's annotation says everything about its values: `Count | None` is a whole number, at least 1, or none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml

from shards.common.errors import InputError, choice, nearest_path
from shards.common.text import nearest, printable

MAX_YAML_BYTES = 1 << 20
_MAX_DIGITS = 1000
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclasses.dataclass(frozen=True)
class Allowed:
    """What a value must be beyond its type: `Annotated[int, Allowed("at least 1", lambda value: value >= 1)]`."""

    expected: str
    holds: Callable[[Any], bool]


Text = Annotated[str, Allowed("text", bool)]
Count = Annotated[int, Allowed("at least 1", lambda value: value >= 1)]
Positive = Annotated[float, Allowed("above 0", lambda value: value > 0)]
NotNegative = Annotated[float, Allowed("0 or more", lambda value: value >= 0)]
Seed = Annotated[int, Allowed("0 to 2**32 - 1", lambda value: 0 <= value < 2**32)]


def convert(value: Any, kind: Any, where: str, *, also: str = "") -> Any:
    """`value`, from YAML or (a string) from the command line, as a field annotated with `kind`. Raises `InputError`.

    Its message begins with what is expected `also`, such as `auto or `.
    YAML reads `5e-4` as a string, so strings that spell numbers are numbers where a number is wanted.
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        found = convert(value, parts[0], where, also=also)
        for allowed in parts[1:]:
            require(allowed.holds(found), where, also + allowed.expected, value)
        return found
    word = value.strip().lower() if isinstance(value, str) else value
    is_structured = {list, dict} & {typing.get_origin(part) or part for part in (kind, *parts)}
    if is_structured and isinstance(word, str) and word.startswith(("[", "{")):
        value = read_json(value, where)
    if origin in (Union, types.UnionType):
        if type(None) in parts and word in (None, "none", "null"):
            return None
        *others, last = sorted((part for part in parts if part is not type(None)), key=lambda part: part is str)
        for other in others:
            with contextlib.suppress(InputError):
                return convert(value, other, where)
        words = (word for part in others if typing.get_origin(part) is Literal for word in typing.get_args(part))
        return convert(value, last, where, also="".join(f"{word} or " for word in words))
    if origin is Literal:
        return choice(where, str(value), [str(part) for part in parts])
    if origin is list:
        require(isinstance(value, list), where, 'a list, such as ["a", "b"]', value)
        return [convert(item, parts[0], f"{where}[{number}]") for number, item in enumerate(value)]
    if dict in (origin, kind):
        require(isinstance(value, dict), where, "a mapping", value)
        of_values = parts[1] if parts else Any
        return {str(key): convert(item, of_values, f"{where}: {printable(str(key))}") for key, item in value.items()}
    if kind is Path:
        return Path(os.path.expanduser(convert(value, Text, where)))  # one of a user that isn't known stays as it is
    if kind is bool and isinstance(word, str):
        value = _BOOLEANS.get(word, value)
    found = _number(value, kind) if kind in (int, float) else value
    require(kind is Any or type(found) is kind, where, also + _KINDS.get(kind, "another value"), value)
    return found


def _number(value: Any, kind: type[int] | type[float]) -> int | float | None:
    """The finite number that `value` is or spells, else None."""
    try:
        number = kind(value)
        is_same = isinstance(value, str) or (number == value and not isinstance(value, bool))
        return number if is_same and math.isfinite(number) else None
    except (ValueError, TypeError, OverflowError):
        return None


def read_json(text: str, where: str) -> Any:
    """The value that `text` spells. Raises `InputError`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: bad JSON ({error})") from None


def require(condition: bool, where: str, expected: str, found: object) -> None:
    """Raise `InputError` unless `condition` holds."""
    if not condition:
        raise InputError(f"{where}: expected {expected}, found {printable(repr(found))[:80]}")


def require_known(keys: Iterable[object], known: Iterable[str], where: str) -> None:
    """Raise `InputError`, with the nearest one, for the first of `keys` that isn't `known`."""
    names = list(known)
    for key in map(str, keys):
        if key not in names:
            raise InputError(f"{where}: unknown key {printable(key)!r}{nearest(key, names)}")


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses aliases, which can stand for more than memory holds, and a key that is given twice.

    It says where a value is bad, and reads none of very many digits.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = node.tag.replace("tag:yaml.org,2002:", "!!")
        try:
            if kind == "!!int" and len(node.value) > _MAX_DIGITS:
                raise ValueError
            return super().construct_object(node, deep)
        except (ValueError, OverflowError, LookupError, AttributeError):
            problem = f"{printable(str(node.value))[:80]!r} can't be read as {kind}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) aren't taken; write the value out", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `InputError`: no file, too large, bad YAML, something else in it."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_YAML_BYTES + 1)
        if len(text) > MAX_YAML_BYTES:
            raise ValueError(f"more than {MAX_YAML_BYTES:,} bytes; expected a config")
        content = yaml.load(text.decode(), _Loader)
    except (FileNotFoundError, NotADirectoryError):
        hint = nearest_path(path, Path.is_file) or "; expected one such as configs/sample.yaml"
        raise InputError(f"{path}: no such config file{hint}") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply") from None
    except IsADirectoryError:
        raise InputError(f"{path}: expected a config file, found a directory") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected a config file, in UTF-8; found other bytes at byte {error.start}") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)  # of YAML's own errors
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise InputError(f"{path}: {place}{getattr(error, 'problem', None) or ' '.join(str(error).split())}") from None
    require(isinstance(content, dict), str(path), "a mapping of settings", content)
    return dict(content)
