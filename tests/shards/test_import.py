"""Ids of other programs become a shard set of the same documents; what can't be such a file is refused in one line."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shards
from pipeline.build import build
from pipeline.settings import BuildSettings
from pipeline.tokenizers import load_tokenizer_files
from shards.errors import InputError
from shards.exchange import importing, token_files
from shards.exchange.datatrove import EndsFile
from shards.exchange.importing import ImportSettings, import_files
from shards.exchange.megatron import IndexedFile
from shards.manifest import Manifest
from shards.tokenizer_files import load_tokenizer
from shards.verify import verify
from tests.conftest import SAMPLE, directory_bytes
from tests.shards.test_exchange import run

EOS = 599  # the last id of the tests' tokenizer
Documents = Sequence[Sequence[int]]
DTYPE_CODES = {"<u1": 1, "<i1": 2, "<i2": 3, "<i4": 4, "<i8": 5, "<u2": 8}


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small files, and no power failure."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


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


def opened(path: Path) -> token_files.TokenFile:
    return EndsFile(path) if path.suffix == ".ds" else IndexedFile(path)


def take(paths: Sequence[Path], out: Path, tokenizer: Path, **options: Any) -> Manifest:
    """Import, and verify what came out of it."""
    options = {"source_format": "datatrove" if paths[0].suffix == ".ds" else "megatron", "block_tokens": 8, **options}
    files = [opened(path) for path in paths]
    manifest = import_files(files, out, tokenizer=tokenizer, settings=ImportSettings(**options))
    assert verify(out) == []
    return manifest


def documents_of(directory: Path, *splits: str) -> list[list[int]]:
    return [document.tolist() for split in splits for document in shards.open(directory)[split].documents()]


# --- what comes out -------------------------------------------------------------------------------------------------------

document_lists = st.lists(
    st.tuples(st.lists(st.integers(0, 126), max_size=40), st.integers(0, 2)),  # ids, and how many EOS stand behind them
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    document_lists,
    st.sampled_from([*DTYPE_CODES, "ds<u2", "ds<u4"]),
    st.sampled_from(["concat", "best-fit"]),
    st.integers(0, 5),
    st.tuples(st.integers(1, 60), st.integers(1, 8), st.integers(1, 200)),
)
def test_every_document_comes_back_without_its_eos(
    tmp_path_factory: pytest.TempPathFactory,
    small_tokenizer: Path,
    drawn: list[tuple[list[int], int]],
    dtype: str,
    packing: Literal["concat", "best-fit"],
    cut: int,
    sizes: tuple[int, int, int],
) -> None:
    work = tmp_path_factory.mktemp("import")
    documents = [[*ids, *[127] * num_eos] for ids, num_eos in drawn]
    halves = [documents[: len(documents) // 2], documents[len(documents) // 2 :]]
    if dtype.startswith("ds"):
        paths = [write_datatrove(work / f"{n}.ds", half, dtype[2:]) for n, half in enumerate(halves)]
    else:
        paths = [write_megatron(work / f"{n}", half, dtype, cut) for n, half in enumerate(halves)]
    expected = [ids for ids, _num_eos in drawn if ids]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_files, "_BATCH_TOKENS", sizes[0])
        patch.setattr(token_files, "_BATCH_DOCUMENTS", sizes[1])
        patch.setattr(importing, "UNIT_TOKENS", sizes[2])
        if not expected:
            with pytest.raises(InputError, match="no document is left"):
                take(paths, work / "set", small_tokenizer, packing=packing, val_fraction=0.0)
            return
        manifest = take(paths, work / "set", small_tokenizer, packing=packing, val_fraction=0.0)
        assert documents_of(work / "set", "train") == expected
        assert manifest.num_empty == len(documents) - len(expected)
        assert [source.num_records for source in manifest.sources] == [len(half) for half in halves]
        assert manifest.num_records == len(documents)
        assert manifest.splits["train"].num_tokens == sum(len(ids) + 1 for ids in expected)
        # The same documents in both splits together, each in the corpus's order, equal ones on the same side.
        take(paths, work / "halved", small_tokenizer, packing=packing, val_fraction=0.5)
    train, val = (documents_of(work / "halved", split) for split in ("train", "val"))
    assert not {tuple(ids) for ids in train} & {tuple(ids) for ids in val}
    assert train == [ids for ids in expected if ids in train] and val == [ids for ids in expected if ids in val]
    assert len(train) + len(val) == len(expected)


@pytest.fixture(scope="module")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """128 entries, so that ids fit every type; EOS is 127."""
    return write_tokenizer(tmp_path_factory.mktemp("small"), {f"w{number}": number for number in range(127)}, 127)


def write_tokenizer(directory: Path, vocabulary: Any, eos_id: int) -> Path:
    added = [{"id": eos_id, "content": "</s>", "special": True}]
    content = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "added_tokens": added}
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return directory


def test_the_split_depends_on_the_ids_and_the_seed_alone(tmp_path: Path, small_tokenizer: Path) -> None:
    documents = [[number % 100, number // 100, 5] for number in range(2_000)]
    closed_ones = [[*document, 127] for document in documents]
    paths = [
        write_megatron(tmp_path / "wide", documents, "<i8"),
        write_megatron(tmp_path / "narrow", closed_ones, "<i1", cut=2),
        write_datatrove(tmp_path / "ends.ds", closed_ones, "<u2"),
    ]
    sets = []
    for number, path in enumerate(paths):
        take([path], tmp_path / f"{number}", small_tokenizer)
        sets.append(documents_of(tmp_path / f"{number}", "val"))
    assert sets[0] == sets[1] == sets[2] and 150 < len(sets[0]) < 250
    key = (2333).to_bytes(32, "little")
    hashes = [blake3(np.array(ids, "<u4").tobytes(), key=key).digest(length=8) for ids in documents]
    held_out = [int.from_bytes(value, "little") < 0.1 * 2**64 for value in hashes]
    assert sets[0] == list(itertools.compress(documents, held_out))
    take(paths[:1], tmp_path / "other", small_tokenizer, seed=1)
    assert documents_of(tmp_path / "other", "val") != sets[0]


def test_the_same_files_give_the_same_bytes(tmp_path: Path, small_tokenizer: Path) -> None:
    path = write_megatron(tmp_path / "a", [[1, 2, 3], [4], [5, 6] * 20])
    take([path], tmp_path / "one", small_tokenizer)
    shutil.copytree(tmp_path / "one", tmp_path / "first")
    take([path], tmp_path / "two", small_tokenizer)
    assert directory_bytes(tmp_path / "one") == directory_bytes(tmp_path / "two")


def test_a_unit_is_as_many_batches_as_fill_it(
    tmp_path: Path, small_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So memory doesn't grow with the files: a unit's packing is done before the next unit is read."""
    monkeypatch.setattr(token_files, "_BATCH_TOKENS", 10)
    monkeypatch.setattr(importing, "UNIT_TOKENS", 30)
    paths = [write_megatron(tmp_path / name, [[1] * 5] * 10) for name in "ab"]
    manifest = take(paths, tmp_path / "set", small_tokenizer, val_fraction=0.0)
    # 10 documents of 5 tokens are 5 batches; 3 batches make a unit: 6 documents of 6 tokens with EOS in 4 blocks of 8 and
    # a tail, over the end of a file too. The last unit is one batch.
    assert [(shard.num_blocks, shard.num_pieces) for shard in manifest.shards[:3]] == [(4, 6), (4, 6), (4, 6)]
    assert [tail.unit for tail in manifest.tails] == [0, 1, 2, 3]


