"""What the hubs' clients raise, as one line each; and a bound on how long they try.

Nothing of the clients is imported: their exceptions are known by name, and those of the network by their modules, since
their class trees differ between versions.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from shards.common.errors import InputError, TransientError
from shards.common.text import printable

_TITLES = {"hf": "Hugging Face", "ms": "ModelScope"}
_INSTEAD = {
    "hf": "try later, a mirror (HF_ENDPOINT=https://hf-mirror.com), or the same name on ModelScope (ms:)",
    "ms": "try later, or the same name on Hugging Face (hf:)",
}
_PROBLEMS = {
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE=1 forbids to ask the hub; unset it (`env -u HF_HUB_OFFLINE …`)",
    "GatedRepoError": "needs permission: ask for it on the repository's page, then log in with `hf auth login`",
    "RepositoryNotFoundError": "no such repository there, or a private one (then `hf auth login`)",
    "RevisionNotFoundError": "no such revision in this repository",
    "NotExistError": "no such repository, revision or file there",
    "JSONDecodeError": "the server doesn't answer as a hub does; a proxy in between?",
}
_WRAPPERS = {"RevisionResolutionError", "LocalEntryNotFoundError", "FileDownloadError"}
_NETWORK_MODULES = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "ssl", "modelscope_hub"}

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
def hub_errors(hub: str, where: object) -> Iterator[None]:
    """Raise what the clients raise as `InputError` or `TransientError`, one line. Faults of ours stay as they are."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        translated = _translated(error, hub, where)
        if translated is None:
            raise
        raise translated from None


def _translated(error: BaseException, hub: str, where: object) -> InputError | None:
    kinds = type(error).__mro__
    names = {kind.__name__ for kind in kinds}
    if names & _WRAPPERS:
        failures: dict[str, BaseException] = getattr(error, "failed_files", {})
        inner = error.__cause__ or next(iter(failures.values()), None)
        if inner is not None:
            return _translated(inner, hub, where)
    if known := next((problem for name, problem in _PROBLEMS.items() if name in names), None):
        return InputError(f"{where}: {known}")
    if "EntryNotFoundError" in names:
        return NoSuchFile(f"{where}: no such file in this repository")
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429):
        login = "; log in, or ask for permission" if status in (401, 403) else ""
        return InputError(f"{where}: refused (HTTP {status}): {_reason(error)}{login}")
    if names & {"HFValidationError", "InvalidParameter"}:
        return InputError(f"{where}: {_reason(error)}")
    is_network = any(kind.__module__.split(".")[0] in _NETWORK_MODULES for kind in kinds)
    is_cut_short = type(error) is OSError and error.errno is None  # huggingface_hub: another length than listed
    if not (is_network or is_cut_short or isinstance(error, TimeoutError | ConnectionError)):
        return None
    reason = f"HTTP {status}" if isinstance(status, int) else _reason(error)
    return TransientError(f"{where}: {_TITLES[hub]} can't be reached ({reason}{_proxy()}); {_INSTEAD[hub]}")


def _reason(error: BaseException) -> str:
    """An exception in a few words: those of what is at its root, such as `Name or service not known`."""
    for _ in range(10):
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__) or error
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return printable(re.sub(r"^\[Errno \d+\] ", "", " ".join(text.split())))[:200]


def _proxy() -> str:
    """`; HTTPS_PROXY is set to http://…` if the clients go by a proxy, without a password in it."""
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "http_proxy", "HTTP_PROXY"):
        if proxy := os.environ.get(name):
            return f"; {name} is set to {printable(re.sub('//[^/@]*@', '//', proxy))}: does that proxy work?"
    return ""
