"""`python -m shards pull URL`: a set in a store to this machine's disk."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from shards.common.text import printable


def add_parser(commands: Any) -> None:
    pull = commands.add_parser(
        "pull",
        help="copy a set from a store to this machine",
        description="Copy a shard set from a store to this machine, each file checked; a broken-off copy goes on.",
        epilog="example: python -m shards pull s3://bucket/wikipedia-zh --out data/shards/wikipedia-zh",
    )
    pull.add_argument("url", metavar="URL", help="the set: s3://, gs://, oss://, hf://, … (what fsspec knows)")
    pull.add_argument(
        "--out", type=Path, metavar="DIR", help="where to (tokenize-once/FINGERPRINT in XDG_CACHE_HOME or ~/.cache)"
    )
    pull.set_defaults(run=run_pull)


def run_pull(options: argparse.Namespace) -> int:
    from shards.pull import pull

    is_terminal = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if is_terminal:
            percent = 100 * done // max(1, total)
            print(f"\rcopied {percent:3}% of {total:,} bytes", end="", file=sys.stderr, flush=True)

    print(pull(options.url, options.out, notice=say, progress=progress))
    return 0


def say(line: str) -> None:
    """A line for the person who waits."""
    print(printable(line), file=sys.stderr, flush=True)
