"""From the records of a batch to its documents: the text of each, and which of those are left out, and why.

What is left out is counted by reason, and the first of each reason are kept as examples.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from pipeline.fields import TextOf
from pipeline.readers.base import Batch, ReadOptions
from pipeline.repetition import repetition
from pipeline.settings import BuildSettings
from pipeline.transform import Transform
from shards.common.text import plural
from shards.layout import EXAMPLE_CHARS
from shards.manifest import EMPTY, NULL

DROPPED = "dropped by the transform"
EXAMPLES_PER_UNIT = 3  # of each reason


class LeftOut:
    """What a unit left out.

    Each record is one document, or left out once, or rejected; where a transform makes several texts of a record,
    `num_added` counts those beyond the first: records + added = documents + left out + rejected.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}  # the first of each reason, their beginnings
        self.num_added = 0

    def add(self, reason: str, value: Any) -> None:
        """`value` is the text, or the record."""
        self.counts[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES_PER_UNIT:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            examples.append(text[:EXAMPLE_CHARS])


class Cleaner:
    """Makes documents of records as the settings say, and adds to `left_out` what becomes none."""

    def __init__(self, settings: BuildSettings, transform: Transform | None, left_out: LeftOut) -> None:
        self._text_of = TextOf(settings.text_field, settings.template)
        self._transform, self._left_out = transform, left_out
        self._min_chars, self._drops_repetitive = settings.min_chars, settings.drop_repetitive

    def documents(self, batch: Batch, options: ReadOptions) -> list[str]:
        """None of them is empty; bad records are reported."""
        transform = self._transform
        texts = self._transformed(transform, batch, options) if transform else self._text_of.texts(batch, options)
        documents = [text for text in texts if text]
        if len(documents) < len(texts):
            self._left_out.counts.update({EMPTY: texts.count(""), NULL: texts.count(None)})
        if self._min_chars or self._drops_repetitive:
            documents = [text for text in documents if self._is_kept(text)]
        return documents

    def _transformed(self, transform: Transform, batch: Batch, options: ReadOptions) -> list[str | None]:
        texts: list[str | None] = []
        for record, own in transform.texts(batch, options):
            if own:
                texts += own
                self._left_out.num_added += len(own) - 1
            else:
                self._left_out.add(DROPPED, record)
        return texts

    def _is_kept(self, text: str) -> bool:
        reason = ""
        if len(text) < self._min_chars:
            reason = f"shorter than {plural(self._min_chars, 'character')}"
        elif self._drops_repetitive:
            reason = repetition(text)
        if reason:
            self._left_out.add(reason, text)
        return not reason


def needed_columns(settings: BuildSettings) -> tuple[str, ...] | None:
    """The top-level fields that are read; None for all, which a transform may need."""
    return None if settings.transform else TextOf(settings.text_field, settings.template).columns
