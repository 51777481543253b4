"""Values from YAML files and command lines: read, converted to their types, and refused in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from shards.common.errors import InputError, nearest_path
from shards.common.text import nearest, printable

MAX_YAML_BYTES = 1 << 20
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def convert(value: Any, types: str, where: str) -> Any:
    """`value`, from YAML or (a string) from the command line, as one of `types`: `int | None`. Raises `InputError`.

    YAML reads `5e-4` as a string, so strings that spell numbers are numbers where a number is wanted.
    """
    kinds = types.replace("list[str]", "list").split(" | ")
    word = value.strip().lower() if isinstance(value, str) else ""
    if value is None or word in ("none", "null"):
        if "None" in kinds:
            return None
    elif "bool" in kinds and (isinstance(value, bool) or word in _WORDS):
        return value if isinstance(value, bool) else _WORDS[word]
    elif "list" in kinds:
        if word.startswith("["):
            value = read_json(value, where)
        if isinstance(value, list):
            return value
    elif "str" in kinds and isinstance(value, str):
        return value
    elif ("int" in kinds or "float" in kinds) and not isinstance(value, bool):
        number = int if "int" in kinds else float
        try:
            found = number(word or value)
            if math.isfinite(found) and (isinstance(value, str) or found == value):
                return found
        except (ValueError, TypeError, OverflowError):
            pass
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "list": "a list"}
    expected = " or ".join(words.get(kind, "none") for kind in kinds)
    raise InputError(f"{where}: expected {expected}, found {printable(repr(value))[:80]}")


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


def require_one_of(choices: Sequence[str], value: object, where: str) -> None:
    """Raise `InputError`, with the nearest one, unless `value` is one of `choices`."""
    if value not in choices:
        found = f"{printable(repr(value))}{nearest(str(value), choices)}"
        raise InputError(f"{where}: expected one of {', '.join(choices)}, found {found}")


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses aliases, which can stand for more than memory holds, and a key that is given twice."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            problem = "aliases (*name) aren't taken; write the value out"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"key {key_node.value!r} is given twice", problem_mark=key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, *, keys: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML file that may have `keys`. Raises `InputError`: no file, too large, bad YAML."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_YAML_BYTES + 1)
        if len(text) > MAX_YAML_BYTES:
            raise ValueError(f"more than {MAX_YAML_BYTES:,} bytes; expected a config")
        content = yaml.load(text.decode(), _Loader)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such config file{nearest_path(path, Path.is_file)}") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError, ValueError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None)  # of YAML's own errors
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise InputError(f"{path}: {place}{getattr(error, 'problem', None) or ' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping with the keys {', '.join(keys)}")
    return content
