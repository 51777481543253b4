"""The documentation is true: links lead somewhere, commands parse, examples run, quoted errors are in the source.

A fenced block after the line `<!-- runs -->` is executed, all such blocks of a page one after another in one directory
that has the sample corpus, its tokenizer, its shard set and the configurations; so are the reference's Python examples.
`<!-- runs slowly -->` is for `make test-all`.
"""

from __future__ import annotations

import ast
import functools
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.build import build
from pipeline.settings import BuildSettings
from shards.common.errors import InputError
from shards.packing import PACKERS
from shards.writer import ShardWriter
from tests.conftest import REPOSITORY, SAMPLE
from train.settings import load_settings, option_names

PAGES = sorted(
    str(path.relative_to(REPOSITORY)) for path in (*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"))
)
PACKAGES = ("pipeline", "shards", "train")
FENCE = re.compile(
    r"^(?P<mark><!-- runs(?P<slowly> slowly)? -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)


def content(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


# ---- links ----


@functools.cache
def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#{1,6} (.+)$", FENCE.sub("", content(page)), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        name = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        number = found.get(name, 0)
        found[name] = number + 1
        names.add(f"{name}-{number}" if number else name)
    return names


def links(page: str) -> list[str]:
    text = without_code(content(page))
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


def examples(page: str, *languages: str) -> list[str]:
    return [match["code"] for match in FENCE.finditer(content(page)) if match["language"] in languages]


@pytest.mark.parametrize("page", ["README", "docs/tutorial"])
def test_the_chinese_page_has_the_same_examples(page: str) -> None:
    pages = [examples(f"{page}{suffix}.md", "bash", "python") for suffix in ("", ".zh-CN")]
    english, chinese = ([re.sub(r" *#.*", "", code) for code in codes] for codes in pages)
    assert english == chinese


def test_every_picture_is_used() -> None:
    used = {Path(link).name for page in PAGES for link in links(page)}
    for picture in (REPOSITORY / "docs" / "images").iterdir():
        assert picture.name in used, picture


# ---- commands ----


def commands(page: str) -> Iterator[list[str]]:
    """Each command line of the page's shell blocks and of its inline code, as words."""
    text = content(page)
    lines: list[str] = []
    for match in FENCE.finditer(text):
        if match["language"] == "bash":
            lines += match["code"].replace("\\\n", " ").splitlines()
    lines += [
        code.replace("\\|", "|")
        for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
        if re.match(r"(\S+/)?(python -m (pipeline|shards|train)|make|torchrun) ", code)
    ]
    before = ""
    for line in lines:
        try:
            words = shlex.split(before + line, comments=True)
        except ValueError:  # a quoted text of several lines
            before += line + "\n"
            continue
        before = ""
        if "…" in line:
            continue
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if words:
            yield words


def module_arguments(words: list[str]) -> tuple[str, list[str]] | None:
    """The module of ours that a command line calls with `-m`, and its arguments."""
    if Path(words[0]).name in ("python", "torchrun") and "-m" in words:
        module, *arguments = words[words.index("-m") + 1 :]
        if module.split(".")[0] in PACKAGES:
            return module, arguments
    return None


def parse(module: str, arguments: list[str]) -> None:
    """Parse as the command itself does. Raises `InputError`."""
    name = module if module not in PACKAGES else f"{module}.__main__"
    main = importlib.import_module(name)
    maker = getattr(main, "make_parser", None) or main.build_parser
    if "--help" in arguments:
        return
    options = vars(maker().parse_args(arguments))
    if module == "train" and (REPOSITORY / options["config"]).is_file():
        # Of the options, those that are settings; the others are the command's own.
        names = {*option_names()} - {"resume_from_checkpoint"}
        settings = {name: value for name, value in options.items() if name in names}
        load_settings(REPOSITORY / options["config"], settings)


def makefile_names() -> tuple[set[str], set[str]]:
    """Targets and variables that `make help` lists."""
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):", text, re.M)), set(re.findall(r"^([A-Z_]+) +\?=", text, re.M))


def check_make(words: list[str]) -> None:
    """Targets and variables are the Makefile's, and ARGS options of the command that the target calls."""
    targets, variables = makefile_names()
    called = []
    given = {}
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if equals:
            assert name in variables, f"make has no variable {name}"
            given[name] = value
        else:
            assert word in targets, f"make has no target {word}"
            called.append(word)
    for target, module, before in (
        ("train", "train", ["--config", given.get("CONFIG", "configs/sample.yaml"), "--output_dir", "runs/x"]),
        ("shards", "pipeline", ["build", "corpus.json", "--out", "data/shards/x"]),
        ("report", "shards", ["report", "data/shards/x"]),
    ):
        if target in called and given.get("ARGS"):
            parse(module, [*before, *shlex.split(given["ARGS"])])


@pytest.mark.parametrize("page", PAGES)
def test_every_command_parses(page: str) -> None:
    for words in commands(page):
        ours = module_arguments(words)
        try:
            if ours is not None and len(ours[1]) != 1:  # one word alone names a command
                parse(*ours)
            elif words[0] == "make":
                check_make(words)
        except (InputError, AssertionError) as error:
            pytest.fail(f"{page}: {shlex.join(words)}: {error}")


def test_commands_are_found() -> None:
    """The two tests around this one look at something."""
    found = [words for page in PAGES for words in commands(page)]
    assert sum(module_arguments(words) is not None for words in found) > 40
    assert sum(words[0] == "make" for words in found) > 10


# ---- examples that run ----


def runnable(page: str, *, slowly: bool) -> list[tuple[str, str]]:
    found = FENCE.finditer(content(page))
    return [(match["language"], match["code"]) for match in found if match["mark"] and bool(match["slowly"]) == slowly]


@pytest.fixture(scope="module")
def sample_set(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """A directory with what `make shards` makes, of a smaller tokenizer."""
    directory = tmp_path_factory.mktemp("documentation")
    out = directory / "shards" / "wikipedia-zh-sample"
    settings = BuildSettings(block_tokens=128, packing="best-fit", val_fraction=0.05)
    build([str(SAMPLE)], out, tokenizer_name=str(tokenizer_dir), settings=settings, num_workers=1)
    return out


@pytest.fixture
def project(tmp_path: Path, sample_set: Path, tokenizer_dir: Path) -> Path:
    """A directory that looks like the repository after `make shards`."""
    (tmp_path / "data" / "shards").mkdir(parents=True)
    (tmp_path / "data" / "tokenizers").mkdir()
    (tmp_path / "data" / "sample").symlink_to(SAMPLE.parent)
    (tmp_path / "data" / "shards" / sample_set.name).symlink_to(sample_set)
    (tmp_path / "data" / "tokenizers" / "wikipedia-zh-sample").symlink_to(tokenizer_dir)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "bin" / "torchrun").symlink_to(Path(sys.executable).with_name("torchrun"))
    return tmp_path


def run_blocks(blocks: list[tuple[str, str]], project: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{Path(sys.executable).parent}:{project / 'bin'}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
    }
    for language, code in blocks:
        shell = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [sys.executable, "-c"]
        result = subprocess.run([*shell, code], cwd=project, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{code}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page, slowly=False)])
