"""pipeline → shards ← train, no circles within a package, `shards` starts in milliseconds; docs/architecture.md is true."""

from __future__ import annotations

import ast
import graphlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGES = ("pipeline", "shards", "train")
FORBIDDEN = {
    "shards": {"pipeline", "train", "torch", "transformers", "tokenizers", "datasets", "pyarrow"},
    "pipeline": {"train", "torch", "transformers", "accelerate"},
    "train": {"pipeline"},
}
# Modules that are about another package, which is there or not: nothing else imports them when it is imported itself.
ABOUT = {"shards/torch.py": {"torch"}, "shards/exchange/arrow.py": {"pyarrow"}}


def modules(package: str) -> dict[str, Path]:
    """The modules of a package by name; the package itself is one."""
    found = {}
    for path in sorted((REPOSITORY / package).rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_names(path: Path, *, at_import_only: bool) -> Iterator[str]:
    """What a module imports, as dotted names: all of it, or without what functions import when they run.

    Imports under TYPE_CHECKING count: who reads one module has to know the other.
    """
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if not (at_import_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            pending += ast.iter_child_nodes(node)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_runs_against_the_arrows(package: str) -> None:
    for path in modules(package).values():
        allowed = ABOUT.get(path.relative_to(REPOSITORY).as_posix(), set())
        found = {name.split(".")[0] for name in imported_names(path, at_import_only=False)}
        assert not found & (FORBIDDEN[package] - allowed), path


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    known = modules(package)
    imports = {
        name: (set(imported_names(path, at_import_only=True)) & known.keys()) - {name} for name, path in known.items()
    }
    graphlib.TopologicalSorter(imports).prepare()  # its error names the circle


def test_shards_imports_numpy_and_the_hash_alone() -> None:
    code = "import sys, json; before = set(sys.modules); import shards, shards.__main__; "
    code += "[getattr(shards, name) for name in shards.__all__]; "
    code += "print(json.dumps(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    output = subprocess.check_output([sys.executable, "-c", code], cwd=REPOSITORY, text=True)
    foreign = {name for name in json.loads(output) if name not in sys.stdlib_module_names}
    assert foreign <= {"shards", "numpy", "blake3", "_distutils_hack", "mkl"}


def test_no_module_is_longer_than_a_reader_takes_in() -> None:
    assert [path for package in PACKAGES for path in modules(package).values() if num_lines(path) > 400] == []


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


# ---- the page ----

PAGE = REPOSITORY / "docs" / "architecture.md"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_page_names_every_module_and_no_other(package: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (table,) = re.findall(rf"^\| `{package}/` \|.*?(?=^$)", text, re.M | re.S)
    first_column = "".join(row.split("|")[1] for row in table.splitlines()[2:])
    paths = (path.relative_to(REPOSITORY / package).with_suffix("") for path in modules(package).values())
    assert sorted(re.findall(r"`([^`]+)`", first_column)) == sorted(
        path.as_posix() for path in paths if path.name != "__init__"
    )


def test_the_page_counts_lines_as_they_are() -> None:
    stated = re.findall(r"`([a-z_/]+\.py)` \((\d+)(?: lines)?\)", PAGE.read_text(encoding="utf-8"))
    assert len(stated) >= 8
    for name, number in stated:
        assert abs(int(number) - num_lines(REPOSITORY / name)) <= 30, name
