"""Damaged token files of other programs, and ids that aren't the tokenizer's, are refused in one clear line."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.common.errors import InputError
from shards.exchange import token_files
from shards.exchange.token_files import open_datatrove, open_megatron
from tests.shards.foreign_files import take, write_any, write_datatrove, write_megatron

DOCUMENTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]


def edited(offset: int, form: str, value: int | bytes) -> Callable[[bytearray], None]:
    return lambda content: struct.pack_into(form, content, offset, value)


def shortened(num_bytes: int) -> Callable[[bytearray], None]:
    return lambda content: content.__delitem__(slice(-num_bytes, None))


SEQUENCE = "expected tokens of 4 bytes within the 36 bytes of the .bin, found"
# By the file that is damaged. Of Megatron's index: lengths from byte 34, offsets from 46, boundaries from 70.
DAMAGES: list[tuple[str, Callable[[bytearray], None], str]] = [
    ("a.idx", shortened(102), r"that begin with b'MMIDIDX\\x00\\x00', found b'' in 0 bytes"),
    ("a.idx", shortened(80), r"expected an index of Megatron-Core, 34 bytes or more .* in 22 bytes"),
    ("a.idx", shortened(8), "has 102 bytes, the file has 94; it is damaged"),
    ("a.idx", edited(0, "<9s", b"TNTIDX\0\0\0"), r"found b'TNTIDX"),
    ("a.idx", edited(9, "<Q", 2), "expected version 1 .* found version 2"),
    ("a.idx", edited(17, "<B", 9), r"a dtype code of ids, 1 \(uint8\), .*; found version 1, code 9"),
    ("a.idx", edited(17, "<B", 7), "code 7"),  # float32
    ("a.idx", edited(18, "<Q", 4), "4 sequences"),
    ("a.idx", edited(26, "<Q", 0), "0 document boundaries"),
    ("a.idx", lambda content: content.extend(b"\0" * 3), "damaged, or for more modalities than text"),
    ("a.idx", edited(38, "<i", -2), f"sequence 1: {SEQUENCE} -2 from byte 12 on"),
    ("a.idx", edited(42, "<i", 5), f"sequence 2: {SEQUENCE} 5 from byte 20 on"),
    ("a.idx", edited(54, "<q", -4), f"sequence 1: {SEQUENCE} 2 from byte -4 on"),
    ("a.idx", edited(54, "<q", 13), f"sequence 1: {SEQUENCE} 2 from byte 13 on"),
    ("a.idx", edited(62, "<q", 40), f"sequence 2: {SEQUENCE} 4 from byte 40 on"),
    ("a.idx", edited(62, "<q", 2**63 - 4), f"sequence 2: {SEQUENCE} 4 from byte 9,223"),
    ("a.idx", edited(70, "<q", 1), "expected document boundaries from 0 to 3, found 1 to 3"),
    ("a.idx", edited(94, "<q", 2), "expected document boundaries from 0 to 3, found 0 to 2"),
    ("a.idx", edited(78, "<q", 3), "document boundary 2: expected at least 3, found 2"),
    ("a.bin", shortened(1), "within the 35 bytes of the .bin"),
    ("a.bin", shortened(36), "within the 0 bytes of the .bin"),
    (
        "a.ds.index",
        shortened(8),
        "2 or 4 bytes for each of the 5 tokens that its index of 16 bytes ends with, found 36",
    ),
    ("a.ds.index", shortened(3), "its index of 21 bytes"),
    ("a.ds.index", shortened(24), "each of the 0 tokens"),
    ("a.ds.index", edited(8, "<Q", 2), "document 1: expected at least 3, found 2"),
    ("a.ds.index", edited(8, "<Q", 10), "document 2: expected at least 10, found 9"),
    ("a.ds.index", edited(8, "<Q", 2**64 - 1), "document 2: expected at least 18,446,744,073,709,551,615, found 9"),
]


@pytest.mark.parametrize(("name", "damage", "expected"), DAMAGES)
def test_a_damaged_file_is_refused(
    tmp_path: Path, name: str, damage: Callable[[bytearray], None], expected: str
) -> None:
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
def test_ids_that_are_not_the_tokenizers_are_refused(
    tmp_path: Path, small_tokenizer: Path, dtype: str, token: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_any(tmp_path / "a", [[1, 2, 3], [], [4], [5, 6, token, 7]], dtype)
    monkeypatch.setattr(token_files, "_BATCH_DOCUMENTS", 2)
    with pytest.raises(
        InputError, match=f"{path.name}: document 3, token 2: expected an id from 0 to 127, found {token:,};"
    ):
        take([path], tmp_path / "set", small_tokenizer)
    assert not list(tmp_path.glob("set*"))
