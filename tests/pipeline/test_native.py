"""The native encoder gives the reference's ids for any text, in about linear time, and only for tokenizers that it fits."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from pipeline import native
from pipeline.native import NativeEncoder
from pipeline.native_tables import Unfit, make_tables, read_tables
from pipeline.tokenizers import ReferenceEncoder, load_encoder, load_tokenizer_files, same_ids
from shards.tokenizer_files import TokenizerFiles
from tests.conftest import needs_compiler

CONTEXTS = ("{}", "a{}b", "中{}文", " {} ", "'{}x", "\n{}\n", "1{}2", "。{}！", "  {}{}", "'{}e")
POOLS: tuple[Sequence[str], ...] = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789٣४①Ⅻ½",
    " \t\n\r\u3000\u00a0\u2028\u0085\v\f  \n\n  ",
    ".,;:!?\"'()[]{}<>|/-_=+*&^%$#@~`''",
    "，。、；：？！“”（）《》…—",
    "的一是不了人我在有他这中大来上国",
    "\u0301\u0323\u0338\u3099\u200d\ufe0f\u1161\u11a8\u0345",
    ("'s", "'T", "'re", "'VE", "'ll", "'ſ", "'D", "'m", "<|endoftext|>", "def f(x):\n    return", "\r\n\r\n"),
    *(
        [chr(point) for point in range(first, stop)]
        for first, stop in (
            (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0x3040, 0x3100), (0xC0, 0x250), (0x370, 0x530), (0x590, 0x700),
            (0x900, 0xE80), (0x1F300, 0x1F700), (0x20000, 0x20400), (0x3400, 0x4DC0), (0x20, 0x3000),
        )
    ),
)  # fmt: skip


@pytest.fixture(scope="module", params=["qwen2", "own"])
def files(request: pytest.FixtureRequest, tokenizer_dir: Path) -> TokenizerFiles:
    return load_tokenizer_files("qwen2" if request.param == "qwen2" else str(tokenizer_dir))


@pytest.fixture(autouse=True)
def compiler() -> None:
    needs_compiler()


def encoders(content: bytes, *, parse_special: bool = False) -> tuple[NativeEncoder, ReferenceEncoder]:
    names = (NativeEncoder.name, ReferenceEncoder.name)
    ours, reference = (load_encoder(name, content, parse_special=parse_special) for name in names)
    assert isinstance(ours, NativeEncoder) and isinstance(reference, ReferenceEncoder)
    return ours, reference


def check(files: TokenizerFiles, texts: list[str]) -> None:
    ours, reference = encoders(files.tokenizer_json)
    if not same_ids(ours, reference, texts):
        different = [text for text in texts if not same_ids(ours, reference, [text])]
        raise AssertionError(f"{min(different, key=len, default=texts)!r}")


def test_code_points_in_contexts(files: TokenizerFiles) -> None:
    points = {*range(0x0, 0x250), *range(0x2000, 0x2070), *range(0x3000, 0x3040), *range(0, 0x40000, 211)}
    characters = [chr(point) for point in sorted(points) if not 0xD800 <= point < 0xE000]
    for context in CONTEXTS:
        check(files, [context.replace("{}", character) for character in characters])


def test_random_strings_of_mixed_scripts(files: TokenizerFiles) -> None:
    rng = random.Random()
    texts = []
    for _ in range(2000):
        pools = rng.choices(POOLS, k=rng.choice((1, 1, 2, 2, 3, 5)))
        length = rng.choice((1, 2, 3, 4, 6, 8, 12, 20, 40, 100))
        texts.append("".join(rng.choice(rng.choice(pools)) for _ in range(length)))
    check(files, texts)


def test_what_a_merge_leaves_of_a_character_may_join_the_next(files: TokenizerFiles) -> None:
    """Qwen2 takes two bytes of 大 with the space before it; the third joins 行, which it wouldn't without the space.
    And the last byte of 敏 joins 述 before 敏 is made."""
    check(files, [" 大行", "大行", " 大行皇帝", "说： 大行", "a大行", "敏述", "康新", "聪敏述说"])


def test_documents_are_closed_and_those_that_nfc_changes_are_in_their_order(files: TokenizerFiles) -> None:
    texts = ["前e\u0301", "<|endoftext|>", "a", "\u0301", "후 가", "b\n"]
    ours, theirs = (one.encode_closed(texts, files.eos_id) for one in encoders(files.tokenizer_json))
    assert ours.ids.tolist() == theirs.ids.tolist() and ours.counts.tolist() == theirs.counts.tolist()
    assert list(ours.contents) == list(theirs.contents)


@pytest.mark.parametrize("parse_special", [False, True])
def test_added_tokens_are_cut_out_before_all_else(tokenizer_dir: Path, parse_special: bool) -> None:
    """As newer Qwen tokenizers have them: some added tokens aren't special, so they are found in any text."""
    files = load_tokenizer_files(str(tokenizer_dir))
    content = orjson.loads(files.tokenizer_json)
    for number, token in enumerate(("<think>", "</think>", "<th", "<think>x"), files.entry.vocab_size):
        new = {"id": number, "content": token, "special": False}
        content["added_tokens"].append({**content["added_tokens"][0], **new})
    ours, reference = encoders(orjson.dumps(content), parse_special=parse_special)
    texts = ["<think>中\n</think><|endoftext|>", "a", "<think>xy<thin<th", "<think>", "<|endoftext|>\u0338e\u0301<th"]
    assert same_ids(ours, reference, texts) and same_ids(ours, reference, texts[1:2])


