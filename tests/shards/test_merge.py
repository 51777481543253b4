"""Merging gives the bytes of one build of all, notices damage, and refuses what doesn't fit together."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from shards.entries import SPLITS, ShardList
from shards.merge import merge

from shards.common.errors import InputError
from shards.manifest import encode_manifest, read_manifest
from shards.verify import verify
from tests.conftest import directory_bytes, write_corpus
from tests.shards.regroup_sets import (
    PACKINGS,
    TEXTS,
    build_packings,
    build_set,
    content,
    documents,
    flip_a_bit,
    names_in,
    without_origin,
)

pytestmark = pytest.mark.usefixtures("inline_engine")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> dict[str, Path]:
    return build_packings(tmp_path_factory.mktemp("sets"), tokenizer_dir)


@pytest.fixture
def own_copy(sets: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the set in the packing `concat` that the test may damage."""
    return Path(shutil.copytree(sets["concat"], tmp_path / "set"))


@pytest.mark.parametrize("packing", PACKINGS)
def test_merging_two_builds_gives_the_bytes_of_one_build_of_both(
    tmp_path: Path, tokenizer_dir: Path, packing: str
) -> None:
    corpora = {"a": [*TEXTS[:90], "", {"no": "text"}, {"text": 5}], "b": ["", *TEXTS[90:], {"no": "text"}, [], ""]}
    make = functools.partial(build_set, tokenizer_dir=tokenizer_dir, packing=packing, on_bad_record="skip")
    parts = [make(tmp_path / name / "set", {name: corpus}) for name, corpus in corpora.items()]
    both = make(tmp_path / "both" / "set", corpora)
    merge(parts, tmp_path / "merged")
    assert verify(tmp_path / "merged") == []
    assert len(content(both)) > 20 and "rejected.jsonl" in content(both)
    assert content(tmp_path / "merged") == content(both)
    # Splits, shards, tails, sources, and the numbers of records that are in no shard.
    assert without_origin(tmp_path / "merged") == without_origin(both)
    assert read_manifest(both).num_empty == 3 and len(read_manifest(both).rejected) == 3
    settings = read_manifest(tmp_path / "merged").settings
    assert settings["parts"] == [read_manifest(part).fingerprint for part in parts]
    assert settings["settings"] == read_manifest(both).settings


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_merging_any_builds_gives_the_bytes_of_one_build_of_all(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("any")
    texts = st.lists(st.text("ab 中文\n", max_size=60), max_size=15).map(lambda texts: [*texts, "至少一篇" * 9])
    corpora = {str(number): own for number, own in enumerate(data.draw(st.lists(texts, min_size=1, max_size=4)))}
    options: dict[str, Any] = {
        "packing": data.draw(st.sampled_from(PACKINGS)),
        "block_tokens": data.draw(st.integers(2, 12)),
        "unit_bytes": data.draw(st.sampled_from([100, 500, 5000])),
        "val_fraction": data.draw(st.sampled_from([0.0, 0.3])),
    }
    parts = [
        build_set(directory / name / "set", {name: own}, tokenizer_dir, **options) for name, own in corpora.items()
    ]
    both = build_set(directory / "both" / "set", corpora, tokenizer_dir, **options)
    merge(parts, directory / "merged")
    assert verify(directory / "merged") == []
    # Units without a document at the end of a part aren't counted, so that names may differ; the content may not.
    assert [data for _, data in sorted(content(directory / "merged").items())] == [
        data for _, data in sorted(content(both).items())
    ]
    assert without_origin(directory / "merged")["splits"] == without_origin(both)["splits"]
    for name in SPLITS:
        assert documents(directory / "merged", name) == [one for part in parts for one in documents(part, name)]
    if len(parts) > 2:
        merge(parts[:2], directory / "first")
        merge([directory / "first", *parts[2:]], directory / "stepwise")
        assert content(directory / "stepwise") == content(directory / "merged")


@pytest.mark.parametrize("packing", PACKINGS)
def test_one_set_alone_stays_as_it_is_and_twice_is_twice(tmp_path: Path, sets: dict[str, Path], packing: str) -> None:
    merge([sets[packing]], tmp_path / "alone")
    assert content(tmp_path / "alone") == content(sets[packing])
    assert without_origin(tmp_path / "alone") == without_origin(sets[packing])
    merge([sets[packing]] * 2, tmp_path / "twice")
    assert verify(tmp_path / "twice") == []
    assert documents(tmp_path / "twice", "val") == documents(sets[packing], "val") * 2
    assert read_manifest(tmp_path / "twice").num_records == 2 * read_manifest(sets[packing]).num_records
    merge([sets[packing]] * 2, tmp_path / "again")
    assert directory_bytes(tmp_path / "again") == directory_bytes(tmp_path / "twice")


def test_links_share_the_old_files_and_copies_do_not(tmp_path: Path, sets: dict[str, Path]) -> None:
    merge([sets["concat"]], tmp_path / "linked", link=True)
    merge([sets["concat"]], tmp_path / "copied")
    for name in ("train-00000.bin", "train-00000.idx"):
        assert os.path.samefile(tmp_path / "linked" / name, sets["concat"] / name)
        assert not os.path.samefile(tmp_path / "copied" / name, sets["concat"] / name)
    assert directory_bytes(tmp_path / "linked") == directory_bytes(tmp_path / "copied")
    assert verify(tmp_path / "linked") == []


def test_without_hard_links_files_are_copied_and_a_line_says_so(
    tmp_path: Path, sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_source: Path, _target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    notes: list[str] = []
    merge([sets["concat"]] * 2, tmp_path / "set", link=True, note=notes.append)
    assert len(notes) == 1 and "train-00000.bin: can't make a hard link of it (Invalid cross-device link)" in notes[0]
    assert verify(tmp_path / "set") == []


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize(
    "pattern", ["train-00000.bin", "train-*.bin", "val-*.idx", "train-*.idx", "tokenizer/tokenizer.json"]
)
def test_damage_is_noticed_while_copying(tmp_path: Path, own_copy: Path, pattern: str, link: bool) -> None:
    path = sorted(own_copy.glob(pattern))[-1]  # of all the train shards the last one, with what was left over
    flip_a_bit(path)
    with pytest.raises(
        InputError, match=rf"set/.*{path.name}: expected (digest|sha256) \w+, found \w+; the .* was changed"
    ):
        merge([own_copy], tmp_path / "merged", link=link)
    assert names_in(tmp_path) == ["set"]


def test_changed_rejected_records_are_noticed(tmp_path: Path, tokenizer_dir: Path) -> None:
    part = build_set(tmp_path / "set", [*TEXTS[:20], {"no": "text"}], tokenizer_dir, on_bad_record="skip")
    flip_a_bit(part / "rejected.jsonl")
    with pytest.raises(InputError, match=r"rejected\.jsonl: expected digest"):
        merge([part], tmp_path / "merged")
    (part / "rejected.jsonl").unlink()
    with pytest.raises(InputError, match=r"rejected\.jsonl: no such file"):
        merge([part], tmp_path / "merged")


def test_sets_that_do_not_fit_together_are_refused_with_what_differs(
    tmp_path: Path, sets: dict[str, Path], tokenizer_dir: Path
) -> None:
    from pipeline.bpe import train_tokenizer

    train_tokenizer([str(write_corpus(tmp_path / "c.json", [{"text": TEXTS[0]}]))], tmp_path / "other", vocab_size=300)
    other = build_set(tmp_path / "a" / "set", TEXTS[:9], tmp_path / "other")
    with pytest.raises(InputError, match=r"tokenizer\.sha256 .* tokenizer\.vocab_size \(expected 600, found 300\)"):
        merge([sets["concat"], other], tmp_path / "merged")
    blocks = build_set(tmp_path / "b" / "set", TEXTS[:9], tokenizer_dir, block_tokens=32, packing="best-fit")
    expected = r"block_tokens \(expected 64, found 32\), packing \(expected concat, found best-fit\); build both"
    with pytest.raises(InputError, match=expected):
        merge([sets["concat"], blocks], tmp_path / "merged")
    with pytest.raises(InputError, match="no such shard set"):
        merge([sets["concat"], tmp_path / "nowhere"], tmp_path / "merged")
    assert not (tmp_path / "merged").exists() and not (tmp_path / "merged.partial").exists()


def test_sets_that_were_made_differently_have_no_settings_in_common(tmp_path: Path, tokenizer_dir: Path) -> None:
    without_val = build_set(tmp_path / "a" / "set", TEXTS[:40], tokenizer_dir, val_fraction=0.0)
    with_val = build_set(tmp_path / "b" / "set", TEXTS[40:80], tokenizer_dir)
    merge([without_val, with_val], tmp_path / "merged")
    assert verify(tmp_path / "merged") == []
    assert documents(tmp_path / "merged", "val") == documents(with_val, "val")
    assert set(read_manifest(tmp_path / "merged").settings) == {"command", "parts"}
    merge([without_val, without_val], tmp_path / "no-val")
    assert verify(tmp_path / "no-val") == []
    assert read_manifest(tmp_path / "no-val").splits["val"].num_blocks == 0


def test_tails_that_the_last_shard_does_not_hold_are_refused(tmp_path: Path, own_copy: Path) -> None:
    """The manifest's fingerprint is right, but its writer has lost a tail."""
    manifest = read_manifest(own_copy)
    damaged = dataclasses.replace(manifest, tails=manifest.tails[1:]).with_fingerprint()
    (own_copy / "manifest.json").write_bytes(encode_manifest(damaged))
    with pytest.raises(InputError, match=r"manifest\.json: train-\d+: the tails list .* pieces, the shard has"):
        merge([own_copy], tmp_path / "merged")


def test_files_are_copied_and_checked_in_chunks(
    tmp_path: Path, sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.common.files._READ_BYTES", 1000)
    done: list[int] = []
    merge([sets["concat"]], tmp_path / "merged", progress=done.append)
    assert content(tmp_path / "merged") == content(sets["concat"])
    assert max(done) == 1000
    assert sum(done) == sum(map(len, content(sets["concat"]).values()))


def test_other_digits_in_shard_names_are_understood(tmp_path: Path, own_copy: Path) -> None:
    """A name is the split and the unit's number, however many digits that has."""
    manifest = read_manifest(own_copy)
    shards = []
    for shard in manifest.shards:
        name = f"{shard.split}-{int(shard.name.rpartition('-')[2])}"
        for suffix in (".bin", ".idx"):
            (own_copy / (shard.name + suffix)).rename(own_copy / (name + suffix))
        shards.append(dataclasses.replace(shard, name=name))
    renamed = dataclasses.replace(manifest, shards=ShardList.of(shards)).with_fingerprint()
    (own_copy / "manifest.json").write_bytes(encode_manifest(renamed))
    assert verify(own_copy) == []
    merge([own_copy], tmp_path / "merged")
    assert read_manifest(tmp_path / "merged").shards == manifest.shards
