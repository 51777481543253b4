"""Ids of other programs become a shard set of the same documents; what can't be such a file is refused in one line."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shards
from shards.common.errors import InputError
from shards.edit import subset
from shards.exchange import importing, token_files
from shards.exchange.importing import ImportSettings, import_files
from shards.exchange.token_files import open_datatrove, open_files, open_megatron
from shards.manifest import Manifest
from shards.verify import verify
from tests.conftest import flip
from tests.shards.sets import PACKINGS, documents_of, names_in
from tests.shards.test_exchange import run

Documents = Sequence[Sequence[int]]
DTYPE_CODES = {"<u1": 1, "<i1": 2, "<i2": 3, "<i4": 4, "<i8": 5, "<u2": 8}


def write_megatron(path: Path, documents: Documents, dtype: str = "<i4", cut: int = 0) -> Path:
    """As Megatron-Core writes it; with `cut`, each document in sequences of at most so many tokens."""
    sequences: list[Sequence[int]] = []
    boundaries = [0]
    for document in documents:
        step = cut or len(document) or 1
        sequences += [document[begin : begin + step] for begin in range(0, len(document), step)]
        boundaries.append(len(sequences))
    lengths = np.array([len(sequence) for sequence in sequences], dtype="<i4")
    item_bytes = np.dtype(dtype).itemsize
    offsets = (np.cumsum(lengths, dtype="<i8") - lengths) * item_bytes
    np.array([token for sequence in sequences for token in sequence], dtype=dtype).tofile(path.with_suffix(".bin"))
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, DTYPE_CODES[dtype], len(sequences), len(boundaries))
    arrays = (lengths, offsets.astype("<i8"), np.array(boundaries, dtype="<i8"))
    path.with_suffix(".idx").write_bytes(header + b"".join(array.tobytes() for array in arrays))
    return path.with_suffix(".bin")


def write_datatrove(path: Path, documents: Documents, dtype: str = "<u4") -> Path:
    np.array([token for document in documents for token in document], dtype=dtype).tofile(path)
    ends = np.cumsum([len(document) for document in documents], dtype="<u8")
    path.with_name(path.name + ".index").write_bytes(ends.tobytes())
    return path


def write_any(path: Path, documents: Documents, dtype: str, cut: int = 0) -> Path:
    """As datatrove for a `dtype` such as `ds<u2`, else as Megatron-Core."""
    if dtype.startswith("ds"):
        return write_datatrove(path.with_suffix(".ds"), documents, dtype[2:])
    return write_megatron(path, documents, dtype, cut)


def take(paths: Sequence[Path], out: Path, tokenizer: Path, **options: Any) -> Manifest:
    """Import, and verify what came out of it."""
    form = "datatrove" if paths[0].suffix == ".ds" else "megatron"
    settings = ImportSettings(**{"imported_from": form, "block_tokens": 8, **options})
    manifest = import_files(open_files(list(map(str, paths)), form), out, tokenizer=tokenizer, settings=settings)
    assert verify(out) == []
    return manifest


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_document_comes_back_without_its_eos(
    tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path, data: st.DataObject
) -> None:
    ids_and_num_eos = st.tuples(st.lists(st.integers(0, 126), max_size=40), st.integers(0, 2))
    drawn = data.draw(st.lists(ids_and_num_eos, min_size=1, max_size=30))
    dtype, packing = data.draw(st.sampled_from([*DTYPE_CODES, "ds<u2", "ds<u4"])), data.draw(st.sampled_from(PACKINGS))
    work, cut = tmp_path_factory.mktemp("import"), data.draw(st.integers(0, 5))
    documents = [[*ids, *[127] * num_eos] for ids, num_eos in drawn]
    halves = [documents[: len(documents) // 2], documents[len(documents) // 2 :]]
    paths = [write_any(work / f"{n}", half, dtype, cut) for n, half in enumerate(halves)]
    expected = [ids for ids, _num_eos in drawn if ids]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_files, "_BATCH_TOKENS", data.draw(st.integers(1, 60)))
        patch.setattr(token_files, "_BATCH_DOCUMENTS", data.draw(st.integers(1, 8)))
        patch.setattr(importing, "UNIT_TOKENS", data.draw(st.integers(1, 200)))
        if not expected:
            with pytest.raises(InputError, match="no document is left"):
                take(paths, work / "set", small_tokenizer, packing=packing, val_fraction=0.0)
            return
        manifest = take(paths, work / "set", small_tokenizer, packing=packing, val_fraction=0.0)
    assert documents_of(work / "set", "train") == expected
    assert manifest.left_out.get("empty", 0) == len(documents) - len(expected)
    assert [source.num_records for source in manifest.sources] == [len(half) for half in halves]
    assert manifest.num_records == len(documents)
    assert manifest.splits["train"].num_tokens == sum(len(ids) + 1 for ids in expected)


def test_the_split_depends_on_the_ids_and_the_seed_alone(tmp_path: Path, small_tokenizer: Path) -> None:
    documents = [[number % 100, number // 100, 5] for number in range(1_000)]
    closed_ones = [[*document, 127] for document in documents]
    paths = [
        write_megatron(tmp_path / "wide", documents, "<i8"),
        write_megatron(tmp_path / "narrow", closed_ones, "<i1", cut=2),
        write_datatrove(tmp_path / "ends.ds", closed_ones, "<u2"),
    ]
    key = (2333).to_bytes(32, "little")
    hashes = [blake3(np.array(ids, "<u4").tobytes(), key=key).digest(length=8) for ids in documents]
    held_out = [
        ids for ids, value in zip(documents, hashes, strict=True) if int.from_bytes(value, "little") < 2**64 / 10
    ]
    assert 70 < len(held_out) < 130
    for number, path in enumerate(paths):
        take([path], tmp_path / f"{number}", small_tokenizer)
        assert documents_of(tmp_path / f"{number}", "val") == held_out
        assert documents_of(tmp_path / f"{number}", "train") == [ids for ids in documents if ids not in held_out]
    take(paths[:1], tmp_path / "other", small_tokenizer, seed=1)
    assert documents_of(tmp_path / "other", "val") != held_out


def test_a_unit_is_batches_until_full(tmp_path: Path, small_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So memory doesn't grow with the files: a unit's packing is done before the next unit is read."""
    monkeypatch.setattr(token_files, "_BATCH_TOKENS", 10)
    monkeypatch.setattr(importing, "UNIT_TOKENS", 30)
    paths = [write_megatron(tmp_path / name, [[1] * 5] * 10) for name in "ab"]
    manifest = take(paths, tmp_path / "set", small_tokenizer, val_fraction=0.0)
    # 10 documents of 5 tokens are 5 batches, and 3 batches make a unit: 6 documents, over the end of a file too.
    assert {int(shard.name[-5:]): shard.num_documents for shard in manifest.shards} == {0: 6, 1: 6, 2: 6, 3: 2}


