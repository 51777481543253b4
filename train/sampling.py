"""Text from a saved model: load it with the Auto classes, continue prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from shards.errors import InputError
from train.settings import GenerationSettings


def load_model(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer in `directory`, ready to generate on the best device. Nothing is downloaded."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{directory}: the model can't be loaded: {reason}") from None
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return model.eval().to(device or "cpu"), tokenizer


def continue_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: GenerationSettings
) -> Iterator[tuple[str, str]]:
    """For each prompt: the prompt and its continuation.

    The same prompt gives the same text for the same settings, whatever other prompts stand beside it. The random
    state of the process is left as it was.
    """
    sampling = settings.temperature > 0
    for prompt in settings.prompts:
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        ids = inputs["input_ids"].to(model.device)
        if ids.shape[1] == 0:
            raise InputError(f"generation: the prompt {prompt!r} has no tokens")
        with _seeded(settings.seed, model.device), torch.no_grad():
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=settings.max_new_tokens,
                do_sample=sampling,
                temperature=settings.temperature if sampling else None,
                top_p=settings.top_p if sampling else None,
                top_k=settings.top_k if sampling else None,
                repetition_penalty=settings.repetition_penalty,
            )
        yield prompt, tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def printable_sample(prompt: str, continuation: str) -> str:
    """The text as a reader sees it, the prompt in 【】, without control characters."""
    text = "".join(c for c in continuation if c.isprintable() or c == "\n").rstrip()
    return f"【{prompt}】{text}"


def sample_records(
    samples: Sequence[tuple[str, str]], step: int, settings: GenerationSettings
) -> list[dict[str, object]]:
    """For `samples.jsonl`: what was written, and how to get it again."""
    how = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "seed": settings.seed,
    }
    return [{"step": step, "prompt": prompt, "text": text, **how} for prompt, text in samples]
