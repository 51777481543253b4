"""What `info` and `cat` print, as values: text for people, objects for programs."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from typing import Any

from shards.common.errors import InputError
from shards.common.text import nearest, plural, printable, size_text, visible
from shards.entries import SPLITS
from shards.reader import ShardSet, Split
from shards.vocabulary import Vocabulary
from shards.writer import set_bytes


def describe_json(shard_set: ShardSet) -> str:
    """The manifest as JSON, without the list of shards and tails, with their number instead."""
    content: dict[str, Any] = dataclasses.asdict(shard_set.manifest)
    content["num_shards"] = len(content.pop("shards"))
    del content["tails"]
    text = json.dumps(content, ensure_ascii=False, indent=2)
    return "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text)  # 8-bit escapes too


def describe(shard_set: ShardSet) -> str:
    """A table for people."""
    manifest = shard_set.manifest
    num_bytes = set_bytes(manifest)
    tokenizer = manifest.tokenizer
    lines = [
        f"shard set    {printable(str(shard_set.path))}",
        f"tokenizer    {printable(tokenizer.name)}, {tokenizer.vocab_size:,} entries, EOS {tokenizer.eos_id} "
        f"{printable(tokenizer.eos_token)}",
        f"blocks       {plural(manifest.block_tokens, 'token')} each; {plural(len(manifest.shards), 'shard')}, "
        f"{size_text(num_bytes)}",
        f"records      {manifest.num_records:,} read, {manifest.num_empty:,} empty, "
        f"{sum(entry.num_records for entry in manifest.rejected):,} rejected",
        f"fingerprint  {manifest.fingerprint}",
        "",
        f"{'split':8}{'documents':>14}{'tokens':>18}{'blocks':>14}{'filling':>10}{'text':>12}{'tokens/char':>14}",
    ]
    for name in SPLITS:
        split = manifest.splits[name]
        ratio = f"{split.num_tokens / split.num_text_chars:.3f}" if split.num_text_chars else "–"
        lines.append(
            f"{name:8}{split.num_documents:14,}{split.num_tokens:18,}{split.num_blocks:14,}"
            f"{split.num_fill_tokens:10,}{size_text(split.num_text_bytes):>12}{ratio:>14}"
        )
    lines += ["", "sources"]
    lines += [
        f"  {printable(source.path + '  ' + source.format)}, {size_text(source.num_bytes)}, "
        f"{plural(source.num_records, 'record')}"
        for source in manifest.sources
    ]
    return "\n".join(lines)


def differences(left: ShardSet, right: ShardSet) -> list[str]:
    """What two sets differ in, a line for each value: its name, left, right. Shards and tails are left out."""
    flat = [dict(_flat(json.loads(describe_json(shard_set)))) for shard_set in (left, right)]
    names = [*flat[0], *(name for name in flat[1] if name not in flat[0])]
    rows = [(name, flat[0].get(name, "–"), flat[1].get(name, "–")) for name in names]
    return [f"{printable(name)}: {_shown(before)} → {_shown(after)}" for name, before, after in rows if before != after]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """`{"a": {"b": [1]}}` as `("a.b[0]", 1)`."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _flat(item, f"{name}[{number}]")
    else:
        yield name, value


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else printable(str(value))


def show_document(shard_set: ShardSet, split_name: str, number: int, *, with_ids: bool = False) -> str:
    """Document `number` of a split, counted from 0 in the corpus's order, also where it is cut between shards."""
    split = _split(shard_set, split_name)
    if not 0 <= number < split.num_documents:
        expected = f"expected 0 to {split.num_documents - 1:,}" if split.num_documents else "this split is empty"
        raise InputError(f"no document {number:,} in split {split_name!r}: {expected}")
    tokens = next(itertools.islice(split.documents(), number, None)).tolist()
    head = f"document {number:,} of {split.num_documents:,}, split {split_name}, {plural(len(tokens), 'token')}"
    return "\n".join([head, *_document_lines(Vocabulary(shard_set.tokenizer_path), tokens, with_ids)])


def _split(shard_set: ShardSet, name: str) -> Split:
    if name not in SPLITS:
        raise InputError(f"no split {name!r}: expected {' or '.join(SPLITS)}{nearest(name, SPLITS)}")
    return shard_set[name]


def show_block(shard_set: ShardSet, split_name: str, number: int, *, with_ids: bool = False) -> str:
    """Block `number` as text, a line `── end of document ──` at each EOS; `with_ids` shows ids and pieces."""
    split = _split(shard_set, split_name)
    if not 0 <= number < len(split):
        expected = f"expected 0 to {len(split) - 1:,}" if len(split) else "this split is empty"
        raise InputError(f"no block {number:,} in split {split_name!r}: {expected}")
    vocabulary = Vocabulary(shard_set.tokenizer_path)
    lines = [f"block {number:,} of {len(split):,}, split {split_name}, {shard_set.block_tokens} tokens"]
    document: list[int] = []
    for token in split[number].tolist():
        if token != shard_set.eos_id:
            document.append(token)
            continue
        lines += _document_lines(vocabulary, document, with_ids)
        lines.append("── end of document ──")
        document = []
    lines += _document_lines(vocabulary, document, with_ids)
    return "\n".join(lines)


def _document_lines(vocabulary: Vocabulary, tokens: list[int], with_ids: bool) -> list[str]:
    if not with_ids:
        text = vocabulary.text(tokens)
        return [visible(text)] if text else []
    return [f"{token:>8}  {visible(vocabulary.piece(token).decode('utf-8', 'replace'))!r}" for token in tokens]
