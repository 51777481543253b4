"""The model that is trained: transformers' Qwen2 whose forward pass has the loss in it, fresh from the settings.

The class keeps its name, so what it saves is a plain Qwen2: transformers loads it without this project. Copies, replicas
and `deepcopy` of it work, as nothing hangs on an instance.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, Qwen2Config, set_seed
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from shards.torch import IGNORED
from train.head_loss import TiedGradient, chunked_cross_entropy, plain_cross_entropy, tied_embedding, token_losses
from train.settings import GenerationSettings, ModelSettings

# Causal attention over the whole block, said beforehand: else transformers looks for documents in the positions, and under
# torch.compile, where it can't, makes a mask that keeps attention from its fast path.
WHOLE_BLOCK = {"full_attention": None}


@dataclasses.dataclass
class LossOutput(ModelOutput):  # type: ignore[misc]
    """What the forward pass gives with labels."""

    loss: Tensor | None = None
    token_losses: Tensor | None = None  # (rows, tokens − 1) in fp32, where they were asked for


class Qwen2ForCausalLM(transformers.Qwen2ForCausalLM):  # type: ignore[misc]
    """transformers' model; with labels its forward pass gives the loss instead of all logits.

    The loss is the mean over the labels that count, or their sum divided by `num_items_in_batch`. Ids may be int32: they
    are widened on the device. Rows of `position_ids` that restart keep documents apart.
    """

    head_loss = "plain"  # or "chunked": see `train.head_loss`

    def __init__(self, config: Qwen2Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        for layer in self.model.layers:
            layer.mlp = GatedMLP(layer.mlp)

    # The parameters are spelled out: `generate` looks at their names.
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        want_token_losses: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | LossOutput:
        if labels is None:
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )
        assert input_ids is not None
        if position_ids is None and attention_mask is None:
            attention_mask = WHOLE_BLOCK
        head, tied, inputs = self.lm_head.weight, None, {"input_ids": input_ids}
        is_tied = head is self.model.embed_tokens.weight
        if self.head_loss == "chunked" and is_tied and torch.is_grad_enabled():
            tied = TiedGradient()
            inputs = {"inputs_embeds": tied_embedding(input_ids, head, tied)}
        states = self.model(
            **inputs, attention_mask=attention_mask, position_ids=position_ids, use_cache=False, **kwargs
        )
        hidden = states.last_hidden_state[:, :-1].flatten(0, 1)
        targets = labels[:, 1:].flatten().long()
        losses = None
        if want_token_losses:
            losses = token_losses(hidden, head, targets)
            total = losses.sum()
        elif self.head_loss == "chunked":
            total = chunked_cross_entropy(hidden, head, targets, tied=tied)
        else:
            total = plain_cross_entropy(hidden, head, targets)
        count = (targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return LossOutput(loss=total / count, token_losses=None if losses is None else losses.view(len(input_ids), -1))


class GatedMLP(nn.Module):
    """Qwen2's MLP, `down(act(gate(x)) * up(x))`, which keeps two tensors for its backward pass where autograd keeps four.

    act(gate) and the product are cheap to compute again. It takes over the parts of a `Qwen2MLP` under their names.
    """

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = mlp.gate_proj, mlp.up_proj
        self.down_proj, self.act_fn = mlp.down_proj, mlp.act_fn

    def forward(self, hidden: Tensor) -> Any:
        gate, up = self.gate_proj(hidden), self.up_proj(hidden)
        return checkpoint(self._gated_down, gate, up, use_reentrant=False, preserve_rng_state=False)

    def _gated_down(self, gate: Tensor, up: Tensor) -> Any:
        return self.down_proj(self.act_fn(gate) * up)


def build_config(
    settings: ModelSettings, *, vocab_size: int, eos_id: int, begin_id: int | None = None, block_tokens: int
) -> Qwen2Config:
    """A fresh configuration: none of it comes from a published model.

    There is no `pad_token_id` in it on purpose: the embedding row of that id gets no gradient, and the only id it
    could be, EOS, is one to be learned. The generation config has one.
    """
    values = dataclasses.asdict(settings)
    multiple, rope_theta = (values.pop(name) for name in ("vocab_multiple", "rope_theta"))
    values["max_position_embeddings"] = settings.max_position_embeddings or block_tokens
    config = Qwen2Config(
        **values,
        vocab_size=-(-vocab_size // multiple) * multiple,  # matrix units work on whole tiles: 151,646 becomes 151,680
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        use_sliding_window=False,
        layer_types=["full_attention"] * settings.num_hidden_layers,
        bos_token_id=begin_id,
        eos_token_id=eos_id,
        pad_token_id=None,
    )
    config.rope_theta = rope_theta  # transformers 4 looks here only, and would take 10,000
    return config


def build_model(
    settings: ModelSettings,
    generation: GenerationSettings,
    *,
    vocab_size: int,
    eos_id: int,
    begin_id: int | None = None,
    block_tokens: int,
    seed: int,
) -> Qwen2ForCausalLM:
    """A model with random weights, the same for the same settings and seed.

    Saved with it is how any program generates with it. Ids from `vocab_size` on exist only to round the matrix up:
    `suppress_tokens` keeps them from ever being chosen.
    """
    config = build_config(settings, vocab_size=vocab_size, eos_id=eos_id, begin_id=begin_id, block_tokens=block_tokens)
    set_seed(seed)
    model = Qwen2ForCausalLM(config)
    unused = list(range(vocab_size, config.vocab_size)) or None
    model.generation_config = GenerationConfig(
        **generation_options(generation),
        eos_token_id=eos_id,
        bos_token_id=begin_id,
        pad_token_id=eos_id,
        suppress_tokens=unused,
    )
    return model


def generation_options(settings: GenerationSettings) -> dict[str, Any]:
    """The settings under the names of transformers, which warns of sampling options where nothing is sampled."""
    chance = ("temperature", "top_p", "top_k")
    options = {name: getattr(settings, name) for name in (*chance, "repetition_penalty", "max_new_tokens")}
    is_by_chance = settings.temperature > 0
    return options | ({} if is_by_chance else dict.fromkeys(chance)) | {"do_sample": is_by_chance}


def add_chat_template(directory: Path) -> None:
    """Let programs that know chats only (`transformers serve`, `transformers chat`) continue texts with a saved model.

    A model that is only pretrained has no roles: the messages' texts follow one another. A tokenizer's own template stays.
    """
    path, config = directory / "chat_template.jinja", directory / "tokenizer_config.json"
    if not path.exists() and not (config.is_file() and b'"chat_template"' in config.read_bytes()):
        path.write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}", encoding="utf-8")


@functools.cache
def bf16_pays(*, on_cpu: bool) -> bool:
    """Whether bf16 is faster than fp32 here: on GPUs that support it, on CPUs that have instructions for it."""
    if on_cpu:
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(bool(getattr(torch.cpu, name)()) for name in checks if hasattr(torch.cpu, name))
    return torch.cuda.is_available() and bool(torch.cuda.is_bf16_supported(including_emulation=False))