def test_sequences_without_tokens_are_empty_documents(tmp_path: Path, small_tokenizer: Path) -> None:
    """As Megatron's builder writes an empty document when it is given one: a sequence of length 0."""
    path = write_megatron(tmp_path / "a", [[1, 2], [3], [4], [5, 6]])
    content = bytearray(path.with_suffix(".idx").read_bytes())
    struct.pack_into("<4i", content, 34, 2, 0, 0, 3)
    struct.pack_into("<4q", content, 50, 0, 8, 0, 12)
    path.with_suffix(".idx").write_bytes(content)
    manifest = take([path], tmp_path / "set", small_tokenizer, val_fraction=0.0, block_tokens=2)
    assert documents_of(tmp_path / "set", "train") == [[1, 2], [4, 5, 6]] and manifest.num_empty == 2
    path = write_megatron(tmp_path / "b", [[], [7, 8], []])
    take([path], tmp_path / "other", small_tokenizer, val_fraction=0.0, block_tokens=2)
    assert documents_of(tmp_path / "other", "train") == [[7, 8]]


def test_the_manifest_says_where_it_came_from(tmp_path: Path, small_tokenizer: Path) -> None:
    path = write_megatron(tmp_path / "a", [[1, 2, 3], [], [127], [4] * 30])
    manifest = take([path], tmp_path / "set", small_tokenizer, val_fraction=0.25, seed=7)
    (source,) = manifest.sources
    digest = blake3(path.read_bytes()).hexdigest()
    assert (source.path, source.format, source.num_bytes, source.digest) == ("a.bin", "megatron", 34 * 4, digest)
    assert (source.num_stretches, source.num_records, manifest.num_empty) == (1, 4, 2)
    assert manifest.settings["imported_from"] == "megatron" and manifest.settings["val_fraction"] == 0.25
    assert manifest.settings["seed"] == 7 and manifest.settings["special_tokens"] == "text"
    assert manifest.splits["train"].num_text_bytes + manifest.splits["val"].num_text_bytes == 3 * 2 + 30 * 2


