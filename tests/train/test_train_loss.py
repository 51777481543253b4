"""The chunked loss is the plain one, and the model that computes it is still the model."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
import types
from typing import Any

import pytest
import torch
from shards.torch import DocumentCollator
from train.loss import chosen_loss, chunked_cross_entropy, install_loss, plain_cross_entropy, rows_at_a_time
from transformers import Qwen2ForCausalLM

from shards.common.errors import InputError
from train.model import build_model
from train.settings import GenerationSettings, ModelSettings

VOCAB_SIZE, EOS_ID, BLOCK_TOKENS = 700, 600, 24


def make_model(*, tied: bool = True) -> Qwen2ForCausalLM:
    settings = ModelSettings(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    return build_model(
        settings, GenerationSettings(), vocab_size=VOCAB_SIZE, eos_id=EOS_ID, block_tokens=BLOCK_TOKENS, seed=1
    )


def make_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(
        0, VOCAB_SIZE, (3, BLOCK_TOKENS), generator=torch.Generator().manual_seed(seed), dtype=torch.int32
    )
    labels = ids.clone()
    labels[:, ::5] = -100
    return {"input_ids": ids, "labels": labels}


@pytest.mark.parametrize("chunk_rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_loss_and_gradients_are_those_of_the_plain_loss(chunk_rows: int, scale: float) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(90, 16, requires_grad=True), torch.randn(500, 16, requires_grad=True)
    labels = torch.randint(0, 500, (90,))
    labels[::7] = -100
    found = chunked_cross_entropy(hidden, weight, labels, chunk_rows=chunk_rows)
    (found * scale).backward()
    assert hidden.grad is not None and weight.grad is not None
    gradients = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    expected = plain_cross_entropy(hidden, weight, labels)
    (expected * scale).backward()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients[0], hidden.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[1], weight.grad, rtol=1e-5, atol=1e-6)


def test_no_gradient_is_computed_where_none_is_wanted() -> None:
    hidden, weight = torch.randn(5, 4), torch.randn(9, 4, requires_grad=True)
    labels = torch.tensor([0, 8, -100, 3, 3])
    with torch.no_grad():
        assert not chunked_cross_entropy(hidden, weight, labels).requires_grad
    chunked_cross_entropy(hidden, weight, labels).backward()
    assert hidden.grad is None and weight.grad is not None


def test_all_labels_left_out_is_no_loss() -> None:
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    total = chunked_cross_entropy(hidden, weight, torch.full((5,), -100))
    total.backward()
    assert total.item() == 0 and hidden.grad is not None and not hidden.grad.any()


@pytest.mark.parametrize("name", ["plain", "chunked"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_has_the_loss_and_gradients_of_transformers(name: str, tied: bool) -> None:
    model = make_model(tied=tied)
    reference = copy.deepcopy(model)
    install_loss(model, name)
    for seed, count in ((0, None), (1, 100)):  # accumulated: two batches before anything is cleared
        batch = make_batch(seed)
        wide = {key: tensor.long() for key, tensor in batch.items()}
        found = model(**batch, num_items_in_batch=count).loss
        expected = reference(**wide, **({"num_items_in_batch": count} if count else {})).loss
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
        found.backward()
        expected.backward()
    for (key, left), (_, right) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        assert left.grad is not None, key
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-4, atol=1e-6)


def test_without_labels_the_model_gives_its_logits_and_generates() -> None:
    model = make_model().eval()
    reference = copy.deepcopy(model)
    install_loss(model, "chunked")
    ids = make_batch()["input_ids"].long()
    assert torch.equal(model(ids).logits, reference(ids).logits)
    prompt: Any = {"inputs": ids[:1, :4], "max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(**prompt), reference.generate(**prompt))


def test_tied_weights_hold_one_gradient_and_not_two(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    install_loss(model, "chunked")
    made: list[int] = []
    original = torch.empty_like

    def counting(like: torch.Tensor, **options: Any) -> torch.Tensor:
        made.extend([1] if like.shape == model.lm_head.weight.shape else [])
        return original(like, **options)

    monkeypatch.setattr(torch, "empty_like", counting)
    model(**make_batch()).loss.backward()
    assert sum(made) == 1


def test_embedding_frozen_by_hand_trains_the_rest() -> None:
    model = make_model()
    model.model.embed_tokens.weight.requires_grad_(False)
    install_loss(model, "chunked")
    model(**make_batch()).loss.backward()
    assert model.lm_head.weight.grad is None
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_compiled_model_has_the_same_loss() -> None:
    model = make_model()
    install_loss(model, "chunked")
    batch = make_batch()
    expected = model(**batch).loss
    compiled: Any = torch.compile(model, backend="aot_eager")
    found = compiled(**batch).loss
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    found.backward()
    gradient = model.model.embed_tokens.weight.grad.clone()
    model.zero_grad()
    expected.backward()
    torch.testing.assert_close(gradient, model.model.embed_tokens.weight.grad, rtol=1e-5, atol=1e-7)


def test_autocast_multiplies_in_bf16_and_sums_in_fp32() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 16, requires_grad=True), torch.randn(500, 16, requires_grad=True)
    labels = torch.randint(0, 500, (40,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = chunked_cross_entropy(hidden, weight, labels)
    assert narrow.dtype == torch.float32
    narrow.backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    exact = plain_cross_entropy(hidden, weight, labels)
    assert not torch.equal(narrow, exact)
    torch.testing.assert_close(narrow, exact, rtol=0.01, atol=0)


def unscaled_softmax(logits: torch.Tensor, labels: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """What `train.softmax_kernel` computes, by torch's operations."""
    wide = logits.float()
    counted = labels != -100
    targets = torch.where(counted, labels, 0).unsqueeze(1)
    powers = (wide - wide.amax(dim=1, keepdim=True)).exp()
    sums = powers.sum(dim=1, keepdim=True)
    losses.copy_(torch.where(counted, wide.logsumexp(dim=1) - wide.gather(1, targets).squeeze(1), 0))
    logits.copy_(powers.scatter_add(1, targets, -sums))
    return torch.where(counted.unsqueeze(1), 1 / sums, 0)


