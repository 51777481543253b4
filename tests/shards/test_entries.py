"""The lists of shards and tails give back what was put into them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from shards.entries import SPLITS, ShardEntry, ShardList, TailEntry, TailList, exact_sum, shard_name, unordered
from shards.tables import RowSpool

from shards import tables

FIELDS = ("num_blocks", "num_tokens", "num_pieces", "num_index_documents", "num_documents")

numbers = st.integers(0, 2**63 - 1)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def shard_entries(draw: st.DrawFn) -> list[ShardEntry]:
    keys = draw(st.lists(st.tuples(st.sampled_from(SPLITS), st.integers(0, 200_000) | numbers), unique=True))
    if draw(st.booleans()):
        keys.sort()
    digits = draw(st.sampled_from([1, 5, 9]))
    return [
        ShardEntry(
            name=shard_name(split, number) if digits == 5 else f"{split}-{number:0{digits}}",
            split=split,
            digest=draw(digests),
            index_digest=draw(digests),
            **{field: draw(numbers) for field in FIELDS},
        )
        for split, number in keys
    ]


@given(entries=shard_entries())
@hypothesis_settings(deadline=None)
def test_a_list_gives_back_its_entries(entries: list[ShardEntry]) -> None:
    made = ShardList.of(entries)
    lists = [made]
    if made.has_usual_names:
        lists.append(ShardList(made.rows))
    for shards_list in lists:
        assert list(shards_list) == entries == [shards_list[place] for place in range(len(entries))]
        assert shards_list == made and shards_list[1:] == made[1:]
        for place, entry in enumerate(entries):
            assert shards_list.find(entry.name) == place and shards_list.name(place) == entry.name
            assert shards_list.find(entry.name + "0") in (None, *range(len(entries)))
        for name in (
            "",
            "train",
            "train-",
            "train-x",
            "val-²",
            "train-00000000000000000000000",
            "test-00001",
            "train-1x",
        ):
            assert shards_list.find(name) is None or name in {entry.name for entry in entries}
        for own in SPLITS:
            assert list(shards_list.of_split(own)) == [entry for entry in entries if entry.split == own]
        for field in FIELDS:
            values = [getattr(entry, field) for entry in entries]
            assert shards_list.column(field).tolist() == values and exact_sum(shards_list.column(field)) == sum(values)
    assert list(made[::-1]) == entries[::-1]
    with pytest.raises(IndexError):
        made[len(entries)]


@given(
    entries=st.lists(
        st.builds(TailEntry, unit=numbers, split=st.sampled_from(SPLITS), num_pieces=numbers, continues=st.booleans())
    )
)
def test_a_list_of_tails_gives_back_its_entries(entries: list[TailEntry]) -> None:
    for tails in (TailList.of(entries), TailList(TailList.of(entries).rows)):
        assert list(tails) == entries
        for name in SPLITS:
            assert list(tails.of_split(name)) == [entry for entry in entries if entry.split == name]


def test_lists_with_other_names_or_numbers_are_not_equal() -> None:
    numbers = dict.fromkeys(FIELDS, 1)
    names = [shard_name("train", number) for number in range(3)]
    entries = [ShardEntry(name=n, split="train", digest="0" * 64, index_digest="1" * 64, **numbers) for n in names]
    renamed = [dataclasses.replace(entry, name=entry.name.replace("-0000", "-")) for entry in entries]
    changed = [dataclasses.replace(entries[0], num_pieces=2), *entries[1:]]
    assert ShardList.of(entries) == ShardList.of(entries)
    assert ShardList.of(entries) != ShardList.of(renamed) and ShardList.of(renamed) != ShardList.of(entries)
    assert ShardList.of(renamed) == ShardList.of(renamed)
    assert ShardList.of(entries) != ShardList.of(changed) and ShardList.of(entries) != ShardList.of(entries[:-1])
    assert ShardList.of([]) != TailList.of([])


@given(st.lists(st.integers(0, 2**63 - 1), max_size=300))
def test_sums_are_exact(values: list[int]) -> None:
    column = np.array(values, dtype=np.int64)
    assert exact_sum(column) == sum(values)
    assert exact_sum(np.tile(column, 100)) == 100 * sum(values)  # many


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4))))
def test_what_is_not_in_order_is_found(keys: list[tuple[int, int]]) -> None:
    columns = np.array(keys, dtype=np.int64).reshape(-1, 2)
    expected = [place for place in range(1, len(keys)) if keys[place] <= keys[place - 1]]
    assert unordered(columns[:, 0].astype(np.uint8), columns[:, 1]).tolist() == expected


@given(limit=st.integers(0, 20), sizes=st.lists(st.integers(0, 40), max_size=4))
@hypothesis_settings(deadline=None)
def test_a_spool_gives_back_its_rows(tmp_path_factory: pytest.TempPathFactory, limit: int, sizes: list[int]) -> None:
    directory = tmp_path_factory.mktemp("spool")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "MAX_LISTED", limit)
        joined, expected = RowSpool(TailList, directory), []
        for size in sizes:
            spool = RowSpool(TailList, directory)
            entries = [
                TailEntry(unit=unit, split="val", num_pieces=size, continues=unit % 2 == 1) for unit in range(size)
            ]
            for entry in entries:
                spool.append(TailList.pack(entry))
            expected += entries
            joined.extend(spool.rows())
        rows = joined.rows()
    assert list(TailList(rows)) == expected
    assert list(directory.iterdir()) == []