# --- round trips ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["concat", "best-fit", "tutorial"])
def packed_set(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """Many units, so that with `concat` many documents are cut between two shards."""
    out = tmp_path_factory.mktemp(request.param) / "set"
    options = BuildSettings(block_tokens=64, unit_bytes=30_000, packing=request.param)
    build([str(SAMPLE)], out, tokenizer_name=str(tokenizer_dir), settings=options, num_workers=2)
    return out


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_sets_own_shards_give_its_documents(packed_set: Path, tmp_path: Path, split: str) -> None:
    # Where documents are cut between shards the order is the set's, elsewhere the caller's.
    is_cut = shards.open(packed_set).manifest.packing == "concat"
    paths = sorted(packed_set.glob(f"{split}-*.bin"), reverse=is_cut)
    assert len(paths) > 2
    take(paths, tmp_path / "new", packed_set, val_fraction=0.0)
    assert documents_of(tmp_path / "new", "train") == documents_of(packed_set, split)


@pytest.mark.parametrize("packed_set", ["concat", "tutorial"], indirect=True)
def test_a_set_goes_through_datatrove_and_back(packed_set: Path, tmp_path: Path) -> None:
    run("export", packed_set, "--to", "datatrove", "--out", tmp_path / "out")
    for split in ("train", "val"):
        arguments = ("--from", "datatrove", "--tokenizer", packed_set, "--val-fraction", "0", "--out", tmp_path / split)
        run("import", tmp_path / "out" / split, *arguments)
        assert verify(tmp_path / split) == []
        assert documents_of(tmp_path / split, "train") == documents_of(packed_set, split)
    run("import", tmp_path / "out", *arguments[:-1], tmp_path / "both")
    everything = [*documents_of(packed_set, "train"), *documents_of(packed_set, "val")]
    assert documents_of(tmp_path / "both", "train") == everything
    manifest = shards.open(tmp_path / "both").manifest
    assert manifest.num_empty == 0 and manifest.num_records == len(everything)
    assert manifest.tokenizer == shards.open(packed_set).manifest.tokenizer


def test_the_documents_of_a_set_count_as_many_characters(built_set: Path, tmp_path: Path) -> None:
    manifest = take(sorted(built_set.glob("*.bin")), tmp_path / "new", built_set)
    for field in ("num_documents", "num_tokens", "num_text_bytes", "num_text_chars"):
        before = sum(getattr(split, field) for split in shards.open(built_set).manifest.splits.values())
        assert sum(getattr(split, field) for split in manifest.splits.values()) == before > 0


def test_a_cut_document_without_its_rest_is_refused(packed_set: Path, tmp_path: Path) -> None:
    paths = sorted(packed_set.glob("train-*.bin"))
    if shards.open(packed_set).manifest.packing == "concat":
        with pytest.raises(InputError, match=f"{paths[-1].stem} is not among the sources, and documents are cut"):
            take(paths[:-1], tmp_path / "new", packed_set)
    else:
        take(paths[:-1], tmp_path / "new", packed_set)


def test_a_shard_that_was_changed_is_refused(own_set: Path, tmp_path: Path) -> None:
    path = sorted(own_set.glob("train-*.bin"))[0]
    tokens = np.fromfile(path, "<u4")
    tokens[3] ^= 1
    tokens.tofile(path)
    with pytest.raises(InputError, match=f"{path.name}: expected digest .* the file was changed"):
        take(sorted(own_set.glob("train-*.bin")), tmp_path / "new", own_set)
    assert not (tmp_path / "new").exists()


def test_a_manifest_of_something_else_is_none_of_ours(tmp_path: Path, small_tokenizer: Path) -> None:
    path = write_megatron(tmp_path / "train-00000", [[1, 2, 3] * 5])
    (tmp_path / "manifest.json").write_text('{"version": 3}')
    take([path], tmp_path / "set", small_tokenizer)


def test_documents_of_best_fit_are_not_taken_from_datatrove(built_set: Path, tmp_path: Path) -> None:
    take(sorted(built_set.glob("train-*.bin")), tmp_path / "set", built_set, packing="best-fit")
    run("export", tmp_path / "set", "--to", "datatrove")
    with pytest.raises(
        InputError, match="packed best-fit, whose documents may lie in two places; import the set's own"
    ):
        EndsFile(sorted((tmp_path / "set-datatrove").rglob("*.ds"))[0])


def test_an_export_whose_index_was_changed_is_refused(built_set: Path, tmp_path: Path) -> None:
    run("export", built_set, "--to", "datatrove", "--out", tmp_path / "out")
    path = sorted((tmp_path / "out" / "train").glob("*.ds"))[0]
    index = path.with_name(path.name + ".index")
    index.write_bytes(index.read_bytes()[8:])
    with pytest.raises(InputError, match=r"\.ds\.index: expected [\d,]+ ends as in the manifest beside it, found"):
        EndsFile(path)


# --- EOS in the middle ----------------------------------------------------------------------------------------------------


def test_eos_inside_a_document_is_refused_or_taken_as_asked(tmp_path: Path, small_tokenizer: Path) -> None:
    documents = [[1, 2], [3, 127, 4, 127, 127], [], [127, 5]]
    path = write_megatron(tmp_path / "a", documents)
    with pytest.raises(InputError, match=r"a\.bin: document 1: EOS \(127\) in its middle; choose --eos-inside split"):
        take([path], tmp_path / "refused", small_tokenizer)
    assert not list(tmp_path.glob("refused*"))

    manifest = take([path], tmp_path / "split", small_tokenizer, eos_inside="split", val_fraction=0.0)
    assert documents_of(tmp_path / "split", "train") == [[1, 2], [3], [4], [5]]
    assert manifest.num_empty == 3 and manifest.num_records == 7 == manifest.sources[0].num_records

    manifest = take([path], tmp_path / "keep", small_tokenizer, eos_inside="keep", val_fraction=0.0)
    assert documents_of(tmp_path / "keep", "train") == [[1, 2], [3, 127, 4, 127], [127, 5]]
    assert manifest.settings["special_tokens"] == "parse" and manifest.num_empty == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from([1, 2, 127]), max_size=8), min_size=1, max_size=20))
