"""New shard sets from documents that are tokenized already: what merging, cutting and importing have in common.

A set is written to `NAME.partial/` and renamed when it is whole, so it is there whole or not at all. Nothing is resumed:
this is copying, not tokenizing, and what an interrupted attempt has left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from shards.assemble import PACKERS, AssembledSplit, SplitAssembler, UnitPart, join_splits
from shards.common.errors import InputError
from shards.common.files import flush_directory, write_atomically
from shards.entries import SPLITS, SplitName
from shards.manifest import (
    GENERATOR,
    TOKENIZER_DIRECTORY,
    Manifest,
    RejectedEntry,
    SourceEntry,
    format_version,
    read_manifest,
    write_manifest,
)
from shards.packing import Ids, Lengths, Packer
from shards.tokenizer_files import TokenizerFiles
from shards.vocabulary import Vocabulary
from shards.writer import ShardWriter

# In a partial directory: it is ours, and may be removed.
_MARK = ".new-set"

# A batch of whole documents of one split: all their tokens (EOS included, but for the packing `tutorial`), and the
# tokens in each.
DocumentBatch = tuple[SplitName, Ids, Lengths]


@contextlib.contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A directory that becomes `out` if the block ends without an exception, and is removed otherwise.

    Raises `InputError` if `out` is there already, or another process is writing it.
    """
    _check_absent(out)
    partial = out.with_name(out.name + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{out}: can't be made: {partial}, or a directory above it, is a file") from None
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.path.samestat(os.fstat(descriptor), os.stat(partial))
        except OSError:
            is_ours = False
        if not is_ours:
            raise InputError(f"{out}: another process is writing it; wait for that, or stop it")
        _check_absent(out)  # another process may have finished it meanwhile
        if any(partial.iterdir()) and not _is_ours(partial):
            raise InputError(f"{partial}: an unfinished build, or none of ours; finish it, or move it elsewhere")
        _remove_content(partial)
        (partial / _MARK).touch()
        try:
            yield partial
            (partial / _MARK).unlink()
            flush_directory(partial)
            os.rename(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        flush_directory(out.parent)
    finally:
        os.close(descriptor)


def _check_absent(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise InputError(f"{out}: exists already; choose another --out, or move it elsewhere")


def _is_ours(partial: Path) -> bool:
    """Whether an earlier attempt of ours left this, marked, or complete and only not renamed."""
    if (partial / _MARK).exists():
        return True
    try:
        return "command" in read_manifest(partial).settings
    except InputError:
        return False


def _remove_content(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.name != _MARK:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


class NewSet:
    """A set in the making, in `directory` (of `new_directory`): units one after another, then `finish`."""

    def __init__(
        self,
        directory: Path,
        *,
        block_tokens: int,
        packing: Literal["concat", "best-fit", "tutorial"],
        tokenizer: TokenizerFiles,
    ) -> None:
        self._directory, self._block_tokens, self._packing = directory, block_tokens, packing
        self._tokenizer = tokenizer.entry
        tokenizer_path = directory / TOKENIZER_DIRECTORY
        tokenizer_path.mkdir()
        for name, content in tokenizer.contents.items():
            write_atomically(tokenizer_path / name, content)
        self._vocabulary = Vocabulary(tokenizer_path)
        self._parts: dict[SplitName, list[tuple[int, UnitPart]]] = {name: [] for name in SPLITS}
        self.num_units = 0

    def add_unit(self, batches: Iterable[DocumentBatch]) -> None:
        """Pack the documents of one unit: some 16 million tokens are a good size."""
        packers: dict[SplitName, Packer] = {}
        sizes = {name: [0, 0, 0] for name in SPLITS}  # tokens, bytes, characters
        with contextlib.ExitStack() as stack:
            for name, tokens, lengths in batches:
                if name not in packers:
                    writer = stack.enter_context(self._writer(name))
                    packers[name] = PACKERS[self._packing](writer, self._tokenizer.eos_id)
                packers[name].add(tokens, lengths)
                num_bytes, num_chars = self._vocabulary.text_sizes(tokens)
                for place, value in enumerate((len(tokens), num_bytes, num_chars)):
                    sizes[name][place] += value
            for name, packer in packers.items():
                packed = packer.finish()
                num_tokens, num_bytes, num_chars = sizes[name]
                part = UnitPart(
                    shard=packed.shard,
                    tail=packed.tail,
                    num_tokens=num_tokens - packed.num_dropped_tokens,
                    num_dropped_tokens=packed.num_dropped_tokens,
                    num_text_bytes=num_bytes,
                    num_text_chars=num_chars,
                )
                self._parts[name].append((self.num_units, part))
        self.num_units += 1

    def _writer(self, name: SplitName) -> ShardWriter:
        """Of the next unit's shard; behind all units that of what they left over."""
        return ShardWriter(self._directory, name, self.num_units, block_tokens=self._block_tokens)

    def add_packed_unit(self, parts: dict[SplitName, UnitPart]) -> None:
        """Take a unit that is packed: its shards lie in the directory already, under the next unit's number."""
        for name, part in parts.items():
            self._parts[name].append((self.num_units, part))
        self.num_units += 1

    def _assemble(self, name: SplitName) -> AssembledSplit:
        with self._writer(name) as writer:
            assembler = SplitAssembler(writer, self._tokenizer.eos_id)
            for unit, part in self._parts[name]:
                assembler.add(unit, part)
            return assembler.finish()

    def finish(
        self,
        *,
        sources: list[SourceEntry],
        settings: dict[str, Any],
        num_records: int | None = None,
        num_empty: int = 0,
        num_duplicates: int = 0,
        rejected: list[RejectedEntry] | None = None,
        rejected_digest: str = "",
    ) -> Manifest:
        """Write the last shards, and the manifest. `num_records` is by default that of the documents.

        Raises `InputError` if there is not one block.
        """
        assembled = {name: self._assemble(name) for name in SPLITS}
        splits = {name: split.entry for name, split in assembled.items()}
        if not any(split.num_blocks for split in splits.values()):
            raise InputError("no document is left; nothing to write")
        num_documents = sum(split.num_documents for split in splits.values())
        shards, tails = join_splits(self._directory, assembled.values())
        manifest = Manifest(
            format_version=format_version(shards, tails),
            generator=GENERATOR,
            block_tokens=self._block_tokens,
            dtype="uint32",
            packing=self._packing,
            tokenizer=self._tokenizer,
            settings=settings,
            sources=sources,
            splits={str(name): entry for name, entry in splits.items()},
            shards=shards,
            tails=tails,
            num_records=num_documents + num_empty + num_duplicates if num_records is None else num_records,
            num_empty=num_empty,
            num_duplicates=num_duplicates,
            rejected=rejected or [],
            rejected_digest=rejected_digest,
        ).with_fingerprint()
        write_manifest(self._directory, manifest)
        return manifest
