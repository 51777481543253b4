"""What a person sees of a download: one bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from shards.common.text import printable, size_text
from shards.hub.download import Progress

_SECONDS_BETWEEN_LINES = 5.0


class DownloadProgress(Progress):
    """MB/s and the time left, on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._total: int | None = None
        self._done_before = 0
        self._begin = self._last_line = time.monotonic()

    def started(self, num_bytes: int | None, num_bytes_done: int) -> None:
        self._begin = self._last_line = time.monotonic()
        self._total, self._done_before = num_bytes, num_bytes_done
        size = size_text(num_bytes) if num_bytes is not None else "a file of unknown size"
        kept = f", {size_text(num_bytes_done)} of it are here from an earlier run" if num_bytes_done else ""
        self.notice(f"fetching {size}{kept}")
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=num_bytes,
                initial=num_bytes_done,
                unit="B",
                unit_scale=True,
                dynamic_ncols=True,
                mininterval=0.2,
            )

    def advanced(self, num_bytes_done: int) -> None:
        if self._bar is not None:
            self._bar.update(num_bytes_done - self._bar.n)
            return
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.notice(
                progress_line(num_bytes_done, self._total, num_bytes_done - self._done_before, now - self._begin)
            )

    def notice(self, line: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        sys.stderr.write(printable(line) + "\n")
        sys.stderr.flush()

    def finished(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def progress_line(num_bytes_done: int, total: int | None, num_bytes_new: int, seconds: float) -> str:
    """`42 %  12.3 MB/s  95 s left`, from what came in `seconds`."""
    speed = max(0, num_bytes_new) / max(seconds, 1e-9)
    if total is None:
        return f"{size_text(num_bytes_done)}  {speed / 1e6:.1f} MB/s"
    left = (total - num_bytes_done) / max(speed, 1)
    time_left = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min"
    return f"{100 * num_bytes_done / max(1, total):3.0f} %  {speed / 1e6:.1f} MB/s  {time_left} left"
