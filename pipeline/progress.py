"""What a person sees of a build: one bar while it runs, a summary at the end."""

from __future__ import annotations

import io
import shlex
import sys
from typing import Any

from tqdm import tqdm

from pipeline.build import BuildResult, Reporter
from shards.common.command_line import notice
from shards.common.text import plural, size_text
from shards.unread import unread_text

_LINE = "{percentage:3.0f} %  {rate_fmt}{postfix}  {remaining} left"
# `global_batch_blocks` of configs/wikipedia-zh-120m.yaml.
_BLOCKS_PER_STEP = 256


class BarReporter(Reporter):
    """A tqdm bar over the bytes of the corpus on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._num_tokens = self._num_rejected = 0

    def started(self, num_bytes: int, num_bytes_done: int, num_workers: int) -> None:
        kept = f", {size_text(num_bytes_done)} of it done by an earlier run" if num_bytes_done else ""
        notice(f"reading {size_text(num_bytes)} with {plural(num_workers, 'worker')}{kept}")
        shown: dict[str, Any] = {"dynamic_ncols": True, "mininterval": 0.2}
        if not sys.stderr.isatty():
            shown = {"file": _Lines(), "bar_format": _LINE, "mininterval": 10, "delay": 10}
        tqdm.monitor_interval = 0  # no thread beside us: workers are forked
        self._bar = tqdm(total=num_bytes, initial=num_bytes_done, unit="B", unit_scale=True, **shown)

    def phase(self, name: str) -> None:
        if self._bar is not None and sys.stderr.isatty():
            self._bar.set_description(name)
        else:
            notice(name)

    def progress(self, num_bytes: int, num_tokens: int, num_rejected: int) -> None:
        self._num_tokens += num_tokens
        self._num_rejected += num_rejected
        rate = self._num_tokens / max(self._bar.format_dict["elapsed"], 1e-9)
        rejected = f", {self._num_rejected:,} rejected" if self._num_rejected else ""
        self._bar.set_postfix_str(f"{rate / 1e6:.2f}M tokens/s{rejected}", refresh=False)
        self._bar.update(num_bytes)

    def finished(self) -> None:
        self._bar.close()

    notice = staticmethod(notice)


class _Lines(io.StringIO):
    """A bar that is written here shows as lines on standard error."""

    def write(self, text: str) -> int:
        if line := text.strip():
            notice(line)
        return len(text)


def summary(result: BuildResult) -> dict[str, str]:
    """What the build made and what to do next, in words."""
    manifest = result.manifest
    num_bytes = sum(source.num_bytes for source in manifest.sources)
    num_tokens, num_documents = manifest.total("num_tokens"), manifest.total("num_documents")
    num_chars, num_padding_tokens = manifest.total("num_text_chars"), manifest.total("num_padding_tokens")
    num_steps = -(-manifest.splits["train"].num_blocks // _BLOCKS_PER_STEP)
    counts = manifest.left_out | {"rejected (see rejected.jsonl)": sum(manifest.rejected.values())}
    left_out = ", ".join(f"{number:,} {what}" for what, number in counts.items() if number)
    blocks = ", ".join(f"{name} {split.num_blocks:,}" for name, split in manifest.splits.items())
    checked = f"{plural(result.num_checked, 'document')} against the reference tokenizer"
    if result.encoder == "tokenizers":
        checked = "not needed: the reference tokenizer did the work"
    time = f"{result.seconds:.1f} s, {num_bytes / 1e6 / max(result.seconds, 1e-9):,.1f} MB/s"
    if result.num_units_reused:
        time += f"; {plural(result.num_units_reused, 'unit')} from an earlier run"
    num_text_tokens = num_tokens - (1 if manifest.tokenizer.begin_id is None else 2) * num_documents
    lost, share = result.num_remainder_tokens, 100 * result.num_remainder_tokens / max(1, num_text_tokens)
    return {
        "shard set": result.out,
        "documents": f"{num_documents:,}" + (f"; left out: {left_out}" if left_out else ""),
        **({"not read": unread_text(manifest.unread)} if manifest.unread else {}),
        "characters": f"{num_chars:,}",
        "tokens": f"{num_tokens:,} ({num_tokens / max(1, num_chars):.3f} a character)",
        "blocks": f"{blocks}, of {manifest.block_tokens:,} tokens; {plural(num_padding_tokens, 'token')} of padding",
        "short": f"{plural(result.num_short_documents, 'document')} shorter than a block",
        "nothing lost": f"cutting each document by itself would drop {plural(lost, 'token')} ({share:.1f} %)",
        "checked": checked,
        "time": time,
        "fingerprint": manifest.fingerprint,
        "an epoch": f"{plural(num_steps, 'step')} of {_BLOCKS_PER_STEP} blocks",
        "next": f"python -m train --config FILE.yaml --shards {shlex.quote(result.out)}",
    }
