"""Text from a saved model: load it with the Auto classes, continue prompts.

The texts depend on the model, the prompts, the settings and their seed alone: the same call gives the same texts. The
random state of the process stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.generation.streamers import BaseStreamer

from shards.common.errors import InputError
from shards.common.text import printable, visible
from train.model import generation_options
from train.settings import BATCH_SEQUENCES, GenerationSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuation:
    """What a model wrote after a prompt."""

    prompt: str
    text: str
    num_tokens: int  # without EOS
    ended: bool  # by EOS; else it has as many tokens as were allowed

    def __str__(self) -> str:
        """The text as a reader sees it, the prompt in 【】."""
        return f"【{visible(self.prompt)}】{visible(self.text)}".rstrip()


class NonFiniteError(InputError):
    """A model's outputs are nan or inf, so no token can be chosen."""


def load_model(directory: Path, kind: Any = AutoModelForCausalLM) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model (of a class `kind`) and tokenizer in `directory`, ready to generate on the best device. No download."""
    try:
        model = kind.from_pretrained(directory, local_files_only=True, use_safetensors=True, trust_remote_code=False)
        tokenizer = load_tokenizer(directory)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # transformers raises whatever a field of another kind brings about
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{directory}: the model can't be loaded: {reason}") from None
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return model.eval().to(device or "cpu"), tokenizer


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `directory`. AutoTokenizer would split text as Qwen2 does, whatever `tokenizer.json` says."""
    return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)


def continue_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: GenerationSettings,
    *,
    num_samples: int = 1,
    batch_sequences: int = BATCH_SEQUENCES,
    streamer: BaseStreamer | None = None,
) -> Iterator[Continuation]:
    """For each prompt of `settings` its `num_samples` continuations, `batch_sequences` at a time (1 with a `streamer`).

    Raises `InputError` for a prompt without tokens, or with ids that the model doesn't have, and `NonFiniteError`.
    """
    config, num_ids = model.generation_config, model.config.vocab_size
    ends = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    eos_ids = set(ends if isinstance(ends, list) else [ends]) - {None}
    padding = min(eos_ids, default=0)  # masked before a prompt, cut off after a text
    # As documents begin in the training data; many published models name EOS here, and were trained without.
    begin = [first for first in [config.bos_token_id] if first in range(num_ids) and first not in eos_ids]
    beyond = range(len(tokenizer), num_ids)  # ids that only round the matrix up
    options = {
        **generation_options(settings),
        "eos_token_id": sorted(eos_ids) or None,
        "pad_token_id": padding,
        "suppress_tokens": sorted({*(config.suppress_tokens or ()), *beyond}) or None,
        "logits_processor": LogitsProcessorList([RefuseNonFinite()]),
        "use_cache": True,
        "streamer": streamer,
    }
    wanted = [
        (prompt, begin + ids_of(tokenizer, prompt, num_ids)) for prompt in settings.prompts for _ in range(num_samples)
    ]
    size = 1 if streamer else batch_sequences
    for start in range(0, len(wanted), size):
        batch = wanted[start : start + size]
        width = max(len(ids) for _, ids in batch)
        inputs = torch.tensor([[padding] * (width - len(ids)) + ids for _, ids in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for _, ids in batch], device=model.device)
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed((settings.seed + start) % 2**63)
            output = model.generate(input_ids=inputs, attention_mask=mask, **options)
        for (prompt, _), row in zip(batch, output[:, width:].tolist(), strict=True):
            length = next((place for place, token in enumerate(row) if token in eos_ids), len(row))
            text = tokenizer.decode(row[:length], skip_special_tokens=True)
            yield Continuation(prompt=prompt, text=text, num_tokens=length, ended=length < len(row))


def ids_of(tokenizer: PreTrainedTokenizerBase, prompt: str, num_ids: int) -> list[int]:
    """The prompt's token ids, all of them below `num_ids`."""
    try:
        ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    except TypeError:
        raise InputError(f"generation: the prompt '{printable(prompt)}' isn't text in UTF-8") from None
    if not ids:
        raise InputError(f"generation: the prompt '{printable(prompt)}' has no tokens")
    if max(ids) >= num_ids:
        raise InputError(
            f"generation: the prompt '{printable(prompt)}' has the token id {max(ids):,}, the model has {num_ids:,} ids; "
            "is the tokenizer beside it its own?"
        )
    return ids


class RefuseNonFinite(LogitsProcessor):  # type: ignore[misc]
    """Raises `NonFiniteError` where nothing can be drawn; a GPU's sampling would end the process."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if (scores.isnan() | scores.isposinf()).any():
            raise NonFiniteError("the model's outputs are non-finite (nan or inf): its training has diverged")
        return scores
