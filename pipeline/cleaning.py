"""From the records of a batch to its documents: the text of each, and which are left out, and why."""

from __future__ import annotations

from pipeline.fields import TextOf
from pipeline.readers.base import Batch, ReadOptions
from pipeline.receipts import Receipt
from pipeline.repetition import repetition
from pipeline.settings import BuildSettings
from pipeline.transform import Transform
from shards.common.text import plural
from shards.manifest import EMPTY, NULL

DROPPED = "dropped by the transform"


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
        texts: list[str | None] = []
        for record, own in transform.texts(batch, options):
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