def test_sequences_without_tokens_are_empty_documents(tmp_path: Path, small_tokenizer: Path) -> None:
    """As Megatron's builder writes an empty document when it is given one: a sequence of length 0."""
    path = write_megatron(tmp_path / "a", [[1, 2], [3], [4], [5, 6]])
    content = bytearray(path.with_suffix(".idx").read_bytes())
    struct.pack_into("<4i", content, 34, 2, 0, 0, 3)
    struct.pack_into("<4q", content, 50, 0, 8, 0, 12)
    path.with_suffix(".idx").write_bytes(content)
    manifest = take([path], tmp_path / "set", small_tokenizer, val_fraction=0.0, block_tokens=2)
    assert documents_of(tmp_path / "set", "train") == [[1, 2], [4, 5, 6]] and manifest.left_out.get("empty", 0) == 2


def test_the_manifest_says_where_it_came_from(tmp_path: Path, small_tokenizer: Path) -> None:
    path = write_megatron(tmp_path / "a", [[1, 2, 3], [], [127], [4] * 30])
    manifest = take([path], tmp_path / "set", small_tokenizer, val_fraction=0.25, seed=7)
    (source,) = manifest.sources
    digest = blake3(path.read_bytes()).hexdigest()
    assert (source.path, source.format, source.num_bytes, source.digest) == ("a.bin", "megatron", 34 * 4, digest)
    assert (source.num_ranges, source.num_records, manifest.left_out.get("empty", 0)) == (1, 4, 2)
    assert manifest.settings["imported_from"] == "megatron" and manifest.settings["val_fraction"] == 0.25
    assert manifest.settings["seed"] == 7 and manifest.settings["special_tokens"] == "text"
    assert manifest.splits["train"].num_text_bytes + manifest.splits["val"].num_text_bytes == 3 * 2 + 30 * 2


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_shards_give_their_documents(packed_sets: dict[str, Path], tmp_path: Path, split: str, packing: str) -> None:
    packed_set = packed_sets[packing]
    manifest = take(sorted(packed_set.glob(f"{split}-*.bin")), tmp_path / "new", packed_set, val_fraction=0.0)
    assert documents_of(tmp_path / "new", "train") == documents_of(packed_set, split)
    before = shards.open(packed_set).manifest
    assert manifest.tokenizer == before.tokenizer
    for field in ("num_documents", "num_tokens", "num_text_bytes", "num_text_chars"):
        assert getattr(manifest.splits["train"], field) == getattr(before.splits[split], field) > 0


