"""`make reference`: fill docs/reference.md: every option of every command, from the parsers and the settings themselves.

An option is a promise to whoever has it in a script, so a test compares the page with what this writes.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Sequence
from typing import Any

import tokenize_once
from tools.licences import filled
from tools.locked import REPOSITORY
from train.settings import REFUSED_ARGUMENTS, SECTIONS

PAGE = REPOSITORY / "docs" / "reference.md"


def table(head: str, rows: Sequence[tuple[str, ...]]) -> str:
    rule = "|" + "---|" * (head.count("|") - 1)
    cells = ([" ".join(cell.split()).replace("|", r"\|") for cell in row] for row in rows)
    return "\n".join([head, rule, *(f"| {' | '.join(row)} |" for row in cells)])


def option_row(action: argparse.Action) -> tuple[str, str]:
    """An argument, by all its names, and its line of help."""
    value = str(action.metavar or "|".join(map(str, action.choices or ())) or action.dest.upper())
    names = [f"`{name}{'' if action.nargs == 0 else f' {value}'}`" for name in action.option_strings]
    return ", ".join(names) or f"`{value}`", str(action.help) % {**vars(action), "prog": ""}


def command_parser(module: str, before: list[str]) -> argparse.ArgumentParser:
    main = importlib.import_module(module)
    parser: argparse.ArgumentParser = (getattr(main, "make_parser", None) or main.build_parser)()
    for name in before:
        (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = commands.choices[name]
    return parser


def commands() -> str:
    """A section for each command of `tokenize-once`, with the arguments that its help shows."""
    parts = []
    for name, (module, before, line) in tokenize_once.COMMANDS.items():
        shown = [action for action in command_parser(module, before)._actions if action.help != argparse.SUPPRESS]
        rows = [option_row(action) for action in shown if not isinstance(action, argparse._HelpAction)]
        call = " ".join(["python -m", module.removesuffix(".__main__"), *before])
        title = f"### {name}\n\n{line[0].upper()}{line[1:]}: `{call}`"
        parts.append(f"{title}\n\n{table('| argument | what it does |', rows)}")
    return "\n\n".join(parts)


def setting_rows(name: str, section: Any) -> list[tuple[str, str, str]]:
    """Each setting with its default and the comment beside it in the source."""
    notes = dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(section), re.MULTILINE))
    rows = []
    for field in dataclasses.fields(section):
        required = field.default is field.default_factory is dataclasses.MISSING
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        shown = "required" if required else f"`{default}`"
        rows.append((f"`--{name}.{field.name}`", shown, notes[field.name]))
    return rows


def contents() -> dict[str, str]:
    """The generated parts of the page, by the names of their marks."""
    refused = [(f"`{name}`", reason) for name, reason in REFUSED_ARGUMENTS.items()]
    settings = [row for name, section in SECTIONS.items() if section for row in setting_rows(name, section)]
    return {
        "commands": commands(),
        "settings": table("| setting | default | what it is |", settings),
        "refused": table("| field | why it is refused |", refused),
    }


def main() -> int:
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), contents()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
