"""What has to be set or installed before torch and transformers are imported, and memory that runs out. Imports neither."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import warnings
from collections.abc import Iterator

from shards.common.errors import InputError

_DEFAULTS = {
    # OpenMP's threads spin while they wait for each other, also for one that isn't running: a step of a small model took
    # 41 ms alone and 3,100 ms beside one busy process. With few spins before sleeping: 45 ms and 150 ms.
    "GOMP_SPINCOUNT": "2000",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_MININTERVAL": "1",
}
_IGNORED_WARNINGS = r".*(pin_memory|lr_scheduler\.step.*optimizer\.step|Grad strides do not match bucket view strides)"
_MEMORY_SIGNS = (
    "can't allocate memory|not enough memory|Storage size calculation overflowed|Cannot allocate memory|Overflow when|"
    "CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
)


def prepare_environment() -> None:
    """Threads that wait politely, no access to a hub, errors only. What the user has set in the environment stays."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", message=_IGNORED_WARNINGS)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    for name in ("torch.distributed", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def check_tracking(mode: str) -> None:
    """Raise `InputError` for a `tracking: mode` that was asked for by name and can't be had."""
    if mode not in ("auto", "disabled") and importlib.util.find_spec("swanlab") is None:
        raise InputError(
            f"tracking: mode: {mode}: swanlab is not installed; install it (pip install swanlab) or set auto"
        )
    if mode == "local" and importlib.util.find_spec("swanboard") is None:
        raise InputError("tracking: mode: local: needs the dashboard: pip install 'swanlab[dashboard]'; or set offline")


@contextlib.contextmanager
def out_of_memory(remedy: str) -> Iterator[None]:
    """What torch raises when a device or the machine has no more memory becomes an `InputError` with the `remedy`."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        if type(error).__name__ != "OutOfMemoryError" and not re.search(_MEMORY_SIGNS, str(error)):
            raise
        size = re.search(r"ried to allocate (\d[\d.]* \w+)", str(error))
        asked = f" ({size[1]} more were needed)" if size else ""
        raise InputError(f"out of memory{asked}: {remedy}") from None
