"""The files of a tokenizer: read, checked, brought to one form, with what a manifest records of them; and ids as text.

No tokenizer library is needed: a set of ids from elsewhere has the same entry, and the same `tokenizer.json` byte for byte,
as one that was built with that tokenizer. Of ids back to text there is what looking at shards needs: byte-level BPE
(GPT-2's table of bytes as visible characters) and, for other kinds, the vocabulary's own strings.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from shards.common.errors import InputError
from shards.common.files import check_digest, regular_file_bytes, write_atomically
from shards.common.text import in_utf8, nearest, printable
from shards.layout import MANIFEST_NAME, TOKENIZER_DIRECTORY, TOKENIZER_FILES
from shards.manifest import Manifest, TokenizerEntry, read_manifest

TOKENIZER_JSON: Final = "tokenizer.json"
TOKENIZER_CONFIG_JSON: Final = "tokenizer_config.json"
KNOWN_EOS_TOKENS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[EOS]", "<|im_end|>")

MAX_VOCAB_SIZE = 2**24
MAX_ADDED_TOKENS = 2**16
_BYTE_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")


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
        return Vocabulary(self.tokenizer_json, TOKENIZER_JSON, no_text=(self.entry.eos_id, self.entry.begin_id))


def read_tokenizer_files(name: str, path: Path, *, where: str = "") -> TokenizerFiles:
    """The tokenizer in the file `path`, a `tokenizer.json`; the configuration beside it may name EOS.

    `where` is what errors call it. Raises `InputError`.
    """
    where, config_path = where or str(path), path.with_name(TOKENIZER_CONFIG_JSON)
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
            files = tokenizer_of_set(directory, read_manifest(directory))
            return dataclasses.replace(files, entry=dataclasses.replace(files.entry, begin_id=None))
    file = path / TOKENIZER_JSON if path.is_dir() else path
    if not file.is_file():
        reason = f"no {TOKENIZER_JSON} in it" if path.is_dir() else "no such file or directory"
        raise InputError(
            f"tokenizer: {path}: {reason}; expected a shard set, a directory with a {TOKENIZER_JSON}, or such a file"
        )
    return read_tokenizer_files(in_utf8(file.resolve().parent.name), file)


def tokenizer_of_set(path: Path, manifest: Manifest) -> TokenizerFiles:
    """The tokenizer of the shard set at `path`. Raises `InputError` if a file isn't as the manifest says."""
    contents = {}
    for entry in manifest.other_files:
        directory, _, name = entry.name.rpartition("/")
        if directory == TOKENIZER_DIRECTORY:
            file, content = path / entry.name, io.BytesIO()
            regular_file_bytes(file)
            check_digest(file, entry.digest, write=content.write)
            contents[name] = content.getvalue()
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
    eos_token = _eos_token(config, added, where)
    eos_id = added.get(eos_token, vocabulary.get(eos_token) if isinstance(vocabulary, dict) else None)
    if eos_id is None:
        raise InputError(f"tokenizer: {where}: the EOS token {printable(eos_token)!r} is not in the vocabulary")
    config = {**config}
    config.setdefault("eos_token", eos_token)
    config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    compact = orjson.dumps(content)
    sha256 = hashlib.sha256(compact).hexdigest()
    return TokenizerFiles(
        contents={
            TOKENIZER_JSON: compact,
            TOKENIZER_CONFIG_JSON: json.dumps(config, ensure_ascii=False, indent=2).encode(),
        },
        entry=TokenizerEntry(name=name, vocab_size=vocab_size, eos_id=eos_id, eos_token=eos_token, sha256=sha256),
    )


def _eos_token(config: dict[str, Any], added: Iterable[str], where: str) -> str:
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


