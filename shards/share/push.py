"""A shard set of this machine to a hub or an object store: verified before, its manifest put last.

So whoever sees the manifest sees a whole set. A hub gets a data card (`README.md`) too. Another set that is there is
replaced with `force` alone: its manifest goes first, and of its files those that the new one lacks; nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shards.common.errors import InputError
from shards.common.text import plural, size_text, visible
from shards.layout import MANIFEST_NAME
from shards.manifest import Manifest, decode_manifest, read_manifest
from shards.share.remote import CARD_MARK, remote_to_write
from shards.verify import verify


def push(directory: Path, url: str, *, force: bool = False, notice: Callable[[str], None] = lambda _line: None) -> bool:
    """Copy the set in `directory` to `url`: `hf://datasets/USER/NAME[/FOLDER]`, `ms://…`, `s3://bucket/name`, ….

    Of a hub only data sets are written to; a repository that isn't there is made, a private one. Returns whether there was
    anything to do. Raises `InputError`: a damaged set, another one there, no permission.
    """
    manifest = read_manifest(directory)
    target = remote_to_write(url)
    encoded = target.read(MANIFEST_NAME)
    old_names: set[str] = set()
    if encoded is not None:
        try:
            old = decode_manifest(encoded, f"{target}/{MANIFEST_NAME}")
            if old.fingerprint == manifest.fingerprint:
                return False
            old_names = {file.name for file in old.files()}
        except InputError:  # damaged, or of another version
            if not force:
                raise
        if not force:
            raise InputError(f"{target}: another shard set is there; choose another URL, or replace it with --force")
    files = {file.name: file.num_bytes for file in manifest.files()}
    notice(f"{target}: putting {size_text(sum(files.values()))} in {plural(len(files) + 1, 'file')}, verified first")
    if faults := verify(directory):
        raise InputError(faults[0])
    if encoded is not None:
        target.remove([MANIFEST_NAME])
    target.put(directory, files)
    sizes = target.sizes()
    for name, num_bytes in files.items():
        if sizes.get(name) != num_bytes:
            raise InputError(
                f"{target}/{name}: expected {num_bytes:,} bytes there after it was put, found "
                f"{sizes.get(name, 'no such file')}; does a .gitignore there hide it, or does another process write there?"
            )
    target.remove(old_names & sizes.keys() - files.keys())
    target.put_manifest(directory, data_card(manifest, str(target)))
    return True


def data_card(manifest: Manifest, url: str) -> str:
    """What the set holds and how a model is trained on it: Markdown with a front matter in YAML.

    Names come from strangers' files: they are code, not text.
    """
    tokenizer = manifest.tokenizer
    rows = "\n".join(
        f"| {name} | {split.num_documents:,} | {split.num_tokens:,} | {split.num_blocks:,} | {split.num_text_bytes:,} |"
        for name, split in manifest.splits.items()
    )
    begin = "" if tokenizer.begin_id is None else f"begin with the token {tokenizer.begin_id} and "
    name = url.rpartition("/")[2].partition("@")[0]
    return f"""\
---
tags: [tokenized, pretraining]
# license: state it, with regard to that of the texts
---
{CARD_MARK}

# {_code(name)}

A tokenized text corpus, ready for training: blocks of {manifest.block_tokens} token ids, packed by `{manifest.packing}`.

| split | documents | tokens | blocks | bytes of text |
|---|---:|---:|---:|---:|
{rows}

* Tokenizer: {_code(tokenizer.name)}, {tokenizer.vocab_size:,} entries, documents {begin}end with \
{_code(tokenizer.eos_token)} ({tokenizer.eos_id}); its files are in `tokenizer/`.
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