def test_any_place_of_eos(
    tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path, documents: Documents
) -> None:
    work = tmp_path_factory.mktemp("eos")
    path = write_datatrove(work / "a.ds", [*documents, [9]])
    take([path], work / "split", small_tokenizer, eos_inside="split", val_fraction=0.0)
    parts = [bytes(document).split(b"\x7f") for document in documents]
    assert documents_of(work / "split", "train") == [*(list(part) for some in parts for part in some if part), [9]]
    take([path], work / "keep", small_tokenizer, eos_inside="keep", val_fraction=0.0)
    bodies = [bytes(document).removesuffix(b"\x7f") for document in documents]
    assert documents_of(work / "keep", "train") == [*(list(body) for body in bodies if body), [9]]
    stripped = [bytes(document).rstrip(b"\x7f") for document in documents]
    if any(b"\x7f" in body for body in stripped):
        with pytest.raises(InputError, match="in its middle"):
            take([path], work / "refuse", small_tokenizer)
    else:
        take([path], work / "refuse", small_tokenizer, val_fraction=0.0)
        assert documents_of(work / "refuse", "train") == [*(list(body) for body in stripped if body), [9]]


# --- damaged files --------------------------------------------------------------------------------------------------------


def edited(offset: int, form: str, value: int | float | bytes) -> Callable[[bytearray], None]:
    def edit(content: bytearray) -> None:
        struct.pack_into(form, content, offset, value)

    return edit


def shortened(num_bytes: int) -> Callable[[bytearray], None]:
    def edit(content: bytearray) -> None:
        del content[-num_bytes:]

    return edit


