"""The exact Qwen2 tokenizer without a network.

The PyPI package `dashscope` ships Qwen's byte-level BPE as ranks (`resources/qwen.tiktoken`: one token and its rank
a line). Each rank in order is a vocabulary entry. The merge that makes a token is found by splitting the token
with the merges of lower rank alone: two parts are left, and those are the merge. Around that stand Qwen2's
published NFC normalizer, split pattern, byte-level alphabet and three special tokens.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import orjson

from shards.common.errors import InputError
from shards.common.files import user_cache, write_atomically
from shards.tokenizer_files import bytes_of_characters

RANKS_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
# Of the `tokenizer.json` that `build_tokenizer_json` makes, compact JSON, as it is in a shard set.
TOKENIZER_SHA256 = "fb366a22efb7db2dcca2c619402431cda342a97721395a2da2879ceb36262782"
NUM_RANKS = 151_643
EOS_TOKEN = "<|endoftext|>"
SPECIAL_TOKENS = (EOS_TOKEN, "<|im_start|>", "<|im_end|>")
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
TOKENIZER_CONFIG: dict[str, Any] = {
    "add_prefix_space": False,
    "bos_token": None,
    "clean_up_tokenization_spaces": False,
    "eos_token": EOS_TOKEN,
    "errors": "replace",
    "model_max_length": 32768,
    "pad_token": EOS_TOKEN,
    "split_special_tokens": False,
    "tokenizer_class": "Qwen2Tokenizer",
    "unk_token": None,
}


def qwen2_tokenizer_json() -> bytes:
    """Qwen2's `tokenizer.json`, built on first use (a few seconds) and kept in the user's cache if that can be written.

    Raises `InputError` if `dashscope` isn't installed or its ranks aren't the ones expected.
    """
    kept = None
    with contextlib.suppress(InputError, OSError):  # no home, or one that is closed to this user
        kept = user_cache() / f"qwen2-{TOKENIZER_SHA256[:16]}.json"
        content = kept.read_bytes()
        if hashlib.sha256(content).hexdigest() == TOKENIZER_SHA256:
            return content
    content = build_tokenizer_json(read_ranks())
    if kept is not None:
        with contextlib.suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, content)
    return content


def canonical_tokenizer_json(content: dict[str, Any]) -> bytes | None:
    """The very bytes that Qwen2's `tokenizer.json` has in a shard set, if `content` is that tokenizer; else None.

    The published files spell it in other words: another order of keys, merges as pairs, defaults left out. Vocabulary
    and merges must give these bytes exactly, added tokens be the same; the rest must be what tokenizers takes for the same.
    """
    model = content.get("model") or {}
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list) or len(vocabulary) != NUM_RANKS:
        return None
    try:
        rebuilt = tokenizer_json(
            vocabulary=dict(sorted(vocabulary.items(), key=lambda item: item[1])),
            merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
            special_tokens=SPECIAL_TOKENS,
        )
        canonical = orjson.dumps(rebuilt)
    except TypeError:
        return None
    if hashlib.sha256(canonical).hexdigest() != TOKENIZER_SHA256:
        return None
    same_added = content.get("added_tokens") == rebuilt["added_tokens"]
    return canonical if same_added and _state(content) == _state(rebuilt) else None


def _state(content: dict[str, Any]) -> dict[str, Any] | None:
    """A tokenizer but for its vocabulary, as the package tokenizers writes it down with all its defaults."""
    import tokenizers

    small = {**content, "added_tokens": [], "model": {**content["model"], "vocab": {"a": 0}, "merges": []}}
    try:
        state: dict[str, Any] = orjson.loads(tokenizers.Tokenizer.from_str(json.dumps(small)).to_str())
    except Exception:  # the package raises no narrower one
        return None
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        state["model"][name] = state["model"][name] or None  # no prefix and an empty one are the same
    return state


def read_ranks() -> list[bytes]:
    """The tokens in the order of their ranks."""
    package = importlib.util.find_spec("dashscope")  # found, never imported
    if package is None or package.origin is None:
        raise InputError("tokenizer qwen2: the package dashscope is missing; install it with `pip install dashscope`")
    path = Path(package.origin).parent / "resources" / "qwen.tiktoken"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"tokenizer qwen2: {path}: {error.strerror}; install dashscope again") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != RANKS_SHA256:
        raise InputError(
            f"tokenizer qwen2: {path}: expected sha256 {RANKS_SHA256}, found {digest}; install dashscope 2.0.2"
        )
    return [base64.b64decode(line.split()[0]) for line in content.splitlines()]


def build_tokenizer_json(tokens: list[bytes]) -> bytes:
    """Qwen2's `tokenizer.json` (compact JSON) from its tokens in the order of their ranks."""
    character_of = {byte: character for character, byte in bytes_of_characters().items()}

    def spelled(token: bytes) -> str:
        return "".join(character_of[byte] for byte in token)

    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = [_parts(token, ranks) for token in tokens if len(token) > 1]
    content = tokenizer_json(
        vocabulary={spelled(token): rank for rank, token in enumerate(tokens)},
        merges=[f"{spelled(left)} {spelled(right)}" for left, right in merges],
        special_tokens=SPECIAL_TOKENS,
    )
    return orjson.dumps(content)


def tokenizer_json(*, vocabulary: dict[str, int], merges: list[str], special_tokens: tuple[str, ...]) -> dict[str, Any]:
    """A `tokenizer.json` with Qwen2's normalizer, pre-tokenization and decoder around a byte-level BPE."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": token, **dict.fromkeys(FLAGS, False), "special": True}
            for number, token in enumerate(special_tokens, len(vocabulary))
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _parts(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts whose merge makes `token`: what BPE leaves when only lower ranks than its own may merge.

    b"ing" of rank 287 with b"in" = 258: i n g → in g; no lower rank merges those, so the merge is (in, g).
    """
    limit = ranks[token]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(parts[i] + parts[i + 1], limit) for i in range(len(parts) - 1)]
        lowest = min(pairs)
        assert lowest < limit, f"rank {limit} can't be made from lower ranks"
        place = pairs.index(lowest)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]
