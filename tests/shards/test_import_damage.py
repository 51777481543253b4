"""Damaged token files of other programs, and ids that aren't the tokenizer's, are refused in one clear line."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shards.common.errors import InputError
from shards.exchange import token_files
from shards.exchange.token_files import open_datatrove, open_megatron
from tests.shards.foreign_files import take, write_datatrove, write_megatron


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
    "empty": (shortened(102), r"that begin with b'MMIDIDX\\x00\\x00', found b'' in 0 bytes"),
    "header cut short": (shortened(80), r"expected an index of Megatron-Core, 34 bytes or more .* in 22 bytes"),
    "truncated": (shortened(8), "has 102 bytes, the file has 94; it is truncated or damaged"),
    "magic": (edited(0, "<9s", b"TNTIDX\0\0\0"), r"found b'TNTIDX"),
    "version": (edited(9, "<Q", 2), "expected version 1, found 2"),
    "dtype unknown": (edited(17, "<B", 9), r"dtype code: expected one of ids, 1 \(uint8\), .*; found 9"),
    "dtype float32": (edited(17, "<B", 7), r"found 7 \(float32\)"),
    "number of sequences": (edited(18, "<Q", 4), "4 sequences"),
    "number of boundaries": (edited(26, "<Q", 0), "0 document boundaries"),
    "several modalities": (
        lambda content: content.extend(b"\0" * 3),
        "it is for several modalities, and only text can be imported",
    ),
    "negative length": (edited(38, "<i", -2), "sequence 1: expected a length of at least 0, found -2"),
    "length beyond the bin": (edited(42, "<i", 5), "sequence 2: expected an offset that leaves room for it in the 36"),
    "negative offset": (edited(54, "<q", -4), "sequence 1: expected an offset of at least 0, found -4"),
    "offset beyond the bin": (
        edited(62, "<q", 40),
        "sequence 2: expected an offset that leaves room for it .* found 40",
    ),
    "offset huge": (edited(62, "<q", 2**63 - 4), "sequence 2: expected an offset that leaves room"),
    "offset odd": (edited(54, "<q", 13), "sequence 1: expected an offset that is a multiple of 4, found 13"),
    "boundaries begin late": (edited(70, "<q", 1), "expected document boundaries from 0 to 3, found 1 to 3"),
    "boundaries end early": (edited(94, "<q", 2), "expected document boundaries from 0 to 3, found 0 to 2"),
    "boundaries fall": (edited(78, "<q", 3), "document boundary 2: expected at least 3, found 2"),
}


@pytest.mark.parametrize("name", INDEX_DAMAGES)
def test_a_damaged_index_of_megatron_is_refused(tmp_path: Path, name: str) -> None:
    edit, expected = INDEX_DAMAGES[name]
    path = write_megatron(tmp_path / "a", [[1, 2, 3], [4, 5], [6, 7, 8, 9]])
    content = bytearray(path.with_suffix(".idx").read_bytes())
    edit(content)
    path.with_suffix(".idx").write_bytes(content)
    with pytest.raises(InputError, match=expected) as error:
        open_megatron(path)
    assert str(error.value).startswith(f"{path.with_suffix('.idx')}: ") and "\n" not in str(error.value)


def test_a_truncated_bin_is_refused(tmp_path: Path) -> None:
    path = write_megatron(tmp_path / "a", [[1, 2, 3], [4, 5], [6, 7, 8, 9]])
    for num_bytes in (35, 20, 0):
        os.truncate(path, num_bytes)
        with pytest.raises(InputError, match=f"leaves room for it in the {num_bytes} bytes of the .bin"):
            open_megatron(path)
    path.unlink()
    with pytest.raises(InputError, match=r"a\.bin: no such file; each file of tokens needs its index"):
        open_megatron(path)


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
}


@pytest.mark.parametrize("name", ENDS_DAMAGES)
def test_a_damaged_index_of_datatrove_is_refused(tmp_path: Path, name: str) -> None:
    edit, expected = ENDS_DAMAGES[name]
    path = write_datatrove(tmp_path / "a.ds", [[1, 2, 3], [4, 5], [6, 7, 8, 9]])
    content = bytearray((tmp_path / "a.ds.index").read_bytes())
    edit(content)
    (tmp_path / "a.ds.index").write_bytes(content)
    with pytest.raises(InputError, match=expected) as error:
        open_datatrove(path)
    assert "\n" not in str(error.value)


def test_a_loss_mask_is_not_passed_over(tmp_path: Path) -> None:
    path = write_datatrove(tmp_path / "a.ds", [[1, 2, 3]])
    (tmp_path / "a.ds.loss").write_bytes(b"\1\1\1")
    with pytest.raises(InputError, match="has a loss mask"):
        open_datatrove(path)


@pytest.mark.parametrize("number", range(1, 7))
def test_a_fall_is_found_wherever_it_is(number: int) -> None:
    values = np.arange(7)
    token_files._check_rising(Path("a"), values, "end")
    values[number] -= 2
    with pytest.raises(InputError, match=f"a: end {number}: expected at least {number - 1}, found {number - 2}"):
        token_files._check_rising(Path("a"), values, "end")


@pytest.mark.parametrize(
    ("dtype", "token"), [("<i4", 128), ("<i4", -1), ("<i8", 2**40), ("<u1", 200), ("<i2", -5), ("ds<u4", 2**32 - 1)]
)
def test_ids_that_are_not_the_tokenizers_are_refused(
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
