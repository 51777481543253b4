"""Mixtures of real sets: their shares, passes, stages and fingerprints, and what makes no sense."""

from __future__ import annotations

import itertools
import json
import pickle
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shards
from shards.__main__ import main
from shards.common.errors import InputError
from shards.mixture import whole_weights
from shards.order import MAX_TOTAL_WEIGHT, Stage
from tests.shards.sets import TEXTS, byte_fallback_tokenizer, text_units, write_set


@pytest.fixture(scope="module")
def other_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("other") / "set", text_units(TEXTS[60:75]), block_tokens=64)


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_mixture_is_used_like_a_set(built_set: Path, other_set: Path, name: str) -> None:
    mixture = shards.open_data(f"{built_set}:0.75, {other_set}:0.25")
    assert isinstance(mixture, shards.Mixture) and mixture.weights == [(3, 1)]
    sets = [shards.open(path) for path in (built_set, other_set)]
    split, whole = mixture[name], np.concatenate([part[name][:] for part in sets])
    assert len(split) == len(whole)
    keys: tuple[Any, ...] = (0, -1, len(whole) - 1, slice(3, -3), slice(None, None, -7), [], [5, 2, -1])
    for key in (*keys, np.arange(len(whole))[::-3]):
        assert np.array_equal(split[key], whole[key]), key
    assert split[0].shape == (64,) and split[0].dtype == np.uint32
    sums = [sum(part[name].num_documents for part in sets), sum(part[name].num_text_bytes for part in sets)]
    assert [split.num_documents, split.num_text_bytes] == sums
    assert [*map(len, split.documents())] == [len(own) for part in sets for own in part[name].documents()]
    assert np.array_equal(pickle.loads(pickle.dumps(split))[:], whole)
    for field in ("block_tokens", "vocab_size", "eos_id", "tokenizer_path"):
        assert getattr(mixture, field) == getattr(sets[0], field)


def test_the_blocks_of_a_mixture_come_by_its_shares(built_set: Path, other_set: Path) -> None:
    mixture = shards.open_data(f"{built_set}:0.75, {other_set}:0.25")
    sizes = [len(shards.open(path)["train"]) for path in (built_set, other_set)]
    numbers = shards.run_order(mixture, 7).blocks(0, 3000)
    assert Counter((numbers[:1000] >= sizes[0]).tolist()) == {False: 750, True: 250}
    assert len(mixture["train"]) == sum(sizes) == shards.epoch_blocks(mixture)
    alone = shards.open_data(str(built_set))
    assert shards.epoch_blocks(alone) == sizes[0] and shards.run_order(alone, 7) == shards.RunOrder((sizes[0],), 7)


def test_passes_give_shares_by_size_and_make_the_epoch(built_set: Path, other_set: Path) -> None:
    sizes = [len(shards.open(path)["train"]) for path in (built_set, other_set)]
    mixture = shards.open_data(f"{built_set}:1epoch,{other_set}:40epochs")
    total = sizes[0] + 40 * sizes[1]
    assert shards.epoch_blocks(mixture) == total
    assert isinstance(mixture, shards.Mixture)
    seen = Counter(shards.run_order(mixture, 0).blocks(0, total).tolist())
    assert seen == {block: 1 if block < sizes[0] else 40 for block in range(sum(sizes))}
    assert shards.epoch_blocks(shards.open_data(f"{other_set},{built_set}")) == sum(sizes)
    begun = shards.open_data(f"{built_set}:1epochs,{other_set}:0.001epochs")  # a part of a block is one
    assert shards.epoch_blocks(begun) == sizes[0] + 1


def test_shares_may_be_any_decimals(built_set: Path, other_set: Path) -> None:
    for text, expected in (("0.0003", (9997, 3)), ("1e-6", (999_700, 1)), (".9997", (1, 1)), ("3.", (9997, 30_000))):
        mixture = shards.open_data(f"{built_set}:0.9997,{other_set}:{text}")
        assert isinstance(mixture, shards.Mixture) and mixture.weights == [expected], text
    rounded = whole_weights([Fraction(10**30), Fraction(10**29), Fraction(1), Fraction(0)])
    assert sum(rounded) <= MAX_TOTAL_WEIGHT and abs(rounded[0] - 10 * rounded[1]) <= 10
    assert repr(rounded[2:]) == "(1, 0)"  # and not True, which would be another fingerprint


