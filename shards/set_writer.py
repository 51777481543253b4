"""New shard sets: what building, merging, splitting and importing have in common.

Apart from a build, which resumes, a set is written to `NAME.partial/` and renamed when it is whole, so it is there whole or
not at all. What an interrupted attempt has left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shards.common.errors import InputError
from shards.common.files import FileLock, file_digest, flush_directory, named_when_full, partial_of, write_atomically
from shards.layout import LEFT_OUT_NAME, MANIFEST_NAME, REJECTED_NAME, SPLITS, TOKENIZER_DIRECTORY, SplitName
from shards.manifest import (
    FORMAT_VERSION,
    GENERATOR,
    FileEntry,
    Manifest,
    Packing,
    ShardEntry,
    SourceEntry,
    read_manifest,
    sum_splits,
    write_manifest,
)
from shards.packing import PACKERS, Ids, Lengths, Packer
from shards.tokenizer_files import TokenizerFiles
from shards.unread import UnreadEntry, add_up
from shards.writer import ShardWriter

# In a partial directory: it is ours, and may be removed.
_MARK = ".new-set"

# A batch of whole documents of one split: all their tokens (EOS included), and the tokens in each.
DocumentBatch = tuple[SplitName, Ids, Lengths]


def complete_set(
    directory: Path,
    shards: Iterable[ShardEntry],
    *,
    block_tokens: int,
    packing: Packing,
    tokenizer: TokenizerFiles,
    settings: dict[str, Any],
    sources: list[SourceEntry],
    num_records: int | None = None,
    left_out: Mapping[str, int] = MappingProxyType({}),
    rejected: Mapping[str, int] = MappingProxyType({}),
    unread: Sequence[UnreadEntry] = (),
) -> Manifest:
    """Write the tokenizer's files and the manifest of a set whose shards lie in `directory`, with rejected.jsonl and
    left_out.jsonl where it has them.

    `num_records` is by default that of the documents. Raises `InputError` if there is no document.
    """
    ordered = sorted(shards, key=lambda shard: (SPLITS.index(shard.split), len(shard.name), shard.name))
    if not ordered:
        raise InputError("no document is left; nothing to write")
    tokenizer_directory = directory / TOKENIZER_DIRECTORY
    tokenizer_directory.mkdir(exist_ok=True)
    for name, content in tokenizer.contents.items():
        write_atomically(tokenizer_directory / name, content)
    names = [f"{TOKENIZER_DIRECTORY}/{name}" for name in sorted(tokenizer.contents)]
    names += [name for name in (REJECTED_NAME, LEFT_OUT_NAME) if (directory / name).exists()]
    files = {name: directory / name for name in names}
    num_documents = sum(shard.num_documents for shard in ordered)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        generator=GENERATOR,
        block_tokens=block_tokens,
        dtype="uint32",
        packing=packing,
        tokenizer=tokenizer.entry,
        settings=settings,
        sources=sources,
        splits=sum_splits(ordered, block_tokens),
        shards=ordered,
        other_files=[
            FileEntry(name=name, num_bytes=path.stat().st_size, digest=file_digest(path))
            for name, path in files.items()
        ],
        num_records=num_documents + sum(left_out.values()) if num_records is None else num_records,
        left_out=dict(sorted(left_out.items())),
        rejected=dict(sorted(rejected.items())),
        unread=add_up(unread),
    ).with_fingerprint()
    write_manifest(directory, manifest)
    return manifest


@contextlib.contextmanager
def new_directories(outs: Sequence[Path]) -> Iterator[list[Path]]:
    """Directories that become `outs`, all of them if the block ends without an exception, otherwise none.

    Raises `InputError` if one of `outs` is there already, or another process is writing it.
    """
    partials = []
    with contextlib.ExitStack() as locks:
        for out in outs:
            _check_outside_sets(out)
            locks.enter_context(FileLock(out, "another process is writing it; wait for that, or stop it"))
            partials.append(partial_of(out))
            if out.exists() or out.is_symlink():
                raise InputError(f"{out}: exists already; choose another name, or move it elsewhere")
            if partials[-1].exists() and not _is_ours(partials[-1]):
                raise InputError(f"{partials[-1]}: an unfinished build, or not ours; finish it, or move it elsewhere")
        try:
            for partial in partials:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                (partial / _MARK).touch()
            with named_when_full(outs[0]):
                yield partials
            for partial in partials:
                (partial / _MARK).unlink()
                flush_directory(partial)
            for partial, out in zip(partials, outs, strict=True):
                os.rename(partial, out)
        except BaseException:
            for partial, out in zip(partials, outs, strict=True):
                if out.exists() and not partial.exists():  # renamed before the next one failed, or Ctrl-C
                    os.rename(out, partial)
                shutil.rmtree(partial, ignore_errors=True)
            raise
        for parent in {out.parent for out in outs}:
            flush_directory(parent)


def _check_outside_sets(out: Path) -> None:
    for parent in out.resolve().parents:
        if (parent / MANIFEST_NAME).is_file() and (parent / TOKENIZER_DIRECTORY).is_dir():
            raise InputError(f"{out}: lies within the shard set {parent}; choose a directory outside")


def _is_ours(partial: Path) -> bool:
    """Whether an earlier attempt of ours left this, marked, or complete and only not renamed; or nothing is in it."""
    if (partial / _MARK).exists() or not any(partial.iterdir()):
        return True
    try:
        return (partial / MANIFEST_NAME).exists() and "command" in read_manifest(partial).settings
    except InputError:
        return False


class NewSet:
    """A set in the making, in `directory` (of `new_directories`): units one after another, then `finish`."""

    def __init__(self, directory: Path, *, block_tokens: int, packing: Packing, tokenizer: TokenizerFiles) -> None:
        self.directory, self._tokenizer = directory, tokenizer
        self._block_tokens, self._packing = block_tokens, packing
        self.shards: list[ShardEntry] = []

    def add_unit(self, number: int, batches: Iterable[DocumentBatch]) -> None:
        """Pack documents into the shards `number`, one for each split: some 16 million tokens are a good size."""
        packers: dict[SplitName, Packer] = {}
        with contextlib.ExitStack() as stack:
            for name, tokens, lengths in batches:
                if name not in packers:
                    writer = ShardWriter(self.directory, name, number, block_tokens=self._block_tokens)
                    packers[name] = PACKERS[self._packing](stack.enter_context(writer), self._tokenizer.eos_id)
                num_bytes, num_chars = self._tokenizer.vocabulary.text_sizes(tokens)
                packers[name].add(tokens, lengths, num_text_bytes=num_bytes, num_text_chars=num_chars)
            self.shards += filter(None, [packer.finish() for packer in packers.values()])

    def finish(self, **more: Any) -> Manifest:
        """`complete_set` with what else it needs."""
        kinds: dict[str, Any] = {
            "block_tokens": self._block_tokens,
            "packing": self._packing,
            "tokenizer": self._tokenizer,
        }
        return complete_set(self.directory, self.shards, **kinds, **more)
