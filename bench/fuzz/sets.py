"""What is read of a shard set from a stranger: index, manifest, the order of blocks, mixtures."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
from blake3 import blake3

from bench.fuzz.oracle import expect
from shards.common.errors import InputError
from shards.index import (
    DTYPE_CODE_INT32,
    HEADER,
    MAGIC,
    VERSION,
    encode_index,
    index_bytes,
    padding_positions,
    read_index,
)
from shards.layout import SHUFFLES
from shards.manifest import canonical_json, decode_manifest, encode_manifest
from shards.mixture import Mixture, _parse, _parse_stages, run_order
from shards.order import MAX_BLOCKS, MAX_TOTAL_WEIGHT, RunOrder, epoch_order, window_order


def index(data: bytes) -> None:
    """An index is read if and only if it is that of a shard of so many tokens, and then its sequences are what it says."""
    num_sequences, num_documents, num_tokens, room, mode = data[0] % 16, data[1] % 16, data[2], data[3] * 4, data[4] % 4
    body = data[5:]
    if mode == 0:  # as it stands
        content = body
    else:
        content = HEADER.pack(MAGIC, VERSION, DTYPE_CODE_INT32, num_sequences, num_documents + 1)
        if mode == 1:  # under the right header
            content += body
        else:  # each byte a number: a small one, or (with mode 3) a large one
            numbers = [*body, *bytes(60)]
            large = {255: -1, 254: 2**31 - 1, 253: -(2**31)} if mode == 3 else {}
            lengths = [large.get(number, number) for number in numbers[:num_sequences]]
            wide = large and {255: -4, 254: 2**63 - 1, 253: -(2**63), 252: 2**62}
            rest = [wide.get(n, n * 4 if k < num_sequences else n) for k, n in enumerate(numbers[num_sequences:])]
            rest = rest[: num_sequences + num_documents + 1]
            content += struct.pack(f"<{num_sequences}i{len(rest)}q", *lengths, *rest)
            if mode == 2 and body[-1] % 2:
                num_tokens = sum(lengths)
    numbers_of = {"num_sequences": num_sequences, "num_documents": num_documents, "num_tokens": num_tokens}
    file: Any = SimpleNamespace(read_bytes=lambda: content)
    is_right = _is_index(content, num_sequences, num_documents, num_tokens, room)
    try:
        read = read_index(file, **numbers_of, room_tokens=room)
    except InputError:
        expect(not is_right, "refused, and is right")
        return
    expect(is_right, "accepted, and is wrong")
    expect(encode_index(read) == content, "written as other bytes")
    expect(len(padding_positions(read, room)) == room - num_tokens, "other padding")


def _is_index(content: bytes, num_sequences: int, num_documents: int, num_tokens: int, room: int) -> bool:
    """The same in plain Python, number by number."""
    if len(content) != index_bytes(num_sequences, num_documents):
        return False
    if HEADER.unpack(content[:34]) != (MAGIC, VERSION, DTYPE_CODE_INT32, num_sequences, num_documents + 1):
        return False
    numbers = struct.unpack(f"<{num_sequences}i{num_sequences + num_documents + 1}q", content[34:])
    lengths, offsets = numbers[:num_sequences], numbers[num_sequences : 2 * num_sequences]
    boundaries = numbers[2 * num_sequences :]
    if any(length < 1 for length in lengths) or sum(lengths) != num_tokens or any(offset % 4 for offset in offsets):
        return False
    if boundaries[0] != 0 or boundaries[-1] != num_sequences:
        return False
    if any(left >= right for left, right in itertools.pairwise(boundaries)):
        return False
    place = 0
    for offset, length in sorted(zip(offsets, lengths, strict=True)):
        if offset // 4 < place:
            return False
        place = offset // 4 + length
    return place <= room


_DIGEST = "0123456789abcdef" * 4
_SIZES = {"num_documents": 3, "num_tokens": 15, "num_blocks": 2, "num_text_bytes": 30, "num_text_chars": 20}
_SPLIT = _SIZES | {"num_padding_tokens": 1}
_MANIFEST: dict[str, Any] = {
    "format_version": 1, "generator": "tokenize-once 1", "block_tokens": 8, "dtype": "uint32", "packing": "best-fit",
    "tokenizer": {"name": "t", "vocab_size": 10, "eos_id": 9, "eos_token": "<e>", "sha256": "2"},
    "settings": {"seed": 1, "deep": {"a": [1]}},
    "sources": [{"path": "a.json", "format": "json-array", "num_bytes": 9, "digest": "3", "version": "", "num_ranges": 1,
                 "num_records": 3}],
    "splits": {"train": _SPLIT, "val": dict.fromkeys(_SPLIT, 0)},
    "shards": [_SIZES | {"name": "train-00000", "split": "train", "num_sequences": 3, "digest": _DIGEST,
                         "index_digest": _DIGEST}],
    "other_files": [{"name": name, "num_bytes": 5, "digest": _DIGEST} for name in ("tokenizer/tokenizer.json",
                                                                                  "rejected.jsonl")],
    "num_records": 3, "left_out": {"empty": 0}, "rejected": {"not valid JSON": 0},
    "fingerprint": "",
}  # fmt: skip


def _deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# What strangers write where something else is meant.
_VALUES = list(map(json.dumps, (
    0, 1, 2, 3, 15, 16, 17, -1, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**400, 1.0, 0.5, 1e308,
    float("inf"), float("nan"), True, False, None, "", "train", "val", "train-00001", "val-00000", "train-", "train-../x",
    "train-\u0661", "../../etc/passwd", "/etc/passwd", "a\x00b", "\x1b[31m", "\ud800", "x" * 300, "<script>", [], {}, [[]],
    {"": 0}, {"\x1b": "\x1b"}, _deep(60), _deep(300), _deep(600), "best-fit", "tutorial", "concat", 8,
    "rejected.jsonl", "tokenizer/../../x", "0" * 64, "0" * 63 + "G", "train-000001", "train-100000",
)))  # fmt: skip


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [found for key, item in inner for found in _paths(item, (*path, key))]


_PATHS = _paths(_MANIFEST)
_PLAIN = json.dumps(_MANIFEST).encode()


def manifest(data: bytes) -> None:
    """A manifest is read or refused with a line; what is read can be written and read again; an unchanged one is read."""
    is_right = len(data) < 3 and data[0] % 8 and data[0] != ord("{")
    try:
        found = decode_manifest(_manifest_bytes(data), "manifest.json")
    except InputError as error:
        expect(not is_right and len(str(error)) < 2000, "refused:", str(error)[:300])
        return
    again = decode_manifest(encode_manifest(found), "manifest.json")
    expect(again.fingerprint == found.fingerprint, "another fingerprint")
    expect(0 <= found.tokenizer.eos_id < found.tokenizer.vocab_size <= 2**31, "ids beyond 2**31")


def _manifest_bytes(data: bytes) -> bytes:
    """Bytes as they stand, or (usually) a right manifest with the fields changed that the bytes name, two for each:
    which field, and the value of `_VALUES` that it gets, or that it is left out or given under another name too."""
    if data[0] == ord("{"):
        return data
    content = json.loads(_PLAIN)
    for place, choice in zip(data[1::2], data[2::2], strict=False):
        path = _PATHS[place % len(_PATHS)]
        parent: Any = content
        with contextlib.suppress(KeyError, IndexError, TypeError):  # an earlier change has taken the place away
            for step in path[:-1]:
                parent = parent[step]
            _change(parent, path[-1], choice)
    with contextlib.suppress(ValueError, RecursionError):
        without = {key: value for key, value in content.items() if key != "fingerprint"}
        if data[0] % 8:
            content["fingerprint"] = blake3(canonical_json(without)).hexdigest()
    return json.dumps(content).encode()


def _change(parent: Any, key: Any, choice: int) -> None:
    if choice == 255 and isinstance(parent, dict):
        parent.pop(key, None)
    elif choice == 254 and isinstance(parent, dict):
        parent["other"] = parent.get(key)
    elif choice == 253 and isinstance(parent, list):
        parent.append(parent[key])
    elif isinstance(key, int) == isinstance(parent, list):  # an earlier change may have put another kind there
        parent[key] = json.loads(_VALUES[choice % len(_VALUES)])


def order(data: bytes) -> None:
    """Each block once an epoch, whatever the size, seed and epoch; a run's parts are parts of one order."""
    size_bits, seed, epoch = data[0] % 64, int.from_bytes(data[1:9], "little", signed=True), data[9] * 257
    num_blocks = (int.from_bytes(data[10:18], "little") & (2 ** (size_bits + 1) - 1)) + 1
    if num_blocks > MAX_BLOCKS:
        try:
            epoch_order(num_blocks, seed, epoch, [0])
        except ValueError:
            return
        expect(False, "more blocks than an order takes")
    way = data[19] % 3
    if way < 2:
        places = np.arange(num_blocks) if num_blocks <= 64 else _some_places(num_blocks, data[20:])
        blocks = (epoch_order, window_order)[way](num_blocks, seed, epoch, places)
        expect(blocks.min() >= 0 and blocks.max() < num_blocks, "outside", num_blocks)
        expect(len(np.unique(blocks)) == len(places), "twice in an epoch of", num_blocks)
        return
    run = RunOrder((num_blocks,), seed, SHUFFLES[data[18] % 4])
    start = (num_blocks * (data[9] % 3) + data[18]) % 2**61
    length = min(12, 2 * num_blocks)
    whole, cut = run.blocks(start, start + length), start + data[20] % (length + 1)
    parts = np.concatenate([run.blocks(start, cut), run.blocks(cut, start + length)])
    expect(np.array_equal(parts, whole), "cut elsewhere")
    epochs = np.arange(start, start + length) // num_blocks * (run.shuffle == "offset")
    expect(np.array_equal(whole // num_blocks, epochs), "a run outside", num_blocks)


def _some_places(num_blocks: int, data: bytes) -> Any:
    offsets = np.unique(np.frombuffer(data[: len(data) // 2 * 2], "<u2").astype(np.int64))[:32]
    places = np.concatenate([offsets % num_blocks, num_blocks - 1 - offsets % num_blocks])
    return np.unique(places)


_RUN_BLOCKS = 40


class _Set:
    """Stands for a shard set in a mixture."""

    block_tokens, vocab_size, eos_id, begin_id = 8, 10, 9, None
    manifest = SimpleNamespace(tokenizer=SimpleNamespace(sha256="0", begin_id=None), block_tokens=1)

    def __init__(self, path: str, size: int) -> None:
        self.path, self._size, self.fingerprint, self.tokenizer_path = path, size, "0" * 64, path

    def __getitem__(self, _split: str) -> Any:
        return range(self._size)


def mixture(data: bytes) -> None:
    """A mixture or stages as they are written are refused with a line, or give whole weights and an order."""
    spec = data[1:].decode("utf-8", "replace")
    parts = spec.split("|")
    if len(parts) > 1:  # until|mix|…|mix, of which few changes make bad JSON
        pairs = [{"until": until, "mix": mix} for until, mix in zip(parts[::2], parts[1::2], strict=False)]
        spec = json.dumps([*pairs, {"mix": parts[-1]}])
    sets: dict[str, _Set] = {}
    try:
        stages = [(until, _parse(mix)) for until, mix in (_parse_stages(spec) if spec[:1] == "[" else [("", spec)])]
        for path, _weight in itertools.chain(*(mix for _until, mix in stages)):
            sets.setdefault(path, _Set(path, data[0] * (len(sets) + 1) % 90))
        mixed = Mixture([(until, [(sets[path], weight) for path, weight in mix]) for until, mix in stages])  # type: ignore[misc]
        order = run_order(mixed, 1, run_blocks=_RUN_BLOCKS, batch_blocks=4)
    except InputError:
        return
    expect(len(mixed.fingerprint) == 64 and mixed.description, "no fingerprint, or no description")
    expect(0 <= mixed.epoch_blocks < 2**63, "an epoch of too much")
    expect(order.sizes == tuple(len(part["train"]) for part in sets.values()), "other sizes")
    for stage, (_until, mix) in zip(order.stages, stages, strict=True):
        expect([weight > 0 for weight in stage.weights] == [path in dict(mix) for path in sets], "weights", stage)
        expect(sum(stage.weights) <= MAX_TOTAL_WEIGHT, "weights", stage)
    _check_stages(order)


@functools.lru_cache(maxsize=64)
def _check_stages(order: RunOrder) -> None:
    """In each stage blocks of its sets alone; of each set, through all stages, each block once before one comes again."""
    blocks, ends = order.blocks(0, _RUN_BLOCKS), np.cumsum(order.sizes)
    owners = np.searchsorted(ends, blocks, side="right")
    for stage, after in itertools.zip_longest(order.stages, order.later):
        own = owners[stage.start : after and after.start]
        expect(all(stage.weights[owner] for owner in own), "not of the stage:", own, stage)
    for number, size in enumerate(order.sizes):
        own = blocks[owners == number][:size]
        expect(len(np.unique(own)) == len(own), "twice:", own)
