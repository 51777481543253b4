"""Tokenizers: found by name or path, and the encoders that turn texts into ids.

`NativeEncoder` (ours, `pipeline.native`) does the work for tokenizers like Qwen2's, `FastEncoder` (the package fastokens)
for others; `ReferenceEncoder` (the package tokenizers) defines what is right, and does the work for a tokenizer that
fastokens doesn't take. Special-token strings in a text are ordinary text to all: no text can forge the end of a document.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orjson

from pipeline.encode import Encoder, Ids, Offsets
from pipeline.native import NativeEncoder, NoCompiler, load_native_encoder, tables_path, to_nfc
from pipeline.native_tables import Unfit
from pipeline.qwen2 import (
    EOS_TOKEN,
    NUM_RANKS,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    TOKENIZER_SHA256,
    canonical_tokenizer_json,
    qwen2_tokenizer_json,
)
from shards.common.errors import InputError
from shards.common.text import nearest, printable
from shards.manifest import TokenizerEntry
from shards.share.hub import HubReference, is_reference, parse_reference, small_files
from shards.tokenizer_files import (
    TOKENIZER_CONFIG_JSON,
    TOKENIZER_JSON,
    TokenizerFiles,
    load_tokenizer,
    read_tokenizer_files,
)

# Strings on which encoders tend to disagree: normalization, white space, digits, special tokens, rare scripts.
PROBE_TEXTS = [
    "",
    " ",
    "人工智能是研究如何使机器具有智能的学科。",
    "牛顿（1643年1月4日—1727年3月31日）\n\n英国物理学家\r\n",
    "A\u0301 \ufb01 \u2126 \uac00 \u1100\u1161 e\u0301",
    "I'll don't WE'RE 3.14159 12345 \u0663\u0664",
    "  leading\ttabs \n \n trailing   ",
    "<|endoftext|> <|im_start|>user<|im_end|></s><s>[CLS]",
    "👩‍👩‍👧‍👦🇨🇳 \U00020000 \u200b\ufeff\u00a0\u3000",
    "\x00\x01\x7f\u2028\u2029",
    "日本語テキスト 한국어 ไทย العربية עברית हिन्दी",
    "def f(x):\n    return x ** 2  # 平方\n",
]


def load_tokenizer_files(name: str) -> TokenizerFiles:
    """The tokenizer called `name`: `qwen2`, a directory with a `tokenizer.json`, such a file, a shard set, or one of a hub.

    `hf:ORG/NAME` and `ms:ORG/NAME` (then `@REVISION`) are fetched once. They are called `ORG/NAME` in the manifest,
    whatever hub they come from; Qwen2's own is recognised and is `qwen2`, so its sets are the same byte for byte.

    Raises `InputError` if there is none, or it can't be read, or it doesn't say which token ends a document.
    """
    path = Path(name)
    if not path.exists():
        if name == "qwen2":
            return _qwen2_files(qwen2_tokenizer_json())
        if is_reference(name):
            return _hub_tokenizer(parse_reference(name))
        raise InputError(
            f"tokenizer {printable(name)!r}: expected qwen2, a directory with a {TOKENIZER_JSON}, such a file, "
            f"hf:ORG/NAME or ms:ORG/NAME; no such file or directory{_nearest_tokenizer(name)}"
        )
    return load_tokenizer(path)


def _nearest_tokenizer(name: str) -> str:
    """A suggestion: `qwen2`, a name beside the one given, or the prefix of a hub."""
    beside = Path(name).parent
    siblings = [str(beside / entry) for entry in os.listdir(beside)] if beside.is_dir() else []
    hint = nearest(name, ["qwen2", *siblings])
    if not hint and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        hint = f"; on a hub it is hf:{name}"
    return printable(hint)


def _hub_tokenizer(reference: HubReference) -> TokenizerFiles:
    """A tokenizer from a hub, or its cache."""
    directory = small_files(reference, TOKENIZER_JSON, TOKENIZER_CONFIG_JSON)
    files = read_tokenizer_files(reference.repository, directory / TOKENIZER_JSON, where=str(reference))
    if files.entry.eos_token == EOS_TOKEN:
        canonical = canonical_tokenizer_json(orjson.loads(files.tokenizer_json))
        if canonical is not None:
            return _qwen2_files(canonical)
    return files


def _qwen2_files(tokenizer_json: bytes) -> TokenizerFiles:
    """As `make_tokenizer_files` makes them, which would have to parse what is known already."""
    config = json.dumps(TOKENIZER_CONFIG, ensure_ascii=False, indent=2).encode()
    entry = TokenizerEntry(
        name="qwen2",
        vocab_size=NUM_RANKS + len(SPECIAL_TOKENS),
        eos_id=NUM_RANKS,
        eos_token=EOS_TOKEN,
        sha256=TOKENIZER_SHA256,
    )
    return TokenizerFiles(contents={TOKENIZER_JSON: tokenizer_json, TOKENIZER_CONFIG_JSON: config}, entry=entry)


@contextlib.contextmanager
def _encoding() -> Iterator[None]:
    """A pattern on which the library gives up (it backtracks without end) is the tokenizer's fault, and no bug of ours."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = printable(" ".join(str(error).split()))[:200]
        raise InputError(f"the tokenizer can't encode a text of the corpus: {reason}") from None


# In compact JSON; inside a string of it the quotes would be escaped.
MIN_NATIVE_BYTES = 16 << 20  # of a corpus for which the native encoder's tables are worth making: 3 CPU seconds
_NFC_NORMALIZER = b'"normalizer":{"type":"NFC"}'
_NO_NORMALIZER = b'"normalizer":null'
_ADDED_NOT_SPECIAL = b'"special":false'


