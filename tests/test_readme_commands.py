"""Every command of the READMEs, the reference and the questions and answers is run as it stands there, and examples are.

The commands are extracted from the text: the lines of shell blocks, and inline code. All inline code with a space in it
is either run, or an option that a command has, or one of `OTHERS`. Each command has a fresh copy of the tree,
in which those before it in the page have been run. What a reader has to fill in, and what would take hours, the network or
more machines, is replaced by the rules in `STAND_INS`; a command that no rule fits is run unchanged.

A fenced block of any page after the line `<!-- runs -->` is executed, all such blocks of a page one after another; so are
the reference's Python examples. A few of all are quick enough for `make test`, the rest is for `make test-all`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import tools.reference
from tests.conftest import REPOSITORY, SAMPLE, sample_records, write_corpus
from tests.hub_server import environment, serve
from tests.test_docs import FENCE, PAGES, commands, content
from tests.test_makefile import outside_make
from train.settings import option_types

# Pages, and the heading from which on their commands are run.
ENGLISH = [("README.md", ""), ("docs/reference.md", ""), ("docs/troubleshooting.md", "## Questions and answers")]
CHINESE = [("README.zh-CN.md", ""), ("docs/reference.md", ""), ("docs/questions.zh-CN.md", "")]
# Inline code with a space that is no command here: options, what a program says, the name of a command, what belongs to
# programs of others.
OTHERS = re.compile(
    r"--|(up to date|error: …|shards report)$"
    r"|(lm_eval|llamafactory-cli|swift|ollama|hf|python llama\.cpp/\S+|FROM|[a-z_]+:) "
)
SAMPLE_SET = "data/shards/wikipedia-zh-sample"

# (what is found in a command, what stands for it)
STAND_INS = [
    # What the reader fills in.
    (r"^(python -m pipeline tokenizer|transformers serve)$", r"\1 --help"),
    (r"^python -m shards verify DIR$", f"python -m shards verify {SAMPLE_SET}"),
    (r"CONFIG=…", "CONFIG=configs/sample.yaml RUN=own"),
    (r"CORPUS=…", "CORPUS=data/content.jsonl"),
    (r'^ARGS="--tokenizer DIR"', 'make shards CORPUS=data/mine.jsonl ARGS="--tokenizer data/tokenizers/mine"'),
    (r"^(ARGS=.*)runs/NAME/checkpoint-500", r"make train \1runs/sample/checkpoint-2"),
    (r"^(ARGS=)", r"make train RUN=own \1"),
    # Another machine, more processes than here, all tests within a test.
    (r"https://hf-mirror\.com", "$HF_ENDPOINT"),
    (r"NPROC=8", "NPROC=2"),
    (r"^make test$", 'make test ARGS="tests/test_command_line.py -k mistyped"'),
    (r"--tokens 1e8 ", "--tokens 20000 "),
    # An account.
    (r"^(\.venv/bin/swanlab (login|sync))\b.*", r"\1 --help"),
    # From Python.
    (r"^(pipeline\(.*\))$", r"""python -c 'from transformers import pipeline; print(\1("牛顿", max_new_tokens=2))'"""),
    (r"^(AutoModelForCausalLM\..*\))$", r"python -c 'from transformers import AutoModelForCausalLM; print(\1)'"),
]
# What is not there yet when a command is run that makes it.
MADE_BY = [
    (r"^(PIP_INDEX_URL=\S+ )?make train$", ["data/shards", "data/tokenizers", "runs"]),
    (r"^make setup$", [".venv"]),
    (r"^make shards$", [SAMPLE_SET, "data/tokenizers/wikipedia-zh-sample"]),
    (r"^make shards CORPUS=data/([\w-]+)", [r"data/shards/\1"]),
    (r"(make data|fetch wikipedia-zh)$", ["data/wikipedia-zh-cn-20240820.json"]),
    (r"make data .*--from ms", ["data/wikipedia-zh-20231101"]),
    (r"^make train CONFIG=configs/wikipedia(?!.* RUN=)", ["runs/wikipedia-zh-120m"]),
    (r"^make train .*RUN=([\w-]+)", [r"runs/\1"]),
    (r"checkpoint-2\"$", ["runs/sample/model", "runs/sample/checkpoint-4"]),
    (r"--out(?:put_dir)? (\S+)", [r"\1"]),
]
NEEDS_RUNS = re.compile(
    r"make (train|sweep|generate|compare)|^ARGS=\"(?!--tokenizer)|-m train|^transformers|^\w+(\.\w+)?\("
)
# The rest is run by `make test-all`; that all of them parse, test_docs.py finds.
QUICK = re.compile(r"make help|python -m shards (info data/shards/wiki:|merge)|docs/format\.md")


def run_slowly(name: str) -> list[pytest.MarkDecorator]:
    return [] if QUICK.match(name) else [pytest.mark.slow]


def written(pages: list[tuple[str, str]]) -> str:
    """The pages' text, without what is generated."""
    text = "\n".join(content(page)[content(page).index(start) :] for page, start in pages)
    return re.sub(r"<!-- (commands|refused|settings) -->.*?<!-- end -->", "", text, flags=re.S)


