"""The settings of a build: what, together with the corpus, decides every byte of the shard set."""

from __future__ import annotations

import dataclasses
from typing import Any

from shards.errors import InputError

DEFAULT_UNIT_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Validated once, recorded in the manifest. The number of workers is no setting: it changes no byte."""

    text_field: str = "text"
    block_tokens: int = 512
    val_fraction: float = 0.1
    seed: int = 2333
    unit_bytes: int = DEFAULT_UNIT_BYTES

    def __post_init__(self) -> None:
        if not self.text_field:
            raise InputError("--text-field: expected a field's name, found an empty string")
        if not 2 <= self.block_tokens <= 2**20:
            raise InputError(f"--block-tokens: expected 2 to 1,048,576 tokens, found {self.block_tokens:,}")
        if not 0 <= self.val_fraction < 1:
            raise InputError(f"--val-fraction: expected 0 or more and less than 1, found {self.val_fraction}")
        if not 0 <= self.seed < 2**64:
            raise InputError(f"--seed: expected 0 to 2**64 - 1, found {self.seed}")
        if not self.unit_bytes >= 1:
            raise InputError(f"--unit-bytes: expected at least 1 byte, found {self.unit_bytes:,}")

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
