"""The options of every command are those of `tests/options.txt`: none comes, goes or changes its name unnoticed.

An option is a promise to whoever has it in a script. The list has a line for each, `COMMAND --option`, sorted. The fields
of transformers' TrainingArguments, options of `train` too, are not ours to promise; those that `train` refuses are listed
as `train --option refused`.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterator

import pytest

import pipeline.__main__
import shards.__main__
import tokenize_once
import train.__main__
import train.compare.__main__
import train.evaluate
import train.generate
import train.sweep
from tests.conftest import REPOSITORY
from train.training_fields import REFUSED_ARGUMENTS, training_fields

LIST = REPOSITORY / "tests" / "options.txt"
PARSERS = {
    "pipeline": pipeline.__main__.make_parser,
    "shards": shards.__main__.make_parser,
    "train": train.__main__.build_parser,
    "train.compare": train.compare.__main__.build_parser,
    "train.evaluate": train.evaluate.build_parser,
    "train.generate": train.generate.build_parser,
    "train.sweep": train.sweep.build_parser,
}
WHAT_TO_DO = """\
The options of the commands are not those of tests/options.txt:

{difference}

An option that is new: add its line (`+`) to the list, describe it in README.md and README.zh-CN.md or in docs/, and in
CHANGELOG.md. One that is gone or renamed (`-`) breaks the scripts that use it: take it back, or remove its line, mend the
documentation, and say in CHANGELOG.md what to use instead."""


def options(command: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """A line for each option of a parser and of its subcommands, `--help` aside."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, subparser in action.choices.items():
                yield from options(f"{command} {name}", subparser)
        elif not isinstance(action, argparse._HelpAction):
            yield from (f"{command} {option}" for option in action.option_strings)


def current_options() -> list[str]:
    """The list as it would be written now."""
    found = {line for command, make in PARSERS.items() for line in options(command, make())}
    own = set(options("train", own_train_options()))
    transformers = {f"train --{name}" for name in training_fields()} - own
    refused = {f"train --{name} refused" for name in REFUSED_ARGUMENTS}
    return sorted((found - transformers) | refused)


def own_train_options() -> argparse.ArgumentParser:
    """Those options of `train` that its help shows; the others are the sections' settings."""
    shown = argparse.ArgumentParser(add_help=False)
    shown._actions = [action for action in train.__main__.build_parser()._actions if action.help != argparse.SUPPRESS]
    return shown


def test_options_are_those_of_the_list() -> None:
    frozen, current = LIST.read_text(encoding="utf-8").splitlines(), current_options()
    difference = [line for line in difflib.ndiff(frozen, current) if line[0] in "+-"]
    assert frozen == current, WHAT_TO_DO.format(difference="\n".join(difference))


def test_every_command_is_looked_at() -> None:
    """What `tokenize-once` reaches and has options is in the list."""
    listed = {line.partition(" --")[0] for line in LIST.read_text(encoding="utf-8").splitlines()}
    for module, before, _ in tokenize_once.COMMANDS.values():
        command = " ".join([module.removesuffix(".__main__").removesuffix(".command"), *before])
        assert command in listed, command


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (lambda parser: parser.add_argument("--brand-new"), "+ train.sweep --brand-new"),
        (lambda parser: parser._actions.pop(), "- train.sweep --dry-run"),
    ],
)
def test_a_change_is_reported_with_what_to_do(change: object, reported: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed() -> argparse.ArgumentParser:
        parser = train.sweep.build_parser()
        change(parser)  # type: ignore[operator]
        return parser

    monkeypatch.setitem(PARSERS, "train.sweep", changed)
    with pytest.raises(AssertionError) as failure:
        test_options_are_those_of_the_list()
    assert reported in str(failure.value) and "CHANGELOG.md" in str(failure.value)
