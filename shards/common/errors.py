"""Three kinds of errors: the input is wrong, a server fails for now, we are wrong.

A command line turns an `InputError` into one `error: …` line on stderr and exit status 2. A `TransientError` is retried
first where work is done in units. Every other exception is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from shards.common.text import nearest, printable

_MAX_LISTED = 12  # choices; of more than these the nearest is named, if there is one


class InputError(ValueError):
    """Something the user gave (a file, an option, a setting) can't be used.

    The message is one line: where, what was expected, what was found, what to do.
    """


class TransientError(InputError):
    """A server or a connection failed in a way that may pass: the same may work later."""


# What the machine refuses, as opposed to what we asked wrongly.
_MACHINE_ERRNO_NAMES = (
    "ENOSPC EDQUOT EFBIG EACCES EPERM EROFS EIO EREMOTEIO ESTALE ENODEV ENXIO EBUSY "
    "EMFILE ENFILE ENOMEM ENOLCK EMLINK ETXTBSY ENAMETOOLONG ELOOP ETIMEDOUT"
)
_MACHINE_ERRNOS = {getattr(errno, name, None) for name in _MACHINE_ERRNO_NAMES.split()} - {None}


def machine_error(error: OSError) -> str | None:
    """`PATH: No space left on device` if the disk or the system refused, None if the fault may be ours."""
    if error.errno not in _MACHINE_ERRNOS:
        return None
    path = error.filename2 or error.filename  # the second is the one that is written
    return f"{path}: {error.strerror}" if path else str(error.strerror)


def is_full(error: OSError) -> bool:
    """Whether the disk has no room left, or the user may not take more of it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def choice(option: str, value: str, allowed: Sequence[str]) -> str:
    """`value`, if it is one of the `allowed` ones. Raises `InputError`."""
    if value not in allowed:
        hint = nearest(value, allowed)
        expected = f"one of {len(allowed)} names" if hint and len(allowed) > _MAX_LISTED else " or ".join(allowed)
        raise InputError(f"{option}: expected {expected}, found {value!r}{hint}")
    return value


def refuse(where: object, faults: Mapping[str, object]) -> None:
    """Raise `InputError` with the first of `faults` whose value is true."""
    if fault := next((fault for fault, is_there in faults.items() if is_there), ""):
        raise InputError(f"{where}: {fault}")


def nearest_path(path: Path, is_meant: Callable[[Path], bool] = lambda _path: True) -> str:
    """As `nearest`, for a path that isn't there: the closest of what lies beside it and `is_meant`."""
    try:
        siblings = [entry.name for entry in path.parent.iterdir() if is_meant(entry)]
    except OSError:
        return ""
    matches = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.6)
    return f"; did you mean '{printable(str(path.with_name(matches[0])))}'?" if matches else ""
