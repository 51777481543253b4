"""The Python examples in the READMEs run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.build import build
from pipeline.settings import BuildSettings
from tests.conftest import REPOSITORY, SAMPLE

READMES = ("README.md", "README.zh-CN.md")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (REPOSITORY / name).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """A directory with the sample's shard set where the READMEs have it."""
    directory = tmp_path_factory.mktemp("project")
    out = directory / "data" / "shards" / "wikipedia-zh-sample"
    settings = BuildSettings(block_tokens=128, packing="best-fit", val_fraction=0.05)
    build([str(SAMPLE)], out, tokenizer_name=str(tokenizer_dir), settings=settings, num_workers=1)
    return directory


@pytest.mark.parametrize("name", READMES)
def test_python_examples_run(name: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    examples = blocks(name, "python")
    assert len(examples) == 3
    results = []
    for example in examples:
        names: dict[str, object] = {}
        exec(example, names)
        results.append(names)
    bare, opened, ordered = results
    assert isinstance(bare["blocks"], np.ndarray) and isinstance(opened["train"], object)
    assert np.array_equal(bare["blocks"], opened["train"][:])  # type: ignore[index]
    assert sorted(opened["order"].tolist()) == list(range(len(opened["train"])))  # type: ignore[attr-defined,arg-type]
    assert ordered["batch"].shape == (32, 128)  # type: ignore[attr-defined]
    assert ordered["mine"].tolist() == [[228, 229, 230, 231]]  # type: ignore[attr-defined]


def test_both_readmes_have_the_same_examples() -> None:
    english, chinese = (
        [re.sub(r"  #.*", "", example) for language in ("bash", "python") for example in blocks(name, language)]
        for name in READMES
    )
    assert english == chinese
