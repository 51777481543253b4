"""Merging renames files; parts hold every document whole, once and in order; damage never becomes a sound-looking set."""

from __future__ import annotations

import dataclasses
import itertools
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards import edit
from shards.__main__ import main
from shards.common.errors import InputError
from shards.edit import merge, split, subset
from shards.layout import SPLITS
from shards.manifest import read_manifest
from shards.unread import UnreadEntry
from shards.verify import verify
from tests.conftest import directory_bytes, flip
from tests.shards.sets import (
    EOS,
    PACKINGS,
    Unit,
    byte_fallback_tokenizer,
    documents_of,
    forge,
    names_in,
    shard_files,
    source,
    write_set,
)

UNREAD = [UnreadEntry(kind="PDF", num_files=2, names=["a.pdf", "b.pdf"])]
HALVES = [Fraction(1, 2)] * 2


def is_part_in_order(part: list[list[int]], whole: list[list[int]]) -> bool:
    remaining = iter(whole)
    return all(document in remaining for document in part)


# ---- merge ----


def test_units_get_consecutive_numbers_and_files_stay_as_they_are(tmp_path: Path) -> None:
    first: list[Unit] = [{"train": [[1]], "val": [[2]]}, {}, {"train": [[3]]}]
    second: list[Unit] = [{}, {"val": [[4]]}, {"train": [[5]]}]
    counts: dict[str, Any] = {"sources": [source()], "num_records": 9, "left_out": {"empty": 2, "duplicate": 1}}
    paths = [
        write_set(tmp_path / f"{number}", own, rejected={"no text": 2, f"of {number}": 1}, unread=UNREAD, **counts)
        for number, own in enumerate((first, second))
    ]
    manifest = merge(paths, tmp_path / "merged")
    assert manifest == read_manifest(tmp_path / "merged") and verify(tmp_path / "merged") == []
    expected = {"train-00000": (0, "train-00000"), "train-00001": (0, "train-00002"), "train-00003": (1, "train-00002")}
    expected |= {"val-00000": (0, "val-00000"), "val-00002": (1, "val-00001")}
    assert [shard.name for shard in manifest.shards] == list(expected)
    for shard in manifest.shards:
        number, name = expected[shard.name]
        old = next(own for own in read_manifest(paths[number]).shards if own.name == name)
        assert dataclasses.replace(shard, name=name) == old
        files = shard_files(paths[number])
        for suffix in (".bin", ".idx"):
            assert (tmp_path / "merged" / (shard.name + suffix)).read_bytes() == files[name + suffix]
    rejected = [(paths[number] / "rejected.jsonl").read_bytes() for number in (0, 1)]
    assert (tmp_path / "merged" / "rejected.jsonl").read_bytes() == b"".join(rejected)
    assert manifest.rejected == {"no text": 4, "of 0": 1, "of 1": 1} and manifest.sources == [source(), source()]
    assert manifest.unread == [UnreadEntry(kind="PDF", num_files=4, names=["a.pdf", "b.pdf", "a.pdf"])]
    assert (manifest.num_records, manifest.left_out) == (18, {"empty": 4, "duplicate": 2})
    assert manifest.settings["parts"] == [read_manifest(path).fingerprint for path in paths]
    assert manifest.settings["settings"] == read_manifest(paths[0]).settings


