"""From ids back to text with the tokenizer's own `tokenizer.json`, for looking at shards.

Only what looking needs, so that `shards` depends on no tokenizer library: byte-level BPE (GPT-2's table of bytes
as visible characters) and, for other kinds, the vocabulary's own strings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.common.errors import InputError
from shards.common.files import write_atomically
from shards.layout import TOKENIZER_FILES

_BYTE_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer's files, and nothing else, into the directory `target`."""
    for name, content in tokenizer_contents(source).items():
        write_atomically(target / name, content)


def tokenizer_contents(directory: Path) -> dict[str, bytes]:
    """A tokenizer's files in `directory`, by name."""
    files = [directory / name for name in TOKENIZER_FILES]
    return {file.name: file.read_bytes() for file in files if file.is_file() and not file.is_symlink()}


def bytes_of_characters() -> dict[str, int]:
    """GPT-2's table (openai/gpt-2, encoder.py, `bytes_to_unicode`), from character to byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


class Vocabulary:
    """The pieces of text that the ids stand for."""

    def __init__(self, tokenizer_json: bytes, where: str) -> None:
        """`where` is what errors call the file. Raises `InputError`."""
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
            self._special = {token["id"] for token in added if token.get("special")}
            self._sizes: npt.NDArray[np.int64] | None = None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{where}: not a tokenizer.json that can be read ({error!r})") from None

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