# Of documents of 3, 2 and 4 tokens: lengths from byte 34, offsets from 46, boundaries from 70.
INDEX_DAMAGES: dict[str, tuple[Callable[[bytearray], None], str]] = {
    "empty": (shortened(102), r"which begins with b'MMIDIDX\\x00\\x00', found b''"),
    "header cut short": (shortened(80), "expected a header of 34 bytes, found 22; the file is truncated"),
    "truncated": (shortened(8), "has 102 bytes, the file has 94; it is truncated or damaged"),
    "too long": (lambda content: content.extend(b"\0" * 8), "has 102 bytes, the file has 110"),
    "magic": (edited(0, "<9s", b"TNTIDX\0\0\0"), r"found b'TNTIDX"),
    "version": (edited(9, "<Q", 2), "expected version 1, found 2"),
    "dtype unknown": (edited(17, "<B", 9), r"dtype code: expected one of ids, 1 \(uint8\), .*; found 9"),
    "dtype float32": (edited(17, "<B", 7), r"found 7 \(float32\)"),
    "dtype float64": (edited(17, "<B", 6), r"found 6 \(float64\)"),
    "number of sequences": (edited(18, "<Q", 4), "4 sequences"),
    "number of sequences huge": (edited(18, "<Q", 2**64 - 1), "the file has 102"),
    "number of boundaries": (edited(26, "<Q", 0), "0 document boundaries"),
    "several modalities": (lambda content: content.extend(b"\0" * 3), "an index of several modalities"),
    "negative length": (edited(38, "<i", -2), "sequence 1: expected a length of at least 0, found -2"),
    "length beyond the bin": (edited(42, "<i", 5), "sequence 2: expected an offset that leaves room for it in the 36"),
    "length huge": (edited(42, "<i", 2**31 - 1), "sequence 2: expected an offset that leaves room"),
    "negative offset": (edited(54, "<q", -4), "sequence 1: expected an offset of at least 0, found -4"),
    "offset beyond the bin": (
        edited(62, "<q", 40),
        "sequence 2: expected an offset that leaves room for it .* found 40",
    ),
    "offset huge": (edited(62, "<q", 2**63 - 4), "sequence 2: expected an offset that leaves room"),
    "offset least": (edited(62, "<q", -(2**63)), "sequence 2: expected an offset of at least 0"),
    "offset odd": (edited(54, "<q", 13), "sequence 1: expected an offset that is a multiple of 4, found 13"),
    "boundaries begin late": (edited(70, "<q", 1), "expected document boundaries from 0 to 3, found 1 to 3"),
    "boundaries end early": (edited(94, "<q", 2), "expected document boundaries from 0 to 3, found 0 to 2"),
    "boundaries fall": (edited(78, "<q", 3), "document boundary 2: expected at least 3, found 2"),
    "boundary negative": (edited(78, "<q", -1), "document boundary 1: expected at least 0, found -1"),
}


@pytest.mark.parametrize("name", INDEX_DAMAGES)
def test_a_damaged_index_of_megatron_is_refused(tmp_path: Path, name: str) -> None:
    edit, expected = INDEX_DAMAGES[name]
    path = write_megatron(tmp_path / "a", [[1, 2, 3], [4, 5], [6, 7, 8, 9]])
    content = bytearray(path.with_suffix(".idx").read_bytes())
    edit(content)
    path.with_suffix(".idx").write_bytes(content)
    with pytest.raises(InputError, match=expected) as error:
        IndexedFile(path)
    assert str(error.value).startswith(f"{path.with_suffix('.idx')}: ") and "\n" not in str(error.value)


def test_a_truncated_bin_is_refused(tmp_path: Path) -> None:
    path = write_megatron(tmp_path / "a", [[1, 2, 3], [4, 5], [6, 7, 8, 9]])
    for num_bytes in (35, 20, 0):
        os.truncate(path, num_bytes)
        with pytest.raises(InputError, match=f"leaves room for it in the {num_bytes} bytes of the .bin"):
            IndexedFile(path)
    path.unlink()
    with pytest.raises(InputError, match=r"a\.bin: No such file or directory; each file of tokens needs its index"):
        IndexedFile(path)


