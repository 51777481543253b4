"""What `info` and `cat` print, as values: text for people, objects for programs."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from shards.errors import InputError, nearest, printable
from shards.manifest import SPLITS
from shards.reader import ShardSet
from shards.vocabulary import Vocabulary
from shards.writer import bin_bytes


def describe_json(shard_set: ShardSet) -> str:
    """The manifest as JSON, without the list of shards and tails, with their number instead."""
    content: dict[str, Any] = dataclasses.asdict(shard_set.manifest)
    content["num_shards"] = len(content.pop("shards"))
    del content["tails"]
    return json.dumps(content, ensure_ascii=False, indent=2)


def describe(shard_set: ShardSet) -> str:
    """A table for people."""
    manifest = shard_set.manifest
    num_bytes = sum(bin_bytes(shard.num_blocks, manifest.block_tokens) for shard in manifest.shards)
    tokenizer = manifest.tokenizer
    lines = [
        f"shard set    {shard_set.path}",
        f"tokenizer    {tokenizer.name}, {tokenizer.vocab_size:,} entries, EOS {tokenizer.eos_id} "
        f"{printable(tokenizer.eos_token)}",
        f"blocks       {manifest.block_tokens} tokens each; {len(manifest.shards):,} shards, {size_text(num_bytes)}",
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
        f"  {printable(source.path)}  {source.format}, {size_text(source.num_bytes)}, {source.num_records:,} records"
        for source in manifest.sources
    ]
    return "\n".join(lines)


def size_text(num_bytes: int) -> str:
    """`1.99 GB`, in powers of 1000."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def show_block(shard_set: ShardSet, split_name: str, number: int, *, with_ids: bool = False) -> str:
    """Block `number` as text, a line `── end of document ──` at each EOS; `with_ids` shows ids and pieces."""
    if split_name not in SPLITS:
        raise InputError(f"no split {split_name!r}: expected {' or '.join(SPLITS)}{nearest(split_name, SPLITS)}")
    split = shard_set[split_name]
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
        return [_visible(text)] if text else []
    return [f"{token:>8}  {_visible(vocabulary.piece(token).decode('utf-8', 'replace'))!r}" for token in tokens]


def _visible(text: str) -> str:
    """Line feeds and tabs stay, other control characters (terminal escapes) show as `\\x1b`."""
    return "".join(
        c
        if c in "\n\t" or c.isprintable() or (c.isspace() and c not in "\r\x0b\x0c\x1c\x1d\x1e\x1f\x85")
        else c.encode("unicode_escape").decode("ascii")
        for c in text
    )
