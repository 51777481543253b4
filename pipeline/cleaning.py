"""From the records of a batch to its documents: the text of each, and which are left out, and why.

With `--transform FILE.py[:NAME]` a function of the user's makes the documents of a record. It gets the record as the reader
has it, and returns its text, a list of texts, or None for a record to leave out. The file is code: it is run because the
user named it, and for no other reason. Plan and manifest record its name and digest; its source goes to the workers with
the build's decisions.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import re
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blake3 import blake3

from pipeline.fields import TextOf
from pipeline.readers.base import TRANSFORM_FAILED, BadRecord, Batch, ReadOptions
from pipeline.receipts import Receipt
from pipeline.repetition import repetition
from pipeline.settings import BuildSettings
from shards.common.errors import InputError, nearest_path
from shards.common.text import nearest, plural, printable
from shards.manifest import EMPTY, NULL

DROPPED = "dropped by the transform"
_MODULE = "transform_of_the_user"
_MAX_MESSAGE_CHARS = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
    """A function in a file's source, which names no place on a machine."""

    file_name: str
    function: str
    source: bytes

    def __str__(self) -> str:
        """What is recorded: `clean.py:transform`, and the file's digest."""
        return f"{self.file_name}:{self.function} (BLAKE3 {blake3(self.source).hexdigest()})"

    def compile(self) -> types.CodeType:
        """The file as code, of which nothing is run. Raises `InputError`."""
        try:
            return compile(self.source, self.file_name, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError) as error:
            raise InputError(f"transform {self.describe(error)}") from None

    def describe(self, error: BaseException) -> str:
        """An exception of the function's in a line: `clean.py, line 3: KeyError: 'title'`."""
        frames = traceback.walk_tb(error.__traceback__)
        lines = [line for frame, line in frames if frame.f_code.co_filename == self.file_name]
        message = str(error)
        if isinstance(error, SyntaxError) and not lines:  # in the file itself
            lines, message = [error.lineno or 1], error.msg
        message = " ".join(message.split())[:_MAX_MESSAGE_CHARS]
        place = f"{self.file_name}, line {lines[-1]}" if lines else f"{self.file_name}:{self.function}"
        return f"{place}: {type(error).__name__}" + (f": {message}" if message else "")


def read_transform(value: str) -> Transform:
    """The function that `FILE.py` or `FILE.py:NAME` names. Raises `InputError`."""
    match = re.fullmatch(r"(?P<path>.+\.py)(:(?P<name>\w+))?", value)
    if match is None:
        raise InputError(f"transform: expected FILE.py or FILE.py:NAME, found {value!r}")
    path = Path(match["path"])
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"transform {path}: no such file{nearest_path(path)}") from None
    except IsADirectoryError:
        raise InputError(f"transform {path}: expected a Python file, found a directory") from None
    transform = Transform(file_name=printable(path.name), function=match["name"] or "transform", source=source)
    transform.compile()
    return transform


@functools.lru_cache(maxsize=1)
def load(transform: Transform) -> Callable[[Any], Any]:
    """Run the file, in a worker, once: its function. Raises `InputError` where that fails, or it has no such function."""
    code = transform.compile()
    gc.enable()  # what the user's code makes may hold cycles
    module = sys.modules[_MODULE] = types.ModuleType(_MODULE)  # where dataclasses look for it
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        raise InputError(f"transform {transform.describe(error)}") from None
    function = getattr(module, transform.function, None)
    if not callable(function):
        known = [name for name, value in vars(module).items() if callable(value)]
        hint = nearest(transform.function, known)
        raise InputError(f"transform {transform.file_name}: has no function {transform.function!r}{hint}")
    return function  # type: ignore[no-any-return]


def _as_list(result: Any) -> list[str]:
    """Raises `TypeError` for what is neither a string, nor a list of strings, nor None; `ValueError` for no text."""
    texts = [] if result is None else result if isinstance(result, list) else [result]
    for text in texts:
        if not isinstance(text, str):
            kind = type(text).__name__ if texts is not result else f"a list with {type(text).__name__}"
            raise TypeError(f"expected a string, a list of strings or None, the function returned {kind}")
    "".join(texts).encode()  # a lone surrogate is no text
    return texts


class Cleaner:
    """Makes documents of records as the settings say, and notes in the receipt what becomes none."""

    def __init__(self, settings: BuildSettings, transform: Transform | None, receipt: Receipt) -> None:
        self._text_of = TextOf(settings.text_field, settings.template)
        self._transform, self._receipt = transform, receipt
        self._min_chars, self._drops_repetitive = settings.min_chars, settings.drop_repetitive

    def documents(self, batch: Batch, options: ReadOptions) -> list[str]:
        """None of them is empty; bad records are reported."""
        transform = self._transform
        texts = self._transformed(transform, batch, options) if transform else self._text_of.texts(batch, options)
        documents = [text for text in texts if text]
        if len(documents) < len(texts):
            self._receipt.left_out.update({EMPTY: texts.count(""), NULL: texts.count(None)})
        if self._min_chars or self._drops_repetitive:
            documents = [text for text in documents if self._is_kept(text)]
        return documents

    def _transformed(self, transform: Transform, batch: Batch, options: ReadOptions) -> list[str | None]:
        function, texts = load(transform), list[str | None]()
        for number, record in enumerate(batch.values):
            try:
                own = _as_list(function(record))
            except MemoryError:
                raise
            except BaseException as error:  # what Rust panics with isn't an `Exception`
                offset, content = batch.place(number)
                options.on_bad(BadRecord(offset, TRANSFORM_FAILED, transform.describe(error), content))
                continue
            if own:
                texts += own
                self._receipt.num_added += len(own) - 1
            else:
                self._receipt.leave_out(DROPPED, record)
        return texts

    def _is_kept(self, text: str) -> bool:
        if len(text) < self._min_chars:
            reason = f"shorter than {plural(self._min_chars, 'character')}"
        else:
            reason = repetition(text) if self._drops_repetitive else ""
        if reason:
            self._receipt.leave_out(reason, text)
        return not reason


def needed_columns(settings: BuildSettings) -> tuple[str, ...] | None:
    """The top-level fields that are read; None for all, which a transform may need."""
    return None if settings.transform else TextOf(settings.text_field, settings.template).columns