def test_a_set_goes_through_datatrove_and_back(built_set: Path, tmp_path: Path) -> None:
    run("export", built_set, "--to", "datatrove", "--out", tmp_path / "out")
    arguments = ("--from", "datatrove", "--tokenizer", built_set, "--val-fraction", "0", "--out")
    run("import", tmp_path / "out", *arguments, tmp_path / "both")
    assert verify(tmp_path / "both") == []
    assert documents_of(tmp_path / "both", "train") == documents_of(built_set, "train", "val")
    # The padding of each shard is an empty document.
    manifest, before = shards.open(tmp_path / "both").manifest, shards.open(built_set).manifest
    num_padded = sum(shard.num_tokens < shard.num_blocks * 64 for shard in before.shards)
    assert manifest.left_out.get("empty", 0) == num_padded == manifest.num_records - before.num_records > 0


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_shard_that_was_changed_is_refused(own_set: Path, tmp_path: Path, suffix: str) -> None:
    path = own_set / f"train-00000{suffix}"
    flip(path, 38)  # of the index, a length
    with pytest.raises(InputError, match=f"{path.name}: expected digest .* the file was changed"):
        take(sorted(own_set.glob("train-*.bin")), tmp_path / "new", own_set)
    assert not (tmp_path / "new").exists()


def test_names_that_are_not_utf8_are_recorded_readably(tmp_path: Path, small_tokenizer: Path) -> None:
    name = os.fsdecode(b"a\xff")
    tokenizer = shutil.copytree(small_tokenizer, tmp_path / "tokenizers" / name)
    manifest = take([write_megatron(tmp_path / name, [[1, 2, 3] * 5])], tmp_path / "sets" / name, tokenizer)
    part = subset(tmp_path / "sets" / name, tmp_path / "part", fraction=Fraction(1))
    found = (manifest.tokenizer.name, manifest.sources[0].path, part.sources[0].path)
    assert found == ("a\\udcff", "a\\udcff.bin", "a\\udcff")


def test_a_manifest_of_something_else_is_none_of_ours(tmp_path: Path, small_tokenizer: Path) -> None:
    path = write_megatron(tmp_path / "train-00000", [[1, 2, 3] * 5])
    (tmp_path / "manifest.json").write_text('{"version": 3}')
    take([path], tmp_path / "set", small_tokenizer)


def test_documents_of_best_fit_are_not_taken_from_datatrove(packed_sets: dict[str, Path], tmp_path: Path) -> None:
    run("export", packed_sets["best-fit"], "--to", "datatrove", "--out", tmp_path / "out")
    with pytest.raises(InputError, match="packed best-fit, so documents lie in two places; import the set's own"):
        open_files([str(tmp_path / "out")], "datatrove")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from([1, 2, 127]), max_size=8), min_size=1, max_size=20))
def test_eos_anywhere(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path, documents: Documents) -> None:
    work = tmp_path_factory.mktemp("eos")
    path = write_datatrove(work / "a.ds", [*documents, [9]])
    manifest = take([path], work / "split", small_tokenizer, eos_inside="split", val_fraction=0.0)
    parts = [bytes(document).split(b"\x7f") for document in documents]
    assert documents_of(work / "split", "train") == [*(list(part) for some in parts for part in some if part), [9]]
    assert manifest.num_records == manifest.left_out.get("empty", 0) + manifest.total("num_documents")
    manifest = take([path], work / "keep", small_tokenizer, eos_inside="keep", val_fraction=0.0)
    assert manifest.settings["special_tokens"] == "parse"
    bodies = [bytes(document).removesuffix(b"\x7f") for document in documents]
    assert documents_of(work / "keep", "train") == [*(list(body) for body in bodies if body), [9]]
    stripped = [bytes(document).rstrip(b"\x7f") for document in documents]
    if any(b"\x7f" in body for body in stripped):
        with pytest.raises(
            InputError, match=r"a\.ds: document \d+: EOS \(127\) in its middle; choose eos_inside split"
        ):
            take([path], work / "refuse", small_tokenizer)
    else:
        take([path], work / "refuse", small_tokenizer, val_fraction=0.0)
        assert documents_of(work / "refuse", "train") == [*(list(body) for body in stripped if body), [9]]


