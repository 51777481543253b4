"""The tokenizer of a set in the making, from its files alone: no tokenizer library is needed to take ids over.

The same rules as where texts are tokenized (`pipeline.tokenizers`, which `shards` doesn't know), so that a set of ids from
elsewhere has the same entry, and the same `tokenizer.json` byte for byte, as one that was built with that tokenizer.
"""

from __future__ import annotations

import dataclasses
import decimal
import hashlib
import json
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.manifest import MANIFEST_NAME, TOKENIZER_DIRECTORY, TokenizerEntry, read_manifest

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG_JSON = "tokenizer_config.json"
KNOWN_EOS_TOKENS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[EOS]", "<|im_end|>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """A tokenizer's own files, by name, with what the manifest records of them."""

    contents: dict[str, bytes]
    entry: TokenizerEntry


def load_tokenizer(path: Path) -> TokenizerFiles:
    """The tokenizer of a shard set, in a directory with a `tokenizer.json`, or in such a file. Raises `InputError`."""
    for directory in (path, path.parent if path.name == TOKENIZER_DIRECTORY else path):
        if (directory / MANIFEST_NAME).is_file():
            return _tokenizer_of_set(directory)
    file = path / TOKENIZER_JSON if path.is_dir() else path
    if not file.is_file():
        reason = f"no {TOKENIZER_JSON} in it" if path.is_dir() else "no such file or directory"
        raise InputError(
            f"--tokenizer {path}: {reason}; expected a shard set, a directory with a {TOKENIZER_JSON}, or such a file"
        )
    return read_tokenizer(file)


def _tokenizer_of_set(path: Path) -> TokenizerFiles:
    entry, directory = read_manifest(path).tokenizer, path / TOKENIZER_DIRECTORY
    try:
        contents = {file.name: file.read_bytes() for file in sorted(directory.iterdir()) if file.is_file()}
    except OSError as error:
        raise InputError(f"{directory}: {error.strerror}; the shard set is damaged") from None
    digest = hashlib.sha256(contents.get(TOKENIZER_JSON, b"")).hexdigest()
    if digest != entry.sha256:
        raise InputError(
            f"{directory / TOKENIZER_JSON}: expected sha256 {entry.sha256}, found {digest}; it was changed"
        )
    return TokenizerFiles(contents=contents, entry=entry)


def read_tokenizer(path: Path) -> TokenizerFiles:
    """The tokenizer in the file `path`, a `tokenizer.json`; the `tokenizer_config.json` beside it may name EOS."""
    try:
        content = json.loads(path.read_bytes())
        added = {token["content"]: int(token["id"]) for token in content.get("added_tokens") or []}
        vocabulary = content["model"]["vocab"]
        largest = len(vocabulary) - 1 if isinstance(vocabulary, list) else max(vocabulary.values())
        vocab_size = max([largest, *added.values()]) + 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"tokenizer: {path}: not a {TOKENIZER_JSON} that can be read ({error!r})") from None
    config_path = path.with_name(TOKENIZER_CONFIG_JSON)
    config: dict[str, Any] = {}
    if config_path.is_file():
        try:
            config = json.loads(config_path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise InputError(f"tokenizer: {config_path}: not valid JSON ({error})") from None
        if not isinstance(config, dict):
            raise InputError(f"tokenizer: {config_path}: expected an object, found {type(config).__name__}")
    eos_token = _eos_token(config, list(added), path)
    eos_id = added.get(eos_token)
    if eos_id is None and isinstance(vocabulary, dict):
        eos_id = vocabulary.get(eos_token)
    if eos_id is None:
        raise InputError(f"tokenizer: {path}: the EOS token {eos_token!r} is not in the vocabulary")
    config.setdefault("eos_token", eos_token)
    config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    compact = compact_json(content).encode()
    return TokenizerFiles(
        contents={
            TOKENIZER_JSON: compact,
            TOKENIZER_CONFIG_JSON: json.dumps(config, ensure_ascii=False, indent=2).encode(),
        },
        entry=TokenizerEntry(
            name=path.resolve().parent.name,
            vocab_size=vocab_size,
            eos_id=eos_id,
            eos_token=eos_token,
            sha256=hashlib.sha256(compact).hexdigest(),
        ),
    )


def _eos_token(config: dict[str, Any], added: list[str], path: Path) -> str:
    named = config.get("eos_token")
    if isinstance(named, dict):
        named = named.get("content")
    if isinstance(named, str):
        return named
    for token in KNOWN_EOS_TOKENS:
        if token in added:
            return token
    raise InputError(
        f"tokenizer: {path}: nothing says which token ends a document; "
        f'add {{"eos_token": "…"}} to {TOKENIZER_CONFIG_JSON} beside it'
    )


def compact_json(value: Any) -> str:
    """JSON as orjson writes it: no white space, nothing escaped that needn't be, and its way with fractions.

    >>> compact_json({"a": [1, 1e-5, "\u00e9"]})
    '{"a":[1,0.00001,"\u00e9"]}'
    """
    if isinstance(value, dict):
        items = (f"{json.dumps(key, ensure_ascii=False)}:{compact_json(item)}" for key, item in value.items())
        return "{" + ",".join(items) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(compact_json, value)) + "]"
    if isinstance(value, float):
        return _number(value)
    return json.dumps(value, ensure_ascii=False)


def _number(value: float) -> str:
    """The shortest digits that mean `value`; written out between 1e-5 and 1e16, else as `1.5e-7` and `1e+16`."""
    sign, digits, exponent = decimal.Decimal(repr(value)).normalize().as_tuple()
    point = len(digits) + int(exponent)  # the number is 0.DIGITS × 10**point
    if value == 0 or -5 < point <= 16:
        text = format(decimal.Decimal(repr(value)).normalize(), "f")
        return text if "." in text else text + ".0"
    text = "".join(map(str, digits))
    fraction = f".{text[1:]}" if len(text) > 1 else ""
    return f"{'-' * sign}{text[0]}{fraction}e{'+' if point > 0 else ''}{point - 1}"
