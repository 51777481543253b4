"""The gated MLP that keeps less has the values and gradients of the model's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from train.fused import install_gated_mlp

from tests.train.test_train_loss import make_batch, make_model


def naming(name: str) -> Callable[[str], str]:
    """A message of `assert_close` that begins with `name`."""
    return lambda text: f"{name}: {text}"


def gradients(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_values_and_gradients_are_the_same() -> None:
    model = make_model()
    reference = copy.deepcopy(model)
    install_gated_mlp(model)
    batch = {key: tensor.long() for key, tensor in make_batch().items()}
    torch.testing.assert_close(model(**batch).loss, reference(**batch).loss, rtol=1e-6, atol=0)
    expected = gradients(reference, batch)
    for name, found in gradients(model, batch).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-7, msg=naming(name))


def test_gradient_is_the_derivative() -> None:
    model = make_model().double()
    install_gated_mlp(model)
    mlp = model.model.layers[0].mlp
    hidden = torch.randn(1, 3, 32, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp.forward, (hidden,))


def test_in_bf16_it_is_as_near_as_the_models_own() -> None:
    model = make_model()
    exact = copy.deepcopy(model)
    reference = copy.deepcopy(model)
    install_gated_mlp(model)
    batch = {key: tensor.long() for key, tensor in make_batch().items()}
    expected = gradients(exact, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, own = gradients(model, batch), gradients(reference, batch)
    for name in expected:
        assert found[name].dtype == torch.float32
        error, own_error = ((one[name] - expected[name]).norm() for one in (found, own))
        assert error <= 1.5 * own_error + 1e-6, name


def kept_bytes(model: Any, batch: dict[str, Tensor]) -> int:
    """Of all tensors that autograd keeps between the two passes, each storage once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch).loss
    del loss
    return sum(kept.values())


def test_two_tensors_a_layer_are_not_kept() -> None:
    model = make_model()
    reference = copy.deepcopy(model)
    install_gated_mlp(model)
    batch = {key: tensor.long() for key, tensor in make_batch().items()}
    tensor_bytes = 3 * 24 * 48 * 4
    assert kept_bytes(reference, batch) - kept_bytes(model, batch) == 2 * 2 * tensor_bytes


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: torch.compile(model, backend="aot_eager")])
def test_gradient_checkpointing_and_compiling_change_nothing(wrap: Callable[[Any], Any]) -> None:
    model = make_model()
    reference = copy.deepcopy(model)
    install_gated_mlp(model)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    batch = {key: tensor.long() for key, tensor in make_batch().items()}
    expected = gradients(reference, batch)
    wrap(model)(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-7)


def test_another_activation_is_left_alone() -> None:
    model = make_model()
    model.config.hidden_act = "gelu"
    before = model.model.layers[0].mlp.forward
    install_gated_mlp(model)
    assert model.model.layers[0].mlp.forward == before