def test_sources_are_prefixes_files_directories_and_patterns(tmp_path: Path, small_tokenizer: Path) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "below").mkdir(parents=True)
    for number, name in enumerate(("a_text", "b_text", "c_text")):
        write_megatron(corpus / name, [[number] * 10])
        write_datatrove(corpus / "below" / f"{name}.ds", [[number] * 10])
    cases: list[tuple[str, list[Path | str], list[int]]] = [
        ("megatron", [corpus / "b_text"], [1]),
        ("megatron", [corpus / "b_text.bin", corpus / "a_text.idx", corpus / "b_text"], [1, 0]),
        ("megatron", [corpus], [0, 1, 2]),
        ("megatron", [f"{corpus}/[bc]_*"], [1, 2]),
        ("megatron", [f"{corpus}/*_text"], [0, 1, 2]),
        ("datatrove", [corpus], [0, 1, 2]),
        ("datatrove", [corpus / "below" / "c_text.ds.index", f"{corpus}/**/[ac]_text.ds"], [2, 0]),
    ]
    for number, (form, sources, expected) in enumerate(cases):
        out = tmp_path / f"set{number}"
        options = ("--from", form, "--tokenizer", small_tokenizer, "--block-tokens", "4", "--val-fraction", "0")
        assert run("import", *sources, *options, "--out", out) == 0
        assert [document[0] for document in documents_of(out, "train")] == expected


def test_wrong_usage_is_one_clear_line(tmp_path: Path, small_tokenizer: Path) -> None:
    write_megatron(tmp_path / "a", [[1] * 10])
    good = {"--from": "megatron", "--tokenizer": small_tokenizer, "--out": tmp_path / "set"}
    for source, option, value, expected in (
        (
            "a",
            "--from",
            "megatorn",
            "--from: expected megatron or datatrove, found 'megatorn'; did you mean 'megatron'",
        ),
        ("a", "--block-tokens", "1", "block_tokens: expected 2 to 1,048,576 tokens, found 1"),
        ("a", "--val-fraction", "1", "val_fraction: expected 0 or more and less than 1"),
        ("a", "--seed", "-1", "seed: expected 0 to"),
        ("a", "--packing", "tutorial", "packing: expected concat or best-fit, found 'tutorial'"),
        ("a", "--eos-inside", "spilt", "eos_inside: expected refuse or keep or split, .*; did you mean 'split'"),
        ("a", "--tokenizer", tmp_path / "no", "no: no such file or directory; expected a shard set, a directory"),
        ("a", "--tokenizer", tmp_path, "no tokenizer.json in it"),
        ("a", "--out", small_tokenizer, "exists already; choose another name"),
        ("nothing", "--seed", "1", r"nothing: no \*\.(bin|ds) there"),
    ):
        arguments = [part for pair in {**good, option: value}.items() for part in pair]
        with pytest.raises(InputError, match=expected):
            run("import", tmp_path / source, *arguments)
    assert names_in(tmp_path) == ["a.bin", "a.idx"]


# ---- damage ----

DOCUMENTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]


def edited(offset: int, form: str, value: int | bytes) -> Callable[[bytearray], None]:
    return lambda content: struct.pack_into(form, content, offset, value)


def shortened(num_bytes: int) -> Callable[[bytearray], None]:
    return lambda content: content.__delitem__(slice(-num_bytes, None))


