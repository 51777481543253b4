"""docs/reference.md has every option of every command: none comes, goes or changes its name or its help unnoticed."""

from __future__ import annotations

import argparse
import difflib
import re

import pytest

import tokenize_once
import tools.reference
from tests.conftest import REPOSITORY
from tools.licences import filled
from train.settings import option_names, training_fields

WHAT_TO_DO = """\
The commands are not as docs/reference.md says:

{difference}

`make reference` writes the page anew. What is new (`+`) is described in CHANGELOG.md too. What is gone or renamed (`-`)
breaks the scripts that use it: take it back, or say in CHANGELOG.md what to use instead."""


def test_the_reference_is_what_the_commands_say() -> None:
    page = tools.reference.PAGE.read_text(encoding="utf-8")
    written = filled(page, tools.reference.contents())
    difference = [line for line in difflib.ndiff(page.splitlines(), written.splitlines()) if line[0] in "+-"]
    assert page == written, WHAT_TO_DO.format(difference="\n".join(difference))


def test_every_setting_and_every_subcommand_is_in_the_reference() -> None:
    page = tools.reference.PAGE.read_text(encoding="utf-8")
    for name in set(option_names()) - set(training_fields()):
        assert f"`--{name}" in page, name
    for package in ("pipeline", "shards"):
        parser = tools.reference.command_parser(f"{package}.__main__", [])
        (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        assert set(commands.choices) <= set(tokenize_once.COMMANDS)


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (lambda parser: parser.add_argument("--brand-new"), "+ | `--brand-new BRAND_NEW`"),
        (lambda parser: parser._actions.pop(), "- | `--dry-run`"),
    ],
)
def test_a_change_is_reported_with_what_to_do(change: object, reported: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = tools.reference.command_parser

    def changed(module: str, before: list[str]) -> argparse.ArgumentParser:
        parser = original(module, before)
        if module == "train.sweep":
            change(parser)  # type: ignore[operator]
        return parser

    monkeypatch.setattr(tools.reference, "command_parser", changed)
    with pytest.raises(AssertionError) as failure:
        test_the_reference_is_what_the_commands_say()
    assert reported in str(failure.value) and "CHANGELOG.md" in str(failure.value)


@pytest.mark.parametrize("suffix", ["", ".zh-CN"])
def test_the_figures_of_the_picture_are_measured(suffix: str) -> None:
    picture = (REPOSITORY / "docs" / "images" / f"speed{suffix}.svg").read_text(encoding="utf-8")
    measured = (REPOSITORY / "bench" / "RESULTS.md").read_text(encoding="utf-8")
    figures = set(re.findall(r"\d+\.\d+", re.sub(r"<style>.*?</style>|<[^d][^>]*>", " ", picture, flags=re.DOTALL)))
    assert len(figures) > 8 and all(figure in measured for figure in figures), figures