@pytest.mark.parametrize("repeated", ["a", " ", "哈", "=", "\n", "\t ", "ab", "哈a", "的", "ā"])
def test_work_grows_with_the_length_of_a_text_and_no_faster(files: TokenizerFiles, repeated: str) -> None:
    ours, _ = encoders(files.tokenizer_json)
    steps = []
    for num_characters in (20_000, 200_000):
        before = ours._own.state.num_steps
        ours.encode([repeated * num_characters + "b"])
        steps.append(ours._own.state.num_steps - before)
    assert steps[1] <= 14 * steps[0] + 1000


def test_a_long_word_is_merged_as_a_short_one(files: TokenizerFiles) -> None:
    rng = random.Random(5)
    check(files, ["".join(rng.choices(pool, k=3000)) for pool in POOLS[:6]] + ["a" * 1000, "ab" * 777, "哈" * 500])


# ---- what it fits, and what is kept ----


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("normalizer", {"type": "NFKC"}),
        ("pre_tokenizer.pretokenizers.0.pattern", {"Regex": "a"}),
        ("pre_tokenizer.pretokenizers.1.add_prefix_space", True),
        ("pre_tokenizer", None),
        *(("model.type", "WordPiece"), ("model.ignore_merges", True), ("model.dropout", 0.1)),
        *(("model.vocab", {"a": 0}), ("model.vocab", [])),
        *(("model.merges", [["a", "b"], ["a", "b"]]), ("model.merges", ["a"]), ("model.merges", "reversed")),
        ("added_tokens.0.normalized", True),
    ],
)
def test_another_tokenizer_is_not_taken(tokenizer_dir: Path, path: str, value: Any) -> None:
    """Nor one in which a merge stands before those that make its parts."""
    content = orjson.loads(load_tokenizer_files(str(tokenizer_dir)).tokenizer_json)
    *parents, last = path.split(".")
    inner = functools.reduce(lambda outer, name: outer[int(name) if name.isdigit() else name], parents, content)
    inner[last] = inner[last][::-1] if value == "reversed" else value
    with pytest.raises(Unfit, match="made later" if value == "reversed" else "."):
        make_tables(orjson.dumps(content))


def test_tables_are_kept_and_checked(tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = load_tokenizer_files(str(tokenizer_dir))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "make_tables", functools.cache(make_tables))

    def load(is_exact: bool = True) -> NativeEncoder:
        return native.load_native_encoder(files.tokenizer_json, agrees=lambda _encoder: is_exact)

    with pytest.raises(Unfit, match="differ"):
        load(is_exact=False)
    assert not list(tmp_path.rglob("*.npz"))
    expected = load().encode(["人工智能"])[0].tolist()
    (path,) = tmp_path.rglob("*.npz")
    content = path.read_bytes()
    monkeypatch.setattr(native, "make_tables", None)  # no more
    assert load().encode(["人工智能"])[0].tolist() == expected
    for damaged in (content[:-1], content[:1000], b"", bytes([content[0] ^ 1]) + content[1:]):
        path.write_bytes(damaged)
        assert read_tables(path) is None


def test_planes_without_classes_have_none_in_the_reference() -> None:
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(r"[\p{L}\p{N}\s]"), "removed", invert=True)
    others = np.r_[0x40000:0xE0000, 0xF0000:0x110000]
    for chunk in np.split(others, range(4096, len(others), 4096))[::16]:
        assert split.pre_tokenize_str("".join(map(chr, chunk))) == []
