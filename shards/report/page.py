"""The report's page: the same bytes for the same set and seed. It names no place on this machine and no time."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence

from shards.common.text import plural
from shards.manifest import Manifest, SourceEntry
from shards.report.document import render
from shards.report.documents import LengthBin, length_bins, quantile
from shards.report.plot import Axis, Bar, Chart, Line, linear_axis, log_axis
from shards.report.statistics import Statistics
from shards.report.tokens import TokenUse, is_whole
from shards.vocabulary import Vocabulary

PROGRAM = "shards report"
_MAX_SOURCES = 25
_MAX_SHARDS = 500
# Upper ends of the classes of padding, in percent of a block.
_PADDING_CLASSES = (1, 5, 10, 25, 50, 100)
_MOST_SINGLE_COLUMNS = 16
_MAX_TOKEN_CHARACTERS = 60
_SIGNS = str.maketrans({"\n": "↵", "\t": "⇥"})


def make_page(manifest: Manifest, statistics: Statistics, vocabulary: Vocabulary) -> bytes:
    """The page in UTF-8."""
    documents, use = statistics.documents, statistics.tokens
    bins = length_bins(documents.lengths, manifest.block_tokens)
    num_tokens = sum(bin_.num_tokens for bin_ in bins)
    return render(
        "report.html.j2",
        package="shards.report",
        program=PROGRAM,
        title=_title(manifest),
        manifest=manifest,
        num_shown_shards=_MAX_SHARDS,
        settings={name: json.dumps(value, ensure_ascii=False) for name, value in manifest.settings.items()},
        statistics=statistics,
        bins=bins,
        quantiles={part: quantile(documents.lengths, part) for part in (0, 50, 90, 100)},
        num_text_tokens=num_tokens,
        num_lost_tokens=sum(bin_.num_lost_tokens for bin_ in bins),
        num_short_documents=sum(bin_.num_documents for bin_ in bins if bin_.last < manifest.block_tokens),
        length_charts=_length_charts(manifest.block_tokens, bins),
        padding_classes=padding_classes(documents.padding, manifest.block_tokens),
        sharing_chart=_sharing_chart(documents.sharing),
        rank_chart=_rank_chart(use),
        sources=source_rows(manifest.sources),
        spans=lambda tokens: spans(tokens, vocabulary),
        token=lambda number: shown_token(vocabulary.piece(number)).replace(" ", "␣"),
    )


def _title(manifest: Manifest) -> str:
    names = [source.path for source in manifest.sources]
    return " and ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1:,} more sources"


def shown_token(piece: bytes) -> str:
    """The text of a token or several, cut off where it is long; bytes that are no character as `\\xad`."""
    text = piece.decode("utf-8", "backslashreplace")
    shown = text[:_MAX_TOKEN_CHARACTERS].translate(_SIGNS)
    return (shown + "…" if len(text) > len(shown) else shown) or "(empty)"


def spans(tokens: Sequence[int], vocabulary: Vocabulary) -> Iterator[tuple[str, str]]:
    """Ids and text of each token, or of as many as make whole characters."""
    waiting: list[int] = []
    content = b""
    for token in tokens:
        piece = vocabulary.piece(token)
        if waiting and is_whole(piece):  # what waits is a character cut at the block's edge
            yield " ".join(map(str, waiting)), shown_token(content)
            waiting, content = [], b""
        waiting.append(token)
        content += piece
        if is_whole(content):
            yield " ".join(map(str, waiting)), shown_token(content)
            waiting, content = [], b""
    if waiting:
        yield " ".join(map(str, waiting)), shown_token(content)


def source_rows(sources: Sequence[SourceEntry]) -> list[tuple[str, int, int]]:
    """Name, bytes and records of the largest sources, and of all others together."""
    largest = sorted(sources, key=lambda source: (-source.num_bytes, -source.num_records, source.path))
    rows = [(source.path, source.num_bytes, source.num_records) for source in largest[:_MAX_SOURCES]]
    if rest := largest[_MAX_SOURCES:]:
        name = plural(len(rest), "other source")
        rows.append((name, sum(source.num_bytes for source in rest), sum(source.num_records for source in rest)))
    return rows


def padding_classes(padding: Counter[int], block_tokens: int) -> list[tuple[str, int]]:
    """Blocks by the share of them that is padding: full ones, then up to 1 %, 5 % and so on; none left out."""
    names = ["full", "up to 1 % padding"]
    names += [f"{low} to {high} % padding" for low, high in itertools.pairwise(_PADDING_CLASSES)]
    totals = [0] * len(names)
    for value, number in padding.items():
        place = next(n for n, high in enumerate((0, *_PADDING_CLASSES)) if 100 * value <= high * block_tokens)
        totals[place] += number
    return list(zip(names, totals, strict=True))


def sharing_classes(sharing: Counter[int]) -> list[tuple[int, int, int]]:
    """Numbers of documents in a block: first, last (both included), and blocks with so many."""
    last = max(sharing, default=1)
    edges = list(range(min(1, *sharing) if sharing else 1, min(last, _MOST_SINGLE_COLUMNS) + 2))
    if last > _MOST_SINGLE_COLUMNS:  # 0 … 8 alone, then classes that grow by a half
        edges = edges[: edges.index(9) + 1]
        while edges[-1] <= last:
            edges.append(edges[-1] + edges[-1] // 2)
    return [
        (first, stop - 1, sum(sharing[number] for number in range(first, stop)))
        for first, stop in itertools.pairwise(edges)
    ]


def _range(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,} – {last:,}"


def _length_charts(block_tokens: int, bins: Sequence[LengthBin]) -> list[Chart]:
    """How many documents have which length, and how many tokens lie in those."""
    if not bins:
        return []
    # A length of 0 has no logarithm: its bin begins where half a token would.
    x = log_axis(max(bins[0].first, 0.5), bins[-1].last + 1, label="tokens in the document")
    mark = (block_tokens, "one block") if x.low <= block_tokens <= x.high else None
    places = [{"left": max(bin_.first, 0.5), "right": bin_.last + 1} for bin_ in bins]
    by_length = Chart(
        title="Documents by length",
        description="how many documents have how many tokens; the table below has the numbers",
        x=x,
        y=linear_axis(0, max(bin_.num_documents for bin_ in bins), whole=True, rounded=True),
        bars=[
            Bar(
                **place,
                parts=[(int(bin_.last < block_tokens), bin_.num_documents)],
                tooltip=f"{_range(bin_.first, bin_.last)} tokens: {plural(bin_.num_documents, 'document')}",
            )
            for bin_, place in zip(bins, places, strict=True)
        ],
        mark=mark,
        legend=[("c1", "shorter than a block"), ("c0", "a block or longer")],
    )
    by_tokens = Chart(
        title="Tokens by the length of their document",
        description="how many tokens are in documents of which length, and how many the tutorial’s script would drop",
        x=x,
        y=linear_axis(0, max(bin_.num_tokens for bin_ in bins), whole=True, rounded=True),
        bars=[
            Bar(
                **place,
                parts=[(0, bin_.num_tutorial_tokens), (1, bin_.num_lost_tokens)],
                tooltip=f"documents of {_range(bin_.first, bin_.last)} tokens: {bin_.num_tokens:,} tokens, "
                f"{bin_.num_lost_tokens:,} of them dropped by the tutorial",
            )
            for bin_, place in zip(bins, places, strict=True)
        ],
        mark=mark,
        legend=[("c0", "in whole blocks"), ("c1", "dropped by the tutorial")],
    )
    return [by_length, by_tokens]


def _sharing_chart(sharing: Counter[int]) -> Chart:
    classes = sharing_classes(sharing)
    names = [_range(first, last) for first, last, _ in classes]
    ticks = [(place + 0.5, f"{first:,}" + ("+" if last > first else "")) for place, (first, last, _) in enumerate(classes)]
    return Chart(
        title="Documents in a block",
        description="; ".join(f"{name}: {plural(row[2], 'block')}" for name, row in zip(names, classes, strict=True)),
        x=Axis(
            label="documents with a token in the block",
            low=0,
            high=len(classes),
            ticks=ticks if len(classes) <= 9 else ticks[::2],
        ),
        y=linear_axis(0, max(number for _, _, number in classes), whole=True, rounded=True),
        bars=[
            Bar(left=place + 0.1, right=place + 0.9, parts=[(0, row[2])], tooltip=f"{name}: {plural(row[2], 'block')}")
            for place, (name, row) in enumerate(zip(names, classes, strict=True))
        ],
    )


def _rank_chart(use: TokenUse) -> Chart | None:
    """Counts over ranks, with the line of a count that falls as 1 over the rank."""
    if not use.ranks:
        return None
    (_, most), (last_rank, _) = use.ranks[0], use.ranks[-1]
    x_high, y_high = (10.0 ** max(1, math.ceil(math.log10(value))) for value in (last_rank, most))
    end = min(most, x_high)
    return Chart(
        title="Tokens by rank",
        description="how often tokens occur, from the most frequent to the rarest; both axes are logarithmic",
        x=log_axis(1, x_high, label="rank of the token"),
        y=log_axis(1, y_high),
        lines=[
            Line(style="guide", points=[(1, most), (end, most / end)]),
            Line(points=use.ranks, tooltips=[f"rank {rank:,}: {count:,} times" for rank, count in use.ranks]),
        ],
        legend=[("c0", "how often it occurs"), ("guide", "falling as 1 over the rank")],
    )
