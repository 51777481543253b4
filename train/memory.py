"""Memory that ran out, as one line with a remedy. Imports no torch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from shards.common.errors import InputError

_SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "Storage size calculation overflowed",
    "Cannot allocate memory",  # safetensors
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


@contextlib.contextmanager
def out_of_memory(remedy: str | Callable[[], str]) -> Iterator[None]:
    """What torch raises when a device or the machine has no more memory becomes an `InputError` with the `remedy`."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" and not any(sign in str(error) for sign in _SIGNS):
            raise
        size = re.search(r"ried to allocate (\d[\d.]* \w+)", str(error))
        asked = f" ({size[1]} more were needed)" if size else ""
        raise InputError(f"out of memory{asked}: {remedy if isinstance(remedy, str) else remedy()}") from None
