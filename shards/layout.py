"""The files of a shard set: their names and sizes.

    NAME/
      manifest.json        written last: its presence says that the set is complete
      tokenizer/           the tokenizer's own files
      train-00000.bin      headerless little-endian uint32, num_blocks × block_tokens × 4 bytes
      train-00000.idx      where the documents lie in train-00000.bin
      val-00000.bin  val-00000.idx …
      rejected.jsonl       the records that could not be used, if there are any
      left_out.jsonl       examples of the good ones that are in no shard, where a build has them

The number in a shard's name is that of the unit of work that made it. A unit without documents of a split has no shard of
that split, so numbers ascend but may skip some.
"""

from __future__ import annotations

from typing import Literal

SplitName = Literal["train", "val"]
SPLITS: tuple[SplitName, ...] = ("train", "val")

Shuffle = Literal["global", "offset", "window", "none"]
SHUFFLES: tuple[Shuffle, ...] = ("global", "offset", "window", "none")  # how a run's order of blocks is made

TOKEN_BYTES = 4
BIN_SUFFIX = ".bin"
INDEX_SUFFIX = ".idx"
MANIFEST_NAME = "manifest.json"
TOKENIZER_DIRECTORY = "tokenizer"
# What a tokenizer may consist of. Nothing else, and no link, is taken from a set's `tokenizer/`: a set may come from a
# stranger, and its tokenizer is copied beside models.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
REJECTED_NAME, LEFT_OUT_NAME = "rejected.jsonl", "left_out.jsonl"
EXAMPLES_PER_SET, EXAMPLE_CHARS = 5, 200  # in left_out.jsonl: of each reason, and characters in each
# Not a part of the format and never needed: the sources' sizes and times, so that a rebuild sees at once that none changed.
STAMPS_NAME = ".sources.json"


def shard_name(split: SplitName, number: int) -> str:
    """`train-00012` for the shard of unit 12."""
    return f"{split}-{number:05}"


def shard_number(name: str) -> int:
    """12 for `train-00012`."""
    return int(name.rpartition("-")[2])


def bin_bytes(num_blocks: int, block_tokens: int) -> int:
    """Size in bytes of a `.bin`."""
    return num_blocks * block_tokens * TOKEN_BYTES
