"""The manifest of a shard set: what was built, from what and how. Its presence says that the set is complete.

`manifest.json` is UTF-8 JSON. Everything in it follows from the corpus and the settings: it holds no time, no machine, no
number of workers, so two builds of one corpus have the same manifest byte for byte. Every other file of the set has its
BLAKE3 digest here. The fingerprint is the BLAKE3 digest of the canonical JSON (sorted keys, no white space, UTF-8) of
everything else.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import operator
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from blake3 import blake3

from shards.common.errors import InputError, nearest_path, refuse
from shards.common.files import flush_directory, write_atomically
from shards.common.text import printable
from shards.index import index_bytes
from shards.layout import (
    BIN_SUFFIX,
    INDEX_SUFFIX,
    LEFT_OUT_NAME,
    MANIFEST_NAME,
    REJECTED_NAME,
    SPLITS,
    TOKENIZER_DIRECTORY,
    TOKENIZER_FILES,
    SplitName,
    bin_bytes,
)
from shards.unread import MAX_NAMES, UnreadEntry

FORMAT_VERSION = 1
GENERATOR = "tokenize-once 1"
Packing = Literal["concat", "best-fit"]
# Why a good record is in no shard.
EMPTY, NULL, DUPLICATE, NEAR_DUPLICATE = "empty", "null", "duplicate", "near-duplicate"
MAX_NUMBER = 2**63 - 1  # of any count in the manifest

_DIGEST = re.compile("[0-9a-f]{64}")
_SHARD_NAME = re.compile(r"(train|val)-(\d{5}|[1-9]\d{5,17})", re.ASCII)
_OPTIONAL = ("unread",)  # lists that are left out where they are empty
_MAX_DEPTH = 30  # lists and objects within each other in the settings


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of the set."""

    name: str  # relative to the set's directory, with `/`
    num_bytes: int
    digest: str  # BLAKE3


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerEntry:
    """The tokenizer whose ids the shards hold; its own files lie in `tokenizer/`."""

    name: str
    vocab_size: int  # ids are below this
    eos_id: int
    eos_token: str
    sha256: str  # of tokenizer/tokenizer.json
    begin_id: int | None = None  # the first token of each document; left out where there is none


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceEntry:
    """One file of the corpus. Its digest is BLAKE3 over the (binary) digests of its byte ranges, in order."""

    path: str  # as a person would name it: relative to the directory given, or the file's name
    format: str
    num_bytes: int
    digest: str
    version: str = ""  # of a file at a URL: what the server calls the version that was read
    num_ranges: int
    num_records: int  # documents + left out + rejected


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitEntry:
    """What a split holds: the sums over its shards."""

    num_documents: int
    num_tokens: int  # EOS of each document included, padding excluded
    num_blocks: int
    num_padding_tokens: int
    num_text_bytes: int  # UTF-8
    num_text_chars: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """One `.bin` with its `.idx`. Its documents are complete: none goes on in another shard."""

    name: str  # file name without suffix
    split: SplitName
    num_blocks: int
    num_documents: int
    num_sequences: int  # in the index
    num_tokens: int  # EOS of each document included, padding excluded
    num_text_bytes: int
    num_text_chars: int
    digest: str  # BLAKE3 of the .bin
    index_digest: str  # BLAKE3 of the .idx


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All of `manifest.json`."""

    format_version: int
    generator: str
    block_tokens: int
    dtype: str
    packing: Packing
    tokenizer: TokenizerEntry
    settings: dict[str, Any]
    sources: list[SourceEntry]
    splits: dict[str, SplitEntry]
    shards: list[ShardEntry]  # train before val, in ascending order
    other_files: list[FileEntry]  # the tokenizer's, rejected.jsonl and left_out.jsonl
    num_records: int
    left_out: dict[str, int]  # good records that are in no shard, by reason: "empty", "duplicate", …
    rejected: dict[str, int]  # records that could not be used, by kind; `rejected.jsonl` has them one by one
    unread: list[UnreadEntry] = dataclasses.field(default_factory=list)
    fingerprint: str = ""

    def total(self, field: str) -> int:
        """A number of both splits together, such as `num_blocks`."""
        return sum(getattr(split, field) for split in self.splits.values())

    def of_split(self, name: str) -> list[ShardEntry]:
        """The shards of one split, in ascending order."""
        return [shard for shard in self.shards if shard.split == name]

    def files(self) -> Iterator[FileEntry]:
        """Every file of the set but the manifest."""
        yield from self.other_files
        for shard in self.shards:
            size = bin_bytes(shard.num_blocks, self.block_tokens)
            yield FileEntry(name=shard.name + BIN_SUFFIX, num_bytes=size, digest=shard.digest)
            size = index_bytes(shard.num_sequences, shard.num_documents)
            yield FileEntry(name=shard.name + INDEX_SUFFIX, num_bytes=size, digest=shard.index_digest)

    @property
    def num_bytes(self) -> int:
        """Size in bytes of all `.bin` of the set."""
        return bin_bytes(self.total("num_blocks"), self.block_tokens)

    def with_fingerprint(self) -> Manifest:
        return dataclasses.replace(self, fingerprint=_fingerprint(_content(self)))


def sum_splits(shards: Sequence[ShardEntry], block_tokens: int) -> dict[str, SplitEntry]:
    """What the shards of each split hold together."""
    splits = {}
    fields = ("num_documents", "num_tokens", "num_blocks", "num_text_bytes", "num_text_chars")
    for name in SPLITS:
        members = [shard for shard in shards if shard.split == name]
        sums = {field: sum(map(operator.attrgetter(field), members)) for field in fields}
        num_padding_tokens = sums["num_blocks"] * block_tokens - sums["num_tokens"]
        splits[str(name)] = SplitEntry(**sums, num_padding_tokens=num_padding_tokens)
    return splits


def _content(manifest: Manifest) -> dict[str, Any]:
    content = dataclasses.asdict(manifest)
    content["tokenizer"] = {name: value for name, value in content["tokenizer"].items() if value is not None}
    return {name: value for name, value in content.items() if value or name not in _OPTIONAL}


def canonical_json(value: Any) -> bytes:
    """One spelling for one value: sorted keys, no white space, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _fingerprint(content: Mapping[str, Any]) -> str:
    return blake3(canonical_json({key: value for key, value in content.items() if key != "fingerprint"})).hexdigest()


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
    """Write `manifest.json`: with it the set is complete."""
    flush_directory(directory)
    write_atomically(directory / MANIFEST_NAME, encode_manifest(manifest))


