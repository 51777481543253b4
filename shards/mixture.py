"""Several shard sets trained on as one: `wiki:0.7,books:0.3` by shares, `wiki:1epochs,books:4epochs` by passes.

Shares are of the blocks trained on, and exact: whole numbers in proportion, which `shards.order` deals out. With passes, a
set's share is its size times its passes, so that `wiki:1epochs,books:1epochs` is one pass over each, block for block; a
plain list `wiki,books` means the same. The sets must have the same tokenizer and block size. Validation is on all held-out
blocks of all sets.

A list of stages, `[{"until": 0.8, "mix": "wiki:0.9,books:0.1"}, {"mix": "books"}]`, changes the mix where a share of
the run is done, or `3000steps`, or `2e9tokens`; each set goes on where it was.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from blake3 import blake3

from shards.common.errors import InputError
from shards.common.text import printable
from shards.common.urls import is_url
from shards.layout import Shuffle
from shards.manifest import canonical_json
from shards.order import MAX_TOTAL_WEIGHT, RunOrder, Stage
from shards.reader import ShardSet, Split, check_alike, open_shard_set

MAX_SETS = 100
MAX_WEIGHT = 10**12
_MAX_CHARACTERS = 32  # of a weight
MAX_STAGES = 100
_UNTIL = re.compile(r"(?P<amount>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?) ?(?P<unit>steps|tokens|)")
_WEIGHTED = re.compile(r"(?P<path>.+):(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e-?[0-9]+)?)(?P<passes>epochs?)?")
_PASSES = "epochs"
_ALIKE = ("tokenizer.sha256", "tokenizer.begin_id", "block_tokens")


def open_data(spec: str | Sequence[Mapping[str, Any]], notice: Callable[[str], None] = lambda _line: None) -> Data:
    """The set at the path or URL `spec`, or the mixture or the stages that it describes. Raises `InputError`.

    A set at a URL is copied to this machine first (`shards.share.pull`); `notice` is called with a line
    about what takes time.
    """
    if isinstance(spec, str) and not is_mixture(spec):
        return _open_part(spec, notice)
    stages = [("", spec)] if isinstance(spec, str) and not spec.startswith("[") else _parse_stages(spec)
    parsed = [(until, _parse(mix)) for until, mix in stages]
    return Mixture([(until, [(_open_part(path, notice), weight) for path, weight in mix]) for until, mix in parsed])


def is_mixture(spec: str) -> bool:
    """Whether `spec` describes a mixture and is no set's path or URL."""
    return (spec.startswith("[") or "," in spec or _WEIGHTED.fullmatch(spec) is not None) and not os.path.exists(spec)


def _open_part(path: str, notice: Callable[[str], None]) -> ShardSet:
    if is_url(path):
        from shards.share.pull import pull

        return open_shard_set(pull(path, notice=notice))
    return open_shard_set(os.path.expanduser(path))  # one of a user that isn't known stays as it is


