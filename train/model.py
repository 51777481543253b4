"""The model that is trained: a fresh Qwen2 from the settings, and the device's precision."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, set_seed

from shards.common.errors import InputError
from train.settings import GenerationSettings, ModelSettings


def build_config(settings: ModelSettings, *, vocab_size: int, eos_id: int, block_tokens: int) -> Qwen2Config:
    """A configuration made afresh: none of it comes from a published model.

    There is no `pad_token_id` in it on purpose: the embedding row of that id gets no gradient, and the only id it
    could be, EOS, is one to be learnt. The generation config has one.
    """
    values = dataclasses.asdict(settings)
    multiple, rope_theta, positions = (
        values.pop(name) for name in ("vocab_multiple", "rope_theta", "max_position_embeddings")
    )
    return Qwen2Config(
        **values,
        vocab_size=-(-vocab_size // multiple) * multiple,  # matrix units work on whole tiles: 151,646 becomes 151,680
        max_position_embeddings=positions or block_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        use_sliding_window=False,
        layer_types=["full_attention"] * settings.num_hidden_layers,
        bos_token_id=None,
        eos_token_id=eos_id,
        pad_token_id=None,
    )


def build_generation_config(
    settings: GenerationSettings, *, vocab_size: int, eos_id: int, padded: int
) -> GenerationConfig:
    """The defaults that the saved model generates with, in any program.

    Ids from `vocab_size` to `padded` − 1 exist only to round the matrix up; `suppress_tokens` keeps them from ever
    being chosen, also after the model has been saved and loaded elsewhere.
    """
    sampling = settings.temperature > 0
    return GenerationConfig(
        eos_token_id=eos_id,
        pad_token_id=eos_id,
        do_sample=sampling,
        temperature=settings.temperature if sampling else None,
        top_p=settings.top_p if sampling else None,
        top_k=settings.top_k if sampling else None,
        repetition_penalty=settings.repetition_penalty,
        max_new_tokens=settings.max_new_tokens,
        suppress_tokens=list(range(vocab_size, padded)) or None,
    )


def build_model(
    settings: ModelSettings,
    generation: GenerationSettings,
    *,
    vocab_size: int,
    eos_id: int,
    block_tokens: int,
    seed: int,
) -> Qwen2ForCausalLM:
    """A model with random weights, the same for the same settings and seed."""
    config = build_config(settings, vocab_size=vocab_size, eos_id=eos_id, block_tokens=block_tokens)
    set_seed(seed)
    try:
        model = Qwen2ForCausalLM(config)
    except KeyError as error:  # an activation function that transformers doesn't know
        raise InputError(f"model: hidden_act: {settings.hidden_act!r} is unknown to transformers ({error})") from None
    model.generation_config = build_generation_config(
        generation, vocab_size=vocab_size, eos_id=eos_id, padded=config.vocab_size
    )
    return model


def add_chat_template(directory: Path) -> None:
    """Let programs that know chats only (`transformers serve`, `transformers chat`) continue texts with a saved model.

    A model that is only pretrained has no roles: the messages' texts follow one another. A tokenizer's own template stays.
    """
    path = directory / "chat_template.jinja"
    config = directory / "tokenizer_config.json"
    if path.exists() or (config.is_file() and b'"chat_template"' in config.read_bytes()):
        return
    path.write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}", encoding="utf-8")


def must_use_cpu() -> bool:
    """Whether torch finds no accelerator."""
    return not torch.accelerator.is_available()


def bf16_pays(*, on_cpu: bool) -> bool:
    """Whether bf16 is faster than fp32 here: on GPUs that support it, on CPUs that have instructions for it."""
    if on_cpu:
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(bool(getattr(torch.cpu, name)()) for name in checks if hasattr(torch.cpu, name))
    return torch.cuda.is_available() and bool(torch.cuda.is_bf16_supported(including_emulation=False))