def test_links_share_files_and_copies_do_not(tmp_path: Path, built_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge([built_set], tmp_path / "linked", link=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lambda *_paths: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
        merge([built_set], tmp_path / "copied", link=True)
    for name in ("train-00000.bin", "train-00000.idx"):
        assert os.path.samefile(tmp_path / "linked" / name, built_set / name)
        assert not os.path.samefile(tmp_path / "copied" / name, built_set / name)
    assert directory_bytes(tmp_path / "linked") == directory_bytes(tmp_path / "copied")


@pytest.mark.parametrize("name", ["train-00000.bin", "val-00001.idx", "tokenizer/tokenizer_config.json"])
def test_damage_does_not_get_into_a_merged_set_or_a_part(tmp_path: Path, own_set: Path, name: str) -> None:
    flip(own_set / name)
    for call in (
        lambda: merge([own_set], tmp_path / "merged"),
        lambda: merge([own_set], tmp_path / "merged", link=True),
        lambda: split(own_set, [tmp_path / "a", tmp_path / "b"], HALVES),
    ):
        with pytest.raises(InputError, match=f"{name.rpartition('/')[2]}: expected digest .* the file was changed"):
            call()
    assert names_in(tmp_path) == ["set"]


def test_sets_that_do_not_fit_together_are_refused(tmp_path: Path, own_set: Path, packed_sets: dict[str, Path]) -> None:
    unit: list[Unit] = [{"train": [[1]]}]
    for expected, other in {
        "packing (expected concat, found best-fit)": packed_sets["best-fit"],
        "block_tokens (expected 64, found 8)": write_set(tmp_path / "8", unit, block_tokens=8),
        "tokenizer.sha256": write_set(tmp_path / "t", unit, block_tokens=64, tokenizer=byte_fallback_tokenizer()),
    }.items():
        with pytest.raises(InputError) as caught:
            merge([own_set, other], tmp_path / "merged")
        assert f"{other}: can't be merged with {own_set}, from which it differs in" in str(caught.value)
        assert expected in str(caught.value)
    with pytest.raises(ValueError, match="paths: expected at least one shard set"):
        merge([], tmp_path / "merged")


def test_a_manifest_that_a_stranger_changed_is_refused_and_not_looped_over(tmp_path: Path, own_set: Path) -> None:
    """Whatever names verify passes, merge and split end with."""
    last = read_manifest(own_set).of_split("train")[-1].name
    for suffix in (".bin", ".idx"):
        (own_set / (last + suffix)).rename(own_set / f"train-{10**17}{suffix}")

    def rename(content: dict[str, list[dict[str, str]]]) -> None:
        next(shard for shard in content["shards"] if shard["name"] == last)["name"] = f"train-{10**17}"

    forge(own_set, rename)
    assert verify(own_set) == []
    manifest = merge([own_set, own_set], tmp_path / "merged")
    assert verify(tmp_path / "merged") == [] and len(manifest.shards) == 2 * len(read_manifest(own_set).shards)
    assert max(int(shard.name.rpartition("-")[2]) for shard in manifest.shards) < 20
    split(own_set, [tmp_path / "a", tmp_path / "b"], HALVES)
    assert sorted(documents_of(tmp_path / "a") + documents_of(tmp_path / "b")) == sorted(documents_of(own_set))


# ---- parts ----


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_part_with_everything_is_the_set_itself(
    tmp_path: Path, packed_sets: dict[str, Path], packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its shards are taken in several batches, as large ones are."""
    whole = read_manifest(packed_sets[packing])
    train = whole.splits["train"]
    monkeypatch.setattr(edit, "_BATCH_TOKENS", 1000)
    batches: list[int] = []
    subset(packed_sets[packing], tmp_path / "a", fraction=Fraction(1), progress=batches.append)
    assert len(batches) > len(whole.shards) and sum(batches) == whole.total("num_documents")
    subset(packed_sets[packing], tmp_path / "b", num_documents=train.num_documents, seed=7)
    subset(packed_sets[packing], tmp_path / "c", num_tokens=train.num_tokens)
    split(packed_sets[packing], [tmp_path / "d"], [Fraction(1)])
    for name in "abcd":
        assert verify(tmp_path / name) == []
        assert shard_files(tmp_path / name) == shard_files(packed_sets[packing])
        found = read_manifest(tmp_path / name)
        assert (found.shards, found.splits, found.other_files) == (whole.shards, whole.splits, whole.other_files)
        (source,) = found.sources
        assert (source.path, source.format, source.digest) == (packing, "shard-set", whole.fingerprint)
        assert source.num_bytes == sum(path.stat().st_size for path in packed_sets[packing].glob("*.bin"))
        assert source.num_records == found.num_records == whole.total("num_documents")


@pytest.mark.parametrize("seed", [None, 5])
def test_a_subset_has_as_much_as_asked_for(tmp_path: Path, built_set: Path, seed: int | None) -> None:
    train, val = (documents_of(built_set, name) for name in SPLITS)
    smaller: list[list[int]] = []
    for number in (1, 7, len(train) - 1):
        out = tmp_path / f"documents-{number}"
        packed: list[int] = []
        manifest = subset(built_set, out, num_documents=number, seed=seed, progress=packed.append)
        assert verify(out) == [] and sum(packed) == manifest.num_records
        taken, held_out = (documents_of(out, name) for name in SPLITS)
        assert len(taken) == number and len(held_out) == -(-number * len(val) // len(train))
        assert is_part_in_order(taken, train) and is_part_in_order(held_out, val)
        assert (taken == train[:number]) == (seed is None)
        assert is_part_in_order(smaller, taken)  # a smaller subset of a seed lies within a larger one
        smaller = taken
    for number in (1, manifest.splits["train"].num_tokens, 20_000):
        chosen = subset(built_set, tmp_path / f"tokens-{number}", num_tokens=number, seed=seed).splits["train"]
        assert chosen.num_tokens >= number
        # One document less would be too few: it is the one that the next smaller subset leaves out.
        if (fewer := chosen.num_documents - 1) > 0:
            manifest = subset(built_set, tmp_path / f"fewer-{number}", num_documents=fewer, seed=seed)
            assert manifest.splits["train"].num_tokens < number
    manifest = subset(built_set, tmp_path / "third", fraction=Fraction(1, 3), seed=seed)
    assert manifest.splits["train"].num_documents == -(-len(train) // 3)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_parts_are_disjoint_and_make_the_whole(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    documents = st.lists(st.lists(st.integers(0, 255), max_size=30), max_size=8)
    unit: st.SearchStrategy[Unit] = st.fixed_dictionaries({"train": documents, "val": documents})
    units: list[Unit] = [{"train": [[1]]}, *data.draw(st.lists(unit, max_size=5))]
    tmp_path = tmp_path_factory.mktemp("any")
    packing, block_tokens = data.draw(st.sampled_from(PACKINGS)), data.draw(st.integers(2, 12))
    whole = write_set(tmp_path / "whole", units, packing=packing, block_tokens=block_tokens)
    shares = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    fractions = [Fraction(share, sum(shares)) for share in shares]
    outs, seed = [tmp_path / f"part-{number}" for number in range(len(shares))], data.draw(st.integers(0, 2**64 - 1))
    try:
        manifests = split(whole, outs, fractions, seed=seed)
    except InputError as error:
        assert "would be empty" in str(error) and names_in(tmp_path) == ["whole"]
        return
    for name in SPLITS:
        originals = documents_of(whole, name)
        parts_of_split = [documents_of(out, name) for out in outs]
        assert sorted(itertools.chain.from_iterable(parts_of_split)) == sorted(originals)
        for part, fraction in zip(parts_of_split, fractions, strict=True):
            assert is_part_in_order(part, originals) and abs(len(part) - fraction * len(originals)) < 1
        for field in ("num_documents", "num_tokens", "num_text_bytes", "num_text_chars"):
            total = sum(getattr(manifest.splits[name], field) for manifest in manifests)
            assert total == getattr(read_manifest(whole).splits[name], field)
    assert [manifest.settings["part"] for manifest in manifests] == list(range(len(outs)))
    subset(whole, tmp_path / "subset", fraction=fractions[0], seed=seed)
    assert shard_files(tmp_path / "subset") == shard_files(outs[0])
    assert all(verify(out) == [] for out in outs)
    merge(outs, tmp_path / "merged")
    assert verify(tmp_path / "merged") == []
    for name in SPLITS:
        assert documents_of(tmp_path / "merged", name) == [one for out in outs for one in documents_of(out, name)]


def test_documents_that_hold_eos_are_taken_as_they_are(tmp_path: Path) -> None:
    units: list[Unit] = [{"train": [[1, EOS, 2], [3, 4], [EOS]] * 5}]
    whole = write_set(tmp_path / "set", units, block_tokens=4, settings={"special_tokens": "parse"})
    merge([whole, whole], tmp_path / "merged")
    split(tmp_path / "merged", [tmp_path / "p-0", tmp_path / "p-1"], HALVES)
    assert not [fault for name in ("merged", "p-0", "p-1") for fault in verify(tmp_path / name)]
    assert documents_of(tmp_path / "merged", "train") == documents_of(whole, "train") * 2


def test_a_set_without_train_has_no_subset_and_can_be_merged(tmp_path: Path, built_set: Path) -> None:
    only_val = write_set(tmp_path / "val", [{"val": [[1]]}], block_tokens=64)
    with pytest.raises(InputError, match="train is empty"):
        subset(only_val, tmp_path / "none", num_documents=1)
    merge([only_val, built_set], tmp_path / "merged")
    assert documents_of(tmp_path / "merged", "val") == [[1], *documents_of(built_set, "val")]


def test_what_makes_no_sense_is_refused_before_anything_is_written(tmp_path: Path, built_set: Path) -> None:
    """Functions name their arguments, commands their options."""
    whole, out, before = built_set, tmp_path / "OUT", directory_bytes(built_set)
    for call, expected in (
        (lambda: subset(whole, out), "expected exactly one of num_documents, num_tokens, fraction, found none"),
        (lambda: subset(whole, out, num_documents=1, num_tokens=1), "found num_documents and num_tokens"),
        (lambda: subset(whole, out, num_documents=0), "^num_documents: expected more than 0 and at most"),
        (lambda: subset(whole, out, num_tokens=10**9), "^num_tokens: expected more than 0 .* found 1000000000"),
        (lambda: subset(whole, out, fraction=Fraction(3, 2)), "^fraction: expected more than 0 and at most 1"),
        (lambda: subset(whole, out, num_documents=1, seed=-1), r"^seed: expected 0 to 2\*\*64 - 1, found -1"),
        (lambda: split(whole, [out], [Fraction(1)], seed=2**64), "^seed: expected 0"),
        (lambda: split(whole, [out], [Fraction(1, 2)]), r"^fractions: .* whose sum is 1, found 1/2 \(sum 1/2\)"),
        (lambda: split(whole, [], [Fraction(1)]), "^outs: expected one for each of the 1 fractions"),
        (lambda: split(whole, [out] * 501, [Fraction(1, 501)] * 501), "at most 500"),
        (lambda: run("subset SET --out OUT --fraction 1e999999999", whole, out), "--fraction: expected a number such"),
        (lambda: run("split SET --out OUT --parts 0", whole, out), "--parts: expected 1 to 500"),
        (lambda: run("split SET --out OUT --parts 99999999999", whole, out), "--parts: expected 1 to 500"),
        (lambda: run("split SET --out OUT --parts 400", whole, out), r"OUT-\d+: would be empty"),
        (lambda: run("split SET --out OUT --fractions 0.5,", whole, out), "--fractions: expected a number"),
        (lambda: run("split SET --out / --parts 2", whole, out), "--out: expected the beginning of a name"),
    ):
        with pytest.raises(InputError, match=expected) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == [] and directory_bytes(whole) == before


def run(line: str, own_set: Path, out: Path) -> int:
    """`python -m shards LINE`, in this process."""
    return main([word.replace("SET", str(own_set)).replace("OUT", str(out)) for word in line.split()])


def test_the_command_lines(tmp_path: Path, built_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "OUT"
    assert run("merge SET SET --out OUT --link", built_set, out) == 0
    assert run("split SET --parts 3 --out OUT", built_set, out) == 0
    assert run("split SET --fractions 0.5,1/4,.25 --seed 9 --out OUT-f", built_set, out) == 0
    assert run("subset SET --tokens 1e3 --out OUT-s", built_set, out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert names_in(tmp_path) == ["OUT", *(f"OUT-{n}" for n in range(3)), *(f"OUT-f-{n}" for n in range(3)), "OUT-s"]
    assert len(lines) == 8 and all(verify(path) == [] for path in tmp_path.iterdir())
    assert read_manifest(tmp_path / "OUT-f-0").settings["fractions"] == ["1/2", "1/4", "1/4"]
    num_documents = read_manifest(built_set).total("num_documents")
    assert lines[0].startswith(f"{out}: {2 * num_documents:,} documents, ")
    assert lines[0].endswith(", from 2 sets")
    assert lines[1].startswith(f"{out}-0: ")