SEQUENCE = "expected tokens of 4 bytes within the 36 of the .bin, found"
# By the file that is damaged. Of Megatron's index: lengths from byte 34, offsets from 46, boundaries from 70.
DAMAGES: list[tuple[str, Callable[[bytearray], None], str]] = [
    ("a.idx", shortened(102), r"which begins with b'MMIDIDX\\x00\\x00', found b''"),
    ("a.idx", shortened(80), r"expected an index of Megatron-Core, which begins with"),
    ("a.idx", shortened(8), "has 102 bytes, the file has 94; it is damaged"),
    ("a.idx", edited(9, "<Q", 2), "expected version 1 .* found version 2"),
    ("a.idx", edited(17, "<B", 7), "a dtype of ids, code 1, 2, 3, 4, 5, 8; found version 1, code 7"),  # float32
    ("a.idx", edited(18, "<Q", 4), "4 sequences"),
    ("a.idx", edited(26, "<Q", 0), "0 document boundaries"),
    ("a.idx", lambda content: content.extend(b"\0" * 3), "damaged, or for more modalities than text"),
    ("a.idx", edited(38, "<i", -2), f"sequence 1: {SEQUENCE} -2 from byte 12 on"),
    ("a.idx", edited(42, "<i", 5), f"sequence 2: {SEQUENCE} 5 from byte 20 on"),
    ("a.idx", edited(54, "<q", -4), f"sequence 1: {SEQUENCE} 2 from byte -4 on"),
    ("a.idx", edited(54, "<q", 13), f"sequence 1: {SEQUENCE} 2 from byte 13 on"),
    ("a.idx", edited(62, "<q", 2**63 - 4), f"sequence 2: {SEQUENCE} 4 from byte 9,223"),
    ("a.idx", edited(70, "<q", 1), "boundaries that rise from 0 to 3"),
    ("a.idx", edited(94, "<q", 2), "boundaries that rise from 0 to 3"),
    ("a.idx", edited(78, "<q", 3), "boundaries that rise from 0 to 3"),
    ("a.bin", shortened(1), "within the 35 of the .bin"),
    (
        "a.ds.index",
        shortened(8),
        "2 or 4 bytes for each of the 5 tokens that its index of 16 bytes ends with, found 36",
    ),
    ("a.ds.index", shortened(3), "its index of 21 bytes"),
    ("a.ds.index", shortened(24), "each of the 0 tokens"),
    ("a.ds.index", edited(8, "<Q", 2), "ends of documents that rise"),
    ("a.ds.index", edited(8, "<Q", 2**64 - 1), "ends of documents that rise"),
]


@pytest.mark.parametrize(("name", "damage", "expected"), DAMAGES)
def test_damage_is_refused(tmp_path: Path, name: str, damage: Callable[[bytearray], None], expected: str) -> None:
    paths = write_megatron(tmp_path / "a", DOCUMENTS), write_datatrove(tmp_path / "a.ds", DOCUMENTS)
    content = bytearray((tmp_path / name).read_bytes())
    damage(content)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=expected) as error:
        for path, open_file in zip(paths, (open_megatron, open_datatrove), strict=True):
            open_file(path)
    assert str(error.value).startswith(f"{tmp_path}/a.") and "\n" not in str(error.value)


def test_a_missing_file_and_a_loss_mask_are_not_passed_over(tmp_path: Path) -> None:
    path = write_megatron(tmp_path / "a", DOCUMENTS)
    path.unlink()
    with pytest.raises(InputError, match=r"a\.bin: no such file; each file of tokens needs its index"):
        open_megatron(path)
    path = write_datatrove(tmp_path / "a.ds", DOCUMENTS)
    (tmp_path / "a.ds.loss").write_bytes(b"\1\1\1")
    with pytest.raises(InputError, match="has a loss mask"):
        open_datatrove(path)


@pytest.mark.parametrize(
    ("dtype", "token"), [("<i4", 128), ("<i4", -1), ("<i8", 2**40), ("<u1", 200), ("<i2", -5), ("ds<u4", 2**32 - 1)]
)
def test_other_ids_are_refused(
    tmp_path: Path, small_tokenizer: Path, dtype: str, token: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_any(tmp_path / "a", [[1, 2, 3], [], [4], [5, 6, token, 7]], dtype)
    monkeypatch.setattr(token_files, "_BATCH_DOCUMENTS", 2)
    with pytest.raises(InputError, match=f"{path.name}: document 3: expected ids from 0 to 127, found {token:,};"):
        take([path], tmp_path / "set", small_tokenizer)
    assert not list(tmp_path.glob("set*"))
