"""The installed command `tokenize-once`: the commands of the three packages under one name.

`tokenize-once build …` is `python -m pipeline build …`, `tokenize-once info …` is `python -m shards info …`, and so on. A
package is imported when one of its commands is called.
"""

from __future__ import annotations

import importlib
import sys

from shards.common.command_line import run_command
from shards.common.errors import InputError
from shards.common.text import nearest, printable

# For each command: the module with its `main`, what that is given before the user's arguments, and a line of help.
COMMANDS: dict[str, tuple[str, list[str], str]] = {
    "fetch": ("pipeline.__main__", ["fetch"], "fetch a corpus, such as Chinese Wikipedia"),
    "tokenizer": ("pipeline.__main__", ["tokenizer"], "train a byte-level BPE tokenizer"),
    "build": ("pipeline.__main__", ["build"], "build a shard set from a corpus"),
    "info": ("shards.__main__", ["info"], "what a shard set holds, what two differ in"),
    "verify": ("shards.__main__", ["verify"], "check every byte of a shard set"),
    "cat": ("shards.__main__", ["cat"], "show a block or a document as text"),
    "report": ("shards.__main__", ["report"], "make a page about a shard set"),
    "merge": ("shards.__main__", ["merge"], "make one shard set of several"),
    "split": ("shards.__main__", ["split"], "divide a shard set among several"),
    "subset": ("shards.__main__", ["subset"], "take a part of a shard set"),
    "export": ("shards.__main__", ["export"], "write a shard set for other readers"),
    "import": ("shards.__main__", ["import"], "make a shard set of others' token files"),
    "push": ("shards.__main__", ["push"], "copy a shard set to a hub or an object store"),
    "pull": ("shards.__main__", ["pull"], "copy a shard set from a hub or an object store"),
    "train": ("train.__main__", [], "train a model on a shard set"),
    "generate": ("train.generate", [], "continue prompts with a trained model"),
    "evaluate": ("train.evaluate", [], "loss, perplexity, bits per byte on held-out text"),
    "compare": ("train.compare.__main__", [], "what differs between runs, and their curves"),
    "sweep": ("train.sweep", [], "train a grid of settings"),
}


def help_text() -> str:
    """All commands, a line each."""
    rows = "\n".join(f"  {name:<10} {line}" for name, (_, _, line) in COMMANDS.items())
    return f"usage: tokenize-once COMMAND …\n\n{rows}\n\n`tokenize-once COMMAND --help` says more about each.\n"


def main(argv: list[str]) -> int | None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(help_text())
        return 0
    name, *arguments = argv
    if name not in COMMANDS:
        hint = nearest(name, COMMANDS)
        raise InputError(f"no command {printable(name)!r}{hint} (see `tokenize-once --help`)")
    module, before, _ = COMMANDS[name]
    result: int | None = importlib.import_module(module).main([*before, *arguments])
    return result


def console() -> None:
    """The entry point of the installed command."""
    run_command(main, sys.argv[1:])


if __name__ == "__main__":
    console()