def is_command(code: str) -> bool:
    return (" " in code or code.startswith("AutoModelForCausalLM.")) and not OTHERS.match(code)


# In their order, each once.
ALL, ALL_CHINESE = (list(dict.fromkeys(filter(is_command, commands(written(pages))))) for pages in (ENGLISH, CHINESE))


def test_commands_are_found_in_both_languages() -> None:
    assert len(ALL) > 40
    assert sorted(ALL_CHINESE) == sorted(ALL)


def test_every_option_is_one_of_a_command() -> None:
    known = re.findall(r"--[\w.-]+", "".join(tools.reference.contents().values()))
    options = re.findall(r"`(--[\w.-]+)[^`\n]*`", written(ENGLISH + CHINESE))
    assert len(options) > 30
    assert set(options) <= {"--help", *known, *(f"--{name}" for name in option_types())}


@pytest.fixture(scope="module")
def hub_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A hub on loopback that has the corpora."""
    caches = tmp_path_factory.mktemp("caches")
    with serve() as hub:
        hub.put("datasets/fjcanyue/wikipedia-zh-cn", "wikipedia-zh-cn-20240820.json", SAMPLE.read_bytes())
        pq.write_table(pa.table({"text": [record["text"] for record in sample_records()]}), caches / "zh.parquet")
        name = "data/20231101.zh/train-00000-of-00001.parquet"
        hub.put("datasets/AI-ModelScope/wikipedia", name, (caches / "zh.parquet").read_bytes())
        yield {**environment(hub, caches), "HOME": str(caches), "OMP_NUM_THREADS": "1", "PIP_NO_INDEX": "1"}


def run(command: str, tree: Path, variables: dict[str, str]) -> None:
    """Run as typed in the root of the tree, in the environment that `make setup` makes."""
    path = f"{tree / '.venv' / 'bin'}:{os.environ['PATH']}"
    finished = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=tree,
        env={**outside_make(), **variables, "PATH": path},
        input="牛顿\n",  # for what asks
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, f"{command}\n{finished.stdout[-3000:]}\n{finished.stderr[-3000:]}"


def small_config(path: Path) -> str:
    """The configuration with a tiny model and four steps."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "training" in config:
        config["model"] |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        config["model"] |= {"num_attention_heads": 4, "num_key_value_heads": 2}
        config["training"] |= {"max_steps": 4, "save_steps": 2, "eval_steps": 2, "logging_steps": 1}
        config["training"] |= {"per_device_train_batch_size": 4, "dataloader_num_workers": 0}
        config["generation"] |= {"max_new_tokens": 2, "prompts": ["牛顿"]}
        config |= {"global_batch_blocks": 8} if "global_batch_blocks" in config else {}
    return yaml.safe_dump(config, allow_unicode=True)


