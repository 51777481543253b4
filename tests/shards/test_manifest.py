"""The manifest: what is written is read, and one that doesn't agree with itself is refused in one line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

import shards
from shards.common.errors import InputError
from shards.manifest import ShardEntry, decode_manifest, encode_manifest, read_manifest, sum_splits
from shards.unread import UnreadEntry
from tests.shards.sets import forge, write_set


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A set with rejected records that the test may change."""
    units = [{"train": [[1, 2, 3], [4]], "val": [[5] * 20]}, {"train": [[6] * 17]}]
    unread = [UnreadEntry(kind="", num_files=4, names=["a.md", "b", "c"])]
    return write_set(tmp_path / "set", units, rejected={"no text": 2}, unread=unread)  # type: ignore[arg-type]


def test_what_is_written_is_read(own: Path) -> None:
    manifest = read_manifest(own)
    encoded = (own / "manifest.json").read_bytes()
    assert encode_manifest(manifest) == encoded and decode_manifest(encoded, "here") == manifest
    content = json.loads(encoded)
    content["tokenizer"]["begin_id"] = None  # is not written
    assert dataclasses.asdict(manifest) == content
    assert manifest.with_fingerprint() == manifest
    assert manifest.splits == sum_splits(manifest.shards, 16)
    assert manifest.total("num_documents") == 4 == manifest.num_records
    assert [shard.num_tokens for shard in manifest.of_split("train")] == [6, 18]
    # People can read it, and one shard is one line.
    fields = [field.name for field in dataclasses.fields(ShardEntry)]
    line = ", ".join(f'"{name}": {json.dumps(getattr(manifest.shards[0], name))}' for name in fields)
    assert encoded.startswith(b'{\n  "format_version": 1,\n') and f"[\n    {{{line}}},\n".encode() in encoded


