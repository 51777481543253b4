"""The tokenizer of a set in the making: another set's, or from its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from shards.errors import InputError
from shards.manifest import MANIFEST_NAME, TOKENIZER_DIRECTORY, read_manifest
from shards.tokenizer_files import TOKENIZER_JSON, TokenizerFiles, read_tokenizer_files


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
    return read_tokenizer_files(file.resolve().parent.name, file)


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
