"""Files at URLs (`s3://`, `gs://`, `oss://`, `hf://`, …), all by the package fsspec, which is loaded when one is used.

Account and server come from the environment, as the clients of those object stores read it (`AWS_ACCESS_KEY_ID`,
`AWS_ENDPOINT_URL`, …), or from fsspec's own configuration (`FSSPEC_S3_KEY`, …). `oss://` is S3 as Alibaba Cloud speaks it:
s3fs with the server `OSS_ENDPOINT` and the account `OSS_ACCESS_KEY_ID`, `OSS_ACCESS_KEY_SECRET`.

Errors are those of `shards.common.server_errors`.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from shards.common.errors import InputError
from shards.common.server_errors import root_reason, server_errors

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://.+")
# What a listing calls the version; first those that say what is in a file: the same bytes put twice are the same version.
_VERSION_KEYS = ("md5Hash", "ETag", "etag", "blob_id", "LastModified", "last_modified", "updated", "mtime", "created")
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "oss": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_REQUESTS_AT_ONCE = 32
# A server that answers 500, or hangs up, is asked again for two minutes or so, with growing pauses; a silent one for nine.
_S3_CLIENT: dict[str, Any] = {
    "retries": {"mode": "standard", "max_attempts": 10},
    "connect_timeout": 20,
    "read_timeout": 20,
}
_S3_TRIES = 2  # of all that by s3fs, which begins it anew up to 25 times by itself: an answer may break off
# OSS serves no bucket as a path, and refuses the checksums that S3's client adds to what it sends.
_OSS_CLIENT = _S3_CLIENT | {
    "s3": {"addressing_style": "virtual"},
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_url(name: str) -> bool:
    """Whether `name` is a URL rather than a path."""
    return _URL.fullmatch(name) is not None


def join(url: str, *names: str) -> str:
    """`s3://bucket/set` and `train-00000.bin` as one URL."""
    return "/".join([url.rstrip("/"), *names])


def file_system(url: str) -> tuple[Any, str]:
    """The `fsspec.AbstractFileSystem` of a URL, and the URL's path in it. Raises `InputError`."""
    match = _URL.fullmatch(url)
    if match is None:
        raise InputError(f"{url}: expected a URL such as s3://bucket/name")
    import fsspec

    protocol = match[1]
    package = _PACKAGES.get(protocol, protocol)
    if package == "gcsfs":
        # JSON alone: by gRPC it also asks what kind of bucket it has, a minute each time where no gRPC gets through.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs tracebacks of the errors that it raises
    try:
        system, path = fsspec.url_to_fs(url, **_options(url, protocol, fsspec.config.conf.get(protocol, {})))
    except ImportError:
        raise InputError(f"{url}: needs the package {package}: pip install {package}") from None
    except InputError:
        raise
    except Exception as error:  # no such protocol, or a client that reads its credentials when it is made
        cure = "" if isinstance(error, ValueError) else "; check the credentials in the environment"
        raise InputError(f"{url}: {root_reason(error)}{cure}") from None
    if package == "s3fs":
        system.retries = _S3_TRIES
    return system, str(path)


def _options(url: str, protocol: str, configured: dict[str, Any]) -> dict[str, Any]:
    """How the file system is made, as far as fsspec's own configuration leaves it open."""
    options: dict[str, Any] = {}
    if protocol in ("file", "local"):
        options["auto_mkdir"] = True  # as object stores, where names have slashes and there are no directories to make
    if protocol in ("s3", "s3a"):
        options["config_kwargs"] = _S3_CLIENT
    if protocol == "oss":
        _register_oss()
        names = {"endpoint_url": "OSS_ENDPOINT", "key": "OSS_ACCESS_KEY_ID", "secret": "OSS_ACCESS_KEY_SECRET"}
        options = {name: os.environ[variable] for name, variable in names.items() if os.environ.get(variable)}
        options["config_kwargs"] = _OSS_CLIENT
        endpoint = configured.get("endpoint_url", options.get("endpoint_url", ""))
        if not endpoint:
            raise InputError(f"{url}: no server is named; set OSS_ENDPOINT, e.g. https://oss-cn-hangzhou.aliyuncs.com")
        if region := re.search(r"oss-([a-z0-9-]+?)(?:-internal)?\.aliyuncs\.com", endpoint):
            options["client_kwargs"] = {"region_name": region[1]}
    return {name: value for name, value in options.items() if name not in configured}


@functools.cache
def _register_oss() -> None:
    """Have fsspec take `oss://` for s3fs. Raises `ImportError`."""
    import fsspec
    from s3fs import S3FileSystem

    implementation = type("OSSFileSystem", (S3FileSystem,), {"protocol": "oss"})
    fsspec.register_implementation("oss", implementation, clobber=True)


def listing(url: str) -> dict[str, dict[str, Any]]:
    """All files below `url`, by their names relative to it, with what the server says of each (`size` in bytes, …)."""
    system, path = file_system(url)
    system.invalidate_cache()
    with server_errors(url):
        try:
            found = system.find(path, detail=True)
        except FileNotFoundError:
            return {}
    prefix = path.rstrip("/") + "/"
    return {name.removeprefix(prefix): entry for name, entry in found.items() if name.startswith(prefix)}


def version(entry: dict[str, Any]) -> str:
    """What changes when a file changes, from its entry in a listing; empty where the server says nothing."""
    for key in _VERSION_KEYS:
        if value := entry.get(key):  # a time may be a number in a listing and not in an answer about one file
            return str(value.timestamp() if isinstance(value, datetime.datetime) else value).strip('"')
    return ""


def read_bytes(url: str) -> bytes | None:
    """The content of a small file, or None if it isn't there."""
    system, path = file_system(url)
    with server_errors(url):
        system.invalidate_cache()  # s3fs believes a listing of before, in which a file of another process isn't
        try:
            content: bytes = system.cat_file(path)
        except FileNotFoundError:
            return None
    return content


def write_bytes(url: str, content: bytes) -> None:
    """Put a small file, replacing an older one. Object stores show it whole or not at all."""
    system, path = file_system(url)
    with server_errors(url, writes=True):
        system.pipe_file(path, content)


def remove(*urls: str) -> None:
    """Remove the files at `urls`, several at a time. One that isn't there is no error."""

    def remove_one(url: str) -> None:
        system, path = file_system(url)
        with server_errors(url), contextlib.suppress(FileNotFoundError):
            system.rm_file(path)  # not many by one request: OSS refuses that of S3's client

    in_parallel(remove_one, urls)


def in_parallel(
    function: Callable[[Item], Result], items: Iterable[Item], at_once: int = _REQUESTS_AT_ONCE
) -> list[Result]:
    """`function` of each item, in order, many at once: for what a server takes its time to answer."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(function, items))