def read_manifest(directory: Path) -> Manifest:
    """Read and check the manifest of the shard set in `directory`. Raises `InputError`."""
    path = directory / MANIFEST_NAME
    if not directory.exists():
        hint = nearest_path(directory, lambda path: (path / MANIFEST_NAME).is_file())
        how = "build it with `make shards CORPUS=FILE` or `python -m pipeline build`"
        if directory.with_name(f"{directory.name}.partial").is_dir():
            hint, how = "", "it is unfinished: the command that was begun goes on with it"
        raise InputError(f"{directory}: no such shard set{f'{hint} Or' if hint else ';'} {how}")
    if directory.is_file():
        is_inside = (directory.parent / MANIFEST_NAME).is_file()
        cure = f"take {directory.parent}" if is_inside else "a corpus becomes one with `make shards CORPUS=FILE`"
        raise InputError(f"{directory}: expected a shard set's directory, found a file; {cure}")
    if not path.is_file():
        found = next((path.parent for path in sorted(directory.glob(f"*/{MANIFEST_NAME}"))), None)
        cure = f"name one in it, such as {printable(str(found))}" if found else "finish it with the same build command"
        raise InputError(f"{directory}: no {MANIFEST_NAME}, so this is not a complete shard set; {cure}")
    return decode_manifest(path.read_bytes(), str(path))


