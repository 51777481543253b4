"""Files at URLs (`s3://`, `gs://`, `oss://`, `hf://`, …), all by the package fsspec, which is loaded when one is used.

Which account and which server is meant is said by the environment, as the clients of those stores read it
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …), or by fsspec's own configuration (`FSSPEC_S3_KEY`, …).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from shards import oss
from shards.common.errors import InputError, TransientError

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://.+")
# A store that answers 500 or not at all is asked again for two minutes or so, with growing pauses.
_S3_CLIENT = {"retries": {"mode": "standard", "max_attempts": 10}, "connect_timeout": 20, "read_timeout": 60}
_CHECK_CREDENTIALS = "; check the credentials in the environment"
# What a listing calls the version; first those that say what is in a file: the same bytes put twice are the same version.
_VERSION_KEYS = ("md5Hash", "ETag", "etag", "blob_id", "LastModified", "last_modified", "updated", "mtime", "created")
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "oss": "ossfs", "az": "adlfs", "abfs": "adlfs"}


def is_url(name: str) -> bool:
    """Whether `name` is a URL, and no path."""
    return _URL.fullmatch(name) is not None


def join(url: str, *names: str) -> str:
    """`s3://bucket/set` and `train-00000.bin` as one URL."""
    return "/".join([url.rstrip("/"), *names])


def file_system(url: str) -> tuple[Any, str]:
    """The `fsspec.AbstractFileSystem` of a URL, and the URL's path in it. Raises `InputError`."""
    match = _URL.fullmatch(url)
    if match is None:
        raise InputError(f"{url}: expected a URL such as s3://bucket/name")
    protocol = match[1]
    package = _PACKAGES.get(protocol, protocol)
    try:
        import fsspec
    except ImportError:
        raise InputError(f"{url}: needs the packages fsspec and {package}: pip install fsspec {package}") from None
    options: dict[str, Any] = {}
    if protocol in ("s3", "s3a") and "config_kwargs" not in fsspec.config.conf.get("s3", {}):
        options["config_kwargs"] = _S3_CLIENT
    try:
        if package == "gcsfs":
            _prepare_gcsfs(fsspec)
        if package == "ossfs":
            oss.register()
            oss.check_settings(url, fsspec.config.conf.get("oss", {}))
        system, path = fsspec.url_to_fs(url, **options)
    except ImportError:
        raise InputError(f"{url}: needs the package {package}: pip install {package}") from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{url}: {_reason(error)}") from None
    except Exception as error:  # a client that reads its credentials when it is made
        raise InputError(f"{url}: {_reason(error)}{_CHECK_CREDENTIALS}") from None
    return system, str(path)


def _prepare_gcsfs(fsspec: Any) -> None:
    """Have gcsfs speak JSON alone. Else it asks by gRPC what kind of bucket it is, before each request, for a minute where
    no gRPC gets through (firewalls, emulators). And no tracebacks of errors that it also raises."""
    if "GCSFS_DEBUG" not in os.environ:
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    if os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false").lower() in ("true", "1"):
        return  # someone asked for it
    from gcsfs.core import GCSFileSystem

    for protocol in ("gs", "gcs"):  # it may have been loaded before the variable was set
        fsspec.register_implementation(protocol, GCSFileSystem, clobber=True)


@contextlib.contextmanager
def storage_errors(where: str, *, writes: bool = False) -> Iterator[None]:
    """What a store's client raises as one `TransientError`. `InputError` stays as it is, and `FileNotFoundError` does where
    nothing is written (there it means that there is no such bucket)."""
    try:
        yield
    except (FileExistsError, InputError):
        raise
    except FileNotFoundError as error:
        if writes:
            raise InputError(f"{where}: no such bucket ({_reason(error)}); make it, or choose another place") from None
        raise
    except Exception as error:
        if _is_refusal(error):
            raise InputError(f"{where}: {_reason(error)}{_CHECK_CREDENTIALS}") from None
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
            raise InputError(f"{where}: {_reason(error)}; set the store's credentials in the environment") from None
        raise TransientError(f"{where}: {_reason(error)}; the same command goes on when the store answers") from None


def _is_refusal(error: BaseException | None) -> bool:
    """Whether a store says that it doesn't know us, or that we may not: each client has its own way to say that."""
    if error is None:
        return False
    if isinstance(error, PermissionError) or str(error).startswith("Forbidden: "):  # the latter is gcsfs's
        return True
    response = getattr(error, "response", None)
    statuses = [getattr(error, name, None) for name in ("status", "code")] + [getattr(response, "status_code", None)]
    return any(str(status) in ("401", "403") for status in statuses) or _is_refusal(error.__cause__)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def listing(url: str) -> dict[str, dict[str, Any]]:
    """All files below `url`, by their names relative to it, with what the store says of each (`size` in bytes, …)."""
    system, path = file_system(url)
    system.invalidate_cache()
    with storage_errors(url):
        try:
            found = system.find(path, detail=True)
        except FileNotFoundError:
            return {}
    prefix = path.rstrip("/") + "/"
    return {name.removeprefix(prefix): entry for name, entry in found.items() if name.startswith(prefix)}


def version(entry: dict[str, Any]) -> str:
    """What changes when a file in a store changes, from its entry in a listing; empty where the store says nothing."""
    for key in _VERSION_KEYS:
        if entry.get(key):
            return str(entry[key]).strip('"')
    return ""


def read_bytes(url: str) -> bytes | None:
    """The content of a small file, or None if it isn't there."""
    system, path = file_system(url)
    with storage_errors(url):
        try:
            content: bytes = system.cat_file(path)
        except FileNotFoundError:
            return None
    return content


def exists(url: str) -> bool:
    """Whether there is such a file, as the store says it now. (`exists` of fsspec takes a store that is ill for a no.)"""
    system, path = file_system(url)
    with storage_errors(url):
        system.invalidate_cache()
        try:
            return bool(system.info(path)["type"] == "file")
        except FileNotFoundError:
            return False


def write_bytes(url: str, content: bytes) -> None:
    """Put a small file, in the place of an older one. Stores show it whole or not at all."""
    system, path = file_system(url)
    with storage_errors(url, writes=True):
        system.pipe_file(path, content)


def remove(url: str, *, recursive: bool = False) -> None:
    """Remove a file, or all files below `url`; nothing where nothing is."""
    system, path = file_system(url)
    with storage_errors(url), contextlib.suppress(FileNotFoundError):
        if recursive:
            if found := system.find(path):
                system.rm(found)
        else:
            system.rm_file(path)
    system.invalidate_cache()
