"""What has to be set before torch and transformers are imported. Imports neither."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import warnings

_DEFAULTS = {
    # OpenMP's threads spin while they wait for each other. On a machine that does something else too, the thread they
    # wait for isn't running, and a step of a small model takes 50 times as long (measured: 41 ms alone, 3,100 ms beside
    # one busy process). With few spins before sleeping: 45 ms and 150 ms.
    "GOMP_SPINCOUNT": "2000",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_MININTERVAL": "1",
}

_IGNORED_WARNINGS = (
    ".*pin_memory.*",
    ".*lr_scheduler.step.*optimizer.step.*",
    ".*Grad strides do not match bucket view strides.*",
)


def prepare_environment() -> None:
    """Threads that wait politely, no access to a hub, errors only. What the user has set in the environment stays."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    for message in _IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    for name in ("torch.distributed", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def release_memory_at_once() -> None:
    """Let glibc give memory of 1 MiB and more back to the system when it is freed, where else it keeps hundreds of MB.

    That costs the kernel some time for fresh pages (measured: 5 % with a vocabulary of 151,646 on a CPU, and 0.25 GB of 2.4
    less), so it is for models whose memory is what limits them. Other C libraries are left as they are.
    """
    threshold_option = -3  # M_MMAP_THRESHOLD in malloc.h; setting it also stops glibc from raising it by itself
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(threshold_option, 1 << 20)
