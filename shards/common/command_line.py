"""What every command line of this project does the same way: errors, exit statuses, Ctrl-C.

0 success, 2 bad usage or bad input (one `error: …` line, no traceback), 1 an internal fault (with its
traceback), 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import atexit
import decimal
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn, Self

from shards.common.errors import InputError, machine_error
from shards.common.text import nearest, printable, visible

_SECONDS_UNTIL_AGAIN = 0.02  # a callback has ended by then
_BYTE_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{end}": base**power
    for end, base in (("b", 1000), ("ib", 1024))
    for power, prefix in enumerate("kmgt", start=1)
}


def byte_count(text: str) -> int:
    """`2147483648`, `2GiB`, `1.5 GB`. Raises `ValueError`."""
    match = re.fullmatch(r"(\d{1,20}(?:\.\d{1,6})?)\s*([a-z]*)", text.strip().replace("_", "").lower(), re.ASCII)
    if match is None or match[2] not in _BYTE_UNITS or (match[2] == "" and "." in match[1]):
        raise ValueError(text)
    return int(decimal.Decimal(match[1]) * _BYTE_UNITS[match[2]])


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised in the main thread so that it unwinds like Ctrl-C does."""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """At most 100 columns, the explanations side by side with all but the longest options."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        width = min(100, shutil.get_terminal_size().columns)
        super().__init__(prog, **{"max_help_position": 32, **kwargs, "width": width})


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` whose errors are an `InputError` that names the nearest right option."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", _HelpFormatter)
        super().__init__(*args, **kwargs)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        values, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = [option for action in self._all_actions() for option in action.option_strings]
            hint = nearest(unknown[0].split("=")[0], options)
            self.error(f"unrecognized argument {printable(unknown[0])!r}{hint}")
        return values

    def _all_actions(self) -> list[argparse.Action]:
        actions = list(self._actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for sub_parser in action.choices.values():
                    actions += sub_parser._actions
        return actions

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse's, with the nearest right word: `buidl` is `build`."""
        if action.choices is not None and value not in action.choices:
            words = [str(choice) for choice in action.choices]
            found = printable(str(value))
            expected = f"expected {', '.join(words)}, found {found!r}{nearest(found, words)}"
            raise argparse.ArgumentError(action, expected)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """As argparse's, in the words of our own errors."""
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            kinds = {int: "a whole number", float: "a number", byte_count: "bytes, such as 64MiB"}
            kind = kinds.get(action.type)
            if kind is None:
                raise
            raise argparse.ArgumentError(action, f"expected {kind}, found {printable(arg_string)!r}") from None

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')} (see `{self.prog} --help`)")


def say(*lines: str) -> None:
    """Write lines to standard output at once, terminal escapes shown and not obeyed: names may come from strangers."""
    sys.stdout.write("".join(f"{visible(line)}\n" for line in lines))
    sys.stdout.flush()


class ProgressLine:
    """How far the work is, on one line of a terminal that goes away at the end; elsewhere nothing."""

    def __init__(self, text: Callable[[int], str], *, show: bool = True) -> None:
        """`text` says it of the number that is done."""
        self._text, self._done, self._line = text, 0, ""
        self._shown = show and sys.stderr.isatty()

    def advance(self, number: int) -> None:
        """So many more are done."""
        self._done += number
        if self._shown and (line := self._text(self._done)) != self._line:
            self._line = line
            sys.stderr.write(f"\r{line}")
            sys.stderr.flush()

    def note(self, line: str) -> None:
        """Show a line that stays."""
        self._clear()
        sys.stderr.write(f"{line}\n")

    def _clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._clear()


def percent_done(verb: str, total: int, noun: str = "") -> Callable[[int], str]:
    """For a `ProgressLine`: the share of `total` that is done, with a `noun` the total too.

    >>> percent_done("copied", 2000, "bytes")(1000)
    'copied  50% of 2,000 bytes'
    """
    whole = f" of {total:,} {noun}" if noun else ""
    return lambda done: f"{verb} {min(100, 100 * done // max(1, total)):3}%{whole}"


def _raise_terminated(_signal_number: int, _frame: FrameType | None) -> None:
    raise Terminated


def run_command(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Run `main(arguments)` and end the process with the exit status described above."""
    signal.signal(signal.SIGTERM, _raise_terminated)
    sys.unraisablehook = _interrupt_again
    try:
        status = main(list(sys.argv[1:] if argv is None else argv)) or 0
        if sys.stdout is not None:  # closed, as by `>&-`
            sys.stdout.flush()
    except InputError as error:
        status = _fail(str(error))
    except Terminated as stop:
        status = _fail(": ".join(("terminated", *stop.args)), status=143, prefix="")
    except KeyboardInterrupt as stop:
        status = _fail(": ".join(("interrupted", *stop.args)), status=130, prefix="")
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except MemoryError:
        status = _fail("the system gave no more memory; end other programs, or choose smaller settings")
    except OSError as error:
        line = machine_error(error)
        if line is None:
            raise
        status = _fail(line if error.filename or not _cannot_flush() else f"standard output: {line}")
    atexit.register(_end_at_signals)
    sys.exit(status)


def _interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Python drops what is raised in a weak reference's callback or in `__del__`, Ctrl-C too: it comes again, elsewhere."""
    kind = unraisable.exc_type
    if not issubclass(kind, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    number = signal.SIGTERM if issubclass(kind, Terminated) else signal.SIGINT
    timer = threading.Timer(_SECONDS_UNTIL_AGAIN, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def _end_at_signals() -> None:
    """The outcome is settled, and libraries clean up: a signal ends that, without a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _cannot_flush() -> bool:
    """Whether standard output takes nothing, as on a full disk. What was kept for it is then thrown away."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()  # once more what didn't go before
            os.write(sys.stdout.fileno(), b"")  # where nothing is kept: PYTHONUNBUFFERED
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _fail(message: str, *, status: int = 2, prefix: str = "error: ") -> int:
    print(f"{prefix}{' '.join(printable(line) for line in message.splitlines())}", file=sys.stderr)
    return status