def decode_manifest(encoded: bytes, where: str) -> Manifest:
    """The manifest with the bytes `encoded`, which are from the file or URL `where`, checked. Raises `InputError`."""
    try:
        content = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error}); the file is damaged, build the set again") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        raise InputError(f"{where}: expected format version {FORMAT_VERSION}, found {_shown(version)}")
    try:
        found = _fingerprint(content)
    except UnicodeEncodeError:
        raise InputError(f"{where}: a lone surrogate (half of a \\uXXXX pair); the file is damaged") from None
    if empty := [name for name in _OPTIONAL if not content.get(name, True)]:
        raise InputError(f"{where}: {empty[0]}: expected at least one, or no such field")
    manifest = _decode_record(Manifest, {name: [] for name in _OPTIONAL} | content, where)
    if found != manifest.fingerprint:
        raise InputError(f"{where}: the fingerprint doesn't match the content; the manifest was changed or damaged")
    _check(manifest, where)
    return manifest


def _check(manifest: Manifest, where: str) -> None:
    """Raise `InputError` unless the numbers and names agree with each other."""
    tokenizer, names = manifest.tokenizer, [file.name for file in manifest.other_files]
    required = {f"{TOKENIZER_DIRECTORY}/tokenizer.json", *([REJECTED_NAME] if manifest.rejected else [])}
    known = required | {LEFT_OUT_NAME} | {f"{TOKENIZER_DIRECTORY}/{name}" for name in TOKENIZER_FILES}
    digests = [file.digest for file in manifest.other_files]
    digests += [digest for shard in manifest.shards for digest in (shard.digest, shard.index_digest)]
    faults = {
        f"block_tokens: expected at least 1, found {manifest.block_tokens:,}": not (
            1 <= manifest.block_tokens <= MAX_NUMBER // 4
        ),
        f"dtype: expected 'uint32', found {manifest.dtype!r}": manifest.dtype != "uint32",
        "tokenizer: eos_id must be below vocab_size, and that at most 2**31": not (
            0 <= tokenizer.eos_id < tokenizer.vocab_size <= 2**31
        ),
        "tokenizer: begin_id must be below vocab_size, and not eos_id": tokenizer.begin_id is not None
        and not tokenizer.eos_id != tokenizer.begin_id < tokenizer.vocab_size,
        f"unread: expected the names of the first files, at most {MAX_NAMES}": not all(
            1 <= len(entry.names) <= min(MAX_NAMES, entry.num_files) for entry in manifest.unread
        ),
        f"other_files: {_shown(min(set(names) - known, default=''))} is not a file of a shard set": set(names) - known,
        f"other_files: {min(required - set(names), default='')} is not listed": required - set(names),
        "other_files: a file is listed twice": len(set(names)) != len(names),
        "shards: expected at least one, found none": not manifest.shards,
        "expected digests of 64 lower-case hexadecimal digits": not all(map(_DIGEST.fullmatch, digests)),
    }
    refuse(where, faults)
    _check_settings(manifest.settings, f"{where}: settings")
    _check_shards(manifest, where)
    expected = sum_splits(manifest.shards, manifest.block_tokens)
    if manifest.splits.keys() != expected.keys():
        raise InputError(f"{where}: splits: expected {', '.join(SPLITS)}, found {_shown(', '.join(manifest.splits))}")
    for name, split in manifest.splits.items():
        for field, total in dataclasses.asdict(expected[name]).items():
            if total != getattr(split, field):
                raise InputError(
                    f"{where}: split {name}: {field} is {getattr(split, field):,}, its shards hold {total:,}"
                )


