"""The page: one HTML file that needs nothing else, the same bytes for the same set and seed.

It loads nothing and runs no script, and its policy forbids both (`document.py`): the set's texts are other people's. It
names no place on this machine and no time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from shards.common.text import plural
from shards.manifest import MANIFEST_NAME, Manifest
from shards.report import sections
from shards.report.document import document, page_start
from shards.report.excerpts import Excerpt, Segment
from shards.report.markup import compact, decoded, percent, ratio, section, table, terms, text, token
from shards.report.statistics import Statistics, num_text_tokens
from shards.report.style import STYLE
from shards.report.tokens import is_whole
from shards.tables import SHARDS_TABLE
from shards.vocabulary import Vocabulary

PAGE_START = page_start("shards report")
_MAX_SHARD_ROWS = 500
_PARTS = (
    ("splits", "Splits"),
    ("documents", "Documents"),
    ("text", "Text"),
    ("tokens", "Tokens"),
    ("blocks", "Blocks"),
    ("left-out", "Duplicates"),
    ("sources", "Sources"),
    ("excerpts", "Excerpts"),
    ("settings", "Settings"),
)


def render(manifest: Manifest, statistics: Statistics, vocabulary: Vocabulary) -> bytes:
    """The page in UTF-8."""
    title = _title(manifest)
    links = "".join(f'<li><a href="#{identifier}">{name}</a></li>' for identifier, name in _PARTS)
    body = [
        f'<header><p class="kicker">Shard set</p><h1>{text(title)}</h1>',
        f"<p>{_summary(manifest)}</p>",
        _tiles(manifest, statistics),
        f'<nav aria-label="Parts of this page"><ul>{links}</ul></nav></header>',
        "<main>",
        section("splits", "Splits", sections.split_table(manifest)),
        sections.documents(manifest, statistics),
        sections.text_section(manifest, statistics),
        sections.tokens(manifest, statistics, vocabulary),
        sections.blocks(manifest, statistics),
        sections.left_out(manifest, statistics),
        sections.sources(manifest),
        _excerpts(manifest, statistics, vocabulary),
        _settings(manifest),
        "</main>",
        f"<footer>Made by <code>python -m shards report</code> with seed {statistics.seed}.</footer>",
    ]
    return document(PAGE_START, title=f"{title} – shard set", style=STYLE, body=body)


def _title(manifest: Manifest) -> str:
    names = [source.path for source in manifest.sources]
    if len(names) > 2:
        return f"{names[0]} and {len(names) - 1:,} more sources"
    return " and ".join(names) or "no source"


def _summary(manifest: Manifest) -> str:
    return (
        f"{plural(manifest.total('num_documents'), 'document')} in "
        f"{plural(manifest.total('num_blocks'), 'block')} of {manifest.block_tokens:,} tokens, packed by "
        f"<code>{text(manifest.packing)}</code>, from the tokenizer <code>{text(manifest.tokenizer.name)}</code> of "
        f"{manifest.tokenizer.vocab_size:,} entries. Fingerprint <code>{text(manifest.fingerprint[:16])}</code>."
    )


def _tiles(manifest: Manifest, statistics: Statistics) -> str:
    lost, total = sections.tutorial_loss(manifest, statistics)
    num_tokens = sum(num_text_tokens(manifest, split) for split in manifest.splits.values())
    use, found = statistics.tokens, statistics.duplicates
    verb = "dropped" if manifest.packing == "tutorial" else "would drop"
    pairs = [
        ("documents", compact_or_whole(statistics.lengths.num_documents)),
        ("tokens of text", compact_or_whole(statistics.lengths.num_tokens)),
        ("blocks", compact_or_whole(statistics.filling.num_blocks)),
        ("tokens a character", ratio(num_tokens, manifest.total("num_text_chars"))),
        ("bytes a token", ratio(manifest.total("num_text_bytes"), num_tokens)),
        (f"of the tokens the tutorial {verb}", percent(lost, total)),
        ("of the vocabulary occurs", percent(use.num_used_entries, use.num_entries)),
        ("of the documents repeat another", percent(found.num_duplicates, found.num_compared)),
    ]
    return terms([(name, text(value)) for name, value in pairs], kind="tiles")


def compact_or_whole(number: int) -> str:
    """`96,670`, and `484M` where that would be too long for a tile."""
    return f"{number:,}" if number < 10_000_000 else compact(number)


def _excerpts(manifest: Manifest, statistics: Statistics, vocabulary: Vocabulary) -> str:
    found = statistics.excerpts
    intro = (
        f"{plural(len(found), 'block')} picked at random (seed {statistics.seed}), as a training sees them. Each token has "
        "one of two colors in turn; pointing at it shows its id. Tokens that only together make a character share "
        "one color."
    )
    return section(
        "excerpts", "Excerpts", f"<p>{intro}</p>", *(_excerpt(block, manifest, vocabulary) for block in found)
    )


def _excerpt(block: Excerpt, manifest: Manifest, vocabulary: Vocabulary) -> str:
    lines = [_segment(segment, manifest, vocabulary) for segment in block.segments]
    hidden = sum(segment.num_tokens - len(segment.tokens) for segment in block.segments if not segment.is_filling)
    if hidden:
        shown = manifest.block_tokens - hidden
        lines.append(f'<p class="note">The first {shown:,} of {manifest.block_tokens:,} tokens.</p>')
    name = f"{text(block.split)}, block {block.block:,}"
    return (
        f'<article class="excerpt"><h3>{name} <span>· {plural(block.num_documents, "document")}</span></h3>\n'
        + "\n".join(lines)
        + "</article>"
    )


def _segment(segment: Segment, manifest: Manifest, vocabulary: Vocabulary) -> str:
    if segment.is_filling:
        return f'<p class="filling">{plural(segment.num_tokens, "token")} of filling</p>'
    shown, eos = segment.tokens, ""
    if segment.ends and manifest.packing != "tutorial" and len(shown) == segment.num_tokens:
        shown, eos = shown[:-1], f' · EOS, id <span class="eos">{shown[-1]}</span>'
    above = "" if segment.begins else '<span class="place">… of a document that begins elsewhere</span>'
    end = f"end of the document{eos}" if segment.ends else "… goes on elsewhere"
    kind = "segment" if segment.begins else "segment open-above"
    return (
        f'<p class="{kind}">{above}<span class="run">{"".join(_spans(shown, vocabulary))}</span>'
        f'<span class="place">{end}</span></p>'
    )


def _spans(tokens: Sequence[int], vocabulary: Vocabulary) -> list[str]:
    """A span for each token, or for as many as make whole characters."""
    spans: list[str] = []
    waiting: list[int] = []
    content = b""
    for number in tokens:
        piece = vocabulary.piece(number)
        if waiting and is_whole(piece):  # what waits is a character cut at the block's edge
            spans.append(_span(waiting, content))
            waiting, content = [], b""
        waiting.append(number)
        content += piece
        if is_whole(content):
            spans.append(_span(waiting, content))
            waiting, content = [], b""
    return [*spans, _span(waiting, content)] if waiting else spans


def _span(numbers: Sequence[int], content: bytes) -> str:
    name = f"id {numbers[0]}" if len(numbers) == 1 else "ids " + " ".join(map(str, numbers))
    return f'<span title="{name}">{token(decoded(content), keeps_spaces=True)}</span>'


def _settings(manifest: Manifest) -> str:
    tokenizer = manifest.tokenizer
    settings = [
        (f"<code>{text(name)}</code>", f"<code>{text(json.dumps(value, ensure_ascii=False))}</code>")
        for name, value in manifest.settings.items()
    ]
    identity = [
        ("name", text(tokenizer.name)),
        ("entries", f"{tokenizer.vocab_size:,}"),
        ("EOS", f"{tokenizer.eos_id:,} <code>{text(tokenizer.eos_token)}</code>"),
        ("SHA-256", f"<code>{text(tokenizer.sha256)}</code>"),
    ]
    digests = [
        ("fingerprint of the set", f"<code>{text(manifest.fingerprint)}</code>"),
        *((text(source.path), f"<code>{text(source.digest)}</code>") for source in manifest.sources[:_MAX_SHARD_ROWS]),
        ("format, generator", f"{manifest.format_version}, {text(manifest.generator)}"),
    ]
    return section(
        "settings",
        "Settings and digests",
        "<h3>Settings of the build</h3>",
        terms(settings, kind="terms wide"),
        "<h3>Tokenizer</h3>",
        terms(identity, kind="terms wide"),
        "<h3>Digests</h3>",
        terms(digests, kind="terms wide"),
        _shard_table(manifest),
    )


def _shard_table(manifest: Manifest) -> str:
    rows = [
        [
            text(shard.name),
            f"{shard.num_blocks:,}",
            f"{shard.num_documents:,}",
            f"<code>{text(shard.digest[:16])}…</code>",
        ]
        for shard in manifest.shards[:_MAX_SHARD_ROWS]
    ]
    left = len(manifest.shards) - len(rows)
    where = SHARDS_TABLE if manifest.has_tables else MANIFEST_NAME
    more = f'<p class="note">And {left:,} more; <code>{where}</code> has them all.</p>' if left else ""
    head = ["shard", "#blocks", "#documents", "BLAKE3 of the .bin"]
    summary = f"<summary>{plural(len(manifest.shards), 'shard')}</summary>"
    return f"<details>{summary}{table(head, rows)}{more}</details>"
