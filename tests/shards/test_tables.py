"""A set with tables is the set without them in another spelling; no damaged or forged table passes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from shards.entries import SPLITS, ShardEntry, ShardList, TailList
from shards.merge import merge
from shards.pull import pull
from shards.regroup import split, subset

import shards
from shards import tables
from shards.common.errors import InputError
from shards.manifest import _fingerprint, encode_manifest, read_manifest
from shards.show import describe, describe_json
from shards.verify import verify
from shards.writer import set_bytes
from tests.conftest import assert_one_error_line, directory_bytes, run_module
from tests.shards.regroup_sets import PACKINGS, build_packings, content, documents

SHARD = struct.Struct("<6Q32s32sB")
TAIL = struct.Struct("<2Q2B")
NAMES = {"manifest.json", "shards.table", "tails.table"}
FIELDS = ("num_blocks", "num_tokens", "num_pieces", "num_index_documents", "num_documents")


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> dict[str, Path]:
    return build_packings(tmp_path_factory.mktemp("listed"), tokenizer_dir)


@pytest.fixture(scope="module")
def tabled(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> dict[str, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "MAX_LISTED", 3)
        return build_packings(tmp_path_factory.mktemp("tabled"), tokenizer_dir)


@pytest.fixture
def own(tabled: dict[str, Path], tmp_path: Path) -> Path:
    """A set with tables that the test may damage."""
    return Path(shutil.copytree(tabled["concat"], tmp_path / "set"))


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_LISTED", 3)


@pytest.mark.parametrize("packing", PACKINGS)
def test_only_the_spelling_differs(listed: dict[str, Path], tabled: dict[str, Path], packing: str) -> None:
    plain, large = shards.open(listed[packing]), shards.open(tabled[packing])
    files = [directory_bytes(path) for path in (listed[packing], tabled[packing])]
    assert files[1].keys() - files[0].keys() == NAMES - {"manifest.json"}
    assert all(files[0][name] == files[1][name] for name in files[0].keys() - {"manifest.json", ".sources.json"})
    assert (plain.manifest.format_version, large.manifest.format_version) == (1, 2)
    assert plain.fingerprint != large.fingerprint
    assert plain.manifest.shards == large.manifest.shards and plain.manifest.tails == large.manifest.tails
    assert list(plain.manifest.shards) == list(large.manifest.shards)
    assert (
        list(plain.manifest.tails)
        == list(large.manifest.tails)
        == [large.manifest.tails[i] for i in range(len(large.manifest.tails))]
    )
    assert verify(tabled[packing]) == verify(tabled[packing], quick=True) == []
    assert set_bytes(large.manifest, with_indexes=True) == sum(
        len(data) for name, data in files[0].items() if name.endswith((".bin", ".idx"))
    )
    for name in SPLITS:
        assert len(plain[name]) == len(large[name]) > 0
        numbers = np.random.default_rng(0).permutation(len(plain[name]))
        assert np.array_equal(plain[name][numbers], large[name][numbers])
        assert plain[name].units() == large[name].units()
        assert documents(listed[packing], name) == documents(tabled[packing], name)
        for unit in plain[name].units():
            assert plain[name].unit_shards(unit) == large[name].unit_shards(unit)


def test_the_bytes_are_those_of_the_documentation(listed: dict[str, Path], tabled: dict[str, Path]) -> None:
    plain = json.loads((listed["concat"] / "manifest.json").read_bytes())
    large = json.loads((tabled["concat"] / "manifest.json").read_bytes())
    for field, form in (("shards", SHARD), ("tails", TAIL)):
        data = (tabled["concat"] / f"{field}.table").read_bytes()
        assert large[field] == {
            "file": f"{field}.table",
            "num_records": len(plain[field]),
            "num_bytes": len(plain[field]) * form.size,
            "digest": blake3(data).hexdigest(),
        }
        assert len(data) == large[field]["num_bytes"]
        for entry, row in zip(plain[field], form.iter_unpack(data), strict=True):
            code = ["train", "val"].index(entry["split"])
            if field == "shards":
                digests = (bytes.fromhex(entry["digest"]), bytes.fromhex(entry["index_digest"]))
                numbers = (int(entry["name"].split("-")[1]), *(entry[name] for name in FIELDS))
                assert row == (*numbers, *digests, code)
            else:
                assert row == (entry["unit"], entry["num_pieces"], code, entry["continues"])
    for key in plain.keys() | large.keys():
        assert (plain[key] == large[key]) is (key not in ("shards", "tails", "format_version", "fingerprint"))


def test_the_bytes_of_a_small_manifest_are_what_they_were(listed: dict[str, Path]) -> None:
    for path in listed.values():
        manifest = read_manifest(path)
        assert encode_manifest(manifest) == (path / "manifest.json").read_bytes()
        fields = [field.name for field in dataclasses.fields(ShardEntry)]
        line = ", ".join(f'"{name}": {json.dumps(getattr(manifest.shards[0], name))}' for name in fields)
        assert f'  "shards": [\n    {{{line}}},\n'.encode() in (path / "manifest.json").read_bytes()
        assert (path / "manifest.json").read_bytes().startswith(b'{\n  "format_version": 1,\n')
        assert not (path / "shards.table").exists() and not (path / "tails.table").exists()
        changed = dataclasses.replace(manifest, shards=manifest.shards[::-1]).with_fingerprint()
        assert changed.fingerprint != manifest.fingerprint


# Damages


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def link_elsewhere(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "bit flipped": (flip_a_bit, "expected digest"),
    "truncated": (lambda path: os.truncate(path, path.stat().st_size - 1), "truncated"),
    "empty": (lambda path: os.truncate(path, 0), "truncated"),
    "too long": (lambda path: os.truncate(path, path.stat().st_size + 113), "too long"),
    "missing": (lambda path: path.unlink(), "No such file"),
    "link": (link_elsewhere, "a symbolic link"),
    "directory": (make_directory, "no regular file"),
}


@pytest.mark.parametrize("table", ["shards.table", "tails.table"])
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_table_is_one_line(own: Path, table: str, name: str) -> None:
    damage, expected = DAMAGES[name]
    damage(own / table)
    faults = verify(own, quick=True)
    assert len(faults) == 1 and faults == verify(own)
    assert table in faults[0] and expected in faults[0] and "\n" not in faults[0]
    with pytest.raises(InputError, match=expected):
        shards.open(own)


def forge(directory: Path, field: str, edit: Callable[[list[Any]], Any]) -> None:
    """Change the rows of a table and make all digests right again."""
    form, path = SHARD if field == "shards" else TAIL, directory / f"{field}.table"
    rows = [list(row) for row in form.iter_unpack(path.read_bytes())]
    edit(rows)
    path.write_bytes(b"".join(form.pack(*row) for row in rows))
    entry = {
        "num_records": len(rows),
        "num_bytes": path.stat().st_size,
        "digest": blake3(path.read_bytes()).hexdigest(),
    }
    forge_manifest(directory, lambda content: content[field].update(entry))


def forge_manifest(directory: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((directory / "manifest.json").read_bytes())
    edit(content)
    content["fingerprint"] = _fingerprint(content)
    (directory / "manifest.json").write_text(json.dumps(content), encoding="utf-8")


def assign(row: int, column: int, value: int) -> Callable[[list[Any]], None]:
    def edit(rows: list[Any]) -> None:
        rows[row][column] = value

    return edit


def exchange(rows: list[Any]) -> None:
    rows[0], rows[1] = rows[1], rows[0]


FORGERIES: dict[str, tuple[str, Callable[[list[Any]], Any], str]] = {
    "split 2": ("shards", assign(1, 8, 2), "record 1: split: expected 0 or 1, found 2"),
    "number beyond 2**63": ("shards", assign(0, 0, 2**63 + 5), "number: expected less than 2**63, found 9,223,372"),
    "blocks beyond 2**63": ("shards", assign(2, 1, 2**64 - 1), "record 2: num_blocks: expected less than 2**63"),
    "documents beyond 2**63": ("shards", assign(2, 5, 2**63), "record 2: num_documents: expected less than 2**63"),
    "order": ("shards", exchange, "shard train-00000: behind train-00001; expected ascending order"),
    "twice": ("shards", lambda rows: rows.insert(0, list(rows[0])), "shard train-00000: listed twice"),
    "val before train": ("shards", lambda rows: rows.insert(0, rows.pop()), "expected ascending order"),
    "no blocks": ("shards", lambda rows: rows[0].__setitem__(slice(1, 3), [0, 0]), "0 tokens don't fit 0 blocks"),
    "too few tokens": ("shards", assign(1, 2, 1), "shard 'train-00001': 1 tokens don't fit"),
    "too many tokens": ("shards", assign(1, 2, 2**62), "shard 'train-00001': .* tokens don't fit"),
    "more blocks than there can be": ("shards", assign(0, 1, 2**62), "more than there can be"),
    "sums": ("shards", assign(0, 5, 2**62), "split train: num_documents is .*, its shards hold"),
    "shard missing": ("shards", lambda rows: rows.pop(0), "split train: num_blocks is"),
    "no shards": ("shards", lambda rows: rows.clear(), "split train: num_blocks is"),
    "tail of split 7": ("tails", assign(0, 2, 7), "record 0: split: expected 0 or 1, found 7"),
    "continues 2": ("tails", assign(1, 3, 2), "record 1: continues: expected 0 or 1, found 2"),
    "tails' order": ("tails", exchange, "record 1: unit 0: expected ascending order, each unit once"),
    "tail twice": ("tails", lambda rows: rows.insert(0, list(rows[0])), "record 1: unit 0: expected ascending order"),
    "unit beyond 2**63": ("tails", assign(0, 0, 2**63), "record 0: unit: expected less than 2**63"),
    "pieces beyond 2**63": ("tails", assign(0, 1, 2**63), "record 0: num_pieces: expected less than 2**63"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_table_is_one_line(own: Path, name: str) -> None:
    field, edit, expected = FORGERIES[name]
    forge(own, field, edit)
    with pytest.raises(InputError, match=expected.replace("**", r"\*\*")) as caught:
        shards.open(own)
    assert "\n" not in str(caught.value)
    assert len(verify(own, quick=True)) == 1


def test_a_true_forgery_opens(own: Path) -> None:
    """What the forgeries above are refused for is not the forging."""
    forge(own, "shards", lambda rows: None)
    forge(own, "tails", lambda rows: None)
    assert verify(own) == []


@pytest.mark.parametrize("field", ["shards", "tails"])
@pytest.mark.parametrize(
    "edit, expected",
    [
        (lambda entry: entry.update(file="../shards.table"), "expected the file"),
        (lambda entry: entry.update(file="/etc/passwd"), "expected the file"),
        (lambda entry: entry.update(num_records=entry["num_records"] + 1), "records of .* bytes are not"),
        (lambda entry: entry.update(num_records=10**12, num_bytes=10**12 * 113), "bytes"),
        (lambda entry: entry.update(num_records=-1, num_bytes=-113), "num_records: expected a whole number"),
        (lambda entry: entry.update(digest="0" * 64), "expected digest"),
        (lambda entry: entry.update(digest=5), "digest: expected a string"),
        (lambda entry: entry.update(more=1), "unknown field 'more'"),
        (lambda entry: entry.pop("num_bytes"), "no field 'num_bytes'"),
    ],
)
def test_a_manifest_that_misdescribes_a_table_is_refused(own: Path, field: str, edit: Any, expected: str) -> None:
    forge_manifest(own, lambda content: edit(content[field]))
    with pytest.raises(InputError, match=expected):
        shards.open(own)


def test_terabytes_that_are_promised_are_not_reserved(own: Path) -> None:
    size = SHARD.size * 10**11
    os.truncate(own / "shards.table", 0)
    forge_manifest(own, lambda content: content["shards"].update(num_records=10**11, num_bytes=size))
    with pytest.raises(InputError, match="truncated: the manifest says 11,300,000,000,000 bytes, the file has 0"):
        shards.open(own)


def test_lists_and_tables_are_not_mixed(own: Path, listed: dict[str, Path], tmp_path: Path) -> None:
    forge_manifest(own, lambda content: content.update(shards=[], tails=[]))
    with pytest.raises(InputError, match="shards: expected an object, found a list"):
        shards.open(own)
    other = Path(shutil.copytree(listed["concat"], tmp_path / "other"))
    forge_manifest(other, lambda content: content.update(shards={}, tails={}))
    with pytest.raises(InputError, match="shards: expected a list, found an object"):
        shards.open(other)
    forge_manifest(other, lambda content: content.update(format_version=2))
    with pytest.raises(InputError, match="shards: no field 'file'"):
        shards.open(other)
    forge_manifest(other, lambda content: content.update(format_version=3))
    with pytest.raises(InputError, match="expected format version 1 or 2, found 3"):
        shards.open(other)


@pytest.mark.parametrize("table", ["shards.table", "tails.table"])
def test_a_table_beside_a_manifest_that_lists_is_no_part_of_the_set(
    listed: dict[str, Path], tmp_path: Path, table: str
) -> None:
    own = Path(shutil.copytree(listed["concat"], tmp_path / "set"))
    (own / table).touch()
    assert [table in fault and "not a part of this set" in fault for fault in verify(own)] == [True]


@pytest.mark.parametrize(
    "edit, expected",
    [
        (lambda shard: shard.update(name="00000"), "expected a name such as"),
        (lambda shard: shard.update(name="train-" + "9" * 30), "a number isn't below 2"),
        (lambda shard: shard.update(num_pieces=2**63), "a number isn't below 2"),
        (lambda shard: shard.update(digest=shard["digest"].upper()), "lower-case hexadecimal"),
        (lambda shard: shard.update(index_digest="0"), "lower-case hexadecimal"),
        (lambda shard: shard.update(name="train-00001"), "listed twice"),
    ],
)
def test_what_no_row_can_hold_is_refused_in_a_list_too(
    listed: dict[str, Path], tmp_path: Path, edit: Any, expected: str
) -> None:
    own = Path(shutil.copytree(listed["concat"], tmp_path / "set"))
    forge_manifest(own, lambda content: edit(content["shards"][0]))
    with pytest.raises(InputError, match=expected):
        shards.open(own)


@pytest.mark.parametrize("field", ["shards", "tails"])
def test_the_fingerprint_changes_with_each_table(own: Path, field: str) -> None:
    manifest = read_manifest(own)
    entries = list(getattr(manifest, field))
    entries[-1] = dataclasses.replace(entries[-1], num_pieces=entries[-1].num_pieces + 1)
    kind = ShardList if field == "shards" else TailList
    change: dict[str, Any] = {field: kind.of(entries)}
    changed = dataclasses.replace(manifest, **change).with_fingerprint()
    assert manifest.with_fingerprint() == manifest
    assert changed.fingerprint != manifest.fingerprint


# Reading


def test_files_are_looked_at_when_they_are_read(own: Path) -> None:
    names = [shard.name for shard in read_manifest(own).shards if shard.split == "train"]
    (own / f"{names[1]}.bin").unlink()
    (own / f"{names[2]}.idx").write_bytes(b"")
    (own / f"{names[3]}.bin").write_bytes(b"\0\0\0\0")
    train = shards.open(own)["train"]
    assert len(train[0]) == 64
    for number, expected in ((1, "No such file"), (2, "the file has 0"), (3, "truncated")):
        with pytest.raises(InputError, match=f"{names[number]}.*{expected}"):
            train[train.first_block(number)]
        with pytest.raises(InputError, match=names[number]):
            list(train.shard_documents(number))
    with pytest.raises(InputError, match=names[1]):
        train[np.arange(len(train))]
    faults = verify(own, quick=True)
    assert [name in fault for name, fault in zip(names[1:4], faults, strict=True)] == [True] * 3


def test_a_split_says_which_shards_hold_blocks(tabled: dict[str, Path]) -> None:
    train = shards.open(tabled["concat"])["train"]
    owner = np.repeat(np.arange(len(train.shards)), train.shards.column("num_blocks"))
    assert train.first_block(len(train.shards)) == len(train)
    generator = np.random.default_rng(0)
    for _ in range(200):
        start, stop = sorted(generator.choice(len(train) + 1, 2, replace=False).tolist())
        assert list(train.shards_between(start, stop)) == np.unique(owner[start:stop]).tolist()


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.usefixtures("low_limit")
def test_sets_made_of_sets_with_tables(
    listed: dict[str, Path], tabled: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    def make(source: Path, out: Path) -> list[Path]:
        out.mkdir()
        merge([source, source], out / "merged")
        subset(source, out / "part", num_documents=80, seed=3)
        split(source, [out / "a", out / "b"], [Fraction(1, 2)] * 2)
        return [out / name for name in ("merged", "part", "a", "b")]

    large = make(tabled[packing], tmp_path / "large")
    monkeypatch.undo()
    plain = make(listed[packing], tmp_path / "plain")
    back = make(tabled[packing], tmp_path / "back")
    for one, two, three in zip(large, plain, back, strict=True):
        assert content(one) == content(two) == content(three)
        assert verify(one) == verify(two) == verify(three) == []
        versions = [read_manifest(path).format_version for path in (one, two, three)]
        assert versions == [2, 1, 1]
        assert list(read_manifest(one).shards) == list(read_manifest(two).shards)


def test_the_commands(listed: dict[str, Path], tabled: dict[str, Path], tmp_path: Path) -> None:
    plain, large = listed["concat"], tabled["concat"]
    assert (
        describe(shards.open(large)).replace(str(large), "").splitlines()[1:4]
        == (describe(shards.open(plain)).replace(str(plain), "").splitlines()[1:4])
    )
    assert json.loads(describe_json(shards.open(large)))["num_shards"] == len(read_manifest(plain).shards)
    for arguments in (["cat", "--document", "3"], ["cat", "--block", "7", "--tokens"], ["info"], ["verify"]):
        results = [run_module("shards", arguments[0], path, *arguments[1:]) for path in (plain, large)]
        assert all(result.returncode == 0 for result in results)
        if arguments[0] == "cat":
            assert results[0].stdout == results[1].stdout
    for path in (plain, large):
        shutil.copytree(path, tmp_path / path.parent.name / "set")
        for form in ("llm.c", "datatrove"):
            out = tmp_path / path.parent.name / form
            assert run_module("shards", "export", path, "--to", form, "--out", out).returncode == 0
        imported = run_module(
            "shards",
            "import",
            tmp_path / path.parent.name / "datatrove",
            "--from",
            "datatrove",
            "--tokenizer",
            path,
            "--out",
            tmp_path / path.parent.name / "imported",
        )
        assert imported.returncode == 0, imported.stderr
        assert run_module("shards", "report", tmp_path / path.parent.name / "set").returncode == 0
    exported = [directory_bytes(tmp_path / path.parent.name / "llm.c") for path in (plain, large)]
    assert exported[0] == exported[1]
    found = [directory_bytes(tmp_path / path.parent.name / "datatrove") for path in (plain, large)]
    assert found[1].keys() - found[0].keys() == NAMES - {"manifest.json"}
    assert content(tmp_path / plain.parent.name / "imported") == content(tmp_path / large.parent.name / "imported")
    (tmp_path / large.parent.name / "set" / "shards.table").unlink()
    result = run_module("shards", "info", tmp_path / large.parent.name / "set")
    assert_one_error_line(result, "shards.table", "No such file")


def test_a_copy_has_the_tables_and_goes_on_where_it_broke_off(
    tabled: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fsspec")
    url = f"file://{tabled['concat']}"
    expected = directory_bytes(tabled["concat"])
    del expected[".sources.json"]
    pull(url, tmp_path / "whole")
    assert directory_bytes(tmp_path / "whole") == expected
    pull(url, tmp_path / "whole")
    # What another set left is of the right size, and is not taken for this one's.
    partial = tmp_path / "again.partial"
    partial.mkdir()
    for name in ("shards.table", "tails.table"):
        shutil.copy(tabled["concat"] / name, partial)
        flip_a_bit(partial / name)
    (partial / "train-99999.bin").touch()
    pull(url, tmp_path / "again")
    assert directory_bytes(tmp_path / "again") == expected


def test_a_table_that_was_changed_in_the_store_is_refused(own: Path, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    flip_a_bit(own / "shards.table")
    with pytest.raises(InputError, match=r"shards\.table: expected digest"):
        pull(f"file://{own}", tmp_path / "out")
    assert not (tmp_path / "out").exists()
