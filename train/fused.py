"""The gated MLP without two of the tensors that autograd would keep for it.

Qwen2's MLP is `down(silu(gate(x)) * up(x))`. Autograd keeps four tensors of `(tokens, intermediate_size)` for its backward
pass: gate, silu(gate), up and their product. The product and silu(gate) are cheap to compute again, so only gate and up are
kept. Values and gradients are the same up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor
from transformers import Qwen2ForCausalLM


class _GatedDown(torch.autograd.Function):
    """`(silu(gate) * up) @ weight.T`: `(…, intermediate)` twice and `(hidden, intermediate)` to `(…, hidden)`."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return (functional.silu(gate) * up) @ weight.to(gate.dtype).T

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, up, weight = ctx.saved_tensors
        gradient = grad_outputs[0].to(gate.dtype)
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        grad_weight = gradient.flatten(0, -2).T @ (silu * up).flatten(0, -2)
        inner = gradient @ weight.to(gate.dtype)
        grad_up = inner * silu
        # silu'(x) = sigmoid(x) (1 + x (1 − sigmoid(x))) = sigmoid + silu (1 − sigmoid)
        grad_gate = inner.mul_(up).mul_(sigmoid + silu * (1 - sigmoid))
        return grad_gate, grad_up, grad_weight.to(weight.dtype)


def install_gated_mlp(model: Qwen2ForCausalLM) -> None:
    """Let each MLP of `model` train in this way, where its activation is SiLU; the model keeps its classes."""
    if model.config.hidden_act != "silu":
        return
    for layer in model.model.layers:
        mlp = layer.mlp
        original = mlp.forward

        def forward(hidden: Tensor, mlp: Any = mlp, original: Any = original) -> Tensor:
            if not torch.is_grad_enabled():
                result: Tensor = original(hidden)
                return result
            gated: Tensor = _GatedDown.apply(  # type: ignore[no-untyped-call]
                mlp.gate_proj(hidden), mlp.up_proj(hidden), mlp.down_proj.weight
            )
            return gated

        mlp.forward = forward
