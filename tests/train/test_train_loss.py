"""The chunked loss over the vocabulary is the plain one."""

from __future__ import annotations

import functools
import importlib.util
import types

import pytest
import torch
from torch import Tensor

from tests.conftest import run_python
from train.head_loss import chosen_loss, chunked_cross_entropy, has_triton, plain_cross_entropy, rows_at_a_time


def example(rows: int, width: int = 16, vocab_size: int = 500) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, a head, and labels of which every seventh doesn't count."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(rows, width, requires_grad=True), torch.randn(vocab_size, width, requires_grad=True)
    labels = torch.randint(0, vocab_size, (rows,))
    labels[::7] = -100
    return hidden, weight, labels


def gradients(total: Tensor, hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(total, (hidden, weight))


def assert_near(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> None:
    for gradient, expected in zip(found, exact, strict=True):
        assert (gradient - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("chunk_rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_loss_and_gradients_are_those_of_the_plain_loss(chunk_rows: int, scale: float) -> None:
    hidden, weight, labels = example(90)
    found = chunked_cross_entropy(hidden, weight, labels, chunk_rows=chunk_rows)
    expected = plain_cross_entropy(hidden, weight, labels)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    pair = gradients(found * scale, hidden, weight), gradients(expected * scale, hidden, weight)
    torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-6)


def test_no_gradient_is_computed_where_none_is_wanted() -> None:
    hidden, weight, labels = example(9)
    with torch.no_grad():
        assert not chunked_cross_entropy(hidden, weight, labels).requires_grad
    chunked_cross_entropy(hidden.detach(), weight, labels).backward()
    assert hidden.grad is None and weight.grad is not None


def test_all_labels_left_out_is_no_loss() -> None:
    hidden, weight, labels = example(5)
    total = chunked_cross_entropy(hidden, weight, torch.full_like(labels, -100))
    assert total.item() == 0 and not gradients(total, hidden, weight)[0].any()


def test_autocast_multiplies_in_bf16_and_sums_in_fp32() -> None:
    hidden, weight, labels = example(40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = chunked_cross_entropy(hidden, weight, labels)
    assert narrow.dtype == gradients(narrow, hidden, weight)[1].dtype == torch.float32
    exact = plain_cross_entropy(hidden, weight, labels)
    assert not torch.equal(narrow, exact)
    torch.testing.assert_close(narrow, exact, rtol=0.01, atol=0)


def unscaled_softmax(logits: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
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
    hidden, weight, labels = example(40)
    seen = []

    def softmax(logits: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
        seen.append(logits.dtype)
        return unscaled_softmax(logits, labels, losses)

    monkeypatch.setattr("train.head_loss.softmax_for", lambda device, dtype: (softmax, dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = chunked_cross_entropy(hidden, weight, labels, chunk_rows=16)
    expected = plain_cross_entropy(hidden, weight, labels)
    assert seen == [torch.bfloat16] * 3
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)
    own = gradients(found, hidden, weight)
    assert_near(own, gradients(expected, hidden, weight))
    assert not own[0][::7].any()


def test_a_gradient_in_fp16_is_finite_with_a_vocabulary_beyond_its_range() -> None:
    """The sum of 140,000 powers of about one is more than fp16 holds."""
    hidden, weight, labels = example(4, 8, 140_000)
    weight.data *= 0.001
    with torch.autocast("cpu", dtype=torch.float16):
        found = chunked_cross_entropy(hidden, weight, labels)
    expected = plain_cross_entropy(hidden, weight, labels)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    assert_near(gradients(found, hidden, weight), gradients(expected, hidden, weight))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton, which comes with torch for GPUs")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_is_the_plain_softmax(dtype: str) -> None:
    program = f"""
import torch
from train.head_loss import softmax_in_place
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
    done = run_python("-c", program, env=interpreted)
    assert done.returncode == 0, done.stderr


def test_chunks_on_a_big_gpu_fill_its_multiprocessors(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(vocab_size: int, hidden_size: int, *, gigabytes: int = 80) -> int:
        properties = types.SimpleNamespace(total_memory=gigabytes << 30, multi_processor_count=132)
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)
        return rows_at_a_time(torch.empty(vocab_size, hidden_size, device="meta"), torch.device("cuda"))

    monkeypatch.setattr("train.head_loss.has_triton", lambda: True)
    assert [rows(151_680, 512), rows(151_680, 1024), rows(32_000, 64)] == [132 * 128 // part for part in (2, 4, 1)]
    assert rows(600_000, 512) == 20 * 128  # no more than 3 GiB of logits in bf16
    assert rows(151_680, 512, gigabytes=24) == 13 * 128
    monkeypatch.setattr("train.head_loss.has_triton", lambda: False)
    assert rows(151_680, 512) == 13 * 128


def test_auto_is_chosen_by_the_vocabulary() -> None:
    assert chosen_loss("auto", 4096, on_cpu=False) == "plain" and chosen_loss("auto", 4096, on_cpu=True) == "chunked"
    assert chosen_loss("auto", 700, on_cpu=True) == "plain" and chosen_loss("auto", 151_680, on_cpu=False) == "chunked"
    assert chosen_loss("plain", 151_680, on_cpu=True) == "plain"


def test_triton_needs_its_package_a_gpu_and_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    cases: list[tuple[str | None, int | None, str | None]] = [("triton", 8, "gcc"), ("triton", 6, "gcc")]
    cases += [("triton", None, "gcc"), (None, 8, "gcc"), ("triton", 8, None)]
    found = []
    for package, gpu, compiler in cases:
        with monkeypatch.context() as patched:
            patched.setattr("importlib.util.find_spec", functools.partial(lambda package, _: package, package))
            patched.setattr("shutil.which", functools.partial(lambda compiler, _: compiler, compiler))
            patched.setattr("torch.cuda.is_available", functools.partial(bool, gpu))
            patched.setattr("torch.cuda.get_device_capability", functools.partial(tuple, (gpu, 0)))
            found.append(has_triton.__wrapped__())
    assert found == [True, False, False, False, False]