def test_logits_stay_narrow_where_the_softmax_takes_them_so(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 16, requires_grad=True), torch.randn(500, 16, requires_grad=True)
    labels = torch.randint(0, 500, (40,))
    labels[::7] = -100
    plain_cross_entropy(hidden, weight, labels).backward()
    assert hidden.grad is not None and weight.grad is not None
    expected = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    seen = []

    def softmax(logits: torch.Tensor, labels: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        seen.append(logits.dtype)
        return unscaled_softmax(logits, labels, losses)

    monkeypatch.setattr("train.loss.softmax_for", lambda device, dtype: (softmax, dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = chunked_cross_entropy(hidden, weight, labels, chunk_rows=16)
    found.backward()
    assert seen == [torch.bfloat16] * 3
    torch.testing.assert_close(found, plain_cross_entropy(hidden, weight, labels), rtol=0.01, atol=0)
    for gradient, exact in zip((hidden.grad, weight.grad), expected, strict=True):
        assert gradient is not None and (gradient - exact).norm() < 0.01 * exact.norm()
    assert hidden.grad is not None and not hidden.grad[::7].any()


def test_a_gradient_in_fp16_is_finite_with_a_vocabulary_beyond_its_range() -> None:
    """The sum of 140,000 powers of about one is more than fp16 holds."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(4, 8, requires_grad=True), (0.001 * torch.randn(140_000, 8)).requires_grad_()
    labels = torch.tensor([3, 139_999, -100, 17])
    with torch.autocast("cpu", dtype=torch.float16):
        found = chunked_cross_entropy(hidden, weight, labels)
    found.backward()
    assert hidden.grad is not None and weight.grad is not None
    gradients = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    expected = plain_cross_entropy(hidden, weight, labels)
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    for gradient, exact in zip(gradients, (hidden.grad, weight.grad), strict=True):
        assert exact is not None and (gradient - exact).norm() < 0.01 * exact.norm()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton, which comes with torch for GPUs")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_is_the_plain_softmax(dtype: str) -> None:
    program = f"""
import torch
from train.softmax import softmax_in_place
import train.softmax_kernel as kernel
kernel.BLOCK = 256
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
for columns in (100, 256, 1000):
    logits = (3 * torch.randn(13, columns)).to(torch.{dtype}).to(device)
    labels = torch.randint(0, columns, (13,), device=device)
    labels[::4] = -100
    wide, expected, found = logits.float().clone(), torch.empty(13, device=device), torch.empty(13, device=device)
    wide *= softmax_in_place(wide, labels, expected)
    gradient = kernel.softmax_kernel(logits, labels, found) * logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (gradient - wide).norm() < {1e-6 if dtype == "float32" else 0.01} * wide.norm(), columns
"""
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    environment = {**os.environ, **interpreted, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_chunks_on_a_big_gpu_fill_its_multiprocessors(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(vocab_size: int, hidden_size: int, *, gigabytes: int = 80) -> int:
        properties = types.SimpleNamespace(total_memory=gigabytes << 30, multi_processor_count=132)
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)
        return rows_at_a_time(torch.empty(vocab_size, hidden_size, device="meta"), torch.device("cuda"))

    monkeypatch.setattr("train.loss.has_triton", lambda: True)
    assert (
        rows(151_680, 512) == 132 * 128 // 2 and rows(151_680, 1024) == 132 * 128 // 4 and rows(32_000, 64) == 132 * 128
    )
    assert rows(600_000, 512) == 20 * 128  # no more than 3 GiB of logits in bf16
    assert rows(151_680, 512, gigabytes=24) == 13 * 128
    monkeypatch.setattr("train.loss.has_triton", lambda: False)
    assert rows(151_680, 512) == 13 * 128


def test_auto_is_chosen_by_the_vocabulary() -> None:
    assert chosen_loss("auto", 4096, on_cpu=False) == "plain" and chosen_loss("auto", 4096, on_cpu=True) == "chunked"
    assert chosen_loss("auto", 700, on_cpu=True) == "plain" and chosen_loss("auto", 151_680, on_cpu=False) == "chunked"
    assert chosen_loss("plain", 151_680, on_cpu=True) == "plain"


def test_liger_that_is_not_installed_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install liger-kernel"):
        chosen_loss("liger", 10, on_cpu=False)


@pytest.mark.parametrize("name", ["plain", "chunked"])
def test_whole_blocks_need_no_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that is given, even the causal one, keeps attention from its fast path."""
    model, given = make_model(), []
    original = torch.nn.functional.scaled_dot_product_attention

    def attention(*args: Any, **kwargs: Any) -> torch.Tensor:
        given.append((kwargs["attn_mask"], kwargs["is_causal"]))
        return original(*args, **kwargs)

    batch = make_batch()
    expected = model(input_ids=batch["input_ids"].long(), labels=batch["labels"].long()).loss
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda ids: torch.zeros_like(ids))
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", attention)
    install_loss(model, name)
    torch.testing.assert_close(model(**batch).loss, expected)
    assert given == [(None, True)] * 2


@pytest.mark.parametrize("name", ["plain", "chunked"])
def test_a_document_that_shares_its_block_is_as_if_alone(name: str) -> None:
    model = make_model().eval()
    lengths = (9, 1, 14)
    generator = torch.Generator().manual_seed(5)
    documents = [torch.randint(0, 599, (length,), generator=generator) for length in lengths]
    for document in documents:
        document[-1] = EOS_ID
    block = torch.cat(documents).int()
    batch = DocumentCollator(EOS_ID)(block[None].repeat(2, 1))
    assert batch["position_ids"][0].tolist() == [*range(9), 0, *range(14)]
    assert (batch["labels"][0] == -100).nonzero().flatten().tolist() == [9, 10]
    packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0]
    joined = model(input_ids=batch["input_ids"], use_cache=False).logits[0]
    start = 0
    total = 0.0
    for document in documents:
        alone = model(input_ids=document[None], use_cache=False).logits[0]
        torch.testing.assert_close(packed[start : start + len(document)], alone, rtol=0, atol=1e-5)
        total += torch.nn.functional.cross_entropy(alone[:-1], document[1:], reduction="sum").item()
        start += len(document)
    assert not torch.allclose(joined, packed, atol=1e-2)
    install_loss(model, name)
    assert model(**batch).loss.item() == pytest.approx(total / (24 - 3), rel=1e-5)