def test_every_file_is_listed_with_its_size_and_digest(own: Path) -> None:
    found = {path.relative_to(own).as_posix() for path in own.rglob("*") if path.is_file()}
    files = {file.name: file for file in read_manifest(own).files()}
    assert files.keys() == found - {"manifest.json"}
    assert {"rejected.jsonl", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"} < files.keys()
    for name, file in files.items():
        content = (own / name).read_bytes()
        assert (file.num_bytes, file.digest) == (len(content), blake3(content).hexdigest())


def test_the_fingerprint_is_of_all_else(own: Path) -> None:
    manifest = read_manifest(own)
    changes: list[dict[str, Any]] = [{"num_records": 1}, {"settings": {}}, {"shards": manifest.shards[::-1]}]
    for change in changes:
        assert dataclasses.replace(manifest, **change).with_fingerprint().fingerprint != manifest.fingerprint
    content = json.loads((own / "manifest.json").read_bytes())
    content["num_records"] = 7
    (own / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="the fingerprint doesn't match the content"):
        shards.open(own)


def test_the_order_of_keys_and_white_space_do_not_matter(own: Path) -> None:
    content = json.loads((own / "manifest.json").read_bytes())
    content["shards"] = [dict(reversed(shard.items())) for shard in content["shards"]]
    (own / "manifest.json").write_text(json.dumps(dict(reversed(content.items()))))
    assert shards.open(own).manifest == decode_manifest(json.dumps(content).encode(), "here")


def updated(*path: Any, **changes: Any) -> Callable[[dict[str, Any]], None]:
    def edit(content: Any) -> None:
        for step in path:
            content = content[step]
        content.update(changes)

    return edit


def first_shard(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return updated("shards", 0, **changes)


def rename_both(content: dict[str, Any]) -> None:
    content["shards"][0]["name"], content["shards"][1]["name"] = "train-0", "train-00000"


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "nothing but the fingerprint": (lambda content: None, ""),
    "another version": (updated(format_version=3), "expected format version 1, found 3"),
    "no tokens in a block": (updated(block_tokens=0), "block_tokens: expected at least 1"),
    "another type": (updated(dtype="uint16"), "dtype: expected 'uint32', found 'uint16'"),
    "another packing": (updated(packing="tutorial"), "expected one of concat, best-fit, found"),
    "no rejected.jsonl": (updated(rejected={}), "'rejected.jsonl' is not a file of a shard set"),
    "an empty list that should be left out": (updated(unread=[]), "unread: expected at least one"),
    "EOS beyond the vocabulary": (updated("tokenizer", eos_id=257), "eos_id must be below"),
    "a name beside its like": (rename_both, "expected a name such as train-00000"),
    "a name of the other split": (first_shard(name="val-00000"), "expected a name such as"),
    "a name twice": (first_shard(name="train-00001"), "shard 'train-00001': listed twice, or not in ascending order"),
    "another order": (lambda content: content["shards"].insert(0, content["shards"].pop(1)), "not in ascending order"),
    "too many tokens": (first_shard(num_tokens=17), "17 tokens don't fit 1 blocks"),
    "too few tokens": (first_shard(num_blocks=2), "6 tokens don't fit 2 blocks"),
    "no blocks": (first_shard(num_blocks=0, num_tokens=0), "0 tokens don't fit 0 blocks"),
    "blocks beyond 2**63 bytes": (first_shard(num_blocks=2**60), "6 tokens don't fit"),
    "no documents": (first_shard(num_documents=0), "0 documents, 2 sequences and 6 tokens don't go together"),
    "fewer sequences": (first_shard(num_sequences=1), "2 documents, 1 sequences"),
    "a digest in capitals": (first_shard(digest="A" * 64), "expected digests of 64 lower-case hexadecimal digits"),
    "a field more": (first_shard(more=1), "unknown field 'more'"),
    "a field less": (lambda content: content["shards"][0].pop("digest"), "no field 'digest'"),
    "a shard that is a list": (lambda content: content["shards"].insert(0, []), r"shards\[0\]: expected an object"),
    "other sums": (updated("splits", "train", num_documents=9), "train: num_documents is 9, its shards hold 3"),
    "no padding": (updated("splits", "val", num_padding_tokens=0), "num_padding_tokens is 0, its shards hold 11"),
    "a third split": (
        lambda content: content["splits"].update(test=content["splits"]["val"]),
        "splits: expected train",
    ),
    "no shards": (updated(shards=[]), "shards: expected at least one, found none"),
    "no tokenizer": (lambda content: content["other_files"].pop(0), "json is not listed"),
    "more names than files": (updated("unread", 0, num_files=2), "expected the names of the first files, at most 3"),
    "a file twice": (lambda content: content["other_files"].append(content["other_files"][0]), "is listed twice"),
    "a file of no tokenizer": (updated("other_files", 0, name="tokenizer/model.py"), "model.py' is not a file of a sh"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_manifest_that_does_not_agree_with_itself_is_refused(own: Path, name: str) -> None:
    edit, expected = FORGERIES[name]
    forge(own, edit)
    if not expected:  # what the others are refused for is not the forging
        shards.open(own)
        return
    with pytest.raises(InputError, match=expected) as caught:
        shards.open(own)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(own / "manifest.json"))


def test_where_there_is_no_set(own: Path, tmp_path: Path) -> None:
    """Its neighbour is suggested if that is a set, and can't write to the terminal."""
    (tmp_path / "seta").mkdir()
    (tmp_path / "begun.partial").mkdir()
    own, incomplete = own.rename(tmp_path / "books\x1b[31m"), "no manifest.json, so this is not a complete shard set"
    for path, expected in (
        (own / "manifest.json", "expected a shard set's directory, found a file; take "),
        (tmp_path / "books[31m", r"no such shard set; did you mean '.*/books\\x1b\[31m'\? Or build it"),
        (tmp_path / "sett", "no such shard set; build it with"),
        (tmp_path / "begun", "no such shard set; it is unfinished: "),
        (tmp_path / "nowhere" / "books", "no such shard set; build it with"),
        (tmp_path, rf"{incomplete}; name one in it, such as .*/books\\x1b\[31m"),
        (tmp_path / "seta", f"{incomplete}; finish it"),
    ):
        for opened in (shards.open, shards.open_data):
            with pytest.raises(InputError, match=expected):
                opened(str(path))
    (own / "manifest.json").write_bytes((own / "manifest.json").read_bytes()[:-5])
    with pytest.raises(InputError, match="not valid JSON"):
        shards.open(own)