ENDS_DAMAGES: dict[str, tuple[Callable[[bytearray], None], str]] = {
    "truncated": (
        shortened(8),
        "expected 2 or 4 bytes for each of the 5 tokens that its index ends with, found 36 bytes",
    ),
    "cut in a number": (shortened(3), "expected a multiple of 8 bytes, found 21"),
    "empty": (shortened(24), "each of the 0 tokens"),
    "falling": (edited(8, "<Q", 2), "document 1: expected an end of at least 3, found 2"),
    "beyond the file": (edited(8, "<Q", 10), "document 2: expected an end of at least 10, found 9"),
    "huge": (edited(8, "<Q", 2**64 - 1), "document 2: expected an end of at least 18,446,744,073,709,551,615, found 9"),
    "last one huge": (edited(16, "<Q", 2**63), "each of the 9,223,372,036,854,775,808 tokens"),
}


@pytest.mark.parametrize("name", ENDS_DAMAGES)
def test_a_damaged_index_of_datatrove_is_refused(tmp_path: Path, name: str) -> None:
    edit, expected = ENDS_DAMAGES[name]
    path = write_datatrove(tmp_path / "a.ds", [[1, 2, 3], [4, 5], [6, 7, 8, 9]])
    content = bytearray((tmp_path / "a.ds.index").read_bytes())
    edit(content)
    (tmp_path / "a.ds.index").write_bytes(content)
    with pytest.raises(InputError, match=expected) as error:
        EndsFile(path)
    assert "\n" not in str(error.value)


def test_a_loss_mask_is_not_passed_over(tmp_path: Path) -> None:
    path = write_datatrove(tmp_path / "a.ds", [[1, 2, 3]])
    (tmp_path / "a.ds.loss").write_bytes(b"\1\1\1")
    with pytest.raises(InputError, match="has a loss mask"):
        EndsFile(path)


