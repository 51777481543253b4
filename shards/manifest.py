"""The manifest of a shard set: what was built, from what and how. Its presence says that the set is complete.

`manifest.json` is UTF-8 JSON. Everything in it follows from the corpus and the settings: it holds no time, no
machine, no number of workers, so two builds of one corpus have the same manifest byte for byte. The
fingerprint is the BLAKE3 digest of the canonical JSON (sorted keys, no white space, UTF-8) of everything else.

A set of few shards has them listed there. A large one has its shards and tails in tables beside it (`shards.tables`), of
which the manifest holds the digests.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from blake3 import blake3

from shards.common.errors import InputError, nearest_path
from shards.common.files import flush_directory, write_atomically
from shards.common.text import printable
from shards.entries import MAX_NUMBER, SPLITS, ShardEntry, ShardList, TailEntry, TailList, exact_sum
from shards.tables import (
    TABLE_NAMES,
    TableEntry,
    are_many,
    check_table_entry,
    read_shards,
    read_tails,
    table_entry,
    write_table,
)

# Of a set whose manifest lists its shards and tails, and of one that has them in tables (`shards.tables`).
LISTING_VERSION, TABLES_VERSION = 1, 2
GENERATOR = "tokenize-once 1"
MANIFEST_NAME = "manifest.json"
TOKENIZER_DIRECTORY = "tokenizer"
REJECTED_NAME = "rejected.jsonl"
# Not a part of the format and never needed: where the sources lay, so that a rebuild sees at once that none changed.
STAMPS_NAME = ".sources.json"

_DIGEST = re.compile("[0-9a-f]{64}")
_MAX_DIGITS = 200  # of a shard's number; the names of files are not much longer
_DEEPEST = 30  # lists and objects within each other in the settings


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
    shards: ShardList
    tails: TailList
    num_records: int
    num_empty: int
    num_duplicates: int
    rejected: list[RejectedEntry]
    rejected_digest: str  # BLAKE3 of rejected.jsonl, empty if there is none
    fingerprint: str = ""

    @property
    def has_tables(self) -> bool:
        """Whether the shards and tails are in tables, as those of a large set are, and not in `manifest.json`."""
        return self.format_version == TABLES_VERSION

    @property
    def num_closing_tokens(self) -> int:
        """EOS tokens behind each document."""
        return 0 if self.packing == "tutorial" else 1

    def total(self, field: str) -> int:
        """A number of both splits together, such as `num_blocks`."""
        return sum(getattr(split, field) for split in self.splits.values())

    def with_fingerprint(self) -> Manifest:
        return dataclasses.replace(self, fingerprint=fingerprint(self))


def canonical_json(value: Any) -> bytes:
    """One spelling for one value: sorted keys, no white space, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def format_version(shards: ShardList, tails: TailList) -> int:
    """The version of a new set with these."""
    return TABLES_VERSION if are_many(shards, tails) else LISTING_VERSION


def fingerprint(manifest: Manifest) -> str:
    """BLAKE3 (64 hexadecimal digits) of the manifest without its fingerprint."""
    return _fingerprint(_content(manifest))


def _fingerprint(content: dict[str, Any]) -> str:
    return blake3(canonical_json({key: value for key, value in content.items() if key != "fingerprint"})).hexdigest()


