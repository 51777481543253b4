"""pipeline → shards ← train, and `shards` starts in milliseconds."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FORBIDDEN = {
    "shards": {"pipeline", "train", "torch", "transformers", "tokenizers", "datasets", "pyarrow", "tqdm"},
    "pipeline": {"train", "torch", "transformers", "accelerate"},
    "train": {"pipeline"},
}


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_import_runs_against_the_arrows(package: str) -> None:
    modules = sorted((REPOSITORY / package).rglob("*.py"))
    assert modules
    for path in modules:
        # The exports to Arrow's formats need its library, when they run and there alone.
        allowed = {"pyarrow"} if path == REPOSITORY / "shards" / "exchange" / "arrow.py" else set()
        assert not imported_packages(path) & (FORBIDDEN[package] - allowed), path


def test_shards_imports_numpy_and_the_hash_alone() -> None:
    code = "import sys, json; before = set(sys.modules); import shards, shards.__main__; "
    code += "print(json.dumps(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    output = subprocess.check_output([sys.executable, "-c", code], cwd=REPOSITORY, text=True)
    foreign = {name for name in json.loads(output) if name not in sys.stdlib_module_names}
    assert foreign <= {"shards", "numpy", "blake3", "_distutils_hack", "mkl"}


@pytest.mark.parametrize("package", ["shards", "pipeline", "train"])
def test_no_module_is_longer_than_a_reader_takes_in(package: str) -> None:
    for path in (REPOSITORY / package).rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 450, path