def _check_shards(manifest: Manifest, where: str) -> None:
    """Names as `shard_name` gives them, train before val, ascending; tokens that fit the blocks."""
    before, block_tokens = ("", -1), manifest.block_tokens
    for shard in manifest.shards:
        match = _SHARD_NAME.fullmatch(shard.name)
        if match is None or match[1] != shard.split:
            raise InputError(f"{where}: shard {printable(shard.name)!r}: expected a name such as {SPLITS[0]}-00000")
        key = (match[1], int(match[2]))
        if key <= before:
            raise InputError(f"{where}: shard {shard.name!r}: listed twice, or not in ascending order")
        before, room = key, shard.num_blocks * block_tokens
        least = room - block_tokens + 1 if manifest.packing == "concat" else 1
        if not (1 <= shard.num_blocks <= MAX_NUMBER // (4 * block_tokens) and least <= shard.num_tokens <= room):
            raise InputError(
                f"{where}: shard {shard.name!r}: {shard.num_tokens:,} tokens don't fit {shard.num_blocks:,} blocks"
            )
        if not 1 <= shard.num_documents <= shard.num_sequences <= shard.num_tokens:
            raise InputError(
                f"{where}: shard {shard.name!r}: {shard.num_documents:,} documents, {shard.num_sequences:,} sequences "
                f"and {shard.num_tokens:,} tokens don't go together"
            )


R = TypeVar("R")


def _decode_record(kind: type[R], value: Any, where: str) -> R:
    """`value` (from JSON) as a record of the dataclass `kind`. Raises `InputError` naming the field."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, found {_kind(value)}")
    hints, names, types_ = _type_hints(typing.cast(type, kind))
    # The usual case at once, as there are many shards: plain values in the usual order, and no number too large or below 0.
    values = tuple(value.values())
    if tuple(value) == names and tuple(map(type, values)) == types_:
        numbers = [number for number in values if type(number) is int]
        if not numbers or (min(numbers) >= 0 and max(numbers) <= MAX_NUMBER):
            return kind(**value)
    optional = {name for name, hint in hints.items() if type(None) in typing.get_args(hint)}
    if value.keys() | optional != hints.keys():
        for name in hints:
            if name not in value and name not in optional:
                raise InputError(f"{where}: no field {name!r}")
        unknown = next(name for name in value if name not in hints)
        raise InputError(f"{where}: unknown field {_shown(unknown)}")
    given = {name: hint for name, hint in hints.items() if name in value}
    return kind(**{name: _decode_field(hint, value[name], f"{where}: {name}") for name, hint in given.items()})


def _decode_field(expected: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(expected):
        return _decode_record(typing.cast(type, expected), value, where)
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if type(None) in arguments:  # no null is written
        return _decode_field(arguments[0], value, where)
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"{where}: expected one of {', '.join(arguments)}, found {_shown(value)}")
        return value
    if type(value) is not (origin or expected):
        raise InputError(f"{where}: expected {_kind((origin or expected)())}, found {_shown(value)}")
    if expected is int and not 0 <= value <= MAX_NUMBER:
        raise InputError(f"{where}: expected a whole number from 0 to 2**63 - 1, found {_shown(value)}")
    if origin is list:
        return [_decode_field(arguments[0], item, f"{where}[{number}]") for number, item in enumerate(value)]
    if origin is dict and arguments[1] is not Any:
        return {key: _decode_field(arguments[1], item, f"{where}.{printable(key)[:80]}") for key, item in value.items()}
    return value


def _check_settings(value: Any, where: str, depth: int = 0) -> None:
    """Settings are whatever a builder had, but nothing that only harms those who write them or count with them."""
    if depth > _MAX_DEPTH:
        raise InputError(f"{where}: nested too deeply")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_settings(item, where, depth + 1)
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
def _type_hints(record: type) -> tuple[dict[str, Any], tuple[str, ...], tuple[Any, ...]]:
    """The type of each field; the fields' names; the types that make a value right without a further look."""
    hints = typing.get_type_hints(record)
    plain = tuple(str if record is ShardEntry and name == "split" else hint for name, hint in hints.items())
    return hints, tuple(hints), plain  # a shard's split is compared with its name


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", int: "a whole number", float: "a number"}
    return names.get(type(value), "null" if value is None else "true or false")
