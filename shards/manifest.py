"""The manifest of a shard set: what was built, from what and how. Its presence says that the set is complete.

`manifest.json` is UTF-8 JSON. Everything in it follows from the corpus and the settings: it holds no time, no
machine, no number of workers, so two builds of one corpus have the same manifest byte for byte. The
fingerprint is the BLAKE3 digest of the canonical JSON (sorted keys, no white space, UTF-8) of everything else.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from blake3 import blake3

from shards.errors import InputError, nearest_path, printable

FORMAT_VERSION = 1
GENERATOR = "tokenize-once 1"
MANIFEST_NAME = "manifest.json"
TOKENIZER_DIRECTORY = "tokenizer"
REJECTED_NAME = "rejected.jsonl"
# Not a part of the format and never needed: where the sources lay, so that a rebuild sees at once that none changed.
STAMPS_NAME = ".sources.json"
_LARGEST = 2**63 - 1
_DEEPEST = 30  # lists and objects within each other in the settings
SplitName = Literal["train", "val"]
SPLITS: tuple[SplitName, ...] = ("train", "val")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerEntry:
    """The tokenizer whose ids the shards hold; its own files lie in `tokenizer/`."""

    name: str
    vocab_size: int  # ids are below this
    eos_id: int
    eos_token: str
    sha256: str  # of tokenizer/tokenizer.json


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceEntry:
    """One file of the corpus. Its digest is BLAKE3 over the (binary) digests of its stretches, in order."""

    path: str  # as a person would name it: relative to the directory given, or the file's name
    format: str
    num_bytes: int
    digest: str
    num_stretches: int
    num_records: int  # documents + empty + duplicates + rejected


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitEntry:
    """What a split holds, all shards together."""

    num_documents: int
    num_tokens: int  # EOS of each document included, filling excluded
    num_blocks: int
    num_fill_tokens: int  # EOS tokens that belong to no document
    num_dropped_tokens: int  # tokens of documents that the packing leaves out (`tutorial` alone)
    num_text_bytes: int  # UTF-8
    num_text_chars: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """One `.bin` with its `.idx`."""

    name: str  # file name without suffix
    split: SplitName
    num_blocks: int
    num_tokens: int  # filling excluded
    num_pieces: int
    num_index_documents: int  # documents, or parts of one that is cut between two shards, in the index
    num_documents: int  # those that end here
    digest: str  # BLAKE3 of the .bin
    index_digest: str  # BLAKE3 of the .idx


@dataclass(frozen=True, kw_only=True, slots=True)
class TailEntry:
    """What was left over in one unit, in the last shard of its split."""

    unit: int
    split: SplitName
    num_pieces: int
    continues: bool  # its first piece continues the document that the unit's shard ends in


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedEntry:
    """Records that were read and are in no shard; `rejected.jsonl` has them one by one."""

    kind: str
    num_records: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """All of `manifest.json`."""

    format_version: int
    generator: str
    block_tokens: int
    dtype: str
    packing: Literal["concat", "best-fit", "tutorial"]
    tokenizer: TokenizerEntry
    settings: dict[str, Any]
    sources: list[SourceEntry]
    splits: dict[str, SplitEntry]
    shards: list[ShardEntry]
    tails: list[TailEntry]
    num_records: int
    num_empty: int
    num_duplicates: int
    rejected: list[RejectedEntry]
    rejected_digest: str  # BLAKE3 of rejected.jsonl, empty if there is none
    fingerprint: str = ""

    def with_fingerprint(self) -> Manifest:
        return dataclasses.replace(self, fingerprint=fingerprint(self))


def canonical_json(value: Any) -> bytes:
    """One spelling for one value: sorted keys, no white space, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def fingerprint(manifest: Manifest) -> str:
    """BLAKE3 (64 hexadecimal digits) of the manifest without its fingerprint."""
    return _fingerprint(dataclasses.asdict(manifest))


