"""What a token costs is counted from the model's own parameters."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.train.test_train_model import BLOCK_TOKENS, make_model
from train.callbacks import log_line
from train.flops import flops_a_token, peak_flops, peak_memory_bytes


@pytest.mark.parametrize("tied", [True, False])
def test_flops_are_those_of_all_matrices(tied: bool) -> None:
    model: Qwen2ForCausalLM = make_model(tied=tied)
    matrices = [parameter for name, parameter in model.model.layers.named_parameters() if parameter.ndim == 2]
    expected = (
        6 * (sum(matrix.numel() for matrix in matrices) + model.lm_head.weight.numel()) + 6 * 2 * 32 * BLOCK_TOKENS
    )
    assert flops_a_token(model.config, BLOCK_TOKENS) == expected


def test_the_tutorials_model_costs_758_million_a_token() -> None:
    shape = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=151_680, intermediate_size=2048, **shape)
    assert flops_a_token(config, 512) == pytest.approx(758e6, rel=0.002)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("Some GPU", None),
    ],
)
def test_peaks_are_found_by_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_memory_is_that_of_this_process() -> None:
    before = peak_memory_bytes(torch.device("cpu"))
    block = torch.ones(20_000_000)
    assert max(before, block.numel() * 4) <= peak_memory_bytes(torch.device("cpu")) < 64 * 2**30


def test_log_lines_say_what_is_left() -> None:
    logs = {"loss": 2.0, "epoch": 0.5, "tokens_per_second": 1234.5, "mfu": 0.412, "peak_memory_bytes": 4.1e9}
    line = log_line({**logs, "seconds_left": 11_100.0, "tokens": 13_107_200}, 5, 1000)
    assert line is not None
    assert line.endswith("  13.11 M tokens  loss 2.0000  1,234 tokens/s  MFU 41.2 %  4.1 GB  3 h 5 min left")
