"""What an export holds, read by hand from the documented bytes, and by the formats' own packages where we have them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tqdm import tqdm

import shards
from shards.__main__ import EXPORT_FORMATS, main
from shards.common.errors import InputError
from shards.exchange import arrow, exporting
from shards.layout import SPLITS
from shards.verify import verify
from tests.conftest import directory_bytes
from tests.shards.sets import Unit, names_in, tokenizer_files, write_set

FORMATS = EXPORT_FORMATS


def run(*arguments: object) -> int:
    """`python -m shards …`, in this process."""
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def wide_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set whose ids need more than 16 bits: 70,000 entries, the last one EOS."""
    tokenizer = tokenizer_files("wide", {f"w{number}": number for number in range(69_999)}, 69_999)
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 69_999, rng.integers(1, 100)).tolist() for _ in range(200)]
    units: list[Unit] = [{"train": documents[:90], "val": documents[90:100]}, {"train": documents[100:]}]
    return write_set(tmp_path_factory.mktemp("wide") / "set", units, tokenizer=tokenizer)


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several files to a split, in all formats."""
    monkeypatch.setattr(exporting, "_FILE_BYTES", 8_000)
    monkeypatch.setattr(exporting, "_LLM_C_TOKENS", 2_000)
    monkeypatch.setattr(arrow, "_MAX_FILE_BYTES", 8_000)
    monkeypatch.setattr(arrow, "_ROW_GROUP_TOKENS", 1_000)
    monkeypatch.setattr(arrow, "_ROWS_PER_BATCH", 7)


def blocks(directory: Path, split: str) -> np.ndarray:
    """What a bare memory map sees."""
    manifest = json.loads((directory / "manifest.json").read_bytes())
    names = [shard["name"] for shard in manifest["shards"] if shard["split"] == split]
    assert names
    tokens = np.concatenate([np.memmap(directory / f"{name}.bin", "<u4") for name in names])
    return tokens.reshape(-1, manifest["block_tokens"])


def read_datatrove(out: Path, split: str, width: int) -> list[np.ndarray]:
    """As DatatroveFolderDataset with seq_len = width - 1: files by name, each cut into windows."""
    found = []
    for path in sorted((out / split).glob("*.ds")):
        tokens, ends = np.fromfile(path, "<u4"), np.fromfile(f"{path}.index", "<u8").astype(np.int64)
        assert (np.diff(ends) > 0).all() and ends[0] > 0 and ends[-1] == len(tokens)
        found += list(tokens[: len(tokens) // width * width].reshape(-1, width))
    return found


def read_litdata(out: Path, split: str, width: int) -> list[np.ndarray]:
    index = json.loads((out / split / "index.json").read_bytes())
    assert index["config"]["item_loader"] == "TokensLoader"
    assert index["config"]["data_format"] == ["no_header_tensor:16"] and index["config"]["compression"] is None
    found = []
    for number, chunk in enumerate(index["chunks"]):
        assert chunk["filename"] == f"chunk-0-{number}.bin"
        content, num_items = (out / split / chunk["filename"]).read_bytes(), chunk["chunk_size"]
        assert len(content) == chunk["chunk_bytes"] and np.frombuffer(content, "<u4", 1)[0] == num_items
        # TokensLoader passes over the header and cuts `dim` tokens into blocks; each is an item by itself, too.
        offsets = np.frombuffer(content, "<u4", num_items + 1, 4).tolist()
        assert offsets == list(range((num_items + 2) * 4, len(content) + 1, width * 4))
        tokens = np.frombuffer(content, "<i4", chunk["dim"], offsets[0])
        found += list(tokens.reshape(num_items, width))
    return found


def read_mds(out: Path, split: str, width: int) -> list[np.ndarray]:
    index = json.loads((out / split / "index.json").read_bytes())
    assert index["version"] == 2
    found = []
    for number, shard in enumerate(index["shards"]):
        assert shard["raw_data"]["basename"] == f"shard.{number:05}.mds" and shard["zip_data"] is None
        content, num_items = (out / split / shard["raw_data"]["basename"]).read_bytes(), shard["samples"]
        assert len(content) == shard["raw_data"]["bytes"] and np.frombuffer(content, "<u4", 1)[0] == num_items
        offsets = np.frombuffer(content, "<u4", num_items + 1, 4).tolist()
        config = json.loads(content[4 * (num_items + 2) : offsets[0]])
        assert config == {key: shard[key] for key in config} and config["format"] == "mds"
        kind, dtype, shape = config["column_encodings"][0].split(":")
        (size,) = config["column_sizes"]
        assert (kind, shape, size) == ("ndarray", str(width), width * np.dtype(dtype).itemsize)
        assert config["column_names"] == ["tokens"] and offsets == list(range(offsets[0], len(content) + 1, size))
        found += list(np.frombuffer(content, dtype, offset=offsets[0]).reshape(-1, width))
    return found


def read_llm_c(out: Path, split: str, width: int) -> list[np.ndarray]:
    """As dataloader.h with a batch of one row of `width`: it takes width + 1 tokens and goes on by width. The last token
    of a file is the first of the next."""
    found: list[np.ndarray] = []
    after = None
    for path in sorted(out.glob(f"{split}_*.bin")):
        header = np.fromfile(path, "<i4", 256)
        dtype = {(20240520, 1): "<u2", (20240801, 7): "<u4"}[header[0], header[1]]
        tokens = np.fromfile(path, dtype, offset=1024)
        assert header[2] == len(tokens) and not header[3:].any() and after in (None, tokens[0])
        after = tokens[-1]
        found += [tokens[begin : begin + width] for begin in range(0, len(tokens) - width, width)]
    return found


def read_parquet(out: Path, split: str, width: int) -> list[np.ndarray]:
    paths = sorted((out / split).glob("*.parquet"))
    assert [path.name for path in paths] == [f"{split}-{n:05}-of-{len(paths):05}.parquet" for n in range(len(paths))]
    rows = pyarrow.parquet.read_table(out / split).column("input_ids")
    assert rows.type.value_type == pyarrow.uint32() and rows.null_count == 0
    return [row.values.to_numpy() for row in rows]


def read_hf(out: Path, split: str, width: int) -> list[np.ndarray]:
    name = {"train": "train", "val": "validation"}[split]
    dataset = datasets.load_from_disk(str(out))[name]
    column = dataset.data.column("input_ids")
    assert dataset.split == name and column.type == pyarrow.list_(pyarrow.int32(), width)
    return list(dataset.with_format("numpy")["input_ids"][:])


READERS: dict[str, Callable[[Path, str, int], list[np.ndarray]]] = {
    "datatrove": read_datatrove,
    "litdata": read_litdata,
    "mds": read_mds,
    "llm.c": read_llm_c,
    "parquet": read_parquet,
    "hf": read_hf,
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["wide_set", "built_set"])
def test_every_block_comes_back_as_it_is(request: pytest.FixtureRequest, tmp_path: Path, form: str, name: str) -> None:
    """Of the one set in one file a split, of the other in several; and the same set gives the same bytes."""
    shard_set: Path = request.getfixturevalue(name)
    if name == "built_set":
        request.getfixturevalue("small_files")
    for out in ("out", "again"):
        assert run("export", shard_set, "--to", form, "--out", tmp_path / out) == 0
    assert directory_bytes(tmp_path / "out") == directory_bytes(tmp_path / "again")
    for split in SPLITS:
        expected = blocks(shard_set, split)
        found = READERS[form](tmp_path / "out", split, expected.shape[1])
        assert len(found) == len(expected) > 1
        assert np.array_equal(np.asarray(found, dtype=np.int64), expected)
        if form in ("mds", "llm.c"):  # 16 bits where the ids fit
            assert found[0].itemsize == (4 if name == "wide_set" else 2)
    if name == "built_set" and form != "datatrove":
        suffixes = {".bin", ".mds", ".parquet", ".arrow"}
        assert sum(path.suffix in suffixes for path in (tmp_path / "out").rglob("*")) > 4
    assert not list((tmp_path / "out").rglob("*.tmp")) and names_in(tmp_path) == ["again", "out"]


@pytest.mark.parametrize("form", FORMATS)
def test_an_interrupted_export(built_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """It leaves nothing."""

    def stop(_self: tqdm[Any], _num_bytes: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tqdm, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        run("export", built_set, "--to", form, "--out", tmp_path / "out")
    assert not list(tmp_path.iterdir()) and verify(built_set) == []


def test_datatrove_sees_the_sets_own_files(built_set: Path, tmp_path: Path) -> None:
    run("export", built_set, "--to", "datatrove", "--out", tmp_path / "out")
    linked = sorted((tmp_path / "out").rglob("*.ds"))
    assert len(linked) == len(list(built_set.glob("*.bin")))
    for path in linked:
        assert path.samefile(built_set / f"{path.stem}.bin") and not path.is_symlink()
        split = shards.open(built_set)[path.parent.name]
        index = split.shard_index([shard.name for shard in split.shards].index(path.stem))
        # Each document ends there; what follows the last one is padding.
        ends, num_tokens = np.fromfile(f"{path}.index", "<u8").tolist(), path.stat().st_size // 4
        assert ends == [
            *index.ends[index.boundaries[1:] - 1].tolist(),
            *([num_tokens] if index.ends[-1] < num_tokens else []),
        ]
    assert verify(built_set) == []


def test_where_hard_links_fail(built_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_paths: object) -> None:
        raise OSError(errno.EXDEV, "no")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.chdir(built_set.parent)
    run("export", built_set.name, "--to", "datatrove", "--out", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert all(path.is_symlink() for path in (tmp_path / "out").rglob("*.ds"))
    assert np.array_equal(read_datatrove(tmp_path / "out", "train", 64), blocks(built_set, "train"))


@pytest.mark.parametrize("form", ["parquet", "hf"])
def test_the_printed_line(built_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    run("export", built_set, "--to", form, "--out", tmp_path / "a set")
    summary, line = capsys.readouterr().out.splitlines()
    assert summary.startswith(f"{tmp_path / 'a set'}: ") and line.startswith("read it with: ")
    names: dict[str, Any] = {}
    exec(line.removeprefix("read it with: "), names)
    rows = names["train"]["input_ids"]
    assert np.array_equal(rows.to_pylist() if form == "parquet" else rows[:], blocks(built_set, "train"))


def test_wrong_usage_is_one_clear_line(own_set: Path, tmp_path: Path) -> None:
    for arguments, expected in (
        (("--to", "litdat"), r"--to: expected datatrove or .* or hf, found 'litdat'; did you mean 'litdata'\?"),
        (("--to", "hf", "--split", "vla"), "--split: expected train or val, found 'vla'; did you mean 'val'"),
        (("--to", "hf", "--out", own_set / "hf"), "lies within the shard set"),
        (("--to", "hf", "--out", own_set), "exists already"),
        ((), "the following arguments are required: --to"),
    ):
        with pytest.raises(InputError, match=expected):
            run("export", own_set, *arguments)
    assert verify(own_set) == [] and names_in(tmp_path) == ["set"]


def test_an_empty_split_is_left_out_and_not_exported_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default an export lies beside the set."""
    monkeypatch.chdir(write_set(tmp_path / "set", [{"train": [[1] * 40, [2]]}]))
    for form in FORMATS:
        run("export", ".", "--to", form)
        assert not [path for path in (tmp_path / f"set-{form}").rglob("*") if "val" in path.name]
        assert len(READERS[form](tmp_path / f"set-{form}", "train", 16)) == len(shards.open(tmp_path / "set")["train"])
    with pytest.raises(InputError, match="no block in val; nothing to export"):
        run("export", ".", "--to", "hf", "--split", "val", "--out", tmp_path / "val alone")
