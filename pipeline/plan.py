"""What is read by whom."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ByteRange:
    """A part of a source: `[start, stop)` in bytes, in row groups, or all of it (0, 1)."""

    source: int
    start: int
    stop: int
    num_bytes: int  # for the progress

    @property
    def is_first(self) -> bool:
        return self.start == 0