def test_faults_far_behind_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The indexes are looked at a stretch at a time, and between two stretches too."""
    monkeypatch.setattr("shards.exchange.megatron._CHECK_ITEMS", 2)
    monkeypatch.setattr("shards.exchange.token_files._CHECK_ITEMS", 2)
    for number in range(1, 7):
        path = write_megatron(tmp_path / "a", [[1]] * 7)
        content = bytearray(path.with_suffix(".idx").read_bytes())
        struct.pack_into("<q", content, 34 + 12 * 7 + 8 * number, number - 1)
        struct.pack_into("<q", content, 34 + 12 * 7 + 8 * (number - 1), number)
        if number == 1:
            struct.pack_into("<q", content, 34 + 12 * 7, 0)
            struct.pack_into("<q", content, 34 + 12 * 7 + 8, -1)
        path.with_suffix(".idx").write_bytes(content)
        with pytest.raises(InputError, match=f"document boundary {number}:"):
            IndexedFile(path)
        path = write_datatrove(tmp_path / "a.ds", [[1, 1]] * 7)
        ends = np.fromfile(tmp_path / "a.ds.index", "<u8")
        ends[number - 1], ends[number] = ends[number] - (number == 6), ends[number - 1]
        ends[-1] = 14
        if number < 6:
            ends.tofile(tmp_path / "a.ds.index")
            with pytest.raises(InputError, match=f"document {number}: expected an end"):
                EndsFile(path)


@pytest.mark.parametrize(
    ("dtype", "token"), [("<i4", 128), ("<i4", -1), ("<i8", 2**40), ("<u1", 200), ("<i2", -5), ("ds<u4", 2**32 - 1)]
)
def test_ids_that_are_none_of_the_tokenizers_are_refused(
    tmp_path: Path, small_tokenizer: Path, dtype: str, token: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [[1, 2, 3], [], [4], [5, 6, token, 7]]
    if dtype.startswith("ds"):
        path = write_datatrove(tmp_path / "a.ds", documents, dtype[2:])
    else:
        path = write_megatron(tmp_path / "a", documents, dtype)
    monkeypatch.setattr(token_files, "_BATCH_DOCUMENTS", 2)
    with pytest.raises(
        InputError, match=f"{path.name}: document 3, token 2: expected an id from 0 to 127, found {token:,};"
    ):
        take([path], tmp_path / "set", small_tokenizer)
    assert not list(tmp_path.glob("set*"))


# --- the command ----------------------------------------------------------------------------------------------------------


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


def test_what_is_said_at_the_end(tmp_path: Path, small_tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_megatron(tmp_path / "a", [[1] * 10, [], [2] * 10])
    options = ("--tokenizer", small_tokenizer, "--block-tokens", "4", "--val-fraction", "0", "--out", tmp_path / "set")
    run("import", tmp_path / "a", "--from", "megatron", *options)
    expected = "set: 2 documents, 22 tokens, 6 + 0 blocks of 4 (train + val); 1 empty document left out\n"
    assert capsys.readouterr().out.endswith(expected)


def test_wrong_usage_is_one_clear_line(tmp_path: Path, small_tokenizer: Path) -> None:
    write_megatron(tmp_path / "a", [[1] * 10])
    good = {
        "--from": "megatron",
        "--tokenizer": small_tokenizer,
        "--out": tmp_path / "set",
    }
    for options, expected in (
        ({"--from": "megatorn"}, "--from: expected megatron or datatrove, found 'megatorn'; did you mean 'megatron'"),
        ({"--block-tokens": "1"}, "--block-tokens: expected 2 to 1,048,576 tokens, found 1"),
        ({"--val-fraction": "1"}, "--val-fraction: expected 0 or more and less than 1"),
        ({"--seed": "-1"}, "--seed: expected 0 to"),
        ({"--packing": "tutorial"}, "--packing: expected concat or best-fit, found 'tutorial'"),
        (
            {"--eos-inside": "spilt"},
            "--eos-inside: expected refuse or keep or split, found 'spilt'; did you mean 'split'",
        ),
        (
            {"--tokenizer": tmp_path / "nowhere"},
            "nowhere: no such file or directory; expected a shard set, a directory",
        ),
        ({"--tokenizer": tmp_path}, "no tokenizer.json in it"),
        ({"--out": small_tokenizer}, "exists already; choose another --out"),
    ):
        arguments = [part for pair in {**good, **options}.items() for part in pair]
        with pytest.raises(InputError, match=expected):
            run("import", tmp_path / "a", *arguments)
        with pytest.raises(InputError, match=r"nothing: no \*\.(bin|ds) there"):
            run("import", tmp_path / "nothing", *[part for pair in good.items() for part in pair])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx"]


# --- the tokenizer's files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["trained", "unigram", "named in the config", "known by name"])
def test_the_tokenizer_is_read_as_where_texts_are_tokenized(tmp_path: Path, tokenizer_dir: Path, kind: str) -> None:
    if kind == "trained":
        shutil.copytree(tokenizer_dir, tmp_path, dirs_exist_ok=True)
    elif kind == "unigram":
        pieces = [["<unk>", 0.0], ['é\x7f\u2028"\\', -1.5e-5], ["b", -1e-7], ["c", -12345678901234567.0]]
        write_tokenizer(tmp_path, pieces, 4)
    elif kind == "named in the config":
        write_tokenizer(tmp_path, {"a": 0, "b": 3}, 1)
        (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "b"}, "x": "é"}')
    else:
        write_tokenizer(tmp_path, {"a": 0}, 7)
    expected = load_tokenizer_files(str(tmp_path))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        found = load_tokenizer(path)
        assert found.entry == expected.entry
        assert found.contents == expected.contents


def test_a_sets_tokenizer_is_taken_as_it_is(own_set: Path, tmp_path: Path) -> None:
    for path in (own_set, own_set / "tokenizer"):
        found = load_tokenizer(path)
        assert found.entry == shards.open(own_set).manifest.tokenizer
        assert found.contents == {file.name: file.read_bytes() for file in (own_set / "tokenizer").iterdir()}
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(own_set / "tokenizer" / "tokenizer.json", other)
    assert dataclasses.replace(load_tokenizer(other).entry, name="tokenizer") == dataclasses.replace(
        found.entry, name="tokenizer"
    )
    (own_set / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"expected sha256 .* the tokenizer was changed"):
        load_tokenizer(own_set)


@pytest.mark.parametrize(
    ("content", "config", "expected"),
    [
        ("{", None, "not a tokenizer.json that can be read"),
        ("[]", None, "not a tokenizer.json that can be read"),
        ('{"model": {"vocab": {}}}', None, "not a tokenizer.json that can be read"),
        ('{"model": {"vocab": {"a": 0}}}', None, "nothing says which token ends a document"),
        ('{"model": {"vocab": {"a": 0}}}', '{"eos_token": "b"}', "the EOS token 'b' is not in the vocabulary"),
        ('{"model": {"vocab": {"a": 0}}}', "{", "tokenizer_config.json: not valid JSON"),
        ('{"model": {"vocab": {"a": 0}}}', "[]", "tokenizer_config.json: expected an object, found list"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_refused(
    tmp_path: Path, content: str, config: str | None, expected: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(InputError, match=expected):
        load_tokenizer(tmp_path)
