"""Ctrl-C while a command of this project still imports its modules: exit status 130 and one word, no traceback.

Imported before all else. In a program that only uses these packages it does nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

_PACKAGES = ("pipeline", "shards", "train")


def _is_command() -> bool:
    """Whether this process is `python -m` one of ours, or the installed command."""
    program = sys.argv[0] if sys.argv else ""
    if program != "-m":  # as long as python -m looks for the module
        return os.path.basename(program) in ("tokenize-once", "tokenize_once.py")
    before_module = sys.orig_argv.index("-m") if "-m" in sys.orig_argv else len(sys.orig_argv)
    return any(name.split(".")[0] in _PACKAGES for name in sys.orig_argv[before_module + 1 : before_module + 2])


def _end(_signal_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


def begin() -> None:
    """End the process at Ctrl-C, if it is a command's and doesn't ignore it (as with `nohup`)."""
    if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def end() -> None:
    """From here on Ctrl-C is a `KeyboardInterrupt` again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


begin()