class FastEncoder(Encoder):
    """fastokens, on the calling thread alone: its parallelism is our worker processes.

    Where the tokenizer normalizes by NFC and does nothing else before it splits a text, that is done here: almost all text
    is NFC already, and to see that costs a quarter of what fastokens spends on it. The others go through the reference's
    own NFC.
    """

    name = "fastokens"

    def __init__(self, tokenizer_json: bytes, *, parse_special: bool = False) -> None:
        os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
        from fastokens import _native

        # Added tokens that are not special, and parsed special ones, are cut out before normalization.
        cuts_before = parse_special or _ADDED_NOT_SPECIAL in tokenizer_json
        self._is_nfc = not cuts_before and tokenizer_json.count(_NFC_NORMALIZER) == 1
        if self._is_nfc:
            tokenizer_json = tokenizer_json.replace(_NFC_NORMALIZER, _NO_NORMALIZER)
        self._tokenizer = _native.Tokenizer.from_json_str(tokenizer_json.decode())
        self._parse_special = parse_special

    def encode(self, texts: list[str]) -> tuple[Ids, Offsets]:
        with _encoding():
            ids, offsets = self._tokenizer.encode_batch_flat(
                self.normalized(texts), add_special_tokens=False, split_special_tokens=not self._parse_special
            )
        return np.frombuffer(ids, "<u4"), np.frombuffer(offsets, "<u8")

    def normalized(self, texts: list[str]) -> list[str]:
        """The texts as fastokens takes them."""
        return [*map(to_nfc, texts)] if self._is_nfc else texts


class ReferenceEncoder(Encoder):
    """Hugging Face tokenizers: the definition of what is right."""

    name = "tokenizers"

    def __init__(self, tokenizer_json: bytes, *, parse_special: bool = False) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json.decode())
        self._tokenizer.encode_special_tokens = not parse_special
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, texts: list[str]) -> tuple[Ids, Offsets]:
        with _encoding():
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        lists = [encoding.ids for encoding in encodings]
        offsets = np.zeros(len(lists) + 1, dtype=np.uint64)
        np.cumsum([len(ids) for ids in lists], out=offsets[1:])
        ids = np.fromiter((token for ids in lists for token in ids), dtype=np.uint32, count=int(offsets[-1]))
        return ids, offsets


@functools.lru_cache(maxsize=4)
def load_encoder(name: str, tokenizer_json: bytes, *, parse_special: bool = False) -> Encoder:
    """The encoder called `native`, `fastokens` or `tokenizers`. Loaded once: a forked worker has its parent's at once.

    A machine of a cluster that can't have the native one, which has the same ids, uses fastokens.
    """
    if name == NativeEncoder.name:
        with contextlib.suppress(Unfit):
            return _load_native(tokenizer_json, parse_special=parse_special)
    encoder = ReferenceEncoder if name == ReferenceEncoder.name else FastEncoder
    return encoder(tokenizer_json, parse_special=parse_special)


@functools.lru_cache(maxsize=4)
def _load_native(tokenizer_json: bytes, *, parse_special: bool) -> NativeEncoder:
    def agrees(encoder: NativeEncoder) -> bool:
        reference = load_encoder(ReferenceEncoder.name, tokenizer_json, parse_special=parse_special)
        return same_ids(encoder, reference, PROBE_TEXTS)

    return load_native_encoder(tokenizer_json, parse_special=parse_special, agrees=agrees)


def choose_encoder(
    files: TokenizerFiles,
    *,
    wanted: str = "auto",
    parse_special: bool = False,
    num_bytes: int = MIN_NATIVE_BYTES,
    notice: Callable[[str], None] = lambda _line: None,
) -> str:
    """The name of the encoder for this tokenizer, if `wanted` is `auto` or `native`: the native one where it fits and
    agrees with the reference on `PROBE_TEXTS`, else fastokens if it loads and agrees, else the reference.

    For a corpus of few `num_bytes` the native one's tables aren't worth making: `auto` takes it if they are there.
    `notice` is called with a line where there is no compiler. Raises `InputError` if the reference itself can't load the
    tokenizer, or the native encoder is wanted and can't be had.
    """
    if wanted not in ("auto", NativeEncoder.name):
        return wanted
    try:
        if wanted == "auto" and num_bytes < MIN_NATIVE_BYTES and not tables_path(files.tokenizer_json).exists():
            raise Unfit("the corpus is small")
        _load_native(files.tokenizer_json, parse_special=parse_special)
        return NativeEncoder.name
    except NoCompiler as error:
        reason = str(error)
        notice(f"{reason}; encoding with fastokens, which takes about twice as long")
    except Unfit as error:
        reason = f"tokenizer {files.entry.name!r}: {error}"
    except Exception as error:  # of the reference: the packages raise no narrower one
        reason = str(error)
    if wanted == NativeEncoder.name:
        raise InputError(f"--encoder native: {printable(reason)}; build with the encoder auto")
    try:
        reference = load_encoder(ReferenceEncoder.name, files.tokenizer_json, parse_special=parse_special)
    except Exception as error:
        raise InputError(f"tokenizer {files.entry.name!r}: tokenizers can't load it: {error}") from None
    try:
        fast = load_encoder(FastEncoder.name, files.tokenizer_json, parse_special=parse_special)
        agree = same_ids(fast, reference, PROBE_TEXTS)
    except Exception:
        return ReferenceEncoder.name
    return FastEncoder.name if agree else ReferenceEncoder.name


def same_ids(left: Encoder, right: Encoder, texts: list[str]) -> bool:
    left_ids, left_offsets = left.encode(texts)
    right_ids, right_offsets = right.encode(texts)
    return bool(np.array_equal(left_ids, right_ids) and np.array_equal(left_offsets, right_offsets))
