"""Merging renames files; parts hold every document whole, once and in order; damage never becomes a sound-looking set."""

from __future__ import annotations

import dataclasses
import os
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shards
from shards.common.command_line import Parser
from shards.common.errors import InputError
from shards.edit import command, parts
from shards.edit.merge import merge
from shards.edit.parts import split, subset
from shards.layout import SPLITS
from shards.manifest import SourceEntry, read_manifest
from shards.verify import verify
from tests.conftest import directory_bytes
from tests.shards.foreign_files import byte_fallback_tokenizer
from tests.shards.sets import (
    EOS,
    PACKINGS,
    TEXTS,
    Unit,
    documents_of,
    flip_a_bit,
    forge,
    names_in,
    shard_files,
    text_units,
    write_set,
)

pytestmark = pytest.mark.usefixtures("no_flushing")
PARTS = [Fraction(1, 2), Fraction(3, 10), Fraction(1, 5)]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("sets")
    units = text_units(TEXTS[:110], per_unit=20)
    units.insert(2, {})
    return {name: write_set(directory / name, units, packing=name) for name in PACKINGS}


@pytest.fixture
def own(sets: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the set in the packing `concat` that the test may damage."""
    return Path(shutil.copytree(sets["concat"], tmp_path / "set"))


def is_part_in_order(part: list[list[int]], whole: list[list[int]]) -> bool:
    remaining = iter(whole)
    return all(document in remaining for document in part)


# ---- merge ----


def test_units_get_consecutive_numbers_and_files_stay_as_they_are(tmp_path: Path) -> None:
    units: list[list[Unit]] = [
        [{"train": [[1]], "val": [[2]]}, {}, {"train": [[3]]}],
        [{}, {"val": [[4]]}, {"train": [[5]]}],
    ]
    source = SourceEntry(path="a", format="json", num_bytes=1, digest="0" * 64, num_ranges=1, num_records=9)
    counts: dict[str, Any] = {"sources": [source], "num_records": 9, "num_empty": 2, "num_duplicates": 1}
    paths = [
        write_set(tmp_path / f"{number}", own, rejected={"no text": 2, f"of {number}": 1}, **counts)
        for number, own in enumerate(units)
    ]
    manifest = merge(paths, tmp_path / "merged")
    assert manifest == read_manifest(tmp_path / "merged") and verify(tmp_path / "merged") == []
    expected = {
        "train-00000": (0, "train-00000"),
        "train-00001": (0, "train-00002"),
        "train-00003": (1, "train-00002"),
        "val-00000": (0, "val-00000"),
        "val-00002": (1, "val-00001"),
    }
    assert [shard.name for shard in manifest.shards] == list(expected)
    for shard in manifest.shards:
        number, name = expected[shard.name]
        old = next(own for own in read_manifest(paths[number]).shards if own.name == name)
        assert dataclasses.replace(shard, name=name) == old
        for suffix in (".bin", ".idx"):
            assert (tmp_path / "merged" / (shard.name + suffix)).read_bytes() == (
                paths[number] / (name + suffix)
            ).read_bytes()
    rejected = [(paths[number] / "rejected.jsonl").read_bytes() for number in (0, 1)]
    assert (tmp_path / "merged" / "rejected.jsonl").read_bytes() == b"".join(rejected)
    assert {entry.kind: entry.num_records for entry in manifest.rejected} == {"no text": 4, "of 0": 1, "of 1": 1}
    assert manifest.sources == [source, source]
    assert (manifest.num_records, manifest.num_empty, manifest.num_duplicates) == (18, 4, 2)
    assert manifest.settings["parts"] == [read_manifest(path).fingerprint for path in paths]
    assert manifest.settings["settings"] == read_manifest(paths[0]).settings


def test_links_share_the_old_files_and_copies_do_not(
    tmp_path: Path, sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    merge([sets["concat"]], tmp_path / "linked", link=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lambda *_paths: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
        merge([sets["concat"]], tmp_path / "copied", link=True)
    for name in ("train-00000.bin", "train-00000.idx"):
        assert os.path.samefile(tmp_path / "linked" / name, sets["concat"] / name)
        assert not os.path.samefile(tmp_path / "copied" / name, sets["concat"] / name)
    assert directory_bytes(tmp_path / "linked") == directory_bytes(tmp_path / "copied")


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("name", ["train-00000.bin", "val-00001.idx", "tokenizer/tokenizer_config.json"])
def test_damage_does_not_get_into_a_merged_set(tmp_path: Path, own: Path, name: str, link: bool) -> None:
    flip_a_bit(own / name)
    with pytest.raises(InputError, match=f"{name.rpartition('/')[2]}: expected digest .* the file was changed"):
        merge([own], tmp_path / "merged", link=link)
    assert names_in(tmp_path) == ["set"]


def test_sets_that_do_not_fit_together_are_refused(tmp_path: Path, own: Path, sets: dict[str, Path]) -> None:
    others = {
        "packing (expected concat, found best-fit)": sets["best-fit"],
        "block_tokens (expected 16, found 8)": write_set(tmp_path / "8", [{"train": [[1]]}], block_tokens=8),
        "tokenizer.sha256": write_set(tmp_path / "t", [{"train": [[1]]}], tokenizer=byte_fallback_tokenizer()),
    }
    for expected, other in others.items():
        with pytest.raises(InputError) as caught:
            merge([own, other], tmp_path / "merged")
        assert f"{other}: can't be merged with {own}, from which it differs in" in str(caught.value)
        assert expected in str(caught.value)
    with pytest.raises(ValueError, match="paths: expected at least one shard set"):
        merge([], tmp_path / "merged")


def test_a_manifest_that_a_stranger_changed_is_refused_and_not_looped_over(tmp_path: Path, own: Path) -> None:
    """Whatever names verify passes, merge and split end with."""
    last = read_manifest(own).of_split("train")[-1].name
    for suffix in (".bin", ".idx"):
        (own / (last + suffix)).rename(own / f"train-{10**17}{suffix}")

    def rename(content: dict[str, list[dict[str, str]]]) -> None:
        next(shard for shard in content["shards"] if shard["name"] == last)["name"] = f"train-{10**17}"

    forge(own, rename)
    assert verify(own) == []
    manifest = merge([own, own], tmp_path / "merged")
    assert verify(tmp_path / "merged") == [] and len(manifest.shards) == 2 * len(read_manifest(own).shards)
    assert max(int(shard.name.rpartition("-")[2]) for shard in manifest.shards) < 20
    split(own, [tmp_path / "a", tmp_path / "b"], [Fraction(1, 2)] * 2)
    assert sorted(documents_of(tmp_path / "a") + documents_of(tmp_path / "b")) == sorted(documents_of(own))


# ---- parts ----


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_part_with_everything_is_the_set_itself(tmp_path: Path, sets: dict[str, Path], packing: str) -> None:
    whole = read_manifest(sets[packing])
    train = whole.splits["train"]
    subset(sets[packing], tmp_path / "a", fraction=Fraction(1))
    subset(sets[packing], tmp_path / "b", num_documents=train.num_documents, seed=7)
    subset(sets[packing], tmp_path / "c", num_tokens=train.num_tokens)
    split(sets[packing], [tmp_path / "d"], [Fraction(1)])
    for name in "abcd":
        assert verify(tmp_path / name) == []
        assert shard_files(tmp_path / name) == shard_files(sets[packing])
        found = read_manifest(tmp_path / name)
        assert (found.shards, found.splits, found.other_files) == (whole.shards, whole.splits, whole.other_files)
        (source,) = found.sources
        assert (source.path, source.format, source.digest) == (packing, "shard-set", whole.fingerprint)
        assert source.num_bytes == sum(path.stat().st_size for path in sets[packing].glob("*.bin"))
        assert source.num_records == found.num_records == whole.total("num_documents")


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_subset_has_as_much_as_asked_for(
    tmp_path: Path, sets: dict[str, Path], packing: str, seed: int | None
) -> None:
    train, val = (documents_of(sets[packing], name) for name in SPLITS)
    smaller: list[list[int]] = []
    for number in (1, 7, len(train) - 1):
        out = tmp_path / f"documents-{number}"
        packed: list[int] = []
        manifest = subset(sets[packing], out, num_documents=number, seed=seed, progress=packed.append)
        assert verify(out) == [] and sum(packed) == manifest.num_records
        taken, held_out = (documents_of(out, name) for name in SPLITS)
        assert len(taken) == number and len(held_out) == -(-number * len(val) // len(train))
        assert is_part_in_order(taken, train) and is_part_in_order(held_out, val)
        assert (taken == train[:number]) == (seed is None)
        assert is_part_in_order(smaller, taken)  # a smaller subset of a seed lies within a larger one
        smaller = taken
    for number in (1, 500, 20_000):
        manifest = subset(sets[packing], tmp_path / f"tokens-{number}", num_tokens=number, seed=seed)
        num_taken = manifest.splits["train"].num_documents
        assert manifest.splits["train"].num_tokens >= number
        # One document less would be too few: it is the one that the next smaller subset leaves out.
        if num_taken > 1:
            fewer = subset(sets[packing], tmp_path / f"fewer-{number}", num_documents=num_taken - 1, seed=seed)
            assert fewer.splits["train"].num_tokens < number
    manifest = subset(sets[packing], tmp_path / "third", fraction=Fraction(1, 3), seed=seed)
    assert manifest.splits["train"].num_documents == -(-len(train) // 3)


def test_a_number_of_tokens_is_reached_by_the_fewest_documents(sets: dict[str, Path]) -> None:
    train = shards.open(sets["concat"])["train"]
    lengths = np.array([len(document) + 1 for document in train.documents()])
    for seed in (None, 3):
        ranks = np.arange(len(lengths))
        order = ranks if seed is None else np.argsort(shards.epoch_order(len(lengths), seed, 0, ranks))
        ends = np.cumsum(lengths[order])
        for number in [1, *ends[:-1:20].tolist(), *(ends[:-1:20] + 1).tolist(), int(ends[-1])]:
            expected = int(np.searchsorted(ends, number)) + 1
            assert parts._num_documents_with(train, number, seed) == expected


@pytest.mark.parametrize("packing", PACKINGS)
def test_parts_are_disjoint_and_together_the_whole(tmp_path: Path, sets: dict[str, Path], packing: str) -> None:
    outs = [tmp_path / f"part-{number}" for number in range(3)]
    manifests = split(sets[packing], outs, PARTS, seed=11)
    assert manifests == [read_manifest(out) for out in outs]
    assert [verify(out) for out in outs] == [[], [], []]
    whole = read_manifest(sets[packing])
    for name in SPLITS:
        originals = documents_of(sets[packing], name)
        own_parts = [documents_of(out, name) for out in outs]
        assert all(is_part_in_order(part, originals) for part in own_parts)
        for part, fraction in zip(own_parts, PARTS, strict=True):
            assert abs(len(part) - fraction * len(originals)) < 1
        for field in ("num_documents", "num_tokens", "num_text_bytes", "num_text_chars"):
            total = sum(getattr(manifest.splits[name], field) for manifest in manifests)
            assert total == getattr(whole.splits[name], field)
    assert [manifest.settings["part"] for manifest in manifests] == [0, 1, 2]
    assert manifests[0].settings["set"] == whole.fingerprint
    # The first part is the subset of this share, and the parts merged are all documents again.
    subset(sets[packing], tmp_path / "subset", fraction=PARTS[0], seed=11)
    assert shard_files(tmp_path / "subset") == shard_files(outs[0])
    merge(outs, tmp_path / "merged")
    for name in SPLITS:
        assert sorted(documents_of(tmp_path / "merged", name)) == sorted(documents_of(sets[packing], name))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_parts_of_any_set_hold_every_document_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    documents = st.lists(st.lists(st.integers(0, 255), max_size=30), max_size=8)
    unit: st.SearchStrategy[Unit] = st.fixed_dictionaries({"train": documents, "val": documents})
    units: list[Unit] = [{"train": [[1]]}, *data.draw(st.lists(unit, max_size=5))]
    tmp_path = tmp_path_factory.mktemp("any")
    packing, block_tokens = data.draw(st.sampled_from(PACKINGS)), data.draw(st.integers(2, 12))
    whole = write_set(tmp_path / "whole", units, packing=packing, block_tokens=block_tokens)
    shares = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    fractions = [Fraction(share, sum(shares)) for share in shares]
    outs = [tmp_path / f"part-{number}" for number in range(len(shares))]
    try:
        split(whole, outs, fractions, seed=data.draw(st.integers(0, 2**64 - 1)))
    except InputError as error:
        assert "would be empty" in str(error)
        assert names_in(tmp_path) == ["whole"]
        return
    for name in SPLITS:
        originals = documents_of(whole, name)
        assert sorted(one for out in outs for one in documents_of(out, name)) == sorted(originals)
        assert all(is_part_in_order(documents_of(out, name), originals) for out in outs)
    assert all(verify(out) == [] for out in outs)
    merge(outs, tmp_path / "merged")
    merge(outs[:1] if len(outs) == 1 else outs[:-1], tmp_path / "first")
    merge([tmp_path / "first", *outs[1:][-1:]], tmp_path / "stepwise")
    assert verify(tmp_path / "merged") == [] and shard_files(tmp_path / "stepwise") == shard_files(tmp_path / "merged")
    for name in SPLITS:
        assert documents_of(tmp_path / "merged", name) == [one for out in outs for one in documents_of(out, name)]


def test_documents_that_hold_eos_are_taken_as_they_are(tmp_path: Path) -> None:
    units: list[Unit] = [{"train": [[1, EOS, 2], [3, 4], [EOS]] * 5}]
    whole = write_set(tmp_path / "set", units, block_tokens=4, settings={"special_tokens": "parse"})
    merge([whole, whole], tmp_path / "merged")
    subset(tmp_path / "merged", tmp_path / "subset", fraction=Fraction(2, 3), seed=1)
    split(tmp_path / "subset", [tmp_path / "p-0", tmp_path / "p-1"], [Fraction(1, 2)] * 2)
    for name in ("merged", "subset", "p-0", "p-1"):
        assert verify(tmp_path / name) == []
    assert documents_of(tmp_path / "merged", "train") == documents_of(whole, "train") * 2


def test_bytes_of_byte_fallback_tokens_are_counted_as_bytes(tmp_path: Path) -> None:
    """`hello你` in a vocabulary without 你 is `▁hello`-like pieces and three bytes: 8 bytes, 6 characters."""
    whole = write_set(tmp_path / "set", [{"train": [[0, 1, 2, 3]] * 2}], tokenizer=byte_fallback_tokenizer())
    subset(whole, tmp_path / "subset", num_documents=1)
    split(whole, [tmp_path / "a", tmp_path / "b"], [Fraction(1, 2)] * 2)
    for name in ("subset", "a", "b"):
        train = read_manifest(tmp_path / name).splits["train"]
        assert (train.num_documents, train.num_text_bytes, train.num_text_chars) == (1, 8, 6)


def test_sets_with_one_split_alone(tmp_path: Path, sets: dict[str, Path]) -> None:
    only_train = write_set(tmp_path / "train", [{"train": [[1], [2]]}])
    subset(only_train, tmp_path / "subset", num_documents=1)
    split(only_train, [tmp_path / "p-0", tmp_path / "p-1"], [Fraction(1, 2)] * 2)
    assert all(verify(tmp_path / name) == [] for name in ("subset", "p-0", "p-1"))
    only_val = write_set(tmp_path / "val", [{"val": [[1]]}])
    with pytest.raises(InputError, match="train is empty"):
        subset(only_val, tmp_path / "none", num_documents=1)
    merge([only_val, sets["concat"]], tmp_path / "merged")
    assert documents_of(tmp_path / "merged", "val") == [[1], *documents_of(sets["concat"], "val")]


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00001.idx", "val-00000.bin", "tokenizer/tokenizer.json"])
def test_damage_does_not_get_into_parts(tmp_path: Path, own: Path, name: str) -> None:
    flip_a_bit(own / name)
    with pytest.raises(InputError, match=f"{name.rpartition('/')[2]}: expected digest"):
        split(own, [tmp_path / "p-0", tmp_path / "p-1"], [Fraction(1, 2)] * 2)
    assert names_in(tmp_path) == ["set"]


def test_wrong_arguments_of_functions_are_a_value_error_that_names_them(tmp_path: Path, sets: dict[str, Path]) -> None:
    whole, out = sets["concat"], tmp_path / "out"
    for call, expected in (
        (lambda: subset(whole, out), "expected exactly one of num_documents, num_tokens, fraction, found none"),
        (lambda: subset(whole, out, num_documents=1, num_tokens=1), "found num_documents and num_tokens"),
        (lambda: subset(whole, out, num_documents=0), "num_documents: expected at least 1 and at most"),
        (lambda: subset(whole, out, num_tokens=10**9), "num_tokens: expected at least 1 .* found 1000000000"),
        (lambda: subset(whole, out, fraction=Fraction(3, 2)), "fraction: expected more than 0 and at most 1"),
        (lambda: subset(whole, out, num_documents=1, seed=-1), r"seed: expected 0 to 2\*\*64 - 1, found -1"),
        (lambda: split(whole, [out], [Fraction(1)], seed=2**64), "seed: expected 0"),
        (lambda: split(whole, [out], [Fraction(1, 2)]), r"fractions: .* whose sum is 1, found 1/2 \(sum 1/2\)"),
        (lambda: split(whole, [], [Fraction(1)]), "outs: expected one for each of the 1 fractions"),
        (lambda: split(whole, [out] * 501, [Fraction(1, 501)] * 501), "at most 500; found 501"),
    ):
        with pytest.raises(ValueError, match=expected) as caught:
            call()
        assert "--" not in str(caught.value)
    assert names_in(tmp_path) == []


# ---- the commands ----

REFUSED: list[tuple[str, str]] = [
    ("subset SET --out OUT --fraction 1e999999999", "--fraction: expected a number such as 0.5 or 1/3"),
    ("subset SET --out OUT --fraction 0.5 --tokens 5", "not allowed with"),
    ("subset SET --out SET/within --fraction 0.5", "lies within the shard set"),
    ("split SET --out OUT --parts 0", "--parts: expected at least 1"),
    ("split SET --out OUT --parts 400", r"OUT-\d+: would be empty"),
    ("split SET --out OUT --fractions 0.5,", "--fractions: expected a number"),
    ("split SET --out / --parts 2", "--out: expected the beginning of a name"),
    ("merge SET --out SET", "exists already"),
    ("merge SET --out .", "expected the name of a directory"),
]


def run_command(line: str, own_set: Path, out: Path) -> int:
    parser = Parser(prog="python -m shards")
    command.add_parsers(parser.add_subparsers(dest="command", required=True))
    options = parser.parse_args([word.replace("SET", str(own_set)).replace("OUT", str(out)) for word in line.split()])
    status: int = options.run(options)
    return status


@pytest.mark.parametrize(("line", "expected"), REFUSED)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    tmp_path: Path, sets: dict[str, Path], line: str, expected: str
) -> None:
    before = directory_bytes(sets["concat"])
    with pytest.raises(InputError, match=expected) as caught:
        run_command(line, sets["concat"], tmp_path / "OUT")
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == []
    assert directory_bytes(sets["concat"]) == before


def test_the_command_lines(tmp_path: Path, sets: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "OUT"
    assert run_command("merge SET SET --out OUT --link", sets["concat"], out) == 0
    assert run_command("split SET --parts 3 --out OUT", sets["concat"], out) == 0
    assert run_command("split SET --fractions 0.5,1/4,.25 --seed 9 --out OUT-f", sets["concat"], out) == 0
    assert run_command("subset SET --tokens 1000 --out OUT-s", sets["concat"], out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert names_in(tmp_path) == ["OUT", *(f"OUT-{n}" for n in range(3)), *(f"OUT-f-{n}" for n in range(3)), "OUT-s"]
    assert len(lines) == 8 and all(verify(path) == [] for path in tmp_path.iterdir())
    assert read_manifest(tmp_path / "OUT-f-0").settings["fractions"] == ["1/2", "1/4", "1/4"]
    num_documents = read_manifest(sets["concat"]).total("num_documents")
    assert lines[0].startswith(f"{out}: {2 * num_documents:,} documents, ")
    assert lines[0].endswith(", from 2 sets")
    assert lines[1].startswith(f"{out}-0: ")
