"""The documentation is true: links lead somewhere, commands parse, the reference is current, quoted errors exist.

test_readme_commands.py runs the commands and the examples.
"""

from __future__ import annotations

import argparse
import ast
import doctest
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokenize_once
import tools.reference
from shards.common.errors import InputError
from shards.packing import PACKERS
from shards.writer import ShardWriter
from tests.conftest import REPOSITORY
from tests.test_makefile import make
from tools.licences import filled
from train.settings import load_settings, option_types, training_fields

PAGES = sorted(
    str(path.relative_to(REPOSITORY)) for path in (*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"))
)
PACKAGES = ("pipeline", "shards", "train")
FENCE = re.compile(r"^(?P<mark><!-- runs -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)


def content(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


# ---- links ----


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#{1,6} (.+)$", FENCE.sub("", content(page)), re.M)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def links(page: str) -> list[str]:
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", content(page)))
    found = re.findall(r"\]\(([^()\s]+(?:\([^()]*\))?)\)", text)
    return [*found, *re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", text)]


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / name if name else REPOSITORY / page
        assert target.exists(), f"{page}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(str(target.resolve().relative_to(REPOSITORY))), f"{page}: {link}"


@pytest.mark.parametrize("page", ["README", "docs/tutorial"])
def test_the_chinese_page_has_the_same_examples(page: str) -> None:
    english, chinese = (
        [
            re.sub(r" *#.*", "", block["code"])
            for block in FENCE.finditer(content(f"{page}{suffix}.md"))
            if block["language"] in ("bash", "python")
        ]
        for suffix in ("", ".zh-CN")
    )
    assert english == chinese


def test_every_picture_is_used() -> None:
    used = {Path(link).name for page in PAGES for link in links(page)}
    assert {path.name for path in (REPOSITORY / "docs" / "images").iterdir()} <= used


@pytest.mark.parametrize("suffix", ["", ".zh-CN"])
def test_the_figures_of_the_picture_are_measured(suffix: str) -> None:
    picture = re.sub(r"<style>.*?</style>|<[^d][^>]*>", " ", content(f"docs/images/speed{suffix}.svg"), flags=re.S)
    figures, measured = set(re.findall(r"\d+\.\d+", picture)), content("bench/RESULTS.md")
    assert len(figures) >= 8 and all(figure in measured for figure in figures), figures


# ---- commands ----


def commands(text: str) -> list[str]:
    """Each command line of the shell blocks, and all inline code, in their order."""
    found = []
    for piece in re.finditer(rf"{FENCE.pattern}|`(?P<inline>[^`\n]+)`", text, re.M | re.S):
        if piece["language"] == "bash":
            code = re.sub(r"(^|  )#.*", "", piece["code"].replace("\\\n", " "), flags=re.M)
            found += re.findall(r"""(?:[^\n'"]|"[^"]*"|'[^']*')+""", code)
        elif piece["inline"]:
            found.append(piece["inline"].replace("\\|", "|"))
    return [command.strip() for command in found]


def our_calls(command: str) -> Iterator[tuple[str, list[str]]]:
    """The modules of ours that a command calls, with their arguments: what make would call, and with its own names."""
    if re.match(r"([A-Z_]+=\S+ )*make ", command):
        words = shlex.split(command[command.index("make ") :])
        variables = re.findall(r"^([A-Z_]+) +\?=", content("Makefile"), re.M)
        assert {word.partition("=")[0] for word in words if "=" in word} <= set(variables), command
        finished = make("--dry-run", *words[1:])
        assert finished.returncode == 0, f"{command}: {finished.stderr}"
        command = finished.stdout
    elif not re.match(r"([A-Z_]+=\S+ )*(\S+/)?(python|torchrun) ", command):
        return
    for module, arguments in re.findall(r" -m ((?:pipeline|shards|train)\b[.\w]*) (.+)", command):
        yield module, shlex.split(arguments)


def parse(module: str, arguments: list[str]) -> None:
    """Parse as the command itself does. Raises `InputError`."""
    main = f"{module}.__main__" if hasattr(importlib.import_module(module), "__path__") else module
    options = vars(tools.reference.command_parser(main, []).parse_args(arguments))
    if module == "train" and (REPOSITORY / options["config"]).is_file():
        # Of the options, those that are settings; the others are the command's own.
        names = {*option_types()} - {"resume_from_checkpoint"}
        settings = {name: value for name, value in options.items() if name in names}
        load_settings(REPOSITORY / options["config"], settings)


def test_every_command_parses() -> None:
    whole = {command: page for page in PAGES for command in commands(content(page)) if "…" not in command}
    calls = [(command, *call) for command in whole for call in our_calls(command)]
    assert len(calls) > 70
    for command, module, arguments in calls:
        if len(arguments) > 1:  # one word alone names a command
            try:
                parse(module, arguments)
            except InputError as error:
                pytest.fail(f"{whole[command]}: {command}: {error}")


@pytest.mark.parametrize(("packing", "documents"), [("concat", ["abc$", "de$", "f$"]), ("best-fit", ["ab$", "abcde$"])])
def test_the_worked_example_of_the_format(packing: Any, documents: list[str], tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", 0, block_tokens=4) as writer:
        packer = PACKERS[packing](writer, 6)
        ids = np.array(["abcdef$".index(letter) for letter in "".join(documents)], np.uint32)
        packer.add(ids, np.array([len(document) for document in documents]), num_text_bytes=0, num_text_chars=0)
        packer.finish()
    made = [(tmp_path / f"train-00000.{suffix}").read_bytes() for suffix in ("bin", "idx")]
    section = content("docs/format.md").partition("## Worked example")[2].partition("\n## ")[0]
    if packing == "concat":
        dumps = re.findall(r"```\n(.*?)```", section, re.S)[0].split("\n\n")
        assert [bytes.fromhex("".join(line[4:54] for line in dump.splitlines())) for dump in dumps] == made
    else:
        for block in np.frombuffer(made[0], "<u4").reshape(-1, 4):
            names = " ".join("abcdef$"[token] for token in block).replace("$", "<eos>")
            assert f"`{names}`" in section.replace("_", "<eos>")


# ---- the reference ----


def test_the_reference_is_what_the_commands_say() -> None:
    page = content("docs/reference.md")
    assert filled(page, tools.reference.contents()).splitlines() == page.splitlines(), (
        "`make reference` writes docs/reference.md anew. CHANGELOG.md describes what is new. What is gone or renamed "
        "breaks the scripts that use it: take it back, or say in CHANGELOG.md what to use instead."
    )


def test_every_setting_and_every_subcommand_is_in_the_reference() -> None:
    page = content("docs/reference.md")
    for name in set(option_types()) - set(training_fields()):
        assert f"`--{name}" in page, name
    for package in ("pipeline", "shards"):
        parser = tools.reference.command_parser(f"{package}.__main__", [])
        (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        assert set(commands.choices) <= set(tokenize_once.COMMANDS)


# ---- error messages ----


def messages() -> list[str]:
    """Every text in the packages' source, with a NUL where a value is put in; for a call of `require` its message."""

    def text(node: ast.expr) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(map(text, node.values))
        return str(node.value) if isinstance(node, ast.Constant) else "\0"

    texts = []
    for package in PACKAGES:
        for path in (REPOSITORY / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                match node:
                    case ast.JoinedStr() | ast.Constant():
                        texts.append(text(node))
                    case ast.Call(func=ast.Name(id="require"), args=[_, where, expected, _]):
                        texts.append(f"{text(where)}: expected {text(expected)}, found \0")
                    case ast.Call(func=ast.Name(id="Allowed"), args=[expected, _]):
                        texts.append(f"\0: expected {text(expected)}, found \0")
    return texts


def test_every_quoted_message_is_in_the_source() -> None:
    rows = re.findall(r"^\| (?:`` ?(.+?) ?``|`([^`]+)`) \|", content("docs/troubleshooting.md"), re.M)
    assert len(rows) > 100
    texts = messages()
    for row in rows:
        # `…` stands for a value that is put in, and for text that is left out.
        parts = [re.escape(part) for part in "".join(row).replace("\\|", "|").split("…") if part]
        pattern = re.compile(".*".join(parts), re.S)
        assert any(pattern.search(text) for text in texts), row


def test_the_index_by_error_text_leads_to_what_it_names() -> None:
    page = content("docs/troubleshooting.md")
    rows = re.findall(r"^- `(.+)`: \[.*\]\(([\w-]+\.md)?", page, re.M)
    assert len(rows) > 20
    for text, other in rows:
        target = content(f"docs/{other}") if other else page.partition("**All messages**")[2]
        assert text in re.sub(r"[`\\]", "", target), text


def test_the_index_leads_to_every_page() -> None:
    named = {Path(link.partition("#")[0]).name for link in links("docs/index.md")}
    assert {Path(page).name for page in PAGES} - named <= {"index.md"}


def test_the_examples_in_the_docstrings_hold() -> None:
    paths = (
        path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py") if ">>> " in path.read_text()
    )
    names = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in paths]
    results = {name: doctest.testmod(importlib.import_module(name)) for name in names}
    assert len(results) > 12 and all(result.attempted and not result.failed for result in results.values()), results


def test_versions_agree() -> None:
    version = re.search(r'^version = "([^"]+)"', content("pyproject.toml"), re.M)
    assert version is not None
    assert f'\nversion: "{version[1]}"\n' in content("CITATION.cff")
    assert f"## [{version[1]}]" in content("CHANGELOG.md")