@pytest.fixture(scope="module")
def tree_with_sets(tmp_path_factory: pytest.TempPathFactory, hub_environment: dict[str, str]) -> Path:
    """The repository after the commands that build, with the files that the page's reader has."""
    tree = tmp_path_factory.mktemp("readme") / "tree"
    for name in ("data", "docs"):
        (tree / name).mkdir(parents=True)
    for name in ("pipeline", "shards", "train", "tests", "data/sample", "docs/examples"):
        (tree / name).symlink_to(REPOSITORY / name)
    for name in ("Makefile", "pyproject.toml", "tokenize_once.py"):
        shutil.copy(REPOSITORY / name, tree)
    for name in ("requirements.lock", "requirements-dev.lock"):  # nothing to fetch
        (tree / name).touch()
    (tree / "configs").mkdir()
    for config in (REPOSITORY / "configs").glob("*.yaml"):
        (tree / "configs" / config.name).write_text(small_config(config), encoding="utf-8")
    make_environment(tree / ".venv")

    records = sample_records()
    write_corpus(tree / "data" / "mine.jsonl", records[:50], "lines")
    write_corpus(tree / "data" / "content.jsonl", [{"content": record["text"]} for record in records[:9]], "lines")
    shutil.copy(SAMPLE, tree / "data" / "wikipedia-zh-cn-20240820.json")
    (tree / "data" / "wikipedia-zh-20231101").mkdir()
    shutil.copy(Path(hub_environment["HOME"]) / "zh.parquet", tree / "data" / "wikipedia-zh-20231101")
    (tree / "prompts.txt").write_text("牛顿\n北京市\n", encoding="utf-8")
    run("make shards", tree, hub_environment)
    sample = tree / SAMPLE_SET
    corpora = ["wikipedia-zh-cn-20240820", "wikipedia-zh-20231101"]
    for name in ["a", "b", "ab", "wiki", "books", "mine", "sample-qwen2", *corpora]:
        shutil.copytree(sample, sample.with_name(name))
    shutil.copytree(tree / "data" / "tokenizers" / "wikipedia-zh-sample", tree / "data" / "tokenizers" / "mine")
    shutil.copytree(sample, tree / "other" / "tokens")
    return tree


def make_environment(directory: Path) -> None:
    """An environment with the packages that are installed here."""
    venv.create(directory, symlinks=True)
    (packages,) = (directory / "lib").glob("python*/site-packages")
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (packages / "here.pth").write_text("".join(f"{line}\n" for line in lines))
    for program in ("swanlab", "torchrun", "transformers"):
        (directory / "bin" / program).symlink_to(Path(sys.executable).with_name(program))
    for name in (".ready", ".dev-ready"):
        (directory / name).touch()


@pytest.fixture(scope="module")
def tree_with_runs(tree_with_sets: Path, hub_environment: dict[str, str]) -> Path:
    """The same after the first training."""
    tree = tree_with_sets.with_name("trained")
    shutil.copytree(tree_with_sets, tree, symlinks=True)
    run("make train", tree, hub_environment)
    for name in ("first", "mine", "wikipedia-zh-120m"):
        shutil.copytree(tree / "runs" / "sample", tree / "runs" / name)
    return tree


@pytest.mark.parametrize("command", [pytest.param(command, marks=run_slowly(command)) for command in ALL])
def test_command_runs(
    command: str, request: pytest.FixtureRequest, tmp_path: Path, hub_environment: dict[str, str]
) -> None:
    trained = NEEDS_RUNS.search(command)
    tree = tmp_path / "a tree"
    shutil.copytree(request.getfixturevalue("tree_with_runs" if trained else "tree_with_sets"), tree, symlinks=True)
    for pattern, stand_in in STAND_INS:
        command = re.sub(pattern, stand_in, command)
    matches = [(re.search(pattern, command), paths) for pattern, paths in MADE_BY]
    made = [tree / match.expand(path) for match, paths in matches if match for path in paths]
    subprocess.run(["rm", "-rf", *made], check=True)
    run(command, tree, hub_environment)
    assert [path for path in made if not path.exists()] == [], command


# ---- examples ----


def examples() -> Iterator[Any]:
    """Each page's marked blocks as commands."""
    for page in PAGES:
        code = [
            block["code"] if block["language"] == "bash" else f"python -c {shlex.quote(block['code'])}"
            for block in FENCE.finditer(content(page))
            if block["mark"]
        ]
        if code:
            yield pytest.param(code, id=page, marks=run_slowly(page))


@pytest.mark.parametrize("blocks", [*examples()])
def test_examples_run(blocks: list[str], tmp_path: Path, tree_with_sets: Path, hub_environment: dict[str, str]) -> None:
    tree = shutil.copytree(tree_with_sets, tmp_path / "tree", symlinks=True)
    for code in blocks:
        for path in re.findall(r"(?:--out|--output_dir|mkdir -p) (\S+)", code):
            shutil.rmtree(tree / path, ignore_errors=True)
        run(code, tree, hub_environment)


def test_python_examples_of_the_reference_run(tree_with_sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree_with_sets)
    results: list[dict[str, Any]] = []
    for block in FENCE.finditer(content("docs/reference.md")):
        if block["language"] == "python":
            results.append({})
            exec(block["code"], results[-1])
    bare, opened, ordered = results
    assert np.array_equal(bare["blocks"], opened["train"][:])
    assert sorted(opened["order"].tolist()) == list(range(len(opened["train"])))
    assert ordered["batch"].shape == (32, 128)
    assert ordered["mine"].tolist() == [[228, 229, 230, 231]]
