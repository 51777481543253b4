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
from typing import Any, NoReturn

from shards.common.errors import InputError, is_full, machine_error
from shards.common.text import nearest, printable, visible

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "byte_count": "bytes, such as 64MiB",
    "token_count": "1 to 10^15 tokens, such as 1e9",
}
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


def token_count(text: str) -> int:
    """`100000000`, `1e8`. Raises `ValueError`."""
    if not 1 <= (number := float(text)) <= 10**15:
        raise ValueError(text)
    return int(number)


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised in the main thread so that it unwinds like Ctrl-C does."""

    came = False  # a library may make a plain `KeyboardInterrupt` of it: Ray does


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """At most 100 columns, the explanations side by side with all but the longest options."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        width = min(100, shutil.get_terminal_size().columns)
        super().__init__(prog, **{"max_help_position": 32, **kwargs, "width": width})


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` whose errors are an `InputError` that names the nearest right option or command."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": _HelpFormatter, **kwargs})

    @property
    def options(self) -> set[str]:
        """All options of this command, also those that its help leaves out."""
        return set(self._option_string_actions)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but that there is nothing unknown: a sub-command knows its own options best."""
        values, unknown = super().parse_known_args(args, namespace)
        if unknown:
            hint = nearest(unknown[0].split("=")[0], self._option_string_actions)
            self.error(f"unrecognized argument {printable(unknown[0])!r}{hint}")
        return values, unknown

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        if match := re.search(rf"invalid ({'|'.join(_KINDS)}) value: (.*)$", message, re.DOTALL):
            message = f"{message[: match.start()]}expected {_KINDS[match[1]]}, found {printable(match[2])}"
        if match := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)$", message, re.DOTALL):
            allowed = match[2].replace("'", "")
            hint = nearest(match[1], allowed.split(", "))
            message = f"{message[: match.start()]}expected {allowed}, found {printable(match[1])!r}{hint}"
        raise InputError(f"{message} (see `{self.prog} --help`)")


def say(*lines: str) -> None:
    """Write lines to standard output at once, terminal escapes shown and not obeyed: names may come from strangers."""
    sys.stdout.write("".join(f"{visible(line)}\n" for line in lines))
    sys.stdout.flush()


def notice(line: str) -> None:
    """Write a line to standard error, at once."""
    print(printable(line), file=sys.stderr, flush=True)


def progress_bar(total: int | None, what: str, *, unit: str = "B", show: bool = True) -> Any:
    """A `tqdm` bar on standard error that goes away at the end; nothing where that isn't a terminal."""
    from tqdm import tqdm

    is_shown = show and sys.stderr.isatty()
    return tqdm(
        total=total, desc=what, unit=unit, unit_scale=True, disable=not is_shown, leave=False, dynamic_ncols=True
    )


def _raise_terminated(_signal_number: int, _frame: FrameType | None) -> None:
    Terminated.came = True
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
    except KeyboardInterrupt as stop:
        is_terminated = Terminated.came or isinstance(stop, Terminated)
        word, status = ("terminated", 143) if is_terminated else ("interrupted", 130)
        _fail(": ".join((word, *stop.args)), status=status, prefix="")
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except MemoryError:
        status = _fail("the system gave no more memory; end other programs, or choose smaller settings")
    except OSError as error:
        line = machine_error(error)
        if line is None:
            raise
        where = "" if error.filename or not _cannot_flush() else "standard output: "
        status = _fail(f"{where}{line}{'; make room, then repeat the command' if is_full(error) else ''}")
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
