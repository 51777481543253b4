"""Text from a saved model: load it with the Auto classes, continue prompts.

A continuation depends on the model, its prompt, the settings and its seed alone: prompts that are continued together, in
a batch filled up on the left, are continued as each would be alone (up to rounding, which can decide between two tokens
that are equally likely). Each sequence has a random generator of its own; the random state of the process isn't touched.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from shards.common.errors import InputError
from shards.common.text import printable, visible
from train.settings import GenerationSettings

BATCH_SEQUENCES = 8
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuation:
    """What a model wrote behind a prompt."""

    prompt: str
    text: str
    seed: int  # this text again: the same settings with this seed
    num_tokens: int  # without EOS
    ended: bool  # by EOS; else it has as many tokens as were allowed


class NoNumbersError(InputError):
    """A model's outputs are no numbers, so no token can be chosen."""


def load_model(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer in `directory`, ready to generate on the best device. Nothing is downloaded."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
        tokenizer = load_tokenizer(directory)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # transformers raises whatever a field of another kind brings about
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{directory}: the model can't be loaded: {reason}") from None
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return model.eval().to(device or "cpu"), tokenizer


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `directory`, as any program loads it."""
    return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def continue_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: GenerationSettings,
    *,
    num_samples: int = 1,
    batch_sequences: int = BATCH_SEQUENCES,
    on_text: Callable[[str, str], None] | None = None,
) -> Iterator[Continuation]:
    """For each prompt of `settings` its `num_samples` continuations, the first with `settings.seed`, then seed + 1 ….

    `batch_sequences` are generated at a time. `on_text(prompt, piece)` is called with each piece of text as it comes,
    first with an empty one; then they are generated one by one. Raises `InputError` for a prompt without tokens, or with
    ids that the model doesn't have, and `NoNumbersError`.
    """
    encoded = [(prompt, encode(tokenizer, prompt)) for prompt in settings.prompts]
    num_ids = model.config.vocab_size
    for prompt, ids in encoded:
        if max(ids) >= num_ids:
            raise InputError(
                f"generation: the prompt {printable(prompt)!r} has the token id {max(ids):,}, the model has {num_ids:,} "
                "ids; is the tokenizer beside it its own?"
            )
    wanted = [(prompt, ids, settings.seed + number) for prompt, ids in encoded for number in range(num_samples)]
    size = 1 if on_text else batch_sequences
    for batch in (wanted[start : start + size] for start in range(0, len(wanted), size)):
        stream = None
        if on_text:
            on_text(batch[0][0], "")
            stream = TextStream(tokenizer, functools.partial(on_text, batch[0][0]))
        rows = generate(
            model,
            tokenizer,
            [ids for _, ids, _ in batch],
            seeds=[seed for _, _, seed in batch],
            settings=settings,
            stream=stream,
        )
        for (prompt, _, seed), (row, ended) in zip(batch, rows, strict=True):
            text = tokenizer.decode(row, skip_special_tokens=True)
            yield Continuation(prompt=prompt, text=text, seed=seed, num_tokens=len(row), ended=ended)


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The ids of a prompt. Raises `InputError` if there are none."""
    ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if not ids:
        raise InputError(f"generation: the prompt {printable(prompt)!r} has no tokens")
    return ids


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    seeds: Sequence[int],
    settings: GenerationSettings,
    stream: BaseStreamer | None = None,
) -> list[tuple[list[int], bool]]:
    """For each prompt the ids that follow it, EOS left out, and whether EOS ended them. A seed for each prompt."""
    config = model.generation_config
    ends = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    eos_ids = set(ends if isinstance(ends, list) else [ends]) - {None}
    filling = next((n for n in (config.pad_token_id, tokenizer.pad_token_id, *sorted(eos_ids)) if n is not None), 0)
    width = max(map(len, prompts))
    ids = torch.tensor([[filling] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    choices: list[LogitsProcessor] = [RefuseNoNumbers()]
    if settings.temperature > 0:
        choices.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_k:
            choices.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            choices.append(TopPLogitsWarper(settings.top_p))
        choices.append(SampleRows(seeds, model.device))
    beyond = range(len(tokenizer), model.config.vocab_size)  # ids that only round the matrix up
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,  # `SampleRows` leaves one choice
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=settings.repetition_penalty,
            eos_token_id=sorted(eos_ids) or None,
            pad_token_id=filling,
            suppress_tokens=sorted({*(config.suppress_tokens or ()), *beyond}) or None,
            logits_processor=LogitsProcessorList(choices),
            use_cache=True,  # whatever the model's configuration says, where the Trainer turns it off
            streamer=stream,
        )
    return [_until_end(row, eos_ids) for row in output[:, width:].tolist()]


def _until_end(row: list[int], eos_ids: set[int]) -> tuple[list[int], bool]:
    for place, token in enumerate(row):
        if token in eos_ids:
            return row[:place], True
    return row, False


class RefuseNoNumbers(LogitsProcessor):  # type: ignore[misc]
    """Raises `NoNumbersError` where nothing can be drawn; a GPU's sampling would end the process."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if (scores.isnan() | scores.isposinf()).any():
            raise NoNumbersError("the model's outputs are no numbers (nan or inf): its training has diverged")
        return scores


class SampleRows(LogitsProcessor):  # type: ignore[misc]
    """Draws each row's token with that row's own generator: no row depends on its neighbours.

    Row `n` draws what `model.generate(…, do_sample=True)` would after `torch.manual_seed(seeds[n])`. To be last.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` `(rows, vocabulary)` with minus infinity for all but the drawn token of each row."""
        shares = scores.softmax(dim=-1)
        rows = zip(shares, self._generators, strict=True)
        drawn = torch.stack([torch.multinomial(row, 1, generator=generator) for row, generator in rows])
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


class TextStream(BaseStreamer):  # type: ignore[misc]
    """Gives on text as tokens come, whole characters only: a byte-level token may be a part of one.

    All pieces together are the text of all tokens. For one sequence at a time; the prompt is left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._prompt_seen = False
        self._ids: list[int] = []
        self._start, self._num_shown = 0, 0  # characters of the text from token `_start` on that were given on

    def put(self, value: Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token in value.flatten().tolist():
            self._add(token)

    def end(self) -> None:
        self._give(self._text(self._start))  # a character that was never completed
        self._prompt_seen, self._ids, self._start, self._num_shown = False, [], 0, 0

    def _text(self, start: int) -> str:
        text: str = self._tokenizer.decode(self._ids[start:], skip_special_tokens=True)
        return text

    def _add(self, token: int) -> None:
        self._ids.append(token)
        text = self._text(self._start)
        self._give(text.removesuffix(UNKNOWN))
        if not text.endswith(UNKNOWN):
            # The last token stays as the context of the next: some decoders drop a space where a text begins.
            whole = self._text(len(self._ids) - 1)
            if not whole.startswith(UNKNOWN):
                self._start, self._num_shown = len(self._ids) - 1, len(whole)

    def _give(self, text: str) -> None:
        piece = text[self._num_shown :]
        self._num_shown = max(self._num_shown, len(text))
        if piece:
            self._on_text(piece)


def printable_sample(sample: Continuation) -> str:
    """The text as a reader sees it, the prompt in 【】."""
    return f"【{visible(sample.prompt)}】{visible(sample.text)}".rstrip()


def sample_records(samples: Sequence[Continuation], step: int, settings: GenerationSettings) -> list[dict[str, Any]]:
    """For `samples.jsonl`: what was written, and how to get it again."""
    how = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
    return [{"step": step, **dataclasses.asdict(sample), **how} for sample in samples]