def _fingerprint(content: dict[str, Any]) -> str:
    return blake3(canonical_json({key: value for key, value in content.items() if key != "fingerprint"})).hexdigest()


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`: indented for people, one shard a line."""
    lines = []
    for key, value in dataclasses.asdict(manifest).items():
        if isinstance(value, list) and value:
            rows = ",\n    ".join(json.dumps(row, ensure_ascii=False) for row in value)
            lines.append(f"  {json.dumps(key)}: [\n    {rows}\n  ]")
        else:
            text = json.dumps(value, ensure_ascii=False, indent=2).replace("\n", "\n  ")
            lines.append(f"  {json.dumps(key)}: {text}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def read_manifest(directory: Path) -> Manifest:
    """Read and check the manifest of the shard set in `directory`. Raises `InputError`."""
    path = directory / MANIFEST_NAME
    if not directory.exists():
        hint = nearest_path(directory, lambda path: (path / MANIFEST_NAME).is_file())
        hint = hint or "; build it with `make shards CORPUS=FILE` or `python -m pipeline build`"
        raise InputError(f"{directory}: no such shard set{hint}")
    if directory.is_file():
        hint = f"; take {directory.parent}" if (directory.parent / MANIFEST_NAME).is_file() else ""
        raise InputError(f"{directory}: expected a shard set's directory, found a file{hint}")
    if not path.is_file():
        raise InputError(
            f"{directory}: no {MANIFEST_NAME}, so this is no complete shard set; finish it with the same build command"
        )
    return decode_manifest(path.read_bytes(), str(path))


def decode_manifest(encoded: bytes, path: str) -> Manifest:
    """The manifest with the bytes `encoded`, which are from `path`, checked. Raises `InputError`."""
    try:
        content = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); the file is damaged, build the set again") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"{path}: expected format version {FORMAT_VERSION}, found {_shown(version)}")
    manifest = typing.cast(Manifest, _decode(Manifest, content, path))
    try:
        found = _fingerprint(content)
    except UnicodeEncodeError:
        raise InputError(f"{path}: a lone surrogate (half of a \\uXXXX pair) is no text; the file is damaged") from None
    if found != manifest.fingerprint:
        raise InputError(f"{path}: the fingerprint doesn't match the content; the manifest was changed or damaged")
    _check(manifest, path)
    return manifest


def _check(manifest: Manifest, path: str) -> None:
    """What every manifest must hold beyond its types."""
    if manifest.block_tokens < 1:
        raise InputError(f"{path}: block_tokens: expected at least 1, found {manifest.block_tokens}")
    if manifest.dtype != "uint32":
        raise InputError(f"{path}: dtype: expected 'uint32', found {manifest.dtype!r}")
    if not 0 <= manifest.tokenizer.eos_id < manifest.tokenizer.vocab_size <= 2**31:
        raise InputError(f"{path}: tokenizer: eos_id must be below vocab_size, and that at most 2**31")
    if set(manifest.splits) != set(SPLITS):
        raise InputError(f"{path}: splits: expected {', '.join(SPLITS)}, found {_shown(', '.join(manifest.splits))}")
    names = set()
    for shard in manifest.shards:
        where = f"{path}: shard {printable(shard.name)!r}"
        suffix = shard.name.removeprefix(f"{shard.split}-")
        if shard.split not in SPLITS or not suffix.isascii() or not suffix.isdigit():
            raise InputError(f"{where}: expected a name such as {SPLITS[0]}-00000")
        if shard.name in names:
            raise InputError(f"{where}: listed twice")
        names.add(shard.name)
        room = shard.num_blocks * manifest.block_tokens
        least = 1 if manifest.packing == "best-fit" else room - manifest.block_tokens + 1
        if shard.num_blocks < 1 or not least <= shard.num_tokens <= room:
            raise InputError(f"{where}: {shard.num_tokens:,} tokens don't fit {shard.num_blocks:,} blocks")
    for name, split in manifest.splits.items():
        members = [shard for shard in manifest.shards if shard.split == name]
        for field in ("num_blocks", "num_tokens", "num_documents"):
            total = sum(getattr(shard, field) for shard in members)
            if total != getattr(split, field):
                raise InputError(
                    f"{path}: split {name}: {field} is {getattr(split, field):,}, its shards hold {total:,}"
                )


def _decode(expected: Any, value: Any, where: str) -> Any:
    """`value` (from JSON) as the type `expected`. Raises `InputError` naming the field."""
    if dataclasses.is_dataclass(expected):
        return _decode_record(typing.cast(type, expected), value, where)
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is list:
        if not isinstance(value, list):
            raise InputError(f"{where}: expected a list, found {_kind(value)}")
        return [_decode(arguments[0], item, f"{where}[{number}]") for number, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{where}: expected an object, found {_kind(value)}")
        return {key: _decode(arguments[1], item, f"{where}.{printable(key)}") for key, item in value.items()}
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"{where}: expected one of {', '.join(arguments)}, found {_shown(value)}")
        return value
    if expected is Any:
        _check_any(value, where)
        return value
    if type(value) is not expected or (expected is int and not 0 <= value <= _LARGEST):
        raise InputError(f"{where}: expected {_kind(expected())}, found {_shown(value)}")
    return value


def _decode_record(expected: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, found {_kind(value)}")
    hints = _type_hints(expected)
    if value.keys() != hints.keys():
        for name in hints:
            if name not in value:
                raise InputError(f"{where}: no field {name!r}")
        for name in value:
            if name not in hints:
                raise InputError(f"{where}: unknown field {printable(name)!r}")
    fields = {}
    for name, hint in hints.items():
        field = value[name]
        # The usual case at once: there are many shards.
        is_plain = (hint is int and type(field) is int and 0 <= field <= _LARGEST) or (
            hint is str and type(field) is str
        )
        fields[name] = field if is_plain else _decode(hint, field, f"{where}: {name}")
    return expected(**fields)


def _check_any(value: Any, where: str, depth: int = 0) -> None:
    """Settings are whatever a builder had, but nothing that only means harm to those who write them or count with them."""
    if depth > _DEEPEST:
        raise InputError(f"{where}: nested too deeply")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_any(item, where, depth + 1)
    elif (type(value) is int and not -_LARGEST <= value < 2**64) or (type(value) is float and not math.isfinite(value)):
        raise InputError(f"{where}: expected a number of 64 bits, found {_shown(value)}")


def _shown(value: Any) -> str:
    """A value on a line: in full if it is short."""
    if isinstance(value, dict | list):
        return _kind(value)
    if type(value) is int and abs(value) > 2**64:
        return "a number of more than 64 bits"
    return printable(repr(value))[:80]


@functools.cache
def _type_hints(record: type) -> dict[str, Any]:
    return typing.get_type_hints(record)


def _kind(value: object) -> str:
    names: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "a string",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        types.NoneType: "null",
    }
    return names.get(type(value), type(value).__name__)
