"""What `info` and `cat` print, as values: text for people, objects for programs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from shards.common.errors import InputError, choice
from shards.common.text import plural, printable, size_text, visible
from shards.index import Index
from shards.layout import SPLITS
from shards.mixture import Mixture, run_order
from shards.reader import ShardSet, Split, Tokens
from shards.tokenizer_files import Vocabulary, read_vocabulary
from shards.unread import unread_text


def describe_json(shard_set: ShardSet) -> str:
    """The manifest as JSON, with the number of shards in place of their list."""
    content: dict[str, Any] = dataclasses.asdict(shard_set.manifest)
    content["num_shards"] = len(content.pop("shards"))
    text = json.dumps(content, ensure_ascii=False, indent=2)
    return "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text)  # 8-bit escapes too


def describe(shard_set: ShardSet) -> str:
    """Tables for people."""
    manifest, tokenizer = shard_set.manifest, shard_set.manifest.tokenizer
    entries = f"{tokenizer.vocab_size:,} entries, EOS {tokenizer.eos_id} {tokenizer.eos_token}"
    if tokenizer.begin_id is not None:
        piece = read_vocabulary(shard_set.tokenizer_path).piece(tokenizer.begin_id).decode("utf-8", "replace")
        entries += f", documents begin with {tokenizer.begin_id} {piece}"
    num_shards = plural(len(manifest.shards), "shard")
    counts = manifest.left_out | {"rejected": sum(manifest.rejected.values())}
    unused = [f"{number:,} {reason}" for reason, number in counts.items() if number]
    about = [
        ("shard set", str(shard_set.path)),
        ("tokenizer", f"{tokenizer.name}, {entries}"),
        ("blocks", f"{plural(manifest.block_tokens, 'token')} each; {num_shards}, {size_text(manifest.num_bytes)}"),
        ("records", ", ".join([f"{manifest.num_records:,} read", *unused])),
        *([("not read", unread_text(manifest.unread))] if manifest.unread else []),
        ("fingerprint", manifest.fingerprint),
    ]
    splits = [
        (
            name,
            f"{split.num_documents:,}",
            f"{split.num_tokens:,}",
            f"{split.num_blocks:,}",
            f"{split.num_padding_tokens:,}",
            size_text(split.num_text_bytes),
            f"{split.num_tokens / split.num_text_chars:.3f}" if split.num_text_chars else "–",
        )
        for name, split in manifest.splits.items()
    ]
    sources = [
        (source.path, source.format, size_text(source.num_bytes), f"{source.num_records:,}")
        for source in manifest.sources
    ]
    columns = ("split", "#documents", "#tokens", "#blocks", "#padding", "#text", "#tokens/char")
    tables = [
        table_text(about),
        table_text(splits, *columns),
        table_text(sources, "source", "format", "#size", "#records"),
    ]
    return "\n\n".join(tables)


def describe_mixture(mixture: Mixture, num_tokens: float | None = None) -> str:
    """What a run of `num_tokens` (None: of one epoch) takes of each set of a mixture."""
    block_tokens = mixture.block_tokens
    num_blocks = mixture.epoch_blocks if num_tokens is None else math.ceil(num_tokens / block_tokens)
    order = run_order(mixture, 0, run_blocks=num_blocks)
    amounts = [("all", sum(order.sizes), num_blocks, num_blocks)]
    bounds = [*(min(stage.start, num_blocks) for stage in order.stages), num_blocks]
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        counts, weights = zip(order.counts(start), order.counts(stop), strict=True), order.stages[number].weights
        parts = [
            (f"├─ {part.path}", size, after - before, stop - start)
            for part, size, (before, after), weight in zip(mixture.sets, order.sizes, counts, weights, strict=True)
            if weight
        ]
        if order.later:
            amounts.append((f"├─ stage {number + 1}", sum(size for _, size, _, _ in parts), stop - start, num_blocks))
            parts = [(f"│  {name}", size, taken, of) for name, size, taken, of in parts]
        amounts += parts
    rows = [
        (
            name,
            f"{size:,}",
            f"{count:,}",
            f"{count * block_tokens:,}",
            f"{100 * count / max(of, 1):.4g} %",
            f"{count / size:,.2f}",
        )
        for name, size, count, of in amounts
    ]
    return table_text(rows, "set", "#blocks", "#taken", "#tokens", "#share", "#passes")


def table_text(rows: Sequence[Sequence[str]], *columns: str) -> str:
    """Rows in columns, as wide as they need: plain text to copy. A column whose name begins with `#` holds numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=bool(columns))
    for name in columns or [""] * len(rows[0]):
        table.add_column(name.removeprefix("#"), justify="right" if name.startswith("#") else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(printable, row))
    console = Console(color_system=None, width=1_000_000, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def differences(left: ShardSet, right: ShardSet) -> list[str]:
    """What two sets differ in, a line for each value: its name, left, right. Shards are left out."""
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
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else printable(str(value)) or "none"


def show_document(shard_set: ShardSet, split_name: str, number: int, *, with_ids: bool = False) -> str:
    """Document `number` of a split, counted from 0 in the corpus's order."""
    split = _split_with(shard_set, split_name, "document", number)
    tokens = split.document(number).tolist()
    head = f"document {number:,} of {split.num_documents:,}, split {split_name}, {plural(len(tokens), 'token')}"
    return "\n".join([head, *_document_lines(shard_set, read_vocabulary(shard_set.tokenizer_path), tokens, with_ids)])


def _split_with(shard_set: ShardSet, name: str, what: str, number: int) -> Split:
    """The split `name`. Raises `InputError` if there is none, or it has no block or document (`what`) of this number."""
    split = shard_set[choice("split", name, SPLITS)]
    count = len(split) if what == "block" else split.num_documents
    if not 0 <= number < count:
        expected = f"expected 0 to {count - 1:,}" if count else "this split is empty"
        raise InputError(f"no {what} {number:,} in split {name!r}: {expected}")
    return split


def show_block(shard_set: ShardSet, split_name: str, number: int, *, with_ids: bool = False) -> str:
    """Block `number` as text, a line where each document ends and for padding; `with_ids` shows ids and pieces."""
    split = _split_with(shard_set, split_name, "block", number)
    vocabulary = read_vocabulary(shard_set.tokenizer_path)
    lines = [f"block {number:,} of {len(split):,}, split {split_name}, {shard_set.block_tokens} tokens"]
    shard = split.shard_of(number)
    place = number - split.first_blocks[shard]
    for segment in segments(split.shard_index(shard), split.shard_blocks(shard), place, shard_set.block_tokens):
        if segment.is_padding:
            lines.append(f"── {plural(segment.num_tokens, 'padding token')} ──")
            continue
        tokens = list(segment.tokens[:-1] if segment.ends else segment.tokens)
        lines += _document_lines(shard_set, vocabulary, tokens, with_ids)
        lines += ["── end of document ──"] if segment.ends else []
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """Consecutive tokens of one document in one block, or padding."""

    tokens: tuple[int, ...]  # those among the first tokens of the block that are kept
    num_tokens: int
    is_padding: bool = False
    begins: bool = False  # the document's first token is here
    ends: bool = False  # the document's EOS is here


def segments(index: Index, blocks: Tokens, number: int, max_tokens: int) -> Iterator[Segment]:
    """One of a shard's blocks, divided at the ends of sequences; its first `max_tokens` tokens are kept."""
    block_tokens, tokens = blocks.shape[1], blocks.reshape(-1)
    begin, stop = number * block_tokens, (number + 1) * block_tokens

    def segment(first: int, last: int, **more: bool) -> Segment:
        kept = tokens[first : min(last, begin + max_tokens)]
        return Segment(tokens=tuple(kept.tolist()), num_tokens=last - first, **more)

    inside = np.flatnonzero((index.starts < stop) & (index.ends > begin))
    done = begin
    for sequence in inside[np.argsort(index.starts[inside])].tolist():
        start, end = int(index.starts[sequence]), int(index.ends[sequence])
        if start > done:
            yield segment(done, start, is_padding=True)
        document = int(np.searchsorted(index.boundaries, sequence, side="right")) - 1
        is_first = index.boundaries[document] == sequence
        is_last = index.boundaries[document + 1] == sequence + 1
        first, done = max(start, begin), min(end, stop)
        yield segment(first, done, begins=bool(is_first and start >= begin), ends=bool(is_last and end <= stop))
    if done < stop:
        yield segment(done, stop, is_padding=True)


def _document_lines(shard_set: ShardSet, vocabulary: Vocabulary, tokens: list[int], with_ids: bool) -> list[str]:
    if not with_ids:
        text = vocabulary.text(tokens[1:] if tokens[:1] == [shard_set.begin_id] else tokens)
        return [visible(text)] if text else []
    return [f"{token:>8}  {visible(vocabulary.piece(token).decode('utf-8', 'replace'))!r}" for token in tokens]
