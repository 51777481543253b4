"""The settings of a build: what, together with the corpus, decides every byte of the shard set."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Literal

from shards.common.errors import InputError, choice
from shards.order import DEFAULT_SEED, check_seed

DEFAULT_UNIT_BYTES = 64 * 2**20
DEFAULT_MAX_RECORD_BYTES = 256 * 2**20
DEFAULT_CHECK_EVERY = 1000
Packing = Literal["concat", "best-fit", "tutorial"]
OnBadRecord = Literal["fail", "skip"]
SpecialTokens = Literal["text", "parse"]
Dedup = Literal["off", "exact"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Validated once, recorded in the manifest. The number of workers is no setting: it changes no byte."""

    text_field: str = "text"
    template: str = ""
    document_separator: str = ""
    block_tokens: int = 512
    packing: Packing = "concat"
    special_tokens: SpecialTokens = "text"
    val_fraction: float = 0.1
    seed: int = DEFAULT_SEED
    dedup: Dedup = "off"
    on_bad_record: OnBadRecord = "fail"
    max_record_bytes: int = DEFAULT_MAX_RECORD_BYTES
    unit_bytes: int = DEFAULT_UNIT_BYTES

    def __post_init__(self) -> None:
        if not self.text_field:
            raise InputError("--text-field: expected a field's name, found an empty string")
        if not 2 <= self.block_tokens <= 2**20:
            raise InputError(f"--block-tokens: expected 2 to 1,048,576 tokens, found {self.block_tokens:,}")
        if not 0 <= self.val_fraction < 1:
            raise InputError(f"--val-fraction: expected 0 or more and less than 1, found {self.val_fraction}")
        check_seed(self.seed)
        if not self.unit_bytes >= 1:
            raise InputError(f"--unit-bytes: expected at least 1 byte, found {self.unit_bytes:,}")
        if not 1 <= self.max_record_bytes < 2**31:
            raise InputError(f"--max-record-bytes: expected 1 to {2**31 - 1:,}, found {self.max_record_bytes:,}")
        for name, kind in (
            ("packing", Packing),
            ("on_bad_record", OnBadRecord),
            ("special_tokens", SpecialTokens),
            ("dedup", Dedup),
        ):
            choice(f"--{name.replace('_', '-')}", getattr(self, name), typing.get_args(kind))

    @property
    def closes_documents(self) -> bool:
        """Whether an EOS stands behind each document."""
        return self.packing != "tutorial"

    @property
    def parses_special_tokens(self) -> bool:
        """Whether special-token strings in a text become special tokens."""
        return self.special_tokens == "parse"

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
