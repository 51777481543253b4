"""What a person sees of a build: one bar while it runs, a summary at the end."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from pipeline.build import BuildResult, Reporter

_SECONDS_BETWEEN_LINES = 10.0


class BarReporter(Reporter):
    """A tqdm bar over the bytes of the corpus on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._num_tokens = self._num_bytes = self._total = 0
        self._begin = self._last_line = time.monotonic()

    def started(self, num_bytes: int, num_bytes_done: int, num_workers: int) -> None:
        self._begin = self._last_line = time.monotonic()
        self._total = num_bytes
        print(f"tokenizing {num_bytes / 1e6:,.1f} MB with {num_workers} workers", file=sys.stderr)
        if num_bytes_done:
            print(f"{num_bytes_done / 1e6:,.1f} MB were done by an earlier run", file=sys.stderr)
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=num_bytes, initial=num_bytes_done, unit="B", unit_scale=True, dynamic_ncols=True, mininterval=0.2
            )
        self._num_bytes = num_bytes_done

    def progress(self, num_bytes: int, num_tokens: int) -> None:
        self._num_tokens += num_tokens
        self._num_bytes += num_bytes
        now = time.monotonic()
        rate = self._num_tokens / max(now - self._begin, 1e-9)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{rate / 1e6:.2f}M tokens/s", refresh=False)
            self._bar.update(num_bytes)
        elif now - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = now
            percent = 100 * self._num_bytes / max(1, self._total)
            print(f"{percent:.0f} %, {rate / 1e6:.2f}M tokens/s", file=sys.stderr)

    def finished(self) -> None:
        if self._bar is not None:
            self._bar.close()


def summary(result: BuildResult) -> str:
    """A table of what the build made."""
    manifest = result.manifest
    splits = manifest.splits.values()
    num_bytes = sum(source.num_bytes for source in manifest.sources)
    num_tokens = sum(split.num_tokens for split in splits)
    num_chars = sum(split.num_text_chars for split in splits)
    lines = [
        f"shard set    {result.path}",
        f"documents    {sum(split.num_documents for split in splits):,}"
        + (f" ({manifest.num_empty:,} empty texts left out)" if manifest.num_empty else ""),
        f"characters   {num_chars:,}",
        f"tokens       {num_tokens:,} ({num_tokens / max(1, num_chars):.3f} a character)",
        "blocks       "
        + ", ".join(f"{name} {split.num_blocks:,}" for name, split in manifest.splits.items())
        + f", of {manifest.block_tokens} tokens",
        f"time         {result.seconds:.1f} s, {num_bytes / 1e6 / max(result.seconds, 1e-9):,.1f} MB/s"
        + (f", {result.num_units_reused:,} units from an earlier run" if result.num_units_reused else ""),
        f"fingerprint  {manifest.fingerprint}",
    ]
    return "\n".join(lines)
