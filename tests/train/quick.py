"""What makes runs quick in the process that imports this: the server of forks, and each process of pytest.

A run ends with a full garbage collection: of what it left, and not of all that torch and transformers are. The template of
the model's card is compiled once. Nothing is flushed: there are many small files, and no power failure.
"""

from __future__ import annotations

import functools
import gc
import os

import jinja2

import train.generate
import train.run  # noqa: F401

jinja2.Template = functools.cache(jinja2.Template)  # type: ignore[assignment,misc]
os.fsync = lambda fd: None
gc.collect()
gc.freeze()
