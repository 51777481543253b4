"""The data card: `README.md` beside a shard set on a hub. It says what the set holds and how a model is trained on it."""

from __future__ import annotations

from shards.common.text import visible
from shards.manifest import Manifest

CARD_NAME = "README.md"
_MARK = "<!-- written by tokenize-once; a card without this line is left as it is -->"


def is_ours(card: bytes) -> bool:
    """Whether a card was written here, and so may be replaced."""
    return _MARK.encode() in card


def data_card(manifest: Manifest, url: str) -> str:
    """The card's text, Markdown with a front matter in YAML. Names come from strangers' files: they are code, not text."""
    tokenizer = manifest.tokenizer
    rows = "\n".join(
        f"| {name} | {split.num_documents:,} | {split.num_tokens:,} | {split.num_blocks:,} | {split.num_text_bytes:,} |"
        for name, split in manifest.splits.items()
    )
    name = url.rpartition("/")[2].partition("@")[0]
    return f"""\
---
tags: [tokenized, pretraining]
# license: state it, with regard to that of the texts
---
{_MARK}

# {_code(name)}

A tokenized text corpus, ready for training: blocks of {manifest.block_tokens} token ids, packed by `{manifest.packing}`.

| split | documents | tokens | blocks | bytes of text |
|---|---:|---:|---:|---:|
{rows}

* Tokenizer: {_code(tokenizer.name)}, {tokenizer.vocab_size:,} entries, documents end with {_code(tokenizer.eos_token)} \
({tokenizer.eos_id}); its files are in `tokenizer/`.
* Fingerprint: `{manifest.fingerprint}`
* A `.bin` is headerless little-endian uint32, a `.idx` is Megatron-Core's index; `manifest.json` has the digest of every \
file.

```bash
python -m shards pull {url} --out data/shards/{name}    # each file is checked
python -m train --config FILE.yaml --shards data/shards/{name}
```
"""


def _code(text: str) -> str:
    return f"`{visible(text).replace('`', '')}`"