def test_examples_run(page: str, project: Path) -> None:
    run_blocks(runnable(page, slowly=False), project)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page, slowly=True)])
def test_slow_examples_run(page: str, project: Path) -> None:
    found = FENCE.finditer(content(page))
    run_blocks([(match["language"], match["code"]) for match in found if match["mark"]], project)


def test_python_examples_of_the_reference_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    results: list[dict[str, Any]] = []
    for example in examples("docs/reference.md", "python"):
        results.append({})
        exec(example, results[-1])
    bare, opened, ordered = results
    assert np.array_equal(bare["blocks"], opened["train"][:])
    assert sorted(opened["order"].tolist()) == list(range(len(opened["train"])))
    assert ordered["batch"].shape == (32, 128)
    assert ordered["mine"].tolist() == [[228, 229, 230, 231]]


@pytest.mark.parametrize(
    ("packing", "documents"),
    [("concat", [[0, 1, 2, 6], [3, 4, 6], [5, 6]]), ("best-fit", [[0, 1, 6], [0, 1, 2, 3, 4, 6]])],
)
def test_the_worked_example_of_the_format(packing: Any, documents: list[list[int]], tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", 0, block_tokens=4) as writer:
        packer = PACKERS[packing](writer, 6)
        lengths = np.array([len(document) for document in documents])
        packer.add(np.concatenate(documents).astype(np.uint32), lengths, num_text_bytes=0, num_text_chars=0)
        packer.finish()
    made = [(tmp_path / f"train-00000.{suffix}").read_bytes() for suffix in ("bin", "idx")]
    section = content("docs/format.md").partition("## Worked example")[2].partition("\n## ")[0]
    if packing == "concat":
        dumps = re.findall(r"```\n(.*?)```", section, re.S)[0].split("\n\n")
        rows = [re.findall(r"^[0-9a-f]{2}  ((?:[0-9a-f]{2} {1,2})+)(?= |$)", dump, re.M) for dump in dumps]
        assert [bytes.fromhex("".join(dump)) for dump in rows] == made
    else:
        names = dict(enumerate(["a", "b", "c", "d", "e", "f", "<eos>"]))
        blocks = [[names[token] for token in block] for block in np.frombuffer(made[0], "<u4").reshape(-1, 4).tolist()]
        found = [code.replace("_", "<eos>").split() for code in re.findall(r"`([^`]+)`", FENCE.sub("", section))]
        assert all(block in found for block in blocks)


# ---- error messages ----


@functools.cache
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


def quoted_messages() -> list[str]:
    """The messages in the first column of the tables of the page on troubleshooting."""
    rows = re.findall(r"^\| `` ?(.+?) ?`` \|", content("docs/troubleshooting.md"), re.M)
    rows += re.findall(r"^\| `([^`]+)` \|", content("docs/troubleshooting.md"), re.M)
    return [row.replace("\\|", "|") for row in rows]


def test_every_quoted_message_is_in_the_source() -> None:
    quoted = quoted_messages()
    assert len(quoted) > 100
    for message in quoted:
        # `…` stands for a value that is put in, and for text that is left out.
        parts = [re.escape(part) for part in message.split("…") if part]
        pattern = re.compile(".*".join(parts), re.S)
        assert any(pattern.search(text) for text in messages()), message


def test_the_index_by_error_text_leads_to_what_it_names() -> None:
    page = content("docs/troubleshooting.md")
    rows = re.findall(r"^- `(.+)`: \[.*\]\(([\w-]+\.md)?", page, re.M)
    assert len(rows) > 20
    for text, other in rows:
        target = content(f"docs/{other}") if other else page.partition("**All messages**")[2]
        assert text in re.sub(r"[`\\]", "", target), text


def test_the_first_pages_are_short() -> None:
    for page in ("README.md", "README.zh-CN.md"):
        assert len(content(page).splitlines()) <= 150


def test_the_index_leads_to_every_page() -> None:
    named = {Path(link.partition("#")[0]).name for link in links("docs/index.md")}
    assert {Path(page).name for page in PAGES} - named <= {"index.md"}


# ---- the citation ----


def test_versions_agree() -> None:
    version = re.search(r'^version = "([^"]+)"', (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert version is not None
    assert f'\nversion: "{version[1]}"\n' in (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{version[1]}]" in content("CHANGELOG.md")


# ---- the Chinese pages ----


@pytest.mark.parametrize("page", ["README.zh-CN.md", "docs/tutorial.zh-CN.md"])
def test_a_token_has_one_name_in_chinese(page: str) -> None:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`|<[^>]*>|\]\([^)]*\)", "", content(page), flags=re.M | re.S)
    assert text.count("词元（token）") == 1
    assert not re.findall(r".{0,10}[Tt]oken.{0,10}", text.replace("词元（token）", "", 1))
    assert text.index("词元") == text.index("词元（token）")
