"""The numbers of a shard set: a pure function of the set and a seed.

Documents and blocks are counted exactly, from the indexes. Tokens, characters and duplicates are exact for sets of up to
half a billion tokens and four million documents, and come from a sample of larger ones; the page says how much was
counted. Memory doesn't grow with the text: the index of one shard, and a number for each value that occurs.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import itertools
import json
import unicodedata
from collections import Counter
from collections.abc import Callable

import numpy as np
from blake3 import blake3

from shards.common.errors import InputError
from shards.common.files import regular_file_bytes
from shards.index import Index, Int64s
from shards.layout import EXAMPLE_CHARS, EXAMPLES_PER_SET, LEFT_OUT_NAME
from shards.order import epoch_order, mix_64
from shards.reader import ShardSet, Tokens
from shards.show import Segment, segments
from shards.tokenizer_files import MAX_VOCAB_SIZE, Vocabulary, read_vocabulary

MAX_COUNTED_TOKENS = 1 << 29
MAX_COMPARED_DOCUMENTS = 1 << 22
NUM_EXCERPTS = 10
MAX_SHOWN_TOKENS = 1024  # of an excerpt
MAX_EXAMPLES_BYTES = 1 << 20  # of what was left out
_CHUNK_TOKENS = 1 << 20
# A byte that no UTF-8 text holds: it separates parts of characters that don't follow each other in the text.
_SEPARATOR = b"\xff"

_SCRIPT_OF_WORD = {"CJK": "Han", "IDEOGRAPHIC": "Han", "LATIN": "Latin", "CYRILLIC": "Cyrillic"}
_SCRIPT_OF_WORD |= {"HIRAGANA": "kana", "KATAKANA": "kana", "HANGUL": "hangul"}
# Edges of the histogram's bins are the block size times powers of the square root of two.
_BINS_PER_DOUBLING = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """Documents by their tokens of text, without EOS and begin token: `counts[3]` documents of 3 tokens."""

    counts: Counter[int]
    block_tokens: int

    @property
    def num_documents(self) -> int:
        return self.counts.total()

    @property
    def num_tokens(self) -> int:
        return sum(length * count for length, count in self.counts.items())

    @property
    def num_lost_tokens(self) -> int:
        """What the tutorial's script would drop: it keeps a document's whole blocks."""
        return sum(length % self.block_tokens * count for length, count in self.counts.items())

    def between(self, first: int, last: int) -> Lengths:
        """The documents of `first` to `last` tokens, both included."""
        inside = {length: count for length, count in self.counts.items() if first <= length <= last}
        return Lengths(counts=Counter(inside), block_tokens=self.block_tokens)

    def quantile(self, percent: int) -> int:
        """The smallest length that `percent` of the documents don't exceed."""
        weights = list(self.counts.values())
        return int(np.percentile(list(self.counts), percent, weights=weights, method="inverted_cdf"))

    def bins(self) -> list[tuple[int, int, Lengths]]:
        """All documents by classes of lengths, each with its first and its last length."""
        edges = bin_edges(self.block_tokens, min(self.counts), max(self.counts))
        return [(first, stop - 1, self.between(first, stop - 1)) for first, stop in itertools.pairwise(edges)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duplicates:
    """What the comparison of documents found.

    Equal are those with the same 64-bit hash of their tokens: two different ones of four million have the same with a
    chance below one in a million. Of a larger set only the documents whose hash is small are compared: equal ones are in
    that sample together or not at all, so the share of duplicates is that of the whole set, but for chance.
    """

    num_compared: int
    num_duplicates: int  # documents that equal an earlier one
    num_repeated: int  # different documents that occur more than once
    most_copies: int  # of one document, the first included


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """What the page shows, beyond the manifest."""

    lengths: Lengths
    sharing: Counter[int]  # blocks by the documents that have at least one token in them
    padding: Counter[int]  # blocks by their padding tokens
    num_cut_documents: int  # that would fit into one block and lie in two
    tokens: TokenCounter
    duplicates: Duplicates
    excerpts: list[tuple[str, int, list[Segment]]]  # blocks: the split's name, the number in it, what is in it
    examples: dict[str, list[str]]  # beginnings of what was left out, by reason
    seed: int


def compute(shard_set: ShardSet, *, seed: int, progress: Callable[[int], None] = lambda _: None) -> Statistics:
    """Read the set once. Raises `InputError` where a file of it is damaged.

    `progress` is called after each shard, with the number of its blocks.
    """
    manifest, size, num_marks = shard_set.manifest, shard_set.block_tokens, 1 if shard_set.begin_id is None else 2
    num_blocks, num_documents = manifest.total("num_blocks"), manifest.total("num_documents")
    lengths, sharing, padding, num_cut = Counter[int](), Counter[int](), Counter[int](), 0
    tokens = TokenCounter(shard_set, read_vocabulary(shard_set.tokenizer_path))
    share = min(1.0, MAX_COUNTED_TOKENS / (num_blocks * size))
    last_hash = np.uint64(2**64 * min(MAX_COMPARED_DOCUMENTS, num_documents) // num_documents - 1)
    hashes = []
    # The first positions of an order of all blocks: as many different ones at random places.
    chosen = epoch_order(num_blocks, seed, 0, range(min(NUM_EXCERPTS, num_blocks)))
    excerpts, first_block = [], 0  # the shard's first block, counted through both splits
    for name in manifest.splits:
        split = shard_set[name]
        for number, shard in enumerate(split.shards):
            index, shard_blocks = split.shard_index(number), split.shard_blocks(number)
            documents, (documents_of_block, used) = index.document_lengths, occupancy(index, shard.num_blocks, size)
            for totals, values in (
                (lengths, np.maximum(documents - num_marks, 0)),  # a stranger's may lack its begin token
                (sharing, documents_of_block),
                (padding, size - used),
            ):
                found, counts = np.unique(values, return_counts=True)
                totals.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
            # A document of several sequences is longer than a block.
            starts = index.starts[index.boundaries[:-1]]
            is_cut = starts // size != (starts + documents - 1) // size
            num_cut += int((is_cut & (documents <= size)).sum())
            sample = sample_blocks(shard.num_blocks, share, seed ^ first_block)
            tokens.add(shard_blocks[sample.start : sample.stop])
            digests = [blake3(own.view(np.uint8).data).digest(8) for own in split.shard_documents(number)]
            own_hashes = np.frombuffer(b"".join(digests), "<u8")
            hashes.append(own_hashes[own_hashes <= last_hash])
            for block in sorted(block - first_block for block in chosen.tolist()):
                if 0 <= block < shard.num_blocks:
                    parts = list(segments(index, shard_blocks, block, MAX_SHOWN_TOKENS))
                    excerpts.append((name, split.first_blocks[number] + block, parts))
            first_block += shard.num_blocks
            progress(shard.num_blocks)
    _, copies = np.unique(np.concatenate(hashes), return_counts=True)
    return Statistics(
        lengths=Lengths(counts=lengths, block_tokens=size),
        sharing=sharing,
        padding=padding,
        num_cut_documents=num_cut,
        tokens=tokens,
        duplicates=Duplicates(
            num_compared=int(copies.sum()),
            num_duplicates=int((copies - 1).sum()),
            num_repeated=int((copies > 1).sum()),
            most_copies=int(copies.max(initial=0)),
        ),
        excerpts=excerpts,
        examples=read_examples(shard_set),
        seed=seed,
    )


def sample_blocks(num_blocks: int, share: float, seed: int) -> range:
    """About `share` of a shard's blocks, one after another from a random place on; at least one. A large set has many
    shards, so the samples are evenly spread over it.

    >>> sample_blocks(5, 1.0, seed=0), len(sample_blocks(1000, 0.24, seed=0))
    (range(0, 5), 240)
    """
    wanted = max(1, int(num_blocks * share))
    start = mix_64(seed) % (num_blocks - wanted + 1)
    return range(start, start + wanted)


def occupancy(index: Index, num_blocks: int, block_tokens: int) -> tuple[Int64s, Int64s]:
    """For each block of a shard: sequences that have a token in it, and tokens that belong to sequences.

    >>> [column.tolist() for column in occupancy(Index(np.array([3, 4]), np.array([0, 3]), np.array([0, 1, 2])), 2, 4)]
    [[2, 1], [4, 3]]
    """
    first, last = index.starts // block_tokens, (index.ends - 1) // block_tokens
    # Each sequence counts from its first block through its last.
    changes = np.bincount(first, minlength=num_blocks + 1) - np.bincount(last + 1, minlength=num_blocks + 1)
    sequences = np.cumsum(changes)[:num_blocks]
    # As if each took all of its blocks, less what it lacks in its first and its last one.
    before, after = index.starts - first * block_tokens, (last + 1) * block_tokens - index.ends
    missing = np.bincount(first, before, num_blocks) + np.bincount(last, after, num_blocks)
    return sequences, sequences * block_tokens - missing.astype(np.int64)


def bin_edges(block_tokens: int, shortest: int, longest: int) -> list[int]:
    """Edges of bins that grow evenly on a logarithmic axis; one edge is the block size, so that no bin straddles it.

    >>> bin_edges(64, 20, 100)
    [16, 23, 32, 45, 64, 91, 128]
    """
    edges, exponents = [0, 1], itertools.count(-_BINS_PER_DOUBLING * block_tokens.bit_length())
    while edges[-1] <= longest:
        edges.append(max(1, round(block_tokens * 2 ** (next(exponents) / _BINS_PER_DOUBLING))))
    ascending = sorted(set(edges))
    return ascending[bisect.bisect(ascending, shortest) - 1 :]


def read_examples(shard_set: ShardSet) -> dict[str, list[str]]:
    """What `left_out.jsonl` begins with, by reason. Lines that are no examples are passed over: the file may be a
    stranger's."""
    path, manifest = shard_set.path / LEFT_OUT_NAME, shard_set.manifest
    examples: dict[str, list[str]] = {}
    if path.name in [file.name for file in manifest.other_files] and regular_file_bytes(path):
        with path.open("rb") as file:
            lines = file.read(MAX_EXAMPLES_BYTES).splitlines()
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                entry = json.loads(line)
                reason, text = entry["reason"], entry["text"]
                texts = examples.setdefault(reason, []) if reason in manifest.left_out else []
                if isinstance(text, str) and len(texts) < EXAMPLES_PER_SET:
                    texts.append(text[:EXAMPLE_CHARS])
    return {reason: texts for reason, texts in examples.items() if texts}


class TokenCounter:
    """Counts tokens and the characters that they spell.

    Most tokens are whole characters: their counts say it all. The others hold parts of characters, and are decoded
    together with their neighbors.
    """

    def __init__(self, shard_set: ShardSet, vocabulary: Vocabulary) -> None:
        self._shard_set, self._vocabulary = shard_set, vocabulary
        self.num_counted_blocks = 0
        num_ids = min(shard_set.vocab_size, MAX_VOCAB_SIZE)  # a stranger's manifest may promise more
        self._counts: Int64s = np.zeros(num_ids, dtype=np.int64)
        self._characters = Counter[str]()
        pieces = [vocabulary.piece(token) for token in range(num_ids)]
        self._is_partial = np.array([not is_whole(piece) for piece in pieces])
        # Of such tokens, the pieces, and then the same after a separator.
        self._partial_number = np.cumsum(self._is_partial) - 1
        partial = [pieces[token] for token in np.flatnonzero(self._is_partial).tolist()]
        self._partial_pieces = partial + [_SEPARATOR + piece for piece in partial]

    def add(self, blocks: Tokens) -> None:
        """Count blocks that follow each other, shape `(n, block_tokens)`; not a character that either end cuts in two."""
        self.num_counted_blocks += len(blocks)
        tokens = blocks.reshape(-1)
        for start in range(0, len(tokens), _CHUNK_TOKENS):
            chunk = tokens[start : start + _CHUNK_TOKENS].astype(np.int64)
            counts = np.bincount(chunk)
            if len(counts) > len(self._counts):
                raise InputError(
                    f"{self._shard_set.path}: expected ids below {len(self._counts):,}, found {len(counts) - 1:,}; "
                    "see `python -m shards verify`"
                )
            self._counts[: len(counts)] += counts
            places = np.flatnonzero(self._is_partial[chunk])
            numbers = self._partial_number[chunk[places]]
            numbers[np.diff(places, prepend=-2) > 1] += len(self._partial_pieces) // 2
            content = b"".join(map(self._partial_pieces.__getitem__, numbers.tolist()))
            self._characters.update(content.decode("utf-8", "ignore"))

    @functools.cached_property
    def ranking(self) -> list[tuple[int, int]]:
        """Each id of text that occurs, and its count: the most frequent first, then by id. Take it after all tokens."""
        counts = self._counts.copy()
        counts[[own for own in (self._shard_set.eos_id, self._shard_set.begin_id) if own is not None]] = 0
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        return list(zip(order.tolist(), counts[order].tolist(), strict=True))

    def scripts(self) -> dict[str, int]:
        """How many characters belong to each script, the most frequent first."""
        characters = self._characters.copy()
        for token, count in self.ranking:
            if not self._is_partial[token]:
                for character in self._vocabulary.piece(token).decode():
                    characters[character] += count
        scripts = Counter[str]()
        for character, number in characters.items():
            scripts[script_of(character)] += number
        return dict(scripts.most_common())


def is_whole(piece: bytes) -> bool:
    """Whether these are whole characters in UTF-8."""
    return piece.decode("utf-8", "ignore").encode() == piece


def script_of(character: str) -> str:
    """The script of a letter, or the kind of any other character, by Unicode's category and name."""
    if character.isspace():
        return "white space"
    category = unicodedata.category(character)
    if category == "Nd":
        return "digits"
    if category[0] in "PS":
        return "punctuation"
    words = unicodedata.name(character, "").replace("-", " ").split()
    scripts = [_SCRIPT_OF_WORD[word] for word in words if word in _SCRIPT_OF_WORD]
    return scripts[0] if scripts else "other letters" if category[0] in "LM" else "other"
