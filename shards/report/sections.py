"""The parts of the page that show charts and tables of the numbers. Every function gives HTML."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

from shards.common.text import plural, size_text
from shards.entries import SPLITS
from shards.manifest import Manifest, SourceEntry
from shards.report.charts import Column, Tick, bar, histogram, log_ticks, zipf_plot
from shards.report.documents import Filling, LengthBin
from shards.report.markup import compact, decoded, ratio, section, share, table, terms, text, token
from shards.report.statistics import Statistics, num_text_tokens
from shards.report.tokens import TokenUse
from shards.vocabulary import Vocabulary

_MAX_SOURCES = 25
# Upper ends of classes of filling, in percent of a block.
_FILL_CLASSES = (1, 5, 10, 25, 50, 100)
_MOST_SINGLE_COLUMNS = 16


def tutorial_loss(manifest: Manifest, statistics: Statistics) -> tuple[int, int]:
    """Tokens that the tutorial drops (or has dropped), and all tokens of the texts."""
    dropped = manifest.total("num_dropped_tokens")
    return statistics.lengths.num_lost_tokens + dropped, statistics.lengths.num_tokens + dropped


def split_table(manifest: Manifest) -> str:
    """What each split holds: measures in rows, so that it fits a phone."""
    splits = [manifest.splits[name] for name in SPLITS]
    rows: list[tuple[str, list[str]]] = [
        ("documents", [f"{split.num_documents:,}" for split in splits]),
        ("tokens, EOS included", [f"{split.num_tokens:,}" for split in splits]),
        ("blocks", [f"{split.num_blocks:,}" for split in splits]),
        ("filling, in tokens", [f"{split.num_fill_tokens:,}" for split in splits]),
        ("characters of text", [f"{split.num_text_chars:,}" for split in splits]),
        ("text in UTF-8", [size_text(split.num_text_bytes) for split in splits]),
        ("tokens a character", [ratio(num_text_tokens(manifest, s), s.num_text_chars) for s in splits]),
        ("bytes a token", [ratio(s.num_text_bytes, num_text_tokens(manifest, s)) for s in splits]),
    ]
    if manifest.total("num_dropped_tokens"):
        rows.insert(4, ("tokens dropped by the packing", [f"{split.num_dropped_tokens:,}" for split in splits]))
    return table(["", *(f"#{name}" for name in SPLITS)], [[name, *values] for name, values in rows], kind="narrow")


def documents(manifest: Manifest, statistics: Statistics) -> str:
    lengths, size = statistics.lengths, manifest.block_tokens
    lost, total = tutorial_loss(manifest, statistics)
    dropped = manifest.total("num_dropped_tokens")
    if manifest.packing == "tutorial":
        left_out = manifest.num_records - manifest.num_empty - manifest.num_duplicates - lengths.num_documents
        left_out -= sum(entry.num_records for entry in manifest.rejected)
        story = (
            f"This set was packed the tutorial’s way: of each document its whole blocks of {size:,} tokens were kept. "
            f"That dropped {dropped:,} of {total:,} tokens ({share(dropped, total)})"
            + (f", among them all of {plural(left_out, 'document')} shorter than a block" if left_out > 0 else "")
            + ". The charts show what was kept."
        )
    else:
        story = (
            f"{lengths.num_short_documents:,} of {plural(lengths.num_documents, 'document')} "
            f"({share(lengths.num_short_documents, lengths.num_documents)}) are shorter than a block of {size:,} tokens. "
            f"The tutorial keeps only the whole blocks of each document: it would drop these altogether, and with the "
            f"tails of the others {lost:,} of {total:,} tokens (<strong>{share(lost, total)}</strong>). This set has "
            "them all."
        )
    mean = lengths.num_tokens / lengths.num_documents if lengths.num_documents else 0
    numbers = terms(
        [
            ("shortest", f"{lengths.shortest:,}"),
            ("half have at most", f"{lengths.median:,}"),
            ("on average", f"{mean:,.1f}"),
            ("90 % have at most", f"{lengths.percentile_90:,}"),
            ("longest", f"{lengths.longest:,}"),
        ]
    )
    rows = [
        [
            _range(bin_),
            f"{bin_.num_documents:,}",
            share(bin_.num_documents, lengths.num_documents),
            f"{bin_.num_tokens:,}",
            f"{bin_.num_lost_tokens:,}",
        ]
        for bin_ in lengths.bins
    ]
    details = table(["length", "#documents", "#share", "#tokens", "#lost"], rows)
    note = '<p class="note">Lengths in tokens, EOS not counted; of all documents, from the indexes.</p>'
    return section(
        "documents",
        "Documents",
        f"<p>{story}</p>",
        f'<div class="pair">{_length_charts(manifest.block_tokens, lengths.bins)}</div>',
        numbers,
        note,
        f"<details><summary>The numbers behind these charts</summary>{details}</details>",
    )


def _range(bin_: LengthBin) -> str:
    return f"{bin_.first:,}" if bin_.first == bin_.last else f"{bin_.first:,} – {bin_.last:,}"


def _log_axis(
    bins: Sequence[LengthBin], block_tokens: int
) -> tuple[list[tuple[float, float]], list[Tick], Tick | None]:
    """Places of the bins, ticks, and the mark of one block on a logarithmic axis from 0 to 1."""
    if not bins:
        return [], [], None
    # A length of 0 has no logarithm: its bin stands where half a token would.
    edges = [math.log10(max(edge, 0.5)) for edge in (*(bin_.first for bin_ in bins), bins[-1].last + 1)]
    low, scale = edges[0], 1 / (edges[-1] - edges[0])
    places = [((left - low) * scale, (right - low) * scale) for left, right in itertools.pairwise(edges)]
    ticks = log_ticks(10**low, 10 ** edges[-1])
    if len(ticks) < 2:  # a very short axis: its ends instead
        ticks = [Tick(place=0, label=compact(bins[0].first)), Tick(place=1, label=compact(bins[-1].last + 1))]
    place = (math.log10(block_tokens) - low) * scale
    mark = Tick(place=place, label=f"one block: {block_tokens:,}") if 0 <= place <= 1 else None
    return places, ticks, mark


def _length_charts(block_tokens: int, bins: Sequence[LengthBin]) -> str:
    """How many documents have which length, and how many tokens lie in those."""
    places, ticks, mark = _log_axis(bins, block_tokens)
    chart = functools.partial(histogram, ticks=ticks, axis="tokens in the document", mark=mark)
    lengths = chart(
        "lengths",
        title="Documents by length",
        description="How many documents have how many tokens, on a logarithmic axis. The table below has the numbers.",
        columns=[
            Column(
                left=left,
                right=right,
                parts=(("loss" if bin_.last < block_tokens else "main", bin_.num_documents),),
                label=f"{_range(bin_)} tokens: {plural(bin_.num_documents, 'document')}",
            )
            for (left, right), bin_ in zip(places, bins, strict=True)
        ],
        legend=[("loss", "shorter than a block"), ("main", "a block or longer")],
    )
    losses = chart(
        "losses",
        title="Tokens by the length of their document",
        description="How many tokens lie in documents of which length, and how many of them the tutorial would drop.",
        columns=[
            Column(
                left=left,
                right=right,
                parts=(("main", bin_.num_tokens - bin_.num_lost_tokens), ("loss", bin_.num_lost_tokens)),
                label=f"documents of {_range(bin_)} tokens: {bin_.num_tokens:,} tokens, "
                f"the tutorial drops {bin_.num_lost_tokens:,}",
            )
            for (left, right), bin_ in zip(places, bins, strict=True)
        ],
        legend=[("main", "in whole blocks"), ("loss", "dropped by the tutorial")],
    )
    return lengths + losses


def text_section(manifest: Manifest, statistics: Statistics) -> str:
    characters = statistics.characters
    rows = [
        [name, f"{number:,}", share(number, characters.num_characters), bar(number, characters.num_characters)]
        for name, number in sorted(characters.scripts, key=lambda pair: -pair[1])
        if number
    ]
    cut = ""
    if characters.num_cut_bytes:
        cut = f" {plural(characters.num_cut_bytes, 'byte')} of characters that are cut at a block’s edge are left out."
    note = f"{_looked_at(manifest, statistics.tokens)} Characters as decoded from the tokens, by Unicode’s names.{cut}"
    scripts = table(["characters", "#number", "#share", ""], rows, kind="bars scripts")
    return section("text", "Text", f'<p class="note">{note}</p>', scripts)


def _looked_at(manifest: Manifest, use: TokenUse) -> str:
    """What was counted: all blocks, or a sample of them."""
    size = manifest.block_tokens
    counted, total = use.num_counted_blocks * size, use.num_blocks * size
    if counted == total:
        return f"From all {plural(use.num_blocks, 'block')}."
    return (
        f"From a sample of {counted:,} of {total:,} tokens: {use.num_counted_blocks:,} whole blocks, evenly spread over "
        "the set."
    )


def tokens(manifest: Manifest, statistics: Statistics, vocabulary: Vocabulary) -> str:
    use = statistics.tokens
    unused = use.num_entries - use.num_used_entries
    where = "the set" if use.num_counted_blocks == use.num_blocks else "the sample"
    story = (
        f"{use.num_used_entries:,} of {use.num_entries:,} entries of the vocabulary occur in {where}; {unused:,} "
        f"(<strong>{share(unused, use.num_entries)}</strong>) never do, and {use.num_once:,} occur once. The "
        f"{use.entries_for_half:,} most frequent make up half of all tokens."
    )
    chart = zipf_plot(
        "zipf",
        title="Tokens by rank",
        description="How often tokens occur, from the most frequent to the rarest; both axes are logarithmic.",
        points=use.ranks,
        axis="rank of the token",
        noun="times",
        legend=[("main", "how often it occurs"), ("guide", "falling as 1 over the rank")],
    )
    rows = [
        [
            f'<span class="piece">{token(decoded(vocabulary.piece(number)))}</span>',
            f"{number:,}",
            f"{count:,}",
            share(count, use.num_tokens),
            bar(count, use.most_frequent[0][1]),
        ]
        for number, count in use.most_frequent
    ]
    head, half = ["token", "#id", "#count", "#share", ""], 14
    first = table(head, rows[:half], kind="tokens")
    rest = ""
    if rows[half:]:
        more = table(head, rows[half:], kind="tokens")
        rest = f"<details><summary>The next {len(rows) - half}</summary>{more}</details>"
    return section(
        "tokens",
        "Tokens",
        f"<p>{story}</p>",
        f'<p class="note">{_looked_at(manifest, use)} EOS is not counted.</p>',
        f'<div class="pair">{chart}<div><h3>The most frequent</h3>{first}{rest}</div></div>',
    )


def blocks(manifest: Manifest, statistics: Statistics) -> str:
    filling, size = statistics.filling, manifest.block_tokens
    num_fill = sum(fill * number for fill, number in filling.fill_tokens)
    num_full = dict(filling.fill_tokens).get(0, 0)
    alone = sum(number for documents, number in filling.documents_per_block if documents == 1)
    cut = plural(filling.num_cut_documents, "document") if filling.num_cut_documents else "No document"
    story = (
        f"{num_full:,} of {plural(filling.num_blocks, 'block')} are full; {plural(num_fill, 'token')} "
        f"({share(num_fill, filling.num_blocks * size)}) are filling. {plural(alone, 'block')} "
        f"({share(alone, filling.num_blocks)}) {'holds' if alone == 1 else 'hold'} one document alone. "
        f"{cut} that would fit a block {'is' if filling.num_cut_documents < 2 else 'are'} cut by an edge between two."
    )
    rows = [
        [name, f"{number:,}", share(number, filling.num_blocks), bar(number, filling.num_blocks)]
        for name, number in fill_classes(filling, size)
    ]
    filled = table(["block", "#blocks", "#share", ""], rows, kind="bars")
    return section(
        "blocks",
        "Blocks",
        f"<p>{story}</p>",
        f'<div class="pair">{_sharing_chart(filling)}<div><h3>How full the blocks are</h3>{filled}</div></div>',
        '<p class="note">Of all blocks, from the indexes. What is free in a block is filled with EOS.</p>',
    )


def fill_classes(filling: Filling, block_tokens: int) -> list[tuple[str, int]]:
    """Blocks by the share of them that is filling: full ones, then up to 1 %, 5 % and so on; none left out."""
    names = ["full", "up to 1 % free"]
    names += [f"{low} to {high} % free" for low, high in itertools.pairwise(_FILL_CLASSES)]
    totals = [0] * len(names)
    for fill, number in filling.fill_tokens:
        place = next(n for n, high in enumerate((0, *_FILL_CLASSES)) if 100 * fill <= high * block_tokens)
        totals[place] += number
    return list(zip(names, totals, strict=True))


def sharing_classes(filling: Filling) -> list[tuple[int, int, int]]:
    """Numbers of documents in a block: first, last (both included), and blocks with so many."""
    counts = dict(filling.documents_per_block)
    last = max(counts, default=1)
    edges = list(range(min(1, *counts) if counts else 1, min(last, _MOST_SINGLE_COLUMNS) + 2))
    if last > _MOST_SINGLE_COLUMNS:  # 0 … 8 alone, then classes that grow by a half
        edges = edges[: edges.index(9) + 1]
        while edges[-1] <= last:
            edges.append(edges[-1] + edges[-1] // 2)
    return [
        (first, behind - 1, sum(counts.get(number, 0) for number in range(first, behind)))
        for first, behind in itertools.pairwise(edges)
    ]


def _sharing_chart(filling: Filling) -> str:
    classes = sharing_classes(filling)
    columns, ticks, width = [], [], 1 / len(classes)
    for place, (first, last, number) in enumerate(classes):
        name = f"{first:,}" if first == last else f"{first:,} – {last:,}"
        noun = "document" if (first, last) == (1, 1) else "documents"
        label = f"{name} {noun}: {plural(number, 'block')}"
        left, right = (place + 0.1) * width, (place + 0.9) * width
        columns.append(Column(left=left, right=right, parts=(("main", number),), label=label))
        if len(classes) <= 9 or place % 2 == 0:
            ticks.append(Tick(place=(place + 0.5) * width, label=f"{first:,}" + ("+" if last > first else "")))
    return histogram(
        "sharing",
        title="Documents in a block",
        description="How many blocks hold tokens of one, two and more documents: "
        + "; ".join(column.label for column in columns),
        columns=columns,
        ticks=ticks,
        axis="documents with a token in the block",
    )


def left_out(manifest: Manifest, statistics: Statistics) -> str:
    found, total = statistics.duplicates, manifest.num_records
    if found.num_compared == found.num_documents:
        base = f"Of {plural(found.num_documents, 'document')}"
        how = ""
    else:
        base = f"Of a sample of {found.num_compared:,} of {found.num_documents:,} documents"
        how = (
            " The sample is by length, first and last token, so that equal documents are in it together or not at all."
        )
    story = f"{base}, none has exactly the tokens of another"
    if found.num_duplicates:
        have = "has" if found.num_duplicates == 1 else "have"
        occur = "occurs" if found.num_repeated == 1 else "occur"
        story = (
            f"{base}, {found.num_duplicates:,} (<strong>{share(found.num_duplicates, found.num_compared)}</strong>) {have} "
            f"exactly the tokens of an earlier one: {plural(found.num_repeated, 'text')} {occur} more than once, the most "
            f"frequent {found.most_copies:,} times"
        )
    rows = [
        ("empty texts", manifest.num_empty),
        ("duplicates left out", manifest.num_duplicates),
        *((f"rejected: {text(entry.kind)}", entry.num_records) for entry in manifest.rejected),
    ]
    cells = [[name, f"{number:,}", share(number, total)] for name, number in rows]
    records = table([f"of {plural(total, 'record')}", "#records", "#share"], cells, kind="narrow")
    return section(
        "left-out",
        "Duplicates and what was left out",
        f"<p>{story}.{how}</p>",
        records,
    )


def sources(manifest: Manifest) -> str:
    total_bytes = sum(source.num_bytes for source in manifest.sources)
    total_records = sum(source.num_records for source in manifest.sources)
    largest = sorted(manifest.sources, key=lambda source: (-source.num_bytes, -source.num_records, source.path))

    def row(name: str, members: Sequence[SourceEntry]) -> list[str]:
        num_bytes = sum(source.num_bytes for source in members)
        num_records = sum(source.num_records for source in members)
        part, whole = (num_bytes, total_bytes) if total_bytes else (num_records, total_records)
        return [name, size_text(num_bytes), f"{num_records:,}", share(part, whole), bar(part, whole)]

    rows = [row(text(source.path), [source]) for source in largest[:_MAX_SOURCES]]
    if rest := largest[_MAX_SOURCES:]:
        rows.append(row(f"{plural(len(rest), 'other source')}", rest))
    head = ["source", "#size", "#records", "#share" if total_bytes else "#share of records", ""]
    return section("sources", "Sources", table(head, rows, kind="sources"))
