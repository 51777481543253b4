"""`oss://` by the package ossfs, with what that leaves out: patience with a server that is ill, errors and versions in
listings, a word for a missing server."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

from shards.common.errors import InputError

# As long as the clients of other stores try.
_PAUSES = (1, 2, 4, 8, 16, 32)


def check_settings(url: str, configured: dict[str, Any]) -> None:
    """Raise `InputError` if no server is named: by the environment, or by fsspec's configuration."""
    if not os.environ.get("OSS_ENDPOINT") and not configured.get("endpoint"):
        raise InputError(f"{url}: no server is named; set OSS_ENDPOINT, e.g. https://oss-cn-hangzhou.aliyuncs.com")


@functools.cache
def register() -> None:
    """Have fsspec take the class below for `oss://`. Raises `ImportError`."""
    import fsspec
    import oss2
    import ossfs
    from ossfs.exceptions import translate_oss_error

    class _FileSystem(ossfs.OSSFileSystem):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            self._is_within = False
            super().__init__(**options)

        @classmethod
        def _strip_protocol(cls, path: Any) -> Any:
            if isinstance(path, list):
                return [cls._strip_protocol(one) for one in path]
            return super()._strip_protocol(path).lstrip("/")

        def _call_oss(self, *arguments: Any, **options: Any) -> Any:
            return self._again(super()._call_oss, *arguments, **options)

        def put_file(self, *arguments: Any, **options: Any) -> None:  # large files go past `_call_oss`
            self._again(super().put_file, *arguments, **options)

        def _again(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            """Call once more, after growing pauses, where the server answers by 500 and more. fsspec has an instance for
            each thread."""
            if self._is_within:  # what it is part of is done again
                return call(*arguments, **options)
            for pause in (*_PAUSES, None):
                self._is_within = True
                try:
                    return call(*arguments, **options)
                except Exception as error:
                    if pause is None or not _is_illness(error):
                        raise
                finally:
                    self._is_within = False
                time.sleep(pause)

        def find(self, path: str, *arguments: Any, **options: Any) -> Any:
            # It lists by `walk`, which else takes an error for an empty directory.
            return super().find(path, *arguments, **{"on_error": "raise", **options})

        def info(self, path: str, **options: Any) -> dict[str, Any]:
            """By one question, and not by a listing of the directory."""
            path = self._strip_protocol(path)
            bucket, key = self.split_path(path)
            if key:
                try:
                    found = self._call_oss("head_object", key, bucket=bucket)
                except FileNotFoundError:
                    pass
                else:
                    size = int(found.content_length)
                    return {"name": path, "size": size, "type": "file", "ETag": found.etag}
            entry: dict[str, Any] = super().info(path, **options)
            return entry

        def _ls_dir(self, path: str, delimiter: str = "/", prefix: str = "", **_options: Any) -> list[dict[str, Any]]:
            """Nothing is remembered, and what is refused isn't empty."""
            bucket, key = self.split_path(path.strip("/"))
            return list(self._again(self._list, bucket, f"{key}/{prefix}" if key else prefix, delimiter))

        def _list(self, bucket: str, prefix: str, delimiter: str) -> list[dict[str, Any]]:
            options = {"bucket": bucket, "prefix": prefix, "delimiter": delimiter, "max_keys": 1000}
            try:
                entries = list(self._call_oss("ObjectIterator", **options))
            except oss2.exceptions.OssError as error:
                raise translate_oss_error(error) from error
            return [self._transfer_object_info_to_dict(bucket, entry) for entry in entries]

        def rm(self, path: Any, *arguments: Any, **options: Any) -> None:
            """Lists by a thousand, and not one by one."""
            if not isinstance(path, list):
                super().rm(path, *arguments, **options)
                return
            for start in range(0, len(path), 1000):
                self._bulk_delete(path[start : start + 1000])

        def _transfer_object_info_to_dict(self, bucket: str, entry: Any) -> dict[str, Any]:
            return {**super()._transfer_object_info_to_dict(bucket, entry), "ETag": entry.etag}

    fsspec.register_implementation("oss", _FileSystem, clobber=True)


def _is_illness(error: BaseException) -> bool:
    """`oss2.exceptions.OssError.status`: that of the answer; -2: no answer, -3: bytes lost on the way."""
    status = getattr(error.__cause__, "status", None) or getattr(error, "status", None)
    return isinstance(status, int) and (status >= 500 or status in (-2, -3))
