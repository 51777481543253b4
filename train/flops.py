"""How much arithmetic a token costs, and how much the device could do: model FLOPs utilization (MFU).

A token costs 6 FLOP for each parameter of a matrix product (a multiplication and an addition, forward once and backward
twice), and 6 × layers × heads × head size × context for attention: half of what Chowdhery et al. 2022, "PaLM", appendix B
count, as a token attends only to those before it, which is all that is computed. The head is a matrix product, tied or
not; looking up an embedding isn't one. Recomputation doesn't count.
"""

from __future__ import annotations

import re
import resource

import torch
from transformers import Qwen2Config

# Dense bf16 FLOP/s without sparsity, from the makers' data sheets; the first name that matches counts.
_PEAKS = {
    r"GH200|H200|H800|H100.*(SXM|HBM3)": 989e12,
    r"H100.*NVL": 835e12,
    r"H100": 756e12,
    r"B200": 2250e12,
    r"A100|A800": 312e12,
    r"H20\b": 148e12,
    r"L40S": 362e12,
    r"L40|6000 Ada": 181e12,
    r"L4\b": 121e12,
    r"A40|A6000": 150e12,
    r"A10\b": 125e12,
    r"RTX 5090": 210e12,
    r"RTX 4090": 165e12,
    r"RTX 3090": 71e12,
}


def flops_a_token(config: Qwen2Config, block_tokens: int) -> float:
    """FLOP for one token, forward and backward.

    The tutorial's model (hidden 512, 12 layers, 151,680 rows) at 512 tokens of context: 758 million.
    """
    hidden, layers, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
    attention = 2 * hidden * (hidden + hidden // heads * config.num_key_value_heads)
    parameters = layers * (attention + 3 * hidden * config.intermediate_size) + config.vocab_size * hidden
    return float(6 * parameters + 6 * layers * hidden * block_tokens)


def peak_flops(device_name: str) -> float | None:
    """The device's bf16 FLOP/s, None if it is not known."""
    return next((peak for pattern, peak in _PEAKS.items() if re.search(pattern, device_name)), None)


def peak_memory_bytes(device: torch.device) -> int:
    """The most that was allocated on a GPU, or the most that this process has had in memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