def _content(manifest: Manifest) -> dict[str, Any]:
    """What `manifest.json` holds: the shards and tails as lists, or what is to be said of their tables."""
    content = dataclasses.asdict(manifest)
    for field in TABLE_NAMES:
        entries = getattr(manifest, field)
        if manifest.format_version == TABLES_VERSION:
            content[field] = dataclasses.asdict(table_entry(field, entries.rows))
        else:
            content[field] = [dataclasses.asdict(entry) for entry in entries]
    return content


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`: indented for people, one shard a line."""
    lines = []
    for key, value in _content(manifest).items():
        if isinstance(value, list) and value:
            rows = ",\n    ".join(json.dumps(row, ensure_ascii=False) for row in value)
            lines.append(f"  {json.dumps(key)}: [\n    {rows}\n  ]")
        else:
            text = json.dumps(value, ensure_ascii=False, indent=2).replace("\n", "\n  ")
            lines.append(f"  {json.dumps(key)}: {text}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the tables of a large set, then `manifest.json`: with it the set is complete."""
    assert manifest.format_version == LISTING_VERSION or manifest.shards.has_usual_names
    if manifest.format_version == TABLES_VERSION:
        for field in TABLE_NAMES:
            write_table(directory, field, getattr(manifest, field).rows)
    flush_directory(directory)
    write_atomically(directory / MANIFEST_NAME, encode_manifest(manifest))


def read_manifest(directory: Path) -> Manifest:
    """Read and check the manifest of the shard set in `directory`. Raises `InputError`."""
    path = directory / MANIFEST_NAME
    if not directory.exists():
        hint = nearest_path(directory, lambda path: (path / MANIFEST_NAME).is_file())
        how = "build it with `make shards CORPUS=FILE` or `python -m pipeline build`"
        raise InputError(
            f"{directory}: no such shard set{hint} Or {how}" if hint else f"{directory}: no such shard set; {how}"
        )
    if directory.is_file():
        hint = f"; take {directory.parent}" if (directory.parent / MANIFEST_NAME).is_file() else ""
        raise InputError(f"{directory}: expected a shard set's directory, found a file{hint}")
    if not path.is_file():
        raise InputError(
            f"{directory}: no {MANIFEST_NAME}, so this is no complete shard set; finish it with the same build command"
        )
    return decode_manifest(path.read_bytes(), str(path))


def decode_manifest(encoded: bytes, path: str, directory: Path | None = None) -> Manifest:
    """The manifest with the bytes `encoded`, which are from `path`, checked. Raises `InputError`.

    The tables of a large set are those in `directory`, by default where `path` lies.
    """
    manifest = _decode_listing(encoded, path)
    if manifest.format_version == TABLES_VERSION:
        directory = Path(path).parent if directory is None else directory
        shards = read_shards(directory, typing.cast(TableEntry, manifest.shards))
        tails = read_tails(directory, typing.cast(TableEntry, manifest.tails))
        manifest = dataclasses.replace(manifest, shards=shards, tails=tails)
    _check(manifest, path)
    return manifest


def decode_table_entries(encoded: bytes, path: str) -> tuple[str, list[TableEntry]]:
    """The fingerprint, and the tables that belong to the set, from a manifest whose tables aren't here yet.

    Raises `InputError`.
    """
    manifest = _decode_listing(encoded, path)
    entries = [typing.cast(TableEntry, getattr(manifest, field)) for field in TABLE_NAMES]
    return manifest.fingerprint, entries if manifest.format_version == TABLES_VERSION else []


def _decode_listing(encoded: bytes, path: str) -> Manifest:
    """What stands in `manifest.json` itself. In place of shards and tails that are in tables, `TableEntry` objects."""
    try:
        content = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); the file is damaged, build the set again") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is not int or version not in (LISTING_VERSION, TABLES_VERSION):
        raise InputError(
            f"{path}: expected format version {LISTING_VERSION} or {TABLES_VERSION}, found {_shown(version)}"
        )
    fields = _decode_fields(Manifest, content, path)
    try:
        found = _fingerprint(content)
    except UnicodeEncodeError:
        raise InputError(f"{path}: a lone surrogate (half of a \\uXXXX pair) is no text; the file is damaged") from None
    if found != fields["fingerprint"]:
        raise InputError(f"{path}: the fingerprint doesn't match the content; the manifest was changed or damaged")
    if version == LISTING_VERSION:
        fields["shards"] = _shard_list(_decode(list[ShardEntry], fields["shards"], f"{path}: shards"), path)
        fields["tails"] = TailList.of(_decode(list[TailEntry], fields["tails"], f"{path}: tails"))
    else:
        for field in TABLE_NAMES:
            fields[field] = _decode(TableEntry, fields[field], f"{path}: {field}")
            check_table_entry(fields[field], field, path)
    return Manifest(**fields)


def _shard_list(entries: list[ShardEntry], path: str) -> ShardList:
    """The shards that `manifest.json` lists, whose types are right. Raises `InputError`."""
    names = set()
    for shard in entries:
        suffix = shard.name.removeprefix(f"{shard.split}-")
        if suffix == shard.name or not suffix.isascii() or not suffix.isdigit() or len(suffix) > _MAX_DIGITS:
            raise InputError(f"{path}: shard {printable(shard.name)!r}: expected a name such as {SPLITS[0]}-00000")
        if shard.name in names:
            raise InputError(f"{path}: shard {shard.name!r}: listed twice")
        names.add(shard.name)
        if not (_DIGEST.fullmatch(shard.digest) and _DIGEST.fullmatch(shard.index_digest)):
            raise InputError(f"{path}: shard {shard.name!r}: expected digests of 64 lower-case hexadecimal digits")
        if int(suffix) > MAX_NUMBER:
            raise InputError(f"{path}: shard {shard.name!r}: a number isn't below 2**63")
    return ShardList.of(entries)


def _check(manifest: Manifest, path: str) -> None:
    """What every manifest must hold beyond its types."""
    if manifest.block_tokens < 1:
        raise InputError(f"{path}: block_tokens: expected at least 1, found {manifest.block_tokens}")
    if manifest.block_tokens > MAX_NUMBER // 4:
        raise InputError(f"{path}: block_tokens: {manifest.block_tokens:,} are more than a file can hold")
    if manifest.dtype != "uint32":
        raise InputError(f"{path}: dtype: expected 'uint32', found {manifest.dtype!r}")
    if not 0 <= manifest.tokenizer.eos_id < manifest.tokenizer.vocab_size <= 2**31:
        raise InputError(f"{path}: tokenizer: eos_id must be below vocab_size, and that at most 2**31")
    if set(manifest.splits) != set(SPLITS):
        raise InputError(f"{path}: splits: expected {', '.join(SPLITS)}, found {_shown(', '.join(manifest.splits))}")
    _check_shards(manifest, path)
    for name in SPLITS:
        split, members = manifest.splits[name], manifest.shards.of_split(name)
        for field in ("num_blocks", "num_tokens", "num_documents"):
            total = exact_sum(members.column(field))
            if total != getattr(split, field):
                raise InputError(
                    f"{path}: split {name}: {field} is {getattr(split, field):,}, its shards hold {total:,}"
                )


def _check_shards(manifest: Manifest, path: str) -> None:
    """Raise `InputError` unless the tokens of each shard fit its blocks, and all blocks are numbers of this machine."""
    shards, block_tokens = manifest.shards, manifest.block_tokens
    num_blocks, num_tokens = shards.column("num_blocks"), shards.column("num_tokens")
    most = MAX_NUMBER // (4 * block_tokens)  # blocks in files of less than 2**63 bytes
    if exact_sum(num_blocks) > most:
        raise InputError(f"{path}: the shards have {exact_sum(num_blocks):,} blocks, more than there can be")
    room = num_blocks * block_tokens
    least = np.int64(1) if manifest.packing == "best-fit" else room - (block_tokens - 1)
    wrong = (num_blocks < 1) | (num_tokens < least) | (num_tokens > room)
    if wrong.any():
        shard = shards[int(np.argmax(wrong))]
        raise InputError(
            f"{path}: shard {shard.name!r}: {shard.num_tokens:,} tokens don't fit {shard.num_blocks:,} blocks"
        )


def _decode(expected: Any, value: Any, where: str) -> Any:
    """`value` (from JSON) as the type `expected`. Raises `InputError` naming the field."""
    if dataclasses.is_dataclass(expected):
        record = typing.cast(type, expected)
        return record(**_decode_fields(record, value, where))
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
    if expected in (ShardList, TailList):  # the lists' turn comes when the version is known to be right
        return value
    if expected is int and type(value) is int and value > MAX_NUMBER:
        raise InputError(f"{where}: a number isn't below 2**63: {_shown(value)}")
    if type(value) is not expected or (expected is int and value < 0):
        raise InputError(f"{where}: expected {_kind(expected())}, found {_shown(value)}")
    return value


def _decode_fields(expected: type, value: Any, where: str) -> dict[str, Any]:
    """The fields of a record of the class `expected`. Raises `InputError`."""
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
    for name, (hint, choices) in hints.items():
        field = value[name]
        # The usual case at once: there are many shards.
        is_plain = type(field) is hint and (hint is not int or 0 <= field <= MAX_NUMBER)
        is_choice = type(field) is str and field in choices
        fields[name] = field if is_plain or is_choice else _decode(hint, field, f"{where}: {name}")
    return fields


def _check_any(value: Any, where: str, depth: int = 0) -> None:
    """Settings are whatever a builder had, but nothing that only means harm to those who write them or count with them."""
    if depth > _DEEPEST:
        raise InputError(f"{where}: nested too deeply")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_any(item, where, depth + 1)
    elif (type(value) is int and not -MAX_NUMBER <= value < 2**64) or (
        type(value) is float and not math.isfinite(value)
    ):
        raise InputError(f"{where}: expected a number of 64 bits, found {_shown(value)}")


def _shown(value: Any) -> str:
    """A value on a line: in full if it is short."""
    if isinstance(value, dict | list):
        return _kind(value)
    if type(value) is int and abs(value) > 2**64:
        return "a number of more than 64 bits"
    return printable(repr(value))[:80]


@functools.cache
def _type_hints(record: type) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """The type of each field, and what it must be one of, if it is a choice."""
    hints = typing.get_type_hints(record).items()
    return {name: (hint, typing.get_args(hint) if typing.get_origin(hint) is Literal else ()) for name, hint in hints}


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
