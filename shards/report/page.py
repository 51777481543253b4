"""The report's page: the same bytes for the same set and seed. It names no place on this machine and no time."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence

from shards.common.text import plural
from shards.manifest import Manifest
from shards.report.document import render
from shards.report.plot import Axis, Bar, Chart, Legend, Line, Parts, count_axis, log_axis
from shards.report.statistics import MAX_SHOWN_TOKENS, Lengths, Statistics, is_whole
from shards.tokenizer_files import Vocabulary

PROGRAM = "shards report"
_MAX_TOKEN_CHARACTERS = 60
_NUM_RANKS = 120  # of the chart's points
_SIGNS = str.maketrans({"\n": "↵", "\t": "⇥"})


def make_page(manifest: Manifest, statistics: Statistics, vocabulary: Vocabulary) -> bytes:
    """The page in UTF-8."""
    lengths, counts = statistics.lengths, [count for _, count in statistics.tokens.ranking]
    num_tokens, sums = sum(counts), itertools.accumulate(counts)
    return render(
        "report.html.j2",
        package="shards.report",
        program=PROGRAM,
        manifest=manifest,
        max_shown_tokens=MAX_SHOWN_TOKENS,
        settings={name: json.dumps(value, ensure_ascii=False) for name, value in manifest.settings.items()},
        statistics=statistics,
        length_charts=_length_charts(lengths),
        padding_classes=padding_classes(statistics.padding, manifest.block_tokens),
        sharing_chart=_sharing_chart(statistics.sharing),
        num_tokens=num_tokens,
        num_once=counts.count(1),
        num_for_half=next((number for number, total in enumerate(sums, 1) if 2 * total >= num_tokens), 0),
        rank_chart=_rank_chart(counts) if counts else None,
        spans=lambda tokens: spans(tokens, vocabulary),
        token=lambda number: shown_token(vocabulary.piece(number)).replace(" ", "␣"),
    )


def shown_token(piece: bytes) -> str:
    """The text of a token or several, cut off where it is long; bytes that are no character as `\\xad`."""
    text = piece.decode("utf-8", "backslashreplace")
    shown = text[:_MAX_TOKEN_CHARACTERS].translate(_SIGNS)
    return (shown + "…" if len(text) > len(shown) else shown) or "(empty)"


def spans(tokens: Sequence[int], vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Ids and text of each token, or of as many as make whole characters."""
    groups: list[tuple[list[int], bytes]] = []
    for token in tokens:
        piece = vocabulary.piece(token)
        if groups and not is_whole(groups[-1][1]) and not is_whole(piece):
            ids, content = groups.pop()
            groups.append(([*ids, token], content + piece))
        else:
            groups.append(([token], piece))
    return [(" ".join(map(str, ids)), shown_token(content)) for ids, content in groups]


def padding_classes(padding: Counter[int], block_tokens: int) -> list[tuple[str, int]]:
    """Blocks by the share of them that is padding; none left out."""
    classes = []
    for low, high in itertools.pairwise((-1, 0, 1, 5, 10, 25, 50, 100)):
        name = "none" if low < 0 else f"{low} to {high} %"
        num_blocks = sum(n for tokens, n in padding.items() if low * block_tokens < 100 * tokens <= high * block_tokens)
        classes.append((name, num_blocks))
    return classes


def _range(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,} – {last:,}"


def _length_charts(lengths: Lengths) -> list[Chart]:
    """How many documents have which length, and how many tokens lie in those."""
    bins, block_tokens = lengths.bins(), lengths.block_tokens
    # A length of 0 has no logarithm: its bin begins where half a token would.
    x = log_axis(max(bins[0][0], 0.5), bins[-1][1] + 1, label="tokens in the document")
    mark = (block_tokens, "one block") if x.low <= block_tokens <= x.high else None

    def histogram(title: str, description: str, parts: Callable[[int, Lengths], Parts], legend: Legend) -> Chart:
        bars = [
            Bar(
                left=max(first, 0.5),
                right=last + 1,
                parts=parts(last, inside),
                tooltip=f"{_range(first, last)} tokens: {plural(inside.num_documents, 'document')} of "
                f"{plural(inside.num_tokens, 'token')}, {inside.num_lost_tokens:,} of them dropped by the tutorial",
            )
            for first, last, inside in bins
        ]
        return Chart(title=title, description=description, x=x, y=count_axis(bars), bars=bars, mark=mark, legend=legend)

    return [
        histogram(
            "Documents by length",
            "how many documents have how many tokens; the table below has the numbers",
            lambda last, inside: [(int(last < block_tokens), inside.num_documents)],
            [("c1", "shorter than a block"), ("c0", "a block or longer")],
        ),
        histogram(
            "Tokens by the length of their document",
            "how many tokens are in documents of which length, and how many the tutorial’s script would drop",
            lambda _, inside: [(0, inside.num_tokens - inside.num_lost_tokens), (1, inside.num_lost_tokens)],
            [("c0", "in whole blocks"), ("c1", "dropped by the tutorial")],
        ),
    ]


def _sharing_chart(sharing: Counter[int]) -> Chart:
    """How many blocks hold tokens of how many documents, in at most 17 classes."""
    width = 1 + max(sharing) // 17
    bars, ticks = [], []
    for place, first in enumerate(range(min(sharing) // width * width, max(sharing) + 1, width)):
        number = sum(sharing[documents] for documents in range(first, first + width))
        name = _range(first, first + width - 1)
        tooltip = f"documents: {name}; blocks: {number:,}"
        bars.append(Bar(left=place + 0.1, right=place + 0.9, parts=[(0, number)], tooltip=tooltip))
        ticks.append((place + 0.5, name))
    label = "documents with a token in the block"
    return Chart(
        title="Documents in a block",
        description=" | ".join(bar.tooltip for bar in bars),
        x=Axis(label=label, low=0, high=len(bars), ticks=ticks[:: 1 + len(bars) // 9]),
        y=count_axis(bars),
        bars=bars,
    )


def _rank_chart(counts: Sequence[int]) -> Chart:
    """Counts over ranks, with the line of a count that falls as 1 over the rank."""
    most, x_high = counts[0], 10.0 ** max(1, math.ceil(math.log10(len(counts))))
    end = min(most, x_high)
    # Evenly spaced on a logarithmic axis, none twice.
    ranks = sorted({round(len(counts) ** (number / (_NUM_RANKS - 1))) for number in range(_NUM_RANKS)})
    return Chart(
        title="Tokens by rank",
        description="how often tokens occur, from the most frequent to the rarest; both axes are logarithmic",
        x=log_axis(1, x_high, label="rank of the token"),
        y=log_axis(1, 10.0 ** max(1, math.ceil(math.log10(most)))),
        lines=[
            Line(style="guide", points=[(1, most), (end, most / end)]),
            Line(points=[(rank, counts[rank - 1]) for rank in ranks], has_dots=True),
        ],
        bars=[
            Bar(left=rank, right=next_rank, tooltip=f"rank {rank:,}: {counts[rank - 1]:,} times")
            for rank, next_rank in itertools.pairwise(ranks)
        ],
        legend=[("c0", "how often it occurs"), ("guide", "falling as 1 over the rank")],
    )
