"""What hubs and object stores answer by their clients, as one line: `InputError`, or `TransientError` if it may pass.

And a bound on how long a client tries. Nothing of the clients is imported: their exceptions are known by name, since their
class trees differ between versions.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from shards.common.errors import InputError, TransientError, is_full, machine_error
from shards.common.text import printable

_PROBLEMS = {
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE=1 forbids to ask the hub; unset it (`env -u HF_HUB_OFFLINE …`)",
    "GatedRepoError": "needs permission: ask for it on the repository's page, then log in with `hf auth login`",
    "RepositoryNotFoundError": "no such repository there, or a private one (then `hf auth login`)",
    "RevisionNotFoundError": "no such revision in this repository",
    "NotExistError": "no such repository, revision or file there",
    "JSONDecodeError": "the server doesn't answer as a hub does; a proxy in between?",
    "NoCredentialsError": "no credentials were found; set the credentials in the environment",
    "PartialCredentialsError": "credentials were found in part; set the credentials in the environment",
}
_UNREACHABLE = {
    "hf": "Hugging Face can't be reached ({}); try later, a mirror (HF_ENDPOINT=https://hf-mirror.com), or the same name "
    "on ModelScope (ms:)",
    "ms": "ModelScope can't be reached ({}); try later, or the same name on Hugging Face (hf:)",
}
_WRAPPERS = {"RevisionResolutionError", "LocalEntryNotFoundError", "FileDownloadError"}
_OUR_FAULTS = (TypeError, AttributeError, NameError, AssertionError, LookupError, MemoryError)

T = TypeVar("T")


class NoSuchFile(InputError):
    """The repository is there, and has no such file."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of `call`, made in a thread that is left behind if it takes longer: then raises `TimeoutError`.

    A name that isn't resolved, or a client that tries again and again, can't be stopped otherwise.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"no answer within {seconds:g} s") from None


@contextlib.contextmanager
def server_errors(where: object, *, writes: bool = False) -> Iterator[None]:
    """Raise what the client of the URL or reference `where` raises as `InputError` or `TransientError`.

    Faults of ours and of this machine stay as they are. So does `FileNotFoundError` where nothing is written; there it
    means that there is no such bucket.
    """
    try:
        yield
    except Exception as error:
        translated = _translated(error, str(where), writes)
        if translated is None:
            raise
        raise translated from None


def _translated(error: BaseException, where: str, writes: bool) -> InputError | None:
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & _WRAPPERS:
        failures: dict[str, BaseException] = getattr(error, "failed_files", {})
        if inner := error.__cause__ or next(iter(failures.values()), None):
            return _translated(inner, where, writes)
    if isinstance(error, (InputError, FileExistsError, *_OUR_FAULTS)):
        return None
    if isinstance(error, OSError) and (error.filename or is_full(error)) and machine_error(error):
        return None
    if known := next((problem for name, problem in _PROBLEMS.items() if name in names), None):
        return InputError(f"{where}: {known}")
    if "EntryNotFoundError" in names:
        return NoSuchFile(f"{where}: no such file in this repository")
    if isinstance(error, FileNotFoundError):
        bucket = f"{where}: no such bucket ({root_reason(error)}); make it, or choose another output"
        return InputError(bucket) if writes else None
    status, reason, unreachable = _status(error), root_reason(error), _UNREACHABLE.get(where.partition(":")[0])
    if isinstance(error, ValueError) and not status:  # a client that doesn't even ask
        return InputError(f"{where}: {reason}")
    if unreachable is None:
        if status in (401, 403):
            return InputError(f"{where}: {reason}; check the credentials in the environment")
        return TransientError(f"{where}: {reason}; the same command goes on when the server answers")
    if 400 <= status < 500 and status not in (408, 425, 429):
        login = "; log in, or ask for permission" if status in (401, 403) else ""
        return InputError(f"{where}: refused (HTTP {status}): {reason}{login}")
    return TransientError(f"{where}: {unreachable.format((f'HTTP {status}' if status else reason) + _proxy())}")


def _status(error: BaseException | None) -> int:
    """The HTTP status that the server answered, or 0: each client has its own way to say that."""
    if error is None:
        return 0
    if isinstance(error, PermissionError) or str(error).startswith("Forbidden: "):  # the latter is gcsfs's
        return 403
    found = [getattr(error, name, None) for name in ("status_code", "status", "code")]
    found.append(getattr(getattr(error, "response", None), "status_code", None))
    numbers = [int(value) for value in map(str, found) if value.isdecimal() and len(value) == 3]
    return numbers[0] if numbers else _status(error.__cause__)


def root_reason(error: BaseException) -> str:
    """An exception in a few words: those of what is at its root, such as `Name or service not known`."""
    for _ in range(10):
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__) or error
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return printable(re.sub(r"^\[Errno \d+\] ", "", " ".join(text.split())))[:300]


def _proxy() -> str:
    """`; HTTPS_PROXY is set to http://…` if the clients go by a proxy, without a password in it."""
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "http_proxy", "HTTP_PROXY"):
        if proxy := os.environ.get(name):
            return f"; {name} is set to {printable(re.sub('//[^/@]*@', '//', proxy))}: does that proxy work?"
    return ""