def validation_sets(data: Data, named: Mapping[str, str] | None = None) -> dict[str, ShardSet]:
    """The sets whose `val` blocks are evaluated, by name: those at the paths or URLs in `named`, else those of `data`.

    Sets of `data` are called by the ends of their paths that tell them apart; those without such blocks are left out.
    Raises `InputError` for one in `named` that has none, or another tokenizer or block size than `data`.
    """
    if not named:
        names = distinct_names([part.path for part in data.sets])
        return {name: part for name, part in zip(names, data.sets, strict=True) if len(part["val"])}
    sets = {name: _open_part(path, lambda _line: None) for name, path in named.items()}
    check_alike([data.sets[0], *sets.values()], _ALIKE, "evaluated")
    for part in sets.values():
        if not len(part["val"]):
            raise InputError(f"{part.path}: has no validation blocks to evaluate")
    return sets


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The ends of `paths` that tell them apart: `a/x`, `b/x`."""
    parts = [path.resolve().parts for path in paths]
    length = 1
    while len({part[-length:] for part in parts}) < len(set(parts)):
        length += 1
    return [printable("/".join(part[-length:])) for part in parts]


def run_order(
    data: Data,
    seed: int,
    shuffle: Shuffle = "global",
    *,
    run_blocks: int | None = None,
    batch_blocks: int | None = None,
) -> RunOrder:
    """The order in which a run visits the training blocks of `data`, as `data["train"]` numbers them.

    Where stages are to end by shares of the run or by steps, the blocks of the whole run or of a step say where that is;
    raises `InputError` where they are missing, and for the shuffle `offset` of a set whose blocks can't be cut anew.
    """
    if shuffle == "offset" and (packed := [part.path for part in data.sets if part.manifest.packing != "concat"]):
        raise InputError(
            f"shuffle: offset would cut the documents of {packed[0]}, which is packed by best-fit; take global, or build "
            "with --packing concat"
        )
    sizes = tuple(len(part["train"]) for part in data.sets)
    if not isinstance(data, Mixture):
        return RunOrder(sizes, seed, shuffle)
    later = tuple(map(Stage, data.starts(run_blocks, batch_blocks), data.weights[1:]))
    return RunOrder(sizes, seed, shuffle, data.weights[0], later)


def epoch_blocks(data: Data) -> int:
    """Blocks that count as one epoch: all training blocks, in a mixture by passes each as often as asked."""
    return data.epoch_blocks if isinstance(data, Mixture) else len(data["train"])


class Mixture:
    """Several sets with their shares, in one stage or several that follow one another: to be used like one `ShardSet`."""

    def __init__(self, stages: Sequence[tuple[str, Sequence[tuple[ShardSet, str]]]]) -> None:
        """Each stage's `until`, which the last has no use for, and its sets with their weights as `open_data` takes them.

        Raises `InputError` if the sets don't go together.
        """
        self.sets = list({part.path: part for _, parts in stages for part, _ in parts}.values())
        check_alike(self.sets, _ALIKE, "mixed")
        sizes = {part.path: len(part["train"]) for part in self.sets}
        for path, size in sizes.items():
            if not size:
                raise InputError(f"{path}: has no training blocks, so it can't be mixed in")
        amounts = [
            [
                Fraction(sum(_amount(own, size) for part, own in parts if part.path == path))
                for path, size in sizes.items()
            ]
            for _, parts in stages
        ]
        self.weights = list(map(whole_weights, amounts))  # of the sets, in each stage
        are_passes = len(stages) == 1 and stages[0][1][0][1].endswith(_PASSES)
        self.epoch_blocks = math.ceil(sum(amounts[0])) if are_passes else sum(sizes.values())
        mixes = [",".join(f"{part.path}:{weight}" for part, weight in parts) for _, parts in stages]
        prints = [mix_fingerprint(self.sets, own) for own in self.weights]
        self._untils = [until for until, _ in stages]
        self.description, self.fingerprint = mixes[0], prints[0]  # the first as `open_data` takes it
        if len(stages) > 1:
            shown = [{"until": until, "mix": mix} for until, mix in zip(self._untils, mixes, strict=True)]
            del shown[-1]["until"]
            self.description = json.dumps(shown, ensure_ascii=False)
            self.fingerprint = blake3(canonical_json([*zip(self._untils, prints, strict=True)])).hexdigest()
        first = self.sets[0]
        self.block_tokens, self.vocab_size, self.eos_id = first.block_tokens, first.vocab_size, first.eos_id
        self.begin_id = first.begin_id
        self.tokenizer_path = first.tokenizer_path
        self._splits: dict[str, Split] = {}

    def __getitem__(self, name: str) -> Split:
        if name not in self._splits:
            self._splits[name] = Split(name, self.sets)
        return self._splits[name]

    def starts(self, run_blocks: int | None, batch_blocks: int | None) -> list[int]:
        """The positions at which the second stage and those after it begin."""
        units = {"": run_blocks, "steps": batch_blocks, "tokens": Fraction(1, self.block_tokens)}
        starts = [0]
        for until in self._untils[:-1]:
            amount, unit = _parse_until(until)
            if (blocks := units[unit]) is None:
                raise InputError(f"shards: until {until}: only a training run has steps; give tokens")
            starts.append(math.ceil(amount * blocks))
            if starts[-1] < starts[-2]:
                raise InputError(f"shards: until {until}: expected a place in the run after the stage before")
        return starts[1:]


Data = ShardSet | Mixture  # what a model is trained on


def mix_fingerprint(sets: Sequence[ShardSet], weights: Sequence[int]) -> str:
    """Of the sets that have a weight: of one its own, of several BLAKE3 over theirs and their weights."""
    parts = [[part.fingerprint, weight] for part, weight in zip(sets, weights, strict=True) if weight]
    return str(parts[0][0]) if len(parts) == 1 else blake3(canonical_json(parts)).hexdigest()


def fingerprint_until(data: Data, order: RunOrder, position: int) -> str:
    """Of what decided the blocks before `position` of a run: whatever comes later may be changed.

    With stages: of those that have begun, and where.
    """
    begun = [stage for stage in order.stages if stage.start < max(position, 1)]
    parts = [[stage.start, stage.weights, mix_fingerprint(data.sets, stage.weights)] for stage in begun]
    return str(parts[0][2]) if len(parts) == 1 else blake3(canonical_json(parts)).hexdigest()


def _parse(spec: str) -> list[tuple[str, str]]:
    """Paths and weights. `a:0.7,b:0.3` or `a:1epochs,b:4epochs` or `a,b`, which is a pass over each."""
    parts = [part.strip() for part in spec.split(",")] if is_mixture(spec) else [spec]
    if len(parts) > MAX_SETS:
        remedy = "`shards merge` makes one of several"
        raise InputError(f"shards: expected at most {MAX_SETS} sets, found {len(parts):,}; {remedy}")
    matches = [_WEIGHTED.fullmatch(part) for part in parts]
    if not any(matches) and all(parts):
        return [(part, f"1{_PASSES}") for part in parts]
    weighted = []
    for part, match in zip(parts, matches, strict=True):
        if match is None:
            raise InputError(
                f"shards: expected PATH:WEIGHT for each set, found {printable(part)!r}; write wiki:0.7,books:0.3, or "
                "wiki:1epochs,books:4epochs, or wiki,books"
            )
        # As a float first: a fraction of 1e-999999999 has a billion digits.
        if len(match["number"]) > _MAX_CHARACTERS or not 0 < float(match["number"]) <= MAX_WEIGHT:
            raise InputError(f"shards: {printable(part)!r}: expected a weight above 0 and at most {MAX_WEIGHT:,}")
        weighted.append((match["path"], match["number"] + (_PASSES if match["passes"] else "")))
    if len({weight.endswith(_PASSES) for _, weight in weighted}) > 1:
        raise InputError("shards: expected shares (wiki:0.7) or passes (wiki:2epochs) for all sets, found both")
    return weighted


def _parse_stages(spec: str | Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """`until` and `mix` of each stage; the last one's `until` is empty."""
    try:
        stages = json.loads(spec) if isinstance(spec, str) else spec
    except (ValueError, RecursionError) as error:
        raise InputError(f"shards: bad JSON ({error})") from None
    if not isinstance(stages, list) or not 0 < len(stages) <= MAX_STAGES:
        raise InputError(f"shards: expected 1 to {MAX_STAGES} stages, such as {{until: 0.8, mix: wiki:0.9,books:0.1}}")
    parsed = []
    for number, stage in enumerate(stages):
        keys = {"mix"} if number == len(stages) - 1 else {"mix", "until"}
        mix = stage.get("mix") if isinstance(stage, Mapping) and set(stage) == keys else None
        if not isinstance(mix, str) or mix.startswith("["):
            expected = "only `mix`, as it lasts to the end" if "until" not in keys else "`until` and `mix`"
            raise InputError(f"shards[{number}]: expected {expected}, found {printable(str(stage))[:80]}")
        until = str(stage["until"]) if "until" in stage else ""
        if until:
            _parse_until(until)
        parsed.append((until, mix))
    return parsed