def with_begin_token(files: TokenizerFiles, token: str) -> TokenizerFiles:
    """The tokenizer of a set whose documents begin with `token`. Raises `InputError`."""
    ids = files.vocabulary.ids()
    begin_id = ids.get(token, -1)
    if begin_id not in range(files.entry.vocab_size):
        hint = nearest(token, (piece for piece in ids if piece.startswith(("<", "["))))
        raise InputError(f"begin_token: {token!r} is not in the tokenizer {files.entry.name!r}{hint}")
    if begin_id == files.eos_id:
        raise InputError(f"begin_token: {token!r} is EOS, which ends documents; choose another token, or none")
    return dataclasses.replace(files, entry=dataclasses.replace(files.entry, begin_id=begin_id))


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer's files, no links and nothing else, into the directory `target`."""
    for file in (source / name for name in TOKENIZER_FILES):
        if file.is_file() and not file.is_symlink():
            write_atomically(target / file.name, file.read_bytes())


def bytes_of_characters() -> dict[str, int]:
    """GPT-2's table (openai/gpt-2, encoder.py, `bytes_to_unicode`), from character to byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


class Vocabulary:
    """The pieces of text that the ids stand for."""

    def __init__(self, tokenizer_json: bytes, where: str, no_text: Iterable[int | None] = ()) -> None:
        """`where` is what errors call the file; ids in `no_text` spell nothing, as special ones. Raises `InputError`."""
        try:
            content = json.loads(tokenizer_json)
            vocabulary = content["model"]["vocab"]
            added = content.get("added_tokens") or []
            is_byte_level = "ByteLevel" in json.dumps(content.get("decoder"))
            has_byte_fallback = bool(content["model"].get("byte_fallback"))
            if isinstance(vocabulary, list):  # Unigram: [piece, score] by id
                vocabulary = {piece: number for number, (piece, _score) in enumerate(vocabulary)}
            byte_of = bytes_of_characters() if is_byte_level else {}
            self._pieces = {
                number: _piece_bytes(piece, byte_of, has_byte_fallback) for piece, number in vocabulary.items()
            }
            self._pieces |= {token["id"]: token["content"].encode() for token in added}
            self._special = {*no_text, *(token["id"] for token in added if token.get("special"))}
            self._sizes: npt.NDArray[np.int64] | None = None
            if not all(type(number) is int and 0 <= number < MAX_VOCAB_SIZE for number in self._pieces):
                raise ValueError(f"ids are whole numbers below {MAX_VOCAB_SIZE:,}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{where}: not a tokenizer.json that can be read ({error!r})") from None

    def ids(self) -> dict[str, int]:
        """The ids of all pieces, of an added token where a piece is written like it."""
        return {piece.decode("utf-8", "replace"): number for number, piece in self._pieces.items()}

    def piece(self, token: int) -> bytes:
        """The bytes of one id; a token may hold a part of a character."""
        return self._pieces.get(token, f"<{token}>".encode())

    def text_sizes(self, tokens: npt.NDArray[np.uint32]) -> tuple[int, int]:
        """Bytes and characters of UTF-8 that `tokens` spell; special tokens spell nothing."""
        if self._sizes is None:
            self._sizes = np.zeros((2, max(self._pieces, default=0) + 1), dtype=np.int64)
            for number, piece in self._pieces.items():
                if number not in self._special:
                    # A byte 10xxxxxx continues a character.
                    self._sizes[:, number] = len(piece), sum(byte & 0xC0 != 0x80 for byte in piece)
        num_bytes, num_chars = (int(sizes.take(tokens, mode="clip").sum()) for sizes in self._sizes)
        return num_bytes, num_chars

    def text(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`; a character cut in two at either end shows as U+FFFD."""
        return b"".join(self.piece(int(token)) for token in tokens).decode("utf-8", "replace")


def read_vocabulary(tokenizer_path: Path) -> Vocabulary:
    """The vocabulary of the tokenizer in a directory. Raises `InputError`."""
    path = tokenizer_path / "tokenizer.json"
    try:
        return Vocabulary(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None


def _piece_bytes(piece: str, byte_of: dict[str, int], has_byte_fallback: bool) -> bytes:
    """The bytes that a vocabulary entry stands for: `ä½ł` in a byte-level vocabulary is `你`, `<0xE4>` is one byte."""
    if byte_of and all(character in byte_of for character in piece):
        return bytes(byte_of[character] for character in piece)
    if has_byte_fallback and _BYTE_PIECE.fullmatch(piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode()
