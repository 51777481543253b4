"""Training a tokenizer: a byte-level BPE with Qwen2's normalization and pre-tokenization."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.plan import plan_units
from pipeline.qwen2 import EOS_TOKEN, TOKENIZER_CONFIG, tokenizer_json
from pipeline.receipts import Receipt
from pipeline.settings import BuildSettings
from pipeline.sources import find_corpus
from pipeline.worker import read_texts
from shards.common.errors import InputError
from shards.common.files import write_atomically
from shards.common.text import plural
from shards.tokenizer_files import TOKENIZER_CONFIG_JSON, TOKENIZER_JSON
from shards.unread import unread_text

SMALLEST_VOCABULARY = 256 + 1  # every byte, and EOS


def train_tokenizer(
    source_names: Sequence[str],
    out: Path,
    *,
    vocab_size: int,
    every: int = 1,
    settings: BuildSettings | None = None,
    notice: Callable[[str], None] = lambda _line: None,
    progress: Callable[[int], object] = lambda _num_bytes: None,
) -> int:
    """Train on one in `every` text of the sources, write `tokenizer.json` and its config into `out`; the number of entries.

    `settings` say what the texts are. The result has fewer entries than `vocab_size` if the corpus has too few pairs to
    merge. `notice` is called with a line about files that aren't read and about bad records, `progress` with the bytes just
    read. Raises `InputError`.
    """
    if not SMALLEST_VOCABULARY <= vocab_size <= 2**24:
        raise InputError(f"vocab_size: expected {SMALLEST_VOCABULARY} to {2**24:,} entries, found {vocab_size:,}")
    if every < 1:
        raise InputError(f"every: expected at least 1, found {every:,}")
    from tokenizers import Tokenizer, pre_tokenizers, trainers

    settings = settings or BuildSettings()
    corpus = find_corpus(source_names, settings.encoding)
    if corpus.unread:
        notice(unread_text(corpus.unread))
    ranges = [byte_range for unit in plan_units(corpus.sources, sys.maxsize) for byte_range in unit.ranges]
    num_texts, receipt = 0, Receipt(unit=0)

    def texts() -> Iterator[list[str]]:
        nonlocal num_texts
        for found, batch in read_texts(ranges, settings, receipt):
            yield found[-num_texts % every :: every]
            num_texts += len(found)
            progress(batch.num_bytes)

    untrained = tokenizer_json(vocabulary={}, merges=[], special_tokens=())
    tokenizer = Tokenizer.from_str(json.dumps(untrained))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=[],
    )
    tokenizer.train_from_iterator(texts(), trainer)
    if receipt.rejected:
        notice(f"{plural(receipt.rejected.total(), 'record')} rejected: {', '.join(receipt.rejected)}")
    if not num_texts:
        raise InputError(f"{', '.join(source_names[:3])}: no text; nothing to learn a vocabulary from")
    model = json.loads(tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    content = tokenizer_json(vocabulary=model["vocab"], merges=merges, special_tokens=(EOS_TOKEN,))
    config = TOKENIZER_CONFIG | {"tokenizer_class": "PreTrainedTokenizerFast"}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{out}: expected a directory, or nothing; choose another --out") from None
    write_atomically(out / TOKENIZER_CONFIG_JSON, json.dumps(config, indent=2).encode())
    write_atomically(out / TOKENIZER_JSON, json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode())
    return len(model["vocab"]) + 1
