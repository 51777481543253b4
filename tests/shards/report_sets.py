"""Sets for the tests of the report, and how its pages are made and read."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import shards
import shards.report
from pipeline.build import build
from pipeline.settings import BuildSettings
from shards.common.command_line import Parser
from shards.report.command import add_parser
from shards.report.page import render
from shards.report.statistics import compute
from shards.vocabulary import Vocabulary
from tests.conftest import sample_records, write_corpus

TEXTS = [record["text"] for record in sample_records()]
# Short and long texts, some of them more than once, in more scripts than the sample has.
MIXED = [
    *TEXTS[:40],
    "Ещё один текст, по-русски.\nСтрока два\tс табуляцией.",
    "かな と カナ、한국어도 조금 있다. Ωμέγα! ½ ✓ 🙂",
    "重",
    *TEXTS[5:25],
    "重",
    "Latin with àccénts, digits 0123 ４５６, and more.",
    *TEXTS[:3],
    "重",
    TEXTS[0],
]


def build_set(directory: Path, tokenizer: Path, texts: Sequence[str], **options: Any) -> Path:
    directory.mkdir(exist_ok=True, parents=True)
    corpus = write_corpus(directory / "corpus.json", [{"text": text} for text in texts])
    settings = BuildSettings(**{"block_tokens": 64, "unit_bytes": 20_000, "val_fraction": 0.2, **options})
    build([str(corpus)], directory / "set", tokenizer_name=str(tokenizer), settings=settings, num_workers=1)
    return directory / "set"


def documents(directory: Path) -> list[list[int]]:
    """The ids of every document of the set, without EOS."""
    shard_set = shards.open(directory)
    return [document.tolist() for name in ("train", "val") for document in shard_set[name].documents()]


def report(*arguments: object) -> int:
    """`python -m shards report …`, in this process."""
    parser = Parser(prog="python -m shards")
    add_parser(parser.add_subparsers(dest="command", required=True))
    options: argparse.Namespace = parser.parse_args(["report", *map(str, arguments)])
    status: int = options.run(options)
    return status


def page_of(directory: Path, seed: int = 2333) -> str:
    shard_set = shards.open(directory)
    return render(shard_set.manifest, compute(shard_set, seed=seed), Vocabulary(shard_set.tokenizer_path)).decode()


class PageParser(HTMLParser):
    """Elements, attributes and text of a page; fails where an element isn't closed in its turn."""

    VOID = ("meta",)
    SHAPES = ("rect", "line", "polyline")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self._open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.SHAPES
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)
