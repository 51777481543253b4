"""Text from a saved model: load it with the Auto classes, continue prompts.

The texts depend on the model, the prompts, the settings and their seed alone: the same call gives the same texts. The
random state of the process stays as it is, and so does a model that is being trained.
"""

from __future__ import annotations

import dataclasses
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
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.generation.streamers import BaseStreamer

from shards.common.command_line import say
from shards.common.errors import InputError
from shards.common.text import printable
from train.run_directory import append_lines
from train.settings import GenerationSettings

BATCH_SEQUENCES = 8
MAX_NEW_TOKENS = 64  # of a sample during training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuation:
    """What a model wrote after a prompt."""

    prompt: str
    text: str
    num_tokens: int  # without EOS
    ended: bool  # by EOS; else it has as many tokens as were allowed


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
    """The tokenizer in `directory`, as any program loads it."""
    return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


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
    for prompt in settings.prompts:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if not ids:
            raise InputError(f"generation: the prompt {printable(prompt)!r} has no tokens")
        if max(ids) >= model.config.vocab_size:
            raise InputError(
                f"generation: the prompt {printable(prompt)!r} has the token id {max(ids):,}, the model has "
                f"{model.config.vocab_size:,} ids; is the tokenizer beside it its own?"
            )
    wanted = [prompt for prompt in settings.prompts for _ in range(num_samples)]
    size = 1 if streamer else batch_sequences
    for start in range(0, len(wanted), size):
        batch = wanted[start : start + size]
        rows = generate(model, tokenizer, batch, settings, seed=settings.seed + start, streamer=streamer)
        for prompt, (row, ended) in zip(batch, rows, strict=True):
            text = tokenizer.decode(row, skip_special_tokens=True)
            yield Continuation(prompt=prompt, text=text, num_tokens=len(row), ended=ended)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    settings: GenerationSettings,
    *,
    seed: int,
    streamer: BaseStreamer | None = None,
) -> list[tuple[list[int], bool]]:
    """For each prompt the ids that follow it, EOS left out, and whether EOS ended them."""
    config, sampling = model.generation_config, settings.temperature > 0
    ends = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    eos_ids = set(ends if isinstance(ends, list) else [ends]) - {None}
    padding = next((n for n in (config.pad_token_id, tokenizer.pad_token_id, *sorted(eos_ids)) if n is not None), 0)
    encoded = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    width = max(map(len, encoded))
    beyond = range(len(tokenizer), model.config.vocab_size)  # ids that only round the matrix up
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed % 2**63)
        output = model.generate(
            input_ids=_tensor([[padding] * (width - len(ids)) + ids for ids in encoded], model),
            attention_mask=_tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in encoded], model),
            max_new_tokens=settings.max_new_tokens,
            do_sample=sampling,
            temperature=settings.temperature if sampling else None,
            top_p=settings.top_p if sampling else None,
            top_k=settings.top_k if sampling else None,
            repetition_penalty=settings.repetition_penalty,
            eos_token_id=sorted(eos_ids) or None,
            pad_token_id=padding,
            suppress_tokens=sorted({*(config.suppress_tokens or ()), *beyond}) or None,
            logits_processor=LogitsProcessorList([RefuseNonFinite()]),
            use_cache=True,
            streamer=streamer,
        )
    return [_until_end(row, eos_ids) for row in output[:, width:].tolist()]


def _tensor(rows: list[list[int]], model: PreTrainedModel) -> Tensor:
    return torch.tensor(rows, device=model.device)


def _until_end(row: list[int], eos_ids: set[int]) -> tuple[list[int], bool]:
    length = next((place for place, token in enumerate(row) if token in eos_ids), None)
    return row[:length], length is not None


class RefuseNonFinite(LogitsProcessor):  # type: ignore[misc]
    """Raises `NonFiniteError` where nothing can be drawn; a GPU's sampling would end the process."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if (scores.isnan() | scores.isposinf()).any():
            raise NonFiniteError("the model's outputs are non-finite (nan or inf): its training has diverged")
        return scores


class SamplesAtEvaluation(TrainerCallback):  # type: ignore[misc]
    """Continues the prompts at each evaluation before the last step, kept in a file. For the first process only.

    What the model wrote at its end comes from the saved model. A failure ends the samples, never the training.
    """

    def __init__(
        self,
        path: Path,
        settings: GenerationSettings,
        tokenizer: PreTrainedTokenizerBase,
        *,
        on_samples: Callable[[Sequence[Continuation], int], None],
    ) -> None:
        self._path, self._tokenizer, self._on_samples = path, tokenizer, on_samples
        self._settings = dataclasses.replace(settings, max_new_tokens=min(settings.max_new_tokens, MAX_NEW_TOKENS))
        self._failed = False

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        step = state.global_step
        if step >= state.max_steps or self._failed:
            return
        modes = [(module, module.training) for module in model.modules()]
        try:
            model.eval()
            samples = list(continue_prompts(model, self._tokenizer, self._settings))
            append_lines(self._path, sample_records(samples, step, self._settings))
            self._on_samples(samples, step)
        except Exception as error:
            self._failed = True
            reason = (str(error) or type(error).__name__).splitlines()[0]
            say(f"no samples from step {step:,} on: {printable(reason)}")
        finally:
            for module, training in modes:
                module.training = training


def sample_records(samples: Sequence[Continuation], step: int, settings: GenerationSettings) -> list[dict[str, Any]]:
    """For `samples.jsonl`: what was written, and how."""
    how = {name: getattr(settings, name) for name in ("temperature", "top_p", "top_k", "seed")}
    return [{"step": step, **dataclasses.asdict(sample), **how} for sample in samples]
