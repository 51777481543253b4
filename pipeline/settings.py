"""The settings of a build: what, together with the corpus, decides every byte of the shard set.

The command line is made from these fields (`pipeline.__main__`): a field's metadata has its help and the name of its value.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Literal

from pipeline.fields import TextOf
from pipeline.readers.encodings import codec_name
from shards.common.errors import InputError, choice
from shards.common.text import in_utf8
from shards.manifest import Packing
from shards.order import DEFAULT_SEED, check_seed

DEFAULT_CHECK_EVERY = 1000
_LIMITS = {
    "min_chars": (0, 2**31 - 1),
    "block_tokens": (2, 2**20),
    "unit_bytes": (0, 2**50),
    "max_record_bytes": (1, 2**31 - 1),
}


def _option(default: Any, metavar: str, text: str, *, group: str) -> Any:
    return dataclasses.field(default=default, metadata={"metavar": metavar, "help": text, "group": group})


_TEXT, _TOKENS, _RUN = "what the documents are", "tokenizing and packing", "running"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Validated once, recorded in the manifest. The number of workers is not a setting: it changes no byte."""

    text_field: str = _option(
        "text", "NAME", "field with the text, or a path such as page.body or pages[].text", group=_TEXT
    )
    template: str = _option("", "TEXT", r"text made of several fields, e.g. '{title}\n{text}'", group=_TEXT)
    transform: str = _option(
        "",
        "FILE.py[:NAME]",
        "your own function from a record to its text, a list of texts, or None to drop it (NAME: transform); it is run "
        "in the workers, with all your rights",
        group=_TEXT,
    )
    document_separator: str = _option(
        "", "LINE", "the line between documents in .txt files (a file is one document)", group=_TEXT
    )
    encoding: str = _option("", "NAME", "of text that isn't UTF-8, such as gb18030, big5 or utf-16", group=_TEXT)
    min_chars: int = _option(0, "N", "drop documents of fewer characters", group=_TEXT)
    drop_repetitive: bool = _option(
        False, "", "drop documents that repeat their lines or n-grams too much, by the rules of Gopher", group=_TEXT
    )
    dedup: Literal["off", "exact", "near"] = _option(
        "off",
        "",
        "drop documents that occurred before; near: and those much like one (similarity 0.8), for 0.3 kB of disk each",
        group=_TEXT,
    )
    on_bad_record: Literal["fail", "skip"] = _option(
        "fail", "", "what to do with a record that can't be read", group=_TEXT
    )
    max_record_bytes: int = _option(256 * 2**20, "BYTES", "a larger record of JSON or text is a bad one", group=_TEXT)
    block_tokens: int = _option(512, "N", "block size in tokens", group=_TOKENS)
    packing: Packing = _option(
        "concat", "", "concat joins documents; best-fit cuts none that fits a block", group=_TOKENS
    )
    special_tokens: Literal["text", "parse"] = _option(
        "text", "", "what <|endoftext|> and the like in a text are: ordinary text, or special tokens", group=_TOKENS
    )
    begin_token: str = _option(
        "", "TOKEN", "the tokenizer's own that each document begins with, such as <|begin_of_text|>", group=_TOKENS
    )
    val_fraction: float = _option(0.1, "F", "share of texts held out", group=_TOKENS)
    seed: int = _option(DEFAULT_SEED, "N", "of the train/val split", group=_TOKENS)
    unit_bytes: int = _option(
        0,
        "BYTES",
        "bytes of source in a unit of work and so in a shard; by default it follows from the corpus",
        group=_RUN,
    )

    def __post_init__(self) -> None:
        if not self.text_field:
            raise InputError("text_field: expected a field's name, found an empty string")
        object.__setattr__(self, "encoding", codec_name(self.encoding or "utf-8"))
        if self.transform and (self.template or self.text_field != "text"):
            raise InputError("transform: the function makes the text; leave out text_field and template")
        if self.template and self.text_field != "text":
            raise InputError("template: it names the fields itself; leave out text_field")
        TextOf(self.text_field, self.template)
        if not 0 <= self.val_fraction < 1:
            raise InputError(f"val_fraction: expected 0 or more and less than 1, found {self.val_fraction}")
        check_seed(self.seed)
        for name, (least, most) in _LIMITS.items():
            if not least <= getattr(self, name) <= most:
                raise InputError(f"{name}: expected {least:,} to {most:,}, found {getattr(self, name):,}")
        for name, kind in typing.get_type_hints(type(self)).items():
            value = getattr(self, name)
            if typing.get_origin(kind) is Literal:
                choice(name, value, typing.get_args(kind))
            elif kind is str and in_utf8(value) != value:
                raise InputError(f"{name}: expected text in UTF-8, found {value!r}")

    def as_dict(self) -> dict[str, Any]:
        """As manifests have it: an option that came later is left out where it isn't used."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value or name != "begin_token"}