def test_info_says_what_each_set_gives(built_set: Path, other_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [len(shards.open(path)["train"]) for path in (built_set, other_set)]
    main(["info", f"{built_set}:0.75,{other_set}:0.25", "--tokens", "6.4e4"])
    _, whole, *parts = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert whole[:4] == ["all", f"{sum(sizes):,}", "1,000", "64,000"]
    for part, path, size, taken in zip(parts, (built_set, other_set), sizes, (750, 250), strict=True):
        tokens, share, passes = f"{taken * 64:,}", f"{taken / 10:g}", f"{taken / size:,.2f}"
        assert part == ["├─", str(path), f"{size:,}", str(taken), tokens, share, "%", passes]
    main(["info", f"{built_set}:1epochs,{other_set}:2epochs"])
    assert capsys.readouterr().out.splitlines()[3].split()[3] == str(2 * sizes[1])
    with pytest.raises(shards.InputError, match="--tokens: expected 1 to"):
        main(["info", f"{built_set},{other_set}", "--tokens", "nan"])


def test_stages_change_and_each_goes_on(built_set: Path, other_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [len(shards.open(path)["train"]) for path in (built_set, other_set)]
    stages: list[dict[str, Any]] = [
        {"until": 0.5, "mix": f"{built_set}:0.9,{other_set}:0.1"},
        {"until": "70steps", "mix": f"{other_set}:0.5,{built_set}:0.5"},
        {"until": "51200tokens", "mix": str(built_set)},
        {"mix": str(other_set)},
    ]
    data = shards.open_data(stages)
    order = shards.run_order(data, 7, run_blocks=1000, batch_blocks=10)
    assert order.stages == tuple(itertools.starmap(Stage, [(0, (9, 1)), (500, (1, 1)), (700, (1, 0)), (800, (0, 1))]))
    assert order.counts(1000) == [450 + 100 + 100, 50 + 100 + 200]
    blocks, alone = order.blocks(0, 1000), shards.RunOrder((sizes[0],), 7).blocks(0, 650)
    assert np.array_equal(blocks[blocks < sizes[0]], alone)
    assert shards.open_data(data.description).fingerprint == data.fingerprint
    assert shards.open_data([{"mix": str(built_set)}]).fingerprint != data.fingerprint
    assert (
        shards.run_order(data, 7, run_blocks=1001, batch_blocks=10).later[0].start == 501
    )  # 500.5 blocks are not done
    del stages[1]
    main(["info", json.dumps(stages), "--tokens", "64000"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2][:3] == ["├─", "stage", "1"] and lines[3][:3] == ["│", "├─", str(built_set)]
    assert lines[3][3:5] == [f"{sizes[0]:,}", "450"]
    assert lines[3][-4:] == ["28,800", "90", "%", f"{450 / sizes[0]:,.2f}"]


def test_only_stages_that_have_begun_are_in_the_fingerprint_of_a_position(built_set: Path, other_set: Path) -> None:
    first, plain = f"{built_set}:3,{other_set}:1", shards.open_data(f"{built_set}:0.75,{other_set}:0.25")

    def found(until: Any, mix: Path, position: int) -> str:
        data = shards.open_data([{"until": until, "mix": first}, {"mix": str(mix)}])
        return shards.fingerprint_until(data, shards.run_order(data, 7, run_blocks=1000, batch_blocks=10), position)

    assert found(0.5, built_set, 500) == found(0.8, other_set, 500) == plain.fingerprint
    others = [found(0.5, built_set, 501), found(0.4, built_set, 501), found(0.5, other_set, 501)]
    assert len({*others, plain.fingerprint}) == 4
    assert found(0.5, built_set, 501) == found("50steps", built_set, 900)


def test_stages_that_make_no_sense_are_refused(built_set: Path) -> None:
    mix = str(built_set)
    for stages, message in (
        ([], "expected 1 to 100 stages"),
        ("[1", "bad JSON"),
        ([{"until": 0.5, "mix": mix}], r"shards\[0\]: expected only `mix`"),
        ([{"mix": mix}, {"mix": mix}], r"shards\[0\]: expected `until` and `mix`"),
        ([mix, {"mix": mix}], r"shards\[0\]: expected `until` and `mix`"),
        ([{"mix": "[]"}], r"shards\[0\]: expected only `mix`"),
        *(([{"until": u, "mix": mix}, {"mix": mix}], "a share of the run") for u in (1.5, "0steps", "1e-999999999")),
        ([{"until": 0.5, "mix": f"{mix}:1,{mix}"}, {"mix": mix}], "expected PATH:WEIGHT for each set"),
    ):
        with pytest.raises(shards.InputError, match=message):
            shards.open_data(stages)  # type: ignore[arg-type]
    data = shards.open_data([{"until": 0.5, "mix": mix}, {"until": "3steps", "mix": mix}, {"mix": mix}])
    for batch_blocks, message in ((None, "only a training run has steps"), (10, "in the run after the stage before")):
        with pytest.raises(shards.InputError, match=message):
            shards.run_order(data, 1, run_blocks=100, batch_blocks=batch_blocks)


def test_fingerprints_of_mixtures_differ_by_sets_and_shares(built_set: Path, other_set: Path) -> None:
    specs = [f"{built_set}:0.5,{other_set}:0.5", f"{built_set}:0.6,{other_set}:0.4", f"{other_set}:0.5,{built_set}:0.5"]
    fingerprints = {shards.open_data(spec).fingerprint for spec in (*specs, str(built_set))}
    assert len(fingerprints) == 4
    assert shards.open_data(shards.open_data(specs[1]).description).fingerprint in fingerprints


def test_mixtures_that_make_no_sense_are_refused(built_set: Path, other_set: Path, tmp_path: Path) -> None:
    blocks = write_set(tmp_path / "b", [{"train": [[1]]}], block_tokens=32)
    tokenizer = write_set(tmp_path / "c", [{"train": [[1]]}], block_tokens=64, tokenizer=byte_fallback_tokenizer())
    empty = write_set(tmp_path / "d", [{"val": [[1]]}], block_tokens=64)
    for spec, message in (
        (f"{built_set}:0.5,{other_set}", "expected PATH:WEIGHT for each set"),
        (f"{built_set}:0,{other_set}:1", "expected a weight above 0"),
        (f"{built_set}:1,{other_set}:2epochs", "found both"),
        (f"{built_set}:1,{other_set}:1e-999999999", "expected a weight above 0"),
        (f"{built_set}:1,{other_set}:0.{'0' * 5000}1", "expected a weight above 0"),
        (",".join([str(built_set)] * 101), "expected at most 100 sets, found 101"),
        (f"{built_set}:1.2.3,{other_set}:1", "expected PATH:WEIGHT for each set"),
        (f"{built_set}:1,{tmp_path / 'none'}:1", "no such shard set"),
        (f"{built_set}:1,~nobody-is-called-so/set:1", "^~nobody-is-called-so/set: no such shard set"),
        (f"{built_set}:1,{blocks}:1", r"block_tokens \(expected 64, found 32\)"),
        (f"{built_set}:1,{tokenizer}:1", r"tokenizer\.sha256 \(expected"),
        (f"{built_set}:1,{empty}:1", "has no training blocks"),
    ):
        with pytest.raises(shards.InputError, match=message):
            shards.open_data(spec)


def test_documents_that_best_fit_keeps_whole_are_not_cut_anew(packed_sets: dict[str, Path]) -> None:
    for name, path in packed_sets.items():
        data = shards.open(path)
        if name == "concat":
            assert shards.run_order(data, 1, "offset").shuffle == "offset"
            continue
        with pytest.raises(InputError, match=r"offset would cut the documents of .*best-fit"):
            shards.run_order(data, 1, "offset")
