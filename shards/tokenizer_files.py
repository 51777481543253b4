"""The files of a tokenizer: read, checked, brought to one form, with what a manifest records of them.

No tokenizer library is needed: a set of ids from elsewhere has the same entry, and the same `tokenizer.json` byte for byte,
as one that was built with that tokenizer.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any, Final

import orjson
from blake3 import blake3

from shards.common.errors import InputError
from shards.common.text import printable
from shards.layout import MANIFEST_NAME, TOKENIZER_DIRECTORY
from shards.manifest import Manifest, TokenizerEntry, read_manifest
from shards.vocabulary import Vocabulary, tokenizer_contents

TOKENIZER_JSON: Final = "tokenizer.json"
TOKENIZER_CONFIG_JSON: Final = "tokenizer_config.json"
KNOWN_EOS_TOKENS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[EOS]", "<|im_end|>")

MAX_VOCAB_SIZE = 2**24
MAX_ADDED_TOKENS = 2**16


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """A tokenizer's own files, by name, with what the manifest records of them."""

    contents: dict[str, bytes]
    entry: TokenizerEntry

    @property
    def tokenizer_json(self) -> bytes:
        return self.contents[TOKENIZER_JSON]

    @property
    def eos_id(self) -> int:
        return self.entry.eos_id

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer_json, TOKENIZER_JSON)


def read_tokenizer_files(name: str, path: Path, config_path: Path | None = None, *, where: str = "") -> TokenizerFiles:
    """The tokenizer in the file `path`, a `tokenizer.json`; the configuration beside it, or `config_path`, may name EOS.

    `where` is what errors call it. Raises `InputError`.
    """
    where = where or str(path)
    if config_path is None:
        config_path = path.with_name(TOKENIZER_CONFIG_JSON)
    try:
        content = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"tokenizer: {where}: not a tokenizer.json that can be read ({error!r})") from None
    config: Any = {}
    if config_path.is_file():
        try:
            config = json.loads(config_path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise InputError(f"tokenizer: {config_path}: not valid JSON ({error})") from None
        if not isinstance(config, dict):
            raise InputError(f"tokenizer: {config_path}: expected an object, found {type(config).__name__}")
    return make_tokenizer_files(name, content, config, where=where)


def load_tokenizer(path: Path) -> TokenizerFiles:
    """The tokenizer of a shard set, in a directory with a `tokenizer.json`, or in such a file. Raises `InputError`."""
    for directory in (path, path.parent if path.name == TOKENIZER_DIRECTORY else path):
        if (directory / MANIFEST_NAME).is_file():
            return tokenizer_of_set(directory, read_manifest(directory))
    file = path / TOKENIZER_JSON if path.is_dir() else path
    if not file.is_file():
        reason = f"no {TOKENIZER_JSON} in it" if path.is_dir() else "no such file or directory"
        raise InputError(
            f"tokenizer: {path}: {reason}; expected a shard set, a directory with a {TOKENIZER_JSON}, or such a file"
        )
    return read_tokenizer_files(file.resolve().parent.name, file)


def tokenizer_of_set(path: Path, manifest: Manifest) -> TokenizerFiles:
    """The tokenizer of the shard set at `path`. Raises `InputError` if a file isn't as the manifest says."""
    found, contents = tokenizer_contents(path / TOKENIZER_DIRECTORY), {}
    for entry in manifest.other_files:
        directory, _, name = entry.name.rpartition("/")
        if directory != TOKENIZER_DIRECTORY:
            continue
        if name not in found:
            raise InputError(f"{path / entry.name}: no such file; build the set again")
        digest = blake3(found[name]).hexdigest()
        if digest != entry.digest:
            raise InputError(
                f"{path / entry.name}: expected digest {entry.digest}, found {digest}; the file was changed, build the "
                "set again"
            )
        contents[name] = found[name]
    return TokenizerFiles(contents=contents, entry=manifest.tokenizer)


def make_tokenizer_files(name: str, content: Any, config: dict[str, Any], *, where: str) -> TokenizerFiles:
    """The tokenizer from the values of its two files. Raises `InputError`."""
    try:
        added = {token["content"]: int(token["id"]) for token in content.get("added_tokens") or []}
        vocabulary = content["model"]["vocab"]
        largest = len(vocabulary) - 1 if isinstance(vocabulary, list) else max(vocabulary.values())
        vocab_size = max([largest, *added.values()]) + 1
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"tokenizer: {where}: not a tokenizer.json that can be read ({error!r})") from None
    # The libraries keep tables as long as the largest id, and look for each added token in each text.
    if type(vocab_size) is not int or not 0 < vocab_size <= MAX_VOCAB_SIZE:
        raise InputError(f"tokenizer: {where}: expected ids below {MAX_VOCAB_SIZE:,}, found {str(vocab_size - 1)[:40]}")
    if len(added) > MAX_ADDED_TOKENS:
        raise InputError(
            f"tokenizer: {where}: expected at most {MAX_ADDED_TOKENS:,} added tokens, found {len(added):,}"
        )
    eos_token = _eos_token(config, list(added), where)
    eos_id = added.get(eos_token)
    if eos_id is None and isinstance(vocabulary, dict):
        eos_id = vocabulary.get(eos_token)
    if eos_id is None:
        raise InputError(f"tokenizer: {where}: the EOS token {printable(eos_token)!r} is not in the vocabulary")
    config = {**config}
    config.setdefault("eos_token", eos_token)
    config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    compact = orjson.dumps(content)
    return TokenizerFiles(
        contents={
            TOKENIZER_JSON: compact,
            TOKENIZER_CONFIG_JSON: json.dumps(config, ensure_ascii=False, indent=2).encode(),
        },
        entry=TokenizerEntry(
            name=name,
            vocab_size=vocab_size,
            eos_id=eos_id,
            eos_token=eos_token,
            sha256=hashlib.sha256(compact).hexdigest(),
        ),
    )


def _eos_token(config: dict[str, Any], added: list[str], where: str) -> str:
    named = config.get("eos_token")
    if isinstance(named, dict):
        named = named.get("content")
    if isinstance(named, str):
        return named
    for token in KNOWN_EOS_TOKENS:
        if token in added:
            return token
    raise InputError(
        f"tokenizer: {where}: nothing says which token ends a document; "
        f'add {{"eos_token": "…"}} to {TOKENIZER_CONFIG_JSON} beside it'
    )
