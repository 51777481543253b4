"""`python -m train.generate RUN_DIR --interactive`: a prompt at a time, its continuation as it is written.

Lines can be edited, and the arrow keys bring back earlier ones. Ctrl-C stops a continuation; at the prompt it ends the
program, as Ctrl-D does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from shards.common.command_line import Terminated, say
from shards.common.errors import InputError
from shards.common.text import nearest, printable
from train.generate import OPTIONS, show_as_written
from train.settings import GenerationSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COMMANDS = {
    "/set NAME VALUE": f"one of {', '.join(OPTIONS)}",
    "/show": "the settings",
    "/help": "these lines",
    "/quit": "the end, as Ctrl-D",
}


def converse(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: GenerationSettings, *, num_samples: int
) -> None:
    """Read prompts from standard input until it ends, and write their continuations."""
    say("A prompt, or /help. Ctrl-C stops a text, Ctrl-D ends.")
    for line in _lines():
        try:
            if line.startswith("/"):
                words = line.split()
                if words == ["/quit"]:
                    return
                settings, answer = obey(words, settings)
                say(answer)
                continue
            show_as_written(model, tokenizer, dataclasses.replace(settings, prompts=[line]), num_samples=num_samples)
        except InputError as error:
            say(printable(str(error)))
        except Terminated:
            raise
        except KeyboardInterrupt:
            say("\n(stopped)")


def obey(words: list[str], settings: GenerationSettings) -> tuple[GenerationSettings, str]:
    """The settings after the command `words`, and what to answer. Raises `InputError`."""
    match words:
        case ["/help"]:
            return settings, "\n".join(f"{command:17}{text}" for command, text in COMMANDS.items())
        case ["/show"]:
            return settings, "\n".join(f"{name:19}{getattr(settings, name)}" for name in OPTIONS)
        case ["/set", name, value]:
            name = name.replace("-", "_")
            if name not in OPTIONS:
                raise InputError(f"/set: unknown setting {name!r}{nearest(name, OPTIONS)}; see /help")
            kind = OPTIONS[name][0]
            try:
                number = kind(value)
            except ValueError:
                raise InputError(f"/set {name}: expected a number, found {value!r}") from None
            changed = {name: number}
            return dataclasses.replace(settings, **changed), f"{name} is {number}"
    names = [command.split()[0] for command in COMMANDS]
    raise InputError(f"can't understand {' '.join(words)!r}{nearest(words[0], names)}; see /help")


def _lines() -> Iterator[str]:
    """What the user types, line by line; empty lines are left out."""
    on_terminal = sys.stdin.isatty()
    if on_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (from here on `input` edits lines)
    while True:
        try:
            line = input("> " if on_terminal else "")
        except UnicodeDecodeError:
            say("that was not UTF-8")
            continue
        except EOFError:
            if on_terminal:
                say("")
            return
        except Terminated:
            raise
        except KeyboardInterrupt:
            say("")
            return
        if line.strip():
            yield line