def _parse_until(until: str) -> tuple[Fraction, str]:
    """The amount, and of what: steps, tokens or, with "", the whole run."""
    match = _UNTIL.fullmatch(until)
    amount = float(match["amount"]) if match and len(until) <= _MAX_CHARACTERS else 0.0
    if match is None or not 1e-12 <= amount <= (MAX_WEIGHT if match["unit"] else 1):
        raise InputError(
            "shards: until: expected a share of the run (0.8), steps (3000steps) or tokens (2e9tokens), "
            f"found {printable(until)[:80]!r}"
        )
    return Fraction(match["amount"]), match["unit"]


def _amount(weight: str, size: int) -> Fraction:
    """`0.7` as it is, `2epochs` of a set of so many blocks in blocks."""
    number = weight.removesuffix(_PASSES)
    return Fraction(number) * (1 if number == weight else size)


def whole_weights(amounts: Sequence[Fraction]) -> tuple[int, ...]:
    """The least whole numbers in proportion to `amounts`; rounded where they are above 2**46 together, to 1 or more.

    >>> whole_weights([Fraction("0.7"), Fraction("0.3")])
    (7, 3)
    """
    common = math.lcm(*(amount.denominator for amount in amounts))
    counts = [int(amount * common) for amount in amounts]
    total, most = sum(counts), MAX_TOTAL_WEIGHT - sum(map(bool, counts))
    if total // (divisor := math.gcd(*counts)) > most:
        return tuple(max(min(count, 1), count * most // total) for count in counts)
    return tuple(count // divisor for count in counts)
