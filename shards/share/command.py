"""`python -m shards push DIR URL` and `python -m shards pull URL`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from shards.common.command_line import progress_bar
from shards.common.text import printable

URL_HELP = "the set: hf://datasets/USER/NAME[/FOLDER], ms://datasets/USER/NAME[/FOLDER], s3://, oss://, gs://, …"


def add_parsers(commands: Any) -> None:
    push = commands.add_parser(
        "push",
        help="copy a set to a hub or an object store",
        description="Copy a shard set to a hub or an object store: verified before, its manifest put last.",
        epilog="example: python -m shards push data/shards/wikipedia-zh hf://datasets/USER/wikipedia-zh",
    )
    push.add_argument("directory", type=Path, metavar="DIR", help="the shard set")
    push.add_argument("url", metavar="URL", help=URL_HELP)
    push.add_argument("--force", action="store_true", help="replace another set that is there")
    push.set_defaults(run=run_push)
    pull = commands.add_parser(
        "pull",
        help="copy a set from a hub or an object store",
        description="Copy a shard set from a hub or an object store, each file checked; a broken-off copy goes on.",
        epilog="example: python -m shards pull hf://datasets/USER/wikipedia-zh --out data/shards/wikipedia-zh",
    )
    pull.add_argument("url", metavar="URL", help=URL_HELP)
    pull.add_argument(
        "--out", type=Path, metavar="DIR", help="where to (tokenize-once/FINGERPRINT in XDG_CACHE_HOME or ~/.cache)"
    )
    pull.set_defaults(run=run_pull)


def run_push(options: argparse.Namespace) -> int:
    from shards.share.push import push

    changed = push(options.directory, options.url, force=options.force, notice=note)
    print(f"{printable(options.url)}: {'complete' if changed else 'up to date'}")
    return 0


def run_pull(options: argparse.Namespace) -> int:
    from shards.share.pull import pull

    with progress_bar(None, "copying") as bar:
        path = pull(
            options.url,
            options.out,
            notice=lambda line: bar.write(printable(line), file=sys.stderr),
            progress=bar.update,
            shows_bars=sys.stderr.isatty(),
        )
    print(path)
    return 0


def note(line: str) -> None:
    """A line for the person who waits."""
    print(printable(line), file=sys.stderr, flush=True)
