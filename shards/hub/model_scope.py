"""Files on ModelScope, by its client: the package modelscope_hub, which is the hub's part of modelscope.

(`modelscope` itself imports torch; what it does with the hub it leaves to modelscope_hub.)
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.common.errors import InputError
from shards.common.text import printable
from shards.hub.download import download
from shards.hub.remote import (
    ANSWER_SECONDS,
    CannotResume,
    ConnectionFailed,
    NoSuchFile,
    RemoteFile,
    RepositoryType,
    Stream,
    check_status,
    parse_digest,
    range_headers,
    reason,
    stream_of,
    within,
)

DEFAULT_REVISION = "master"
_PIECE_BYTES = 1 << 13  # what is lost at most of what has come when a connection breaks


def endpoint() -> str:
    """The address of the hub: `MODELSCOPE_ENDPOINT`, or ModelScope's own."""
    return str(_client().legacy.endpoint)


def find_files(
    repository: str,
    pattern: str,
    *,
    root: str | None = None,
    revision: str | None = None,
    repository_type: RepositoryType = "model",
    seconds: float = ANSWER_SECONDS,
) -> dict[str, RemoteFile]:
    """The files below `root` in `repository` whose whole path matches `pattern`, by path, in its order.

    Raises `InputError`, or `ConnectionFailed` if there is no answer in `seconds`.
    """
    client = _client()
    at = revision or DEFAULT_REVISION
    address = f"{client.legacy.endpoint}/{repository_type}s/{repository}"

    def ask() -> Any:
        with translated_errors(address):
            return client.legacy.list_repo_files(repository, repository_type, at, root=root)

    entries = within(seconds, ask)
    files = {}
    for entry in entries if isinstance(entries, list) else []:
        path = entry.get("Path") if isinstance(entry, dict) else None
        # The pattern decides what a path may be: one that leads out of a directory matches none of ours.
        if isinstance(path, str) and re.fullmatch(pattern, path) and entry.get("Type") != "tree":
            files[path] = _remote_file(client, entry, path, repository, repository_type, at, address)
    return dict(sorted(files.items()))


def _remote_file(
    client: Any,
    entry: dict[str, Any],
    path: str,
    repository: str,
    repository_type: RepositoryType,
    revision: str,
    repository_address: str,
) -> RemoteFile:
    address = f"{repository_address}, {path}"
    size, digest = entry.get("Size"), parse_digest(entry.get("Sha256"))
    num_bytes = size if isinstance(size, int) and size > 0 else None  # 0 is also what an unknown size is listed as

    @contextlib.contextmanager
    def open_at(offset: int) -> Iterator[Stream]:
        with translated_errors(address):
            response = client.legacy.download_stream(
                repository, repository_type, path, revision, headers=range_headers(offset)
            )
            with response:
                yield stream_of(
                    response.status_code,
                    response.headers,
                    response.iter_content(_PIECE_BYTES),
                    offset=offset,
                    num_bytes=num_bytes,
                    address=address,
                )

    return RemoteFile(
        address=address,
        num_bytes=num_bytes,
        digest=digest,
        version=f"{digest.value if digest else printable(str(entry.get('Revision')))} {num_bytes}",
        open=open_at,
    )


@contextlib.contextmanager
def translated_errors(address: str) -> Iterator[None]:
    """Turn the client's exceptions into ours. Those of our own code inside are left as they are."""
    import requests
    from modelscope_hub import errors

    try:
        yield
    except (InputError, ConnectionFailed, CannotResume):
        raise
    except errors.NotExistError:
        raise InputError(f"{address}: no such repository, revision or file there") from None
    except errors.APIError as error:
        check_status(error.status_code or 500, address)
        raise ConnectionFailed(reason(error)) from None
    except (errors.NetworkError, requests.RequestException) as error:
        if isinstance(error, requests.JSONDecodeError):
            raise InputError(f"{address}: the server doesn't answer as ModelScope's does") from None
        raise ConnectionFailed(reason(error)) from None
    except errors.HubError as error:
        raise InputError(f"{address}: {reason(error)}") from None
    except Exception as error:
        if type(error).__module__.split(".")[0] == "urllib3":
            raise ConnectionFailed(reason(error)) from None
        raise


def cached_file(repository: str, path: str, *, revision: str | None = None) -> Path | None:
    """The file `path` of a model's repository in the client's cache (`MODELSCOPE_CACHE`), or None."""
    from modelscope_hub import errors

    try:
        return Path(_client().download_file(repository, "model", path, revision=revision, local_files_only=True))
    except (errors.CacheNotFound, FileNotFoundError):
        return None


def fetch_to_cache(repository: str, path: str, *, revision: str | None = None) -> Path:
    """Fetch the small file `path` of a model's repository to its place in the client's cache, and check its digest.

    Raises `InputError`, `ConnectionFailed`.
    """
    client = _client()
    found = find_files(repository, re.escape(path), revision=revision)
    if path not in found:
        raise NoSuchFile(f"{client.legacy.endpoint}/models/{repository}: no file {path} in this repository")
    # The client's layout, in which `cached_file` finds it.
    snapshots = _config().cache_dir / "models" / repository.replace("/", "--") / "snapshots"
    target = Path(snapshots / (revision or DEFAULT_REVISION) / path)
    download(found[path], target)
    return target


def _client() -> Any:
    """A `modelscope_hub.HubApi` for the environment as it is now."""
    import modelscope_hub

    logging.getLogger("modelscope_hub").setLevel(logging.ERROR)
    return modelscope_hub.HubApi(_config())


def _config() -> Any:
    from modelscope_hub.config import HubConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MODELSCOPE_DOMAIN, which still works
        return HubConfig()
